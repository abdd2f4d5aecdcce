"""The C++ of our operators compiles for processors that this machine has not."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import jclip_fewshot

PACKAGE = Path(jclip_fewshot.__file__).parent
COMPILER = shutil.which("g++")
TOWER = ["clip/product.cpp", "clip/tower.cpp"]
TOGETHER = [[*TOWER, "clip/resnet.cpp"], [*TOWER, "clip/attention.cpp"], [*TOWER, "clip/layers.cpp"],
            ["backend/losses.cpp"], ["backend/adamw.cpp"], ["backend/watchdog.cpp"]]
BEHIND = "\nin0_type used;\n"  # an operator's own code knows its definitions


def as_jittor_has_it(source):
    """Jittor puts an operator's definitions behind the last #include, wherever that stands."""
    text = "#include <cmath>\n" + source + BEHIND
    end = [found.end() for found in re.finditer(r"^ *#include.*$", text, re.MULTILINE)][-1]
    return text[:end] + "\n#define in0_type float\n" + text[end:]


def test_every_source_is_looked_at():
    named = {name for names in TOGETHER for name in names}
    assert named == {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.cpp")}


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[-1])
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512", "cooperlake", "sapphirerapids"])
def test_it_compiles_for(processor, names):
    if COMPILER is None or platform.machine() != "x86_64":
        pytest.skip("no g++ for x86-64 here")
    done = subprocess.run(
        [COMPILER, "-x", "c++", "-std=c++14", "-fopenmp", "-fsyntax-only", f"-march={processor}", "-"],
        input=as_jittor_has_it("".join((PACKAGE / name).read_text() for name in names)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "bad value" in done.stdout:
        pytest.skip(f"this g++ does not know {processor}")
    assert done.returncode == 0, done.stdout
