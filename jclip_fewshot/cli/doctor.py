"""python -m jclip_fewshot doctor: what works here, and what to do about the rest."""

from __future__ import annotations

import shlex
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from jclip_fewshot import console
from jclip_fewshot.backend import runtime
from jclip_fewshot.backend.toolkit import ONEDNN_REMEDY
from jclip_fewshot.config import DoctorConfig
from jclip_fewshot.console import filled
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError
from jclip_fewshot.provenance import next_command, versions


class Finding(NamedTuple):
    """One line of the table."""

    what: str
    ok: bool
    said: str
    needed: bool = True  # for the main job


def report(settings: DoctorConfig) -> int:
    """Print the table. Return 0 if the main job can run, else 2."""
    found, said = versions(), (settings.activation, settings.head_width)
    findings = [Finding("versions", True, f"Python {found['python']}, Jittor {found['jittor']}, {found['system']}"),
                *_device(settings.device),
                *(_checkpoint(model, settings.weights, settings.deep, said) for model in settings.model),
                _data(settings.data, settings.format, settings.labels)]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "✓" if finding.ok else ("✗" if finding.needed else "–")
        print(filled(f"{mark} {finding.what:{width}}  {finding.said}", width + 4))
    missing = [finding.what for finding in findings if finding.needed and not finding.ok]
    given = "".join(f" --{name} {shlex.quote(value)}" for name in ("data", "format", "labels")
                    if (value := getattr(settings, name)) != getattr(DoctorConfig(), name))
    print(filled(f"not ready: {', '.join(missing)}; make demo needs neither checkpoint nor data set" if missing
                 else f"ready: {next_command('train')}{given}, then {next_command('test')}"))
    return 2 if missing else 0


def _device(device: str) -> list[Finding]:
    """Where Jittor would run, and what it lacks; where it is built, whether it reads NumPy's arrays."""
    try:
        plan = runtime.plan(device)
    except UserError as error:
        return [Finding("device", False, str(error))]
    fast = plan.onednn != "none"
    slow = f"missing, so that products are about five times slower: {ONEDNN_REMEDY}"
    found = [Finding("device", True, f"{plan.device}: {plan.reason}"),
             Finding("oneDNN", fast, plan.onednn if fast else slow, needed=False)]
    where = f"{plan.home / '.cache/jittor'}"
    if not plan.built:
        return [*found, Finding("kernel cache", True, f"{where}: the first start builds Jittor, in about 95 s")]
    console.quiet = True  # the table says what start() would
    said, ok = f"NumPy {metadata.version('numpy')}: arrays come back from Jittor unchanged", True
    try:
        runtime.start(device)
    except UserError as error:
        said, ok = str(error), False
    return [*found, Finding("kernel cache", True, f"{where}: built"), Finding("arrays", ok, said)]


def _checkpoint(model: str, weights: str, deep: bool = False, said: tuple[str, int] = ("", 0)) -> Finding:
    """The model is there, of a known family, and its size and header fit its tensors; `deep`: so are its numbers.

    said: activation and width of the heads, where nothing in or beside the file says them.
    """
    from jclip_fewshot.clip.checkpoint import read_clip
    from jclip_fewshot.clip.download import local_checkpoint, released, said_of
    from jclip_fewshot.encoders.registry import family_of
    found, source = local_checkpoint(model, weights), released(model)
    if found is None:
        return Finding("checkpoint", False, f"no file or folder {model}, and no model of that name" if source is None
                       else f"{model} is not in {weights}/; train.py downloads it, or fetch {source.url}")
    try:
        family = family_of(found)
        if family != "CLIP":
            return Finding("checkpoint", True, f"{found}: an encoder of the family {family}")
        how = read_clip(found, *said_of(model, *said), outline=not deep).sizes.conventions
    except UserError as error:
        return Finding("checkpoint", False, str(error))
    known = f"{how.image.activation}, heads {how.image.head_width} wide"
    if not deep:
        return Finding("checkpoint", True, f"{found}: size and header fit, {known}; --deep reads its numbers")
    own = released(found.stem)
    return _digest(found, own.sha256 if own and own.file == found.name else None, known)


def _digest(found: Path, expected: str | None, known: str) -> Finding:
    """What the SHA-256 of a CLIP says whose tensors are complete and finite."""
    from jclip_fewshot.clip.checkpoint.origin import KNOWN
    from jclip_fewshot.clip.download import sha256
    if not found.is_file():
        return Finding("checkpoint", True, f"{found}: complete, all numbers finite, {known}")
    digest = sha256(found)
    if expected and digest != expected:
        return Finding("checkpoint", False, f"{found}: SHA-256 {digest} is not OpenAI's {expected}; fetch it again")
    said = "as OpenAI released it" if expected else "undamaged" if digest[:8] in KNOWN else \
        "not one that this program knows: complete and finite, but whether the numbers are as they were written, or " \
        "trained at all, only the digest of who made it can tell"
    return Finding("checkpoint", True, f"{found}: {known}; SHA-256 {digest}, {said}")


def _data(data: str, format: str, labels: str) -> Finding:
    try:
        found = read_data_set(data, format=format, labels=labels)
    except UserError as error:
        return Finding("data set", False, str(error))
    return Finding("data set", True, f"{data}: {found.summary()}; {len(found.train)} training images")
