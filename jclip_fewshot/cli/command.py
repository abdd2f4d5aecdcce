"""What every command does around its work: device, quietness, and mistakes said in one line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Callable, Optional

from jclip_fewshot import console
from jclip_fewshot.backend import ranks, runtime
from jclip_fewshot.config import MachineConfig
from jclip_fewshot.errors import UserError


def set_up(settings: MachineConfig) -> runtime.Plan:
    """Starts Jittor as the settings say and tells the rest how talkative to be."""
    console.quiet = settings.quiet or not ranks.first()
    ranks.use_own_gpu()
    if settings.verbose:
        os.environ[runtime.LOG_VARIABLE] = "1"
    warnings.showwarning = lambda message, *_: console.warn(str(message))  # a line, without file and number
    return runtime.start(settings.device)


def run(main: Callable[[], Optional[int]]) -> None:
    """Calls `main` and leaves: a UserError is one line and status 2, Ctrl-C one line and status 130."""
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        if console.verbose:
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
