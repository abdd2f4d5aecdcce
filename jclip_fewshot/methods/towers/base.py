"""What the methods share that tune a tower: fits and folds, safeguards, the classes without shots, what is saved.

Such a method trains a part of the image tower from a depth upwards, once for each fold of the shots and once on all
of them. What comes out is a few small arrays that change the tower, and K classifier rows; its logits are

    scale · cos(f(x; W₀ + α ΔW), normalise(t + α ΔC))

Safeguards against forgetting, chosen on the shots that a fold left out: α (WiSE-FT, Wortsman et al. 2022,
arXiv:2109.01903: weights averaged with the original ones), and for each domain whether to tune at all: images that
zero-shot places in a domain where tuning does not lower the held-out log-loss keep their zero-shot logits.

Letters: N images, S shots, V views, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from jclip_fewshot import __version__
from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import log_softmax, matmul, temperature, unit_rows, unit_var
from jclip_fewshot.clip.replace import part, replaced
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.encoders.function import TunedEncoder
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ON_GPU, SHOTS, TEXT, TOWER, Method, Queries, keep_unseen, log_loss, top1
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers.lora import merged
from jclip_fewshot.methods.towers.towers import blocks_of, rows_from
from jclip_fewshot.methods.training import Arrays, Vars
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.task import Task

if TYPE_CHECKING:  # importing the model starts Jittor, and the scripts choose its device first
    from jclip_fewshot.clip.model import CLIP

CLASSIFIER = "classifier"  # ΔC (K, D) among a fit's arrays; all others are tensors of the tower
ALPHAS = (0.5, 0.75, 1.0)
ROWS_AT_ONCE = 256


class TowerMethod(Method):
    """A subclass says where stored activations stop (`at`, or `depth`) and what trains from there (`train`).

    After `fit`: `update_` (small arrays under OpenAI's names that change the tower), `classifier_` (K, D) unit rows,
    `settings_`, `history_`.
    """

    needs = frozenset({TEXT, SHOTS, TOWER})
    trains = True
    default = ON_GPU
    asks_images = True
    reads_sentences = False  # whether it asks the text tower about a sentence a class (Activations.class_tokens)
    alphas: ClassVar[Sequence[float]] = ALPHAS  # searched
    own: ClassVar[tuple[str, ...]] = ()  # those of a fit's arrays that are no tensors of the model; α leaves them alone
    constants: ClassVar[tuple[str, ...]] = ()  # the attributes that a training depends on
    at: ClassVar[Depth] = ROWS
    state_names = ("tuned_domains_", "classifier_")
    state_dicts = ("update_",)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def depth(self, model: CLIP) -> Depth:
        """Where the stored activations stop: what lies below is computed once."""
        return self.at

    def train(self, task: Task, activations: Activations, kept: np.ndarray, stage: str) -> Arrays:
        """Trained arrays of one fit on the shots `kept`; `task` holds those shots alone."""
        raise NotImplementedError

    def rows(self, model: CLIP, x: jt.Var, own: Vars) -> jt.Var:
        """Activations at `depth`, (B, *shape) -> unit rows (B, D), the fit's tensors being in place.

        own: its arrays that are none of the model's.
        """
        depth = self.depth(model)
        if isinstance(depth, int):
            return rows_from(model, x, depth)
        return unit_var(x if depth == ROWS else jt.matmul(x, model.visual.proj))

    def interpolated(self, model: CLIP, arrays: Arrays, alpha: float) -> Arrays:
        """The arrays of W₀ + α ΔW and α ΔC: low-rank updates by their second factor, other tensors by their move."""
        scaled: Arrays = {}
        for name, value in arrays.items():
            if name.endswith(".w_lora_A") or name in self.own:
                scaled[name] = value
            elif name.endswith(".w_lora_B") or name == CLASSIFIER:
                scaled[name] = np.float32(alpha) * value
            else:
                start = part(model, name).float32().numpy()
                scaled[name] = start + np.float32(alpha) * (value - start)
        return scaled

    def fit(self, task: Task, tower: Activations) -> TowerMethod:
        """Train on the shots, whose activations `tower` holds in order; finished trainings are kept in its cache."""
        self._begin(task)
        self.update_, self.classifier_ = {}, task.text
        for name in set(self.state_names) - set(TowerMethod.state_names):
            setattr(self, name, np.zeros(0, np.float32))  # as long as there is nothing to learn from
        self.tuned_domains_ = np.ones(int(task.domains.max()) + 1, bool)
        self._held_out = task.zero_shot(task.features)
        if task.seen.sum() > 1:
            self._fit(task, tower)
        return self

    def _fit(self, task: Task, activations: Activations) -> None:
        model, parts, fits = activations.encoder.model, fits_of(task), activations.fits
        learned = []
        for number, fold in enumerate(parts, 1):
            key = "" if fits is None else self._key(fold.task, activations, fold.kept)
            arrays = None if fits is None else fits.get(key)
            if arrays is None:
                arrays = self.train(fold.task, activations, fold.kept, f"{self.name} {number}/{len(parts)}")
                if fits is not None:
                    fits.put(key, arrays)
            learned.append(arrays)
        alpha, held_out = 1.0, None
        if len(parts) > 1:  # else nothing can be left out to choose by
            alpha, held_out = self._choose_alpha(model, activations, task, parts[:-1], learned)
        final = self.interpolated(model, learned[-1], alpha)
        self.classifier_ = unit_rows(task.text + final.pop(CLASSIFIER, np.float32(0)))
        self.update_ = final
        self.settings_ = {"alpha": alpha, "chosen_by": "fixed" if held_out is None else "held-out log-loss"}
        if held_out is not None:
            self._choose_domains(task, held_out)

    def _choose_alpha(self, model: CLIP, activations: Activations, task: Task, folds, learned: list[Arrays]
                      ) -> tuple[float, np.ndarray]:
        """α and its answers (S, K) to the shots, each by the fit that did not see it: least held-out log-loss."""
        tested = task.can_be_left_out
        found = {alpha: self._answers_of_folds(model, activations, task, folds, learned, alpha)
                 for alpha in self.alphas}

        def loss(alpha: float) -> float:
            labels = task.labels[tested]
            return log_loss(cooled(found[alpha][tested], labels), labels) if tested.any() else 0.0
        best = min(self.alphas, key=loss)
        return best, found[best]

    def _answers_of_folds(self, model: CLIP, activations: Activations, task: Task, folds, learned: list[Arrays],
                          alpha: float) -> np.ndarray:
        """(S, K): each shot's logits from the fit that did not see it."""
        held_out = task.zero_shot(task.features)
        for fold, arrays in zip(folds, learned):
            answers = self.logits_of_fit(activations, task, self.interpolated(model, arrays, alpha), fold.left_out)
            held_out[fold.left_out] = keep_unseen(answers, held_out[fold.left_out], task.seen)
        return held_out

    def logits_of_fit(self, activations: Activations, task: Task, arrays: Arrays, images: np.ndarray) -> np.ndarray:
        """Return logits (n, K) of some of a activations's images by a fit's arrays."""
        classifier = unit_rows(task.text + arrays.pop(CLASSIFIER, np.float32(0)))
        return matmul(self.scale_ * self.mean_rows(activations, arrays, images), classifier.T)

    def _choose_domains(self, task: Task, held_out: np.ndarray) -> None:
        """Where tuning does not lower the held-out log-loss of a domain's shots, zero-shot answers there."""
        tested = task.can_be_left_out
        zero_shot = task.zero_shot(task.features)
        labels, rows = task.labels, np.arange(len(task))
        gain = (log_softmax(cooled(held_out, labels))[rows, labels]
                - log_softmax(cooled(zero_shot, labels))[rows, labels])
        for domain in np.unique(task.domains):
            own = tested & (task.domains[labels] == domain)
            if own.any() and gain[own].mean() < 0:
                self.tuned_domains_[domain] = False
        self._held_out = self._safeguarded(held_out, zero_shot)
        self.settings_.update(held_out_loss=log_loss(cooled(self._held_out, labels)[tested], labels[tested]),
                              held_out_top1=top1(self._held_out[tested], labels[tested]))
        if not self.tuned_domains_.all():
            self.settings_["untuned_domains"] = np.flatnonzero(~self.tuned_domains_).tolist()

    def _safeguarded(self, logits: np.ndarray, zero_shot: np.ndarray) -> np.ndarray:
        """`logits`, or zero-shot's for images that zero-shot places in a domain that is better not tuned."""
        tuned = self.tuned_domains_[self.domains_[zero_shot.argmax(axis=1)]]
        return np.where(tuned[:, None], logits, zero_shot)

    def mean_rows(self, activations: Activations, update: Arrays, images: np.ndarray) -> np.ndarray:
        """Unit rows (n, D) of some of the images under the update, the mean of their views."""
        model, views = activations.encoder.model, activations.at(self.depth(activations.encoder.model))
        which, view = np.repeat(images, views.count), np.tile(np.arange(views.count), len(images))
        tensors = {name: jt.array(value) for name, value in merged(model, update).items()}
        own = {name: tensors.pop(name) for name in self.own}
        parts = []
        with replaced(model, tensors), jt.no_grad():
            for i in range(0, len(which), ROWS_AT_ONCE):
                x = jt.array(views.take(which[i:i + ROWS_AT_ONCE], view[i:i + ROWS_AT_ONCE]))
                parts.append(self.rows(model, x, own).numpy())
        jt.sync_all()
        jt.gc()
        return unit_rows(np.concatenate(parts).reshape(len(images), views.count, -1).mean(axis=1))

    def held_out_logits(self) -> np.ndarray:
        """(S, K): each shot's logits from a fit that did not see it; zero-shot's where none could be left out."""
        return self._held_out.copy()

    def answer(self, queries: Queries) -> np.ndarray:
        return self.logits(queries.under(self.encoder), queries.rows)

    def logits(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return (N, K) on CLIP's scale. rows (N, D): of the tuned tower; features (N, D): of the frozen one."""
        zero_shot = matmul(self.scale_ * unit_rows(features), self.text_.T)
        if self.seen_.sum() < 2:
            return zero_shot
        return self._safeguarded(keep_unseen(self._logits(rows), zero_shot, self.seen_), zero_shot)

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, K), classes without shots anyhow, of rows by `encoder`."""
        return matmul(self.scale_ * unit_rows(rows), self.classifier_.T)

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        """The tower that gives the rows which `logits` takes: the frozen one where no tensor of it moved."""
        if not self.update_:
            return base
        return TunedEncoder(base, merged(base.model, self.update_), f"{base.name} {self.name}")

    def _key(self, task: Task, activations: Activations, kept: np.ndarray) -> str:
        """Names a training by all that it depends on."""
        constants = {name: getattr(self, name) for name in self.constants}
        said = [__version__, self.name, str(self.seed), repr(constants), activations.encoder.fingerprint,
                activations.digest(kept), repr(task.scale)]
        arrays = [task.labels.tobytes(), task.text.tobytes()]
        if self.reads_sentences:
            arrays.append(activations.class_tokens.tobytes())
        return content_digest("\0".join(said).encode() + b"".join(arrays)).hex()


def cooled(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits at the temperature that suits them, as the ensemble will have them: a method is not judged by it."""
    return np.float32(temperature(logits, labels, np.ones(len(labels)))) * logits


def block_flops(length: int, width: int) -> float:
    """Return the operations of a sequence's way forward through a block."""
    return 24.0 * length * width ** 2 + 4.0 * length ** 2 * width


def image_flops(model: CLIP, more: int = 0) -> float:
    """Return the operations of an image's way forward through the image tower, with `more` tokens."""
    length, width = model.visual.shape_at(0)
    return len(blocks_of(model, "visual.")) * block_flops(length + more, width)


def sentence_flops(model: CLIP, tokens: np.ndarray) -> float:
    """Return the operations of one sentence's way forward through the text tower; tokens (K, L), cut at the longest."""
    return len(blocks_of(model, "")) * block_flops(model.cut(tokens)[0].shape[1], model.transformer.width)


def steps_of(rng: np.random.Generator, shots: np.ndarray, views: int, batch: int,
             epochs: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each step's shots and the view of each: every epoch all shots once, in a new order and in random views."""
    batch = min(batch, len(shots))
    chosen: list[np.ndarray] = []
    for _ in range(epochs):
        order = rng.permutation(shots)
        chosen += [order[i:i + batch] for i in range(0, len(order) - batch + 1, batch)]
    return chosen, [rng.integers(views, size=len(rows)) for rows in chosen]
