"""What importing may and may not do: the scripts choose Jittor's device before it starts."""

import pkgutil
import subprocess
import sys

import jclip_fewshot
from tests.conftest import ROOT

# the modules of Jittor's own classes: whoever imports one of them has started Jittor
STARTS_JITTOR = {"jclip_fewshot.clip.attention", "jclip_fewshot.clip.model",
                 "jclip_fewshot.clip.layers", "jclip_fewshot.clip.modified_resnet"}


def test_importing_starts_no_jittor():
    modules = [module.name for module in pkgutil.walk_packages(jclip_fewshot.__path__, "jclip_fewshot.")]
    wanted = [name for name in modules if name not in STARTS_JITTOR and not name.endswith("__main__")
              and not name.startswith("jclip_fewshot.scripts")]
    assert len(wanted) > 80
    code = ("import importlib, sys\n"
            f"for name in {wanted!r}:\n"
            "    importlib.import_module(name)\n"
            "    assert 'jittor' not in sys.modules, name\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()[-500:]
