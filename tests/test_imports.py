"""What importing may and may not do: rooms import only what lies below them, and none but backend starts Jittor."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jclip_fewshot
from tests.conftest import ROOT

# from the ground up: a room imports rooms of lower floors only
FLOORS = [{"errors"}, {"console", "config"}, {"storage"}, {"backend"}, {"clip", "task"}, {"data"}, {"encoders"},
          {"features"}, {"combine", "methods"}, {"pipeline"}, {"problem", "provenance", "labels", "export_onnx"},
          {"records", "export"}, {"run"},
          {"evaluation"}, {"classifier", "report"}, {"cli"}]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# what lies on finished rows alone knows neither encoders nor paths, and nobody's flags
NARROW = {"methods/rows": {"backend", "console", "errors", "task", "methods.base", "methods.training", "methods.rows"},
          "methods/training.py": {"backend", "console"},
          "methods/base.py": {"backend", "console", "errors", "task"},
          "combine": {"backend", "console", "errors", "task", "combine"}, "task.py": {"backend"}}
# the modules of Jittor's own classes: whoever imports one of them has started Jittor
STARTS_JITTOR = {"jclip_fewshot.clip.model", "jclip_fewshot.clip.layers", "jclip_fewshot.clip.modified_resnet"}


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, without its name; also those for the type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jclip_fewshot"):
            inside = node.module.partition(".")[2]
            found |= {".".join(filter(None, [inside, alias.name])) for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {"jittor" for name in names if name.partition(".")[0] == "jittor"}
    return found


FILES = sorted((ROOT / "jclip_fewshot").rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT / "jclip_fewshot").as_posix()


def room_of(path: Path) -> str:
    return place(path).partition("/")[0].removesuffix(".py")


def test_rooms_import_what_lies_below_them():
    known = [path for path in FILES if room_of(path) not in ("__init__", "__main__", "runtime")]
    assert {room_of(path) for path in known} == set(FLOOR), "a new room needs a floor"
    wrong = [f"{place(path)} imports {name}" for path in known for name in imports_of(path)
             if name.partition(".")[0] in FLOOR and name.partition(".")[0] != room_of(path)
             and FLOOR[name.partition(".")[0]] >= FLOOR[room_of(path)]]
    assert wrong == []


@pytest.mark.parametrize("where, allowed", NARROW.items())
def test_what_works_on_rows_knows_nothing_else(where, allowed):
    inside = [path for path in FILES if place(path).startswith(where)]
    wrong = [f"{place(path)} imports {name}" for path in inside for name in imports_of(path)
             if name.partition(".")[0] in FLOOR and not any((name + ".").startswith(one + ".") for one in allowed)]
    assert inside and wrong == []


def test_backend_alone_imports_jittor():
    wrong = [place(path) for path in FILES if room_of(path) != "backend"
             and ("jittor" in imports_of(path) or 'import_module("jittor' in path.read_text(encoding="utf-8"))]
    assert wrong == []


def test_tests_do_not_import_each_other():
    wrong = [path.name for path in (ROOT / "tests").rglob("test_*.py") if any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests")
        and (node.module.rpartition(".")[2].startswith("test_") or any(a.name.startswith("test_") for a in node.names))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert wrong == []


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
