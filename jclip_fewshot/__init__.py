"""Few-shot image classification on CLIP, in Jittor."""

__version__ = "0.1.0"
__all__ = ["FewShotClassifier"]


def __getattr__(name: str):
    # late, so that reading the version or asking for help loads nothing
    if name == "FewShotClassifier":
        from jclip_fewshot.classifier import FewShotClassifier
        return FewShotClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
