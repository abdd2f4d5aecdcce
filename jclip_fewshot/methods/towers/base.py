"""What the methods share that tune a tower: fits and folds, safeguards, the classes without shots, what is saved.

Such a method trains a part of the image tower from a depth upwards, once for each fold of the shots and once on all
of them. What comes out is a few small arrays that change the tower, and K classifier rows; its logits are

    scale · cos(f(x; W₀ + α ΔW), normalise(t + α ΔC))

Safeguards against forgetting, chosen on the shots that a fold left out: α (WiSE-FT, Wortsman et al. 2022,
arXiv:2109.01903: weights averaged with the original ones), and for each domain whether to tune at all: images that
zero-shot places in a domain where tuning does not lower the held-out log-loss keep their zero-shot logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from jclip_fewshot import __version__
from jclip_fewshot.backend import jt
from jclip_fewshot.backend.numerics import log_softmax, matmul, temperature, unit_rows, unit_var
from jclip_fewshot.clip.replace import replaced
from jclip_fewshot.encoders.base import ROWS, Depth
from jclip_fewshot.encoders.clip_encoder import ClipEncoder, tuned_encoder
from jclip_fewshot.features.activations import Activations
from jclip_fewshot.methods.base import ON_GPU, SHOTS, TEXT, TOWER, Given, Method, Queries, keep_unseen, log_loss, top1
from jclip_fewshot.methods.rows.trained import fits_of
from jclip_fewshot.methods.towers.towers import CLASSIFIER, CLIP, in_batches, merged, rows_from, values_of
from jclip_fewshot.methods.training import Arrays, Vars, as_vars, batches
from jclip_fewshot.storage.files import content_digest
from jclip_fewshot.task import Fold, Task, zero_shot_logits

ROWS_AT_ONCE = 256


class TowerMethod(Method):
    """A subclass says where stored activations stop (`at`, or `depth`) and what trains from there (`train`)."""

    needs = frozenset({TEXT, SHOTS, TOWER})
    trains = True
    default = ON_GPU
    asks_images = True
    least_classes = 2
    reads_sentences = False  # whether it asks the text tower about a sentence a class (Activations.class_tokens)
    alphas: ClassVar[Sequence[float]] = (0.5, 0.75, 1.0)  # searched
    own: ClassVar[tuple[str, ...]] = ()  # those of a fit's arrays that are no tensors of the model; α leaves them alone
    constants: ClassVar[tuple[str, ...]] = ()  # the attributes that a training depends on
    at: ClassVar[Depth] = ROWS
    state_names: ClassVar[tuple[str, ...]] = ("tuned_domains_", "classifier_")
    state_dicts = ("update_",)

    def depth(self, model: CLIP) -> Depth:
        """Where the stored activations stop: what lies below is computed once."""
        return self.at

    def train(self, fit: Fold, tower: Activations, stage: str) -> Arrays:
        """Return the arrays of a training on the shots that `fit` keeps, `classifier` (K, D) among them: ΔC."""
        raise NotImplementedError

    def schedule(self, fit: Fold, tower: Activations, rng: np.random.Generator, batch: int, epochs: int
                 ) -> tuple[list[np.ndarray], Callable[[int], jt.Var]]:
        """Return each step's labels, among the classes with a shot, and a function of a step: its shots at `depth`.

        Every epoch has all shots once, in a new order and in random views; a smaller last batch is dropped.
        """
        kept, views = fit.kept, tower.at(self.depth(tower.model))
        steps = batches(np.stack([rng.permutation(len(kept)) for _ in range(epochs)]), batch)
        numbers, labels = [rng.integers(views.count, size=len(one)) for one in steps], fit.task.seen_labels()[1]
        return [labels[one] for one in steps], lambda step: jt.array(views.take(kept[steps[step]], numbers[step]))

    def flops_of_fit(self, task: Task, tower: Activations) -> float:
        """Return the floating-point operations of one fit, where they matter beside encoding."""
        return 0.0

    def flops(self, task: Task, given: Given) -> float:
        return (len(task.folds()) + 1) * self.flops_of_fit(task, given.tower)

    def rows(self, model: CLIP, x: jt.Var, own: Vars) -> jt.Var:
        """Activations at `depth`, (B, *shape) -> unit rows (B, D), with the fit's tensors in place; own: of `own`."""
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
                start = values_of(model, [name])[name]
                scaled[name] = start + np.float32(alpha) * (value - start)
        return scaled

    def _begin(self, task: Task) -> None:
        super()._begin(task)
        self.update_: Arrays = {}  # small, under OpenAI's names: what changes the tower
        self.classifier_ = task.text  # (K, D) unit rows
        for name in set(self.state_names) - set(TowerMethod.state_names):
            setattr(self, name, np.zeros(0, np.float32))  # as long as there is nothing to learn from
        self.tuned_domains_ = np.full(int(task.domains.max()) + 1, True)
        self._held_out = task.zero_shot(task.features)

    def _fit(self, task: Task, tower: Activations) -> None:
        """Train on the shots, whose activations `tower` holds in order."""
        fits = fits_of(task)
        learned = [self._trained(tower, fit, f"{number}/{len(fits)}") for number, fit in enumerate(fits, 1)]
        alpha, held_out = 1.0, None
        if len(fits) > 1:  # else nothing can be left out to choose by
            alpha, held_out = self._choose_alpha(tower, task, fits[:-1], learned)
        self.update_ = self.interpolated(tower.model, learned[-1], alpha)
        self.classifier_ = unit_rows(task.text + self.update_.pop(CLASSIFIER, np.float32(0)))
        self.settings_ = {"alpha": alpha, "chosen_by": "fixed" if held_out is None else "held-out log-loss"}
        if held_out is not None:
            self._choose_domains(task, held_out)

    def _trained(self, tower: Activations, fit: Fold, number: str) -> Arrays:
        """One fit's arrays; those of a finished training are kept in the activations' cache, if they have one."""
        key = self._key(fit, tower) if tower.fits is not None else ""
        arrays = tower.fits.get(key) if tower.fits is not None else None
        if arrays is None:
            arrays = self.train(fit, tower, f"{self.name} {number}")
            if tower.fits is not None:
                tower.fits.put(key, arrays)
        return arrays

    def _choose_alpha(self, tower: Activations, task: Task, folds: list[Fold], learned: list[Arrays]
                      ) -> tuple[float, np.ndarray]:
        """Return the α of least held-out log-loss and its answers (S, K), each by the fit that did not see the shot."""
        tested, found = task.can_be_left_out, []
        labels = task.labels[tested]
        for alpha in self.alphas:
            held_out = task.zero_shot(task.features)
            for fold, arrays in zip(folds, learned):
                answers = self.logits_of_fit(tower, task, self.interpolated(tower.model, arrays, alpha), fold.left_out)
                held_out[fold.left_out] = keep_unseen(answers, held_out[fold.left_out], task.seen)
            found.append((log_loss(cooled(held_out[tested], labels), labels), alpha, held_out))
        return min(found, key=lambda one: one[0])[1:]

    def logits_of_fit(self, tower: Activations, task: Task, arrays: Arrays, images: np.ndarray) -> np.ndarray:
        """Return logits (n, K) of some of the images by a fit's arrays."""
        classifier = unit_rows(task.text + arrays.pop(CLASSIFIER, np.float32(0)))
        return matmul(self.scale_ * self.mean_rows(tower, arrays, images), classifier.T)

    def _choose_domains(self, task: Task, held_out: np.ndarray) -> None:
        """Where tuning does not lower the held-out log-loss of a domain's shots, zero-shot answers there."""
        tested, labels, rows = task.can_be_left_out, task.labels, np.arange(len(task))
        zero_shot = task.zero_shot(task.features)
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

    def mean_rows(self, tower: Activations, update: Arrays, images: np.ndarray) -> np.ndarray:
        """Unit rows (n, D) of some of the images under the update, the mean of their views."""
        model, views = tower.model, tower.at(self.depth(tower.model))
        asked = np.stack([np.repeat(images, views.count), np.tile(np.arange(views.count), len(images))], axis=1)
        tensors = as_vars(merged(model, update))
        own = {name: tensors.pop(name) for name in self.own}

        def ask(some: np.ndarray) -> np.ndarray:
            return self.rows(model, jt.array(views.take(*some.T)), own).numpy()
        with replaced(model, tensors):
            rows = in_batches(ask, asked, ROWS_AT_ONCE)
        jt.sync_all()
        jt.gc()
        return unit_rows(rows.reshape(len(images), views.count, -1).mean(axis=1))

    def answer(self, queries: Queries) -> np.ndarray:
        zero_shot = zero_shot_logits(unit_rows(queries.rows), self.text_, self.scale_)
        if self.seen_.sum() < self.least_classes:
            return zero_shot
        logits = self._logits(queries.under(self.encoder))
        return self._safeguarded(keep_unseen(logits, zero_shot, self.seen_), zero_shot)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Return (N, K), classes without shots anyhow, of rows by `encoder`."""
        return matmul(self.scale_ * unit_rows(features), self.classifier_.T)

    def encoder(self, base: ClipEncoder) -> ClipEncoder:
        """The tower whose rows `_logits` takes: the frozen one where no tensor of it moved."""
        if not self.update_:
            return base
        return tuned_encoder(base, merged(base.model, self.update_), self.name)

    def _key(self, fit: Fold, tower: Activations) -> str:
        """Return a name of a training, made of all that it depends on."""
        task, constants = fit.task, {name: getattr(self, name) for name in self.constants}
        said = [__version__, self.name, str(self.seed), repr(constants), tower.encoder.fingerprint,
                tower.digest(fit.kept), repr(task.scale)]
        arrays = [task.labels.tobytes(), task.text.tobytes()]
        if self.reads_sentences:
            arrays.append(tower.class_tokens.tobytes())
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
    return len(model.visual.transformer.resblocks) * block_flops(length + more, width)


def sentence_flops(model: CLIP, tokens: np.ndarray) -> float:
    """Return the operations of one sentence's way forward through the text tower; tokens (K, L), cut at the longest."""
    return len(model.transformer.resblocks) * block_flops(model.cut(tokens)[0].shape[1], model.transformer.width)
