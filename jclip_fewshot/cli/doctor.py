"""python -m jclip_fewshot doctor: what works here, and what to do about the rest."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from jclip_fewshot.backend import runtime
from jclip_fewshot.console import filled
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError


class Finding(NamedTuple):
    """One line of the table."""

    what: str
    ok: bool
    said: str
    needed: bool = True  # for the main job


def report(data: str, models: Sequence[str], weights: str, device: str, deep: bool = False) -> int:
    """Prints the table; 0 if the main job can run, else 2. deep: read every number of the checkpoint."""
    findings = [_python(), _compiler(), _jittor()]
    findings += _device(device)
    findings += [_checkpoint(model, weights, deep) for model in models] + [_data(data)]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "✓" if finding.ok else ("✗" if finding.needed else "–")
        print(filled(f"{mark} {finding.what:{width}}  {finding.said}", width + 4))
    missing = [finding.what for finding in findings if finding.needed and not finding.ok]
    print(filled(f"not ready: {', '.join(missing)}; make demo needs neither checkpoint nor data set" if missing
                 else "ready: python train.py, then python test.py"))
    return 2 if missing else 0


def _python() -> Finding:
    ok = (3, 8) <= sys.version_info[:2] <= (3, 12)
    return Finding("Python", ok, platform.python_version() + ("" if ok else ": Jittor 1.3.11.0 needs 3.8 to 3.12"))


def _compiler() -> Finding:
    compiler = shutil.which("g++")
    if not compiler:
        return Finding("compiler", False, "no g++: apt-get install g++")
    first = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE).stdout.decode(errors="replace")
    return Finding("compiler", True, first.splitlines()[0] if first else compiler)


def _jittor() -> Finding:
    try:
        return Finding("Jittor", True, metadata.version("jittor"))
    except metadata.PackageNotFoundError:
        return Finding("Jittor", False, "not installed: pip install jittor==1.3.11.0")


def _device(device: str) -> list[Finding]:
    try:
        plan = runtime.plan(device)
        built = runtime.build_stamp(plan).exists()
    except UserError as error:
        return [Finding("device", False, str(error))]
    cache = f"{runtime.jittor_home() / '.cache/jittor'}" + \
        (": built" if built else ": the first start builds Jittor, about a minute and a half")
    onednn = "missing: products about five times slower; pip install onednn-cpu-gomp==2021.2.0 " \
             "onednn-devel-cpu-gomp==2021.2.0" if plan.onednn == "none" else plan.onednn
    return [Finding("device", True, f"{plan.device}: {plan.reason}"),
            Finding("oneDNN", plan.onednn != "none", onednn, needed=False),
            Finding("kernel cache", True, cache)]


def _checkpoint(model: str, weights: str, deep: bool = False) -> Finding:
    """The file is there, and its size and header fit its tensors; `deep`: its numbers and digest are right too."""
    from jclip_fewshot.clip.checkpoint import check_state_dict, inspect, read_state_dict
    from jclip_fewshot.clip.download import available_models, local_checkpoint, release, released_digest, sha256
    found = local_checkpoint(model, weights)
    if found is None and model not in available_models():
        return Finding("checkpoint", False, f"no file {model}, and no model of that name")
    if found is None:
        source = release(model)
        return Finding("checkpoint", False, f"{model} is not in {weights}/; train.py downloads it, or fetch "
                                            f"{source.url}")
    try:
        if not deep:
            inspect(found)
            return Finding("checkpoint", True, f"{found}: size and header fit; --deep compares the digest")
        check_state_dict(read_state_dict(found))
        digest, expected = sha256(found), released_digest(found)
    except UserError as error:
        return Finding("checkpoint", False, f"{error}; fetch it again")
    if expected and digest != expected:
        return Finding("checkpoint", False, f"{found}: SHA-256 {digest} is not OpenAI's {expected}; fetch it again")
    said = "as OpenAI released it" if expected else "undamaged"
    return Finding("checkpoint", True, f"{found}: SHA-256 {digest}, {said}")


def _data(data: str) -> Finding:
    try:
        found = read_data_set(data)
    except UserError as error:
        return Finding("data set", False, str(error))
    return Finding("data set", True, f"{data}: {found.summary()}; {len(found.train)} training images")
