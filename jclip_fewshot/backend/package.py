"""The Jittor that is built and imported: a copy of the installed package in which a few lines are mended.

The copy lies in JITTOR_HOME, under a digest of what it holds, and nothing in the copy or in a command line that builds
it names the virtual environment. So all environments of one Python share one build, a path with spaces to
site-packages does no harm, and the user's own files stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

from jclip_fewshot.errors import UserError

PACKAGES = ("jittor", "jittor_utils")
_LEFT_OUT = ("__pycache__", "test", "demo", "notebook")

# (file, what Jittor 1.3.11.0 has, what stands in its place)
_MENDS = (
    # NumPy 2 moved the item size within an array's descriptor; the type's number stays where it was, and tells as much.
    ("jittor/src/pyjt/numpy.h", "size *= arr->descr->elsize;", "size *= get_type_str(arr).dsize();"),
    # NumPy 2 renamed its core. Both names, in the order that NumPy's own headers try them.
    ("jittor/src/pyjt/numpy.cc",
     'PyObjHolder np(PyImport_ImportModule("numpy.core.multiarray"), "numpy is not installed");',
     """PyObject* multiarray = PyImport_ImportModule("numpy._core._multiarray_umath");
    if (!multiarray) {
        PyErr_Clear();
        multiarray = PyImport_ImportModule("numpy.core._multiarray_umath");
    }
    PyObjHolder np(multiarray, "numpy is not installed");"""),
    # NumPy 2 moved this function, too: where Jittor looks for it there is nothing, and it jumps there.
    ("jittor/src/pyjt/numpy.cc", "    ASSERT(PyArray_GetNDArrayCFeatureVersion()>=7);",
     """    if (PyArray_GetNDArrayCFeatureVersion() >= 0x12)
        fill(PyArray_CopyInto, 50);
    ASSERT(PyArray_GetNDArrayCFeatureVersion()>=7);"""),
    # A NumPy number as an index, by a descriptor of which Jittor fills in the type alone.
    ("jittor/src/pyjt/py_converter.h", """        PyArrayDescr_Proxy array_descr;
        array_descr.type_num = 5; // 5: int32
        int value;
        PyArray_CastScalarToCtype(obj, &value, &array_descr);
        var_slice->set_int(value);
""", """        PyObjHolder number(PyNumber_Long(obj));
        var_slice->set_int(PyLong_AsLong(number.obj));
"""),
    # Signals belong to Python. Jittor's handlers end the process on the spot, at Ctrl-C and when any child was killed.
    ("jittor/src/utils/log.cc", "    register_sigaction();\n    std::atexit", "    std::atexit"),
    # A compile thread reads n once more when the function that owns n may have returned: it gets a copy.
    ("jittor/src/parallel_compiler.cc", "auto func = [&](int tid) {", "auto func = [&, n](int tid) {"),
    # With all operators compiled, the wait for the threads took longer than what they had to do.
    ("jittor/src/parallel_compiler.cc", "std::min(sleep_us*2, 1000000)", "std::min(sleep_us*2, 1000)"),
    # The wait for the compiler is shown in one line, on a terminal only (runtime.py sets the variable).
    ("jittor/src/parallel_compiler.cc", """if (diff > 2e9) {
            if (!change_line) {
                std::cerr << "\\n";
                change_line = true;
            }
            // delay output progress in 2s
            float eta = diff / 1e9 / i * (n-i);
            std::cerr << "Compiling Operators(" << i << '/' << n << ")"
                << " used: " << std::setprecision(3) << std::setw(4) << diff/1e9 << "s eta: "
                << std::setprecision(3) << std::setw(4) << eta << "s \\r";
        }
    }
    if (change_line)
        std::cerr << std::endl;""", """if (diff > 2e9 && getenv("JCLIP_PROGRESS") && *getenv("JCLIP_PROGRESS") == '1') {
            change_line = true;
            std::cerr << "\\r\\033[Kcompiling operators, once: " << i << " of " << n << std::flush;
        }
    }
    if (change_line)
        std::cerr << "\\r\\033[K" << std::flush;"""),
    # The assembler's step needs nothing of Jittor's, so that any Python of this machine can run it.
    ("jittor/utils/asm_tuner.py", """import jittor_utils as jit_utils
from jittor_utils import LOG
jit_utils.try_import_jit_utils_core(silent=True)
""", ""),
    ("jittor/utils/asm_tuner.py", '    LOG.vvvv(f"Run cmd: {cmd}")\n', ""),
    # JITTOR_HOME counts for this process alone; Jittor would note it in HOME's config.json and go by it ever after.
    ("jittor_utils/__init__.py", '    src_path = os.path.join(str(Path.home()),".cache","jittor")\n',
     """    if os.environ.get("JITTOR_HOME"):
        _jittor_home = os.path.abspath(os.environ["JITTOR_HOME"])
        return _jittor_home
    src_path = os.path.join(str(Path.home()),".cache","jittor")
"""),
    # The kernel's release and the host's name say nothing of a build; in a container both change at every start.
    ("jittor_utils/__init__.py", "osv = platform.platform() + platform.node()", "osv = platform.system()"),
    # In a notebook this sets a variable to its default, and says so.
    ("jittor_utils/__init__.py", '        if is_in_ipynb: os.environ["log_sync"] = "1"\n', ""),
    # From Python 3.13 on a function's locals() no longer shows what exec() has imported.
    ("jittor/compiler.py", "mod = locals()[gen_name]", "mod = sys.modules[gen_name]"),
    ("jittor_utils/__init__.py", "mod = locals()[hash]", "mod = sys.modules[hash]"),
    # No pool of processes need not mean no threads.
    ("jittor_utils/__init__.py", """'0') == '1':
    os.environ["use_parallel_op_compiler"] = '0'
""", "'0') == '1':\n"),
)


def mended(home: Path) -> Path:
    """Return the folder of the mended copy under the `JITTOR_HOME` `home`, for `sys.path`; made when first asked for.

    Raise UserError if Jittor is not installed, or is not the release whose lines are known here.
    """
    spec = PathFinder.find_spec("jittor")  # not sys.modules, where the copy may stand already
    if spec is None or not spec.origin:
        raise UserError("Jittor is not installed: python -m pip install --no-deps jittor==1.3.11.0")
    installed = Path(spec.origin).parents[1]
    files = dict(sorted(_files(installed)))
    digest = hashlib.sha256(repr(_MENDS).encode())
    for name, path in files.items():
        digest.update(f"\0{name}\0".encode() + path.read_bytes())
    folder = home / ".cache/jittor/jclip_package" / digest.hexdigest()[:16]
    if not folder.is_dir():
        _copy(files, folder)
    return folder


def _files(installed: Path) -> list[tuple[str, Path]]:
    """(name, path) of what a build and an import of Jittor read."""
    found = []
    for package in PACKAGES:
        for place, folders, names in os.walk(installed / package):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            found += [(str((Path(place) / name).relative_to(installed)), Path(place) / name) for name in names]
    return found


def _copy(files: dict[str, Path], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=str(folder.parent)))
    try:
        for name, path in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(path.read_bytes())
        for name, old, new in _MENDS:
            text = (temporary / name).read_text(encoding="utf-8") if name in files else ""
            if text.count(old) != 1:
                raise UserError(f"the installed Jittor is not release 1.3.11.0 ({name} differs): "
                                "python -m pip install --no-deps --force-reinstall jittor==1.3.11.0")
            (temporary / name).write_text(text.replace(old, new), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's are private
        with contextlib.suppress(FileExistsError, OSError):  # another process was quicker
            os.rename(temporary, folder)
        if not folder.is_dir():
            raise UserError(f"{folder} cannot be made; set JITTOR_HOME to a folder that can be written")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
