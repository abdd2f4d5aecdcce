"""Fixtures shared by the tests."""

import signal
from pathlib import Path

import pytest

from jclip_fewshot import console

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the checkout; tests that want it skip where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no development data beside the checkout ({folder.name}/)")
    return folder


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Every test hears notes and progress, whatever the command of another one has set."""
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr(console, "verbose", False)


def hear_ctrl_c():
    """For `preexec_fn`: a child of a background job ignores Ctrl-C unless it is told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
