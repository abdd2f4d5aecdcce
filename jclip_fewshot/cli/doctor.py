"""python -m jclip_fewshot doctor: what works here, and what to do about the rest."""

import shlex
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

from jclip_fewshot import console
from jclip_fewshot.backend import runtime
from jclip_fewshot.backend.toolkit import ONEDNN_REMEDY
from jclip_fewshot.config import DoctorConfig
from jclip_fewshot.console import filled
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError
from jclip_fewshot.provenance import next_command, versions


class Finding(NamedTuple):
    what: str
    ok: bool
    said: str
    needed: bool = True  # for the main job


def report(settings: DoctorConfig) -> int:
    """Print the table. Return 0 if the main job can run, else 2."""
    found, said = versions(), (settings.activation, settings.head_width)
    findings = [Finding("versions", True, f"Python {found['python']}, Jittor {found['jittor']}, {found['system']}"),
                *_device(settings.device),
                *(finding("checkpoint", _checkpoint, model, settings.weights, settings.deep, said)
                  for model in settings.model),
                finding("data set", _data, settings.data, settings.format, settings.labels)]
    width = max(len(one.what) for one in findings)
    for one in findings:
        mark = "✓" if one.ok else ("✗" if one.needed else "–")
        print(filled(f"{mark} {one.what:{width}}  {one.said}", width + 4))
    missing = [one.what for one in findings if one.needed and not one.ok]
    given = "".join(f" --{name} {shlex.quote(value)}" for name in ("data", "format", "labels")
                    if (value := getattr(settings, name)) != getattr(DoctorConfig(), name))
    print(filled(f"not ready: {', '.join(missing)}; make demo needs neither checkpoint nor data set" if missing
                 else f"ready: {next_command('train')}{given}, then {next_command('test')}"))
    return 2 if missing else 0


def finding(what: str, look: Callable[..., str], *given: Any, **more: Any) -> Finding:
    """Return what `look` says, or what it raises."""
    try:
        return Finding(what, True, look(*given, **more))
    except UserError as error:
        return Finding(what, False, str(error))


def _device(device: str) -> list[Finding]:
    """Where Jittor would run, and what it lacks; where it is built, whether it reads NumPy's arrays."""
    try:
        plan = runtime.plan(device)
    except UserError as error:
        return [Finding("device", False, str(error))]
    fast = plan.onednn != "none"
    slow = f"missing, so that products are about five times slower: {ONEDNN_REMEDY}"
    built = "built" if plan.built else "the first start builds Jittor, in about 95 s"
    found = [Finding("device", True, f"{plan.device}: {plan.reason}"),
             Finding("oneDNN", fast, plan.onednn if fast else slow, needed=False),
             Finding("kernel cache", True, f"{plan.home / '.cache/jittor'}: {built}")]
    return [*found, finding("arrays", _arrays, device)] if plan.built else found


def _arrays(device: str) -> str:
    console.quiet = True  # the table says what start() would
    runtime.start(device)
    return f"NumPy {metadata.version('numpy')}: arrays come back from Jittor unchanged"


def _checkpoint(model: str, weights: str, deep: bool = False, said: tuple[str, int] = ("", 0)) -> str:
    """The model is there, of a known family, and size and header fit its tensors; `deep`: so do its numbers."""
    from jclip_fewshot.clip.checkpoint import read_clip
    from jclip_fewshot.clip.checkpoint.origin import KNOWN
    from jclip_fewshot.clip.download import local_checkpoint, released, said_of, sha256
    from jclip_fewshot.encoders import family_of
    found, source = local_checkpoint(model, weights), released(model)
    if found is None:
        raise UserError(f"no file or folder {model}, and no model of that name" if source is None else
                        f"{model} is not in {weights}/; train.py downloads it, or fetch {source.url}")
    family = family_of(found)
    if family != "CLIP":
        return f"{found}: an encoder of the family {family}"
    how = read_clip(found, *said_of(model, *said), outline=not deep).sizes.conventions
    known = f"{how.image.activation}, heads {how.image.head_width} wide"
    if not deep:
        return f"{found}: size and header fit, {known}; --deep reads its numbers"
    if not found.is_file():
        return f"{found}: complete, all numbers finite, {known}"
    digest, own = sha256(found), released(found.stem)
    expected = own.sha256 if own and own.file == found.name else None
    if expected and digest != expected:
        raise UserError(f"{found}: SHA-256 {digest} is not OpenAI's {expected}; fetch it again")
    origin = "as OpenAI released it" if expected else "undamaged" if digest[:8] in KNOWN else \
        "not one that this program knows: complete and finite, but only its maker's digest tells if it is unchanged"
    return f"{found}: {known}; SHA-256 {digest}, {origin}"


def _data(data: str, format: str, labels: str) -> str:
    found = read_data_set(data, format=format, labels=labels)
    return f"{data}: {found.summary()}; {len(found.train)} training images"
