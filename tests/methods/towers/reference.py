"""A reference run's arrays, and how far a replay is from them. See `replay`.

A reference file (.npz) holds what the authors' code did on the small ViT CLIP. Keys of a run: `RUN/init/P`, `RUN/lr`,
`RUN/loss`, `RUN/grad0/P`, `RUN/after1/P`, `RUN/final/P`, `RUN/logits_before`, `RUN/logits_after`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jclip_fewshot.backend import jt
from jclip_fewshot.errors import UserError
from jclip_fewshot.methods.towers import towers
from jclip_fewshot.methods.training import batches

MEASURES = ("loss", "gradient", "update", "logits")


def largest(*values: float) -> float:
    """The largest; infinity where one is no number, so that no limit holds."""
    return float(max(values)) if np.isfinite(values).all() else float("inf")


@dataclass
class Deviation:
    """Distances of a replay. loss: relative, worst step; gradient: largest difference over the largest entry of its
    parameter; update: ‖final − final*‖ / ‖final* − init‖, worst parameter; logits: absolute. wrong: what must be
    equal and is not.
    """

    loss: float = 0.0
    gradient: float = 0.0
    update: float = 0.0
    logits: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def with_logits(self, ours: np.ndarray, reference: np.ndarray) -> "Deviation":
        self.logits = largest(self.logits, np.abs(ours - reference).max())
        return self

    def worst(self, other: "Deviation") -> "Deviation":
        return Deviation(*(largest(getattr(self, one), getattr(other, one)) for one in MEASURES),
                         self.wrong + other.wrong)


class Recorder:
    """A `watch` of the training loop: losses, first gradients."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, np.ndarray] = {}

    def __call__(self, step, loss, gradients, values) -> None:
        self.losses.append(float(loss.item()))
        if step == 0:
            self.gradients = {name: value.numpy() for name, value in gradients.items()}


class Reference:
    """A reference file's arrays and runs, and the checkpoint that they start from."""

    def __init__(self, arrays: dict[str, np.ndarray], model) -> None:
        self.arrays, self.model = arrays, model
        self.scale = float(np.exp(model.logit_scale.numpy()[0]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def runs(self, below: str = "") -> list[str]:
        """Prefixes of the runs: "end/", …; those that have `below`init/ under them."""
        mark = below + "init/"
        found = [key[:key.index(mark)] for key in self.arrays if key.startswith(mark) or "/" + mark in key]
        return list(dict.fromkeys(found))

    def start(self, run: str) -> dict[str, np.ndarray]:
        return self.under(run + "init/")

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix):]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def steps(self, run: str, order: np.ndarray = None) -> list[np.ndarray]:
        """The rows of every step of a run. The batch is what makes as many steps of `order` as the run has."""
        order = self["order"] if order is None else order
        a_epoch = max(1, len(self[run + "lr"]) // len(order))
        return batches(order, order.shape[1] // a_epoch)

    def lr(self, run: str) -> float:
        """The learning rate that the run was given, from its largest."""
        return float(f"{float(self[run + 'lr'].max()):.6g}")

    def image_rows(self, images: np.ndarray) -> np.ndarray:
        return towers.image_rows(self.model, jt.array(images)).numpy()

    def compare(self, run: str, recorder: Recorder, final: dict[str, np.ndarray], rates: Sequence[float]) -> Deviation:
        """A run's losses, first gradients and updates against the file's."""
        found = Deviation()
        expected = self[run + "loss"].astype(np.float64)
        if len(recorder.losses) != len(expected):
            raise UserError(f"run {run or '(no name)'} has {len(expected)} losses, its replay {len(recorder.losses)}")
        found.loss = float(np.max(np.abs(np.array(recorder.losses) - expected) / np.abs(expected)))
        if np.abs(np.asarray(rates) - self[run + "lr"]).max() > 1e-5 * self[run + "lr"].max():
            found.wrong.append(f"{run}lr")
        for name, start in self.start(run).items():
            moved = np.linalg.norm((self[f"{run}final/{name}"] - start).astype(np.float64))
            if name not in final:  # the authors' code lists it and does not move it
                if moved or self[f"{run}grad0/{name}"].any():
                    found.wrong.append(f"{run}{name} trains")
                continue
            gradient, expected = recorder.gradients[name], self[f"{run}grad0/{name}"]
            entry = np.abs(expected).max() or max(np.abs(one).max() for one in self.under(run + "grad0/").values())
            found.gradient = largest(found.gradient, np.abs(gradient - expected).max() / entry)
            gone = np.linalg.norm((final[name] - self[f"{run}final/{name}"]).astype(np.float64))
            found.update = largest(found.update, gone / moved if moved else float(gone > 0))
        return found
