"""What every command does around its work: device, quietness, and mistakes said in one line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Callable, Optional

from . import progress, ranks, runtime
from .config import MachineConfig
from .errors import UserError


def set_up(settings: MachineConfig) -> runtime.Plan:
    """Starts Jittor as the settings say and tells the rest how talkative to be."""
    progress.quiet = runtime.quiet = settings.quiet or not ranks.first()
    ranks.use_own_gpu()
    if settings.verbose:
        os.environ[runtime.LOG_VARIABLE] = "1"
    warnings.showwarning = lambda message, *_: warn(str(message))  # a line, without file and number
    return runtime.start(settings.device)


def tell(text: str = "") -> None:
    """A line for the person who waits, on standard error; none with --quiet."""
    if not progress.quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that must be seen, even with --quiet."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def run(main: Callable[[], Optional[int]]) -> None:
    """Calls `main` and leaves: a UserError is one line and status 2, Ctrl-C one line and status 130."""
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        if "--verbose" in sys.argv:
            traceback.print_exc()
        if ranks.first():  # the others have met the same mistake
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"rank {ranks.rank()}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
