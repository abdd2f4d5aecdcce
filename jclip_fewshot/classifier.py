"""Everything as one object, in scikit-learn's manner, for notebooks and other programs.

    from jclip_fewshot.classifier import FewShotClassifier
    clf = FewShotClassifier("ViT-B/32").fit(image_paths, labels, class_names=["cat", "dog"])
    clf.predict(paths, top=5)

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np

from jclip_fewshot.backend import exclusive
from jclip_fewshot.data import prompts
from jclip_fewshot.data.contest import domain_of, domains_of
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes
from jclip_fewshot.features.sources import Source, open_source
from jclip_fewshot.pipeline import STATE_SCHEMA, Pipeline, RowsUnder, head_names
from jclip_fewshot.storage.arrays import Field, load_arrays, save_arrays
from jclip_fewshot.task import CLIP_SCALE, Task, domain_indices
from jclip_fewshot.tuning.plan import Tuning, plan, tune_names, tuned_rows

_SCHEMA = {**{f"classifier/{key}": Field("text", "") for key in ("model", "weights")},
           **{f"classifier/{key}": Field("whole", "", low=0) for key in ("augment", "seed")},
           "classifier/classes": Field("any", "K"), "classifier/class_names": Field("text", "K")}
Images = Union[Sequence[Union[str, Path]], np.ndarray]


class FewShotClassifier:
    """Few-shot image classification on CLIP.

    model: a released CLIP's name or a checkpoint file; not needed where all images are given as features.
    heads: names of the methods in the ensemble; None for all.
    tune: methods that tune CLIP's towers: "auto", "off" or names with commas; images must be paths then.
    augment: random views averaged per training image; 0 takes the plain image.
    seed: of the views and of training.
    weights, cache: folders of checkpoints and of computed features; cache None keeps none.
    domains: what the classes' domains are, which choose their prompts. None: the part of a name before the first
        underscore, if for every class that is a domain of the contest ("Animal_Bear"); "polar_bear" is a whole name.
        True: that part of every name. A list (K,): the domain of each class, "" for none.

    After `fit`: `classes_` (K,) labels as they were given, `class_names_` (K,), `pipeline_`, `n_features_in_`.
    Images are paths, or an (N, D) array of CLIP features of the same model.

    Threads may share one, and use several at once: they take turns, since Jittor computes for one at a time. It can be
    pickled and copied (the copy opens its checkpoint again when it encodes). A process that was forked after
    something was computed gets a UserError: multiprocessing has to "spawn".
    """

    def __init__(self, model: str = "ViT-B/32", *, heads: Optional[Sequence[str]] = None, tune: str = "auto",
                 augment: int = 10, seed: int = 0, weights: str = "weights", cache: Optional[str] = ".cache",
                 domains: Union[None, bool, Sequence[str]] = None) -> None:
        self.model = model
        self.heads = heads
        self.tune = tune
        self.augment = augment
        self.seed = seed
        self.weights = weights
        self.cache = cache
        self.domains = domains
        self._source = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_source": None}  # a loaded checkpoint and open files are no state

    @exclusive()
    def fit(self, images: Images = (), labels: Sequence = (), class_names: Optional[Sequence[str]] = None,
            text: Optional[np.ndarray] = None) -> "FewShotClassifier":
        """Learns from S images; from `class_names` alone where there are none.

        labels (S,): anything sortable. With `class_names`, labels are indices into it, and classes
        without an image are known by their text alone.
        class_names (K,): what the prompts say; by default the labels themselves.
        text (K, D): the classes' text features; encoded from the names by default.
        Returns self.
        Raises:
            UserError: an image that cannot be read, a class name twice. ValueError: shapes that do not fit, neither
            images nor names.
        """
        labels = _plain_labels(labels)
        if class_names is None:
            if not len(labels):
                raise ValueError("fit needs images with labels, or class_names")
            self.classes_, numbers = np.unique(labels, return_inverse=True)
            self.class_names_ = [str(name) for name in self.classes_]
        else:
            self.class_names_ = [str(name) for name in class_names]
            self.classes_ = np.arange(len(self.class_names_))
            numbers = labels.astype(np.int64)
            if labels.dtype.kind not in "iufb" or (numbers != labels).any():
                raise ValueError("with class_names, labels are whole numbers, the classes' places in it")
            prompts.require_different(self.class_names_)
        domains = self._domains_of(self.class_names_)
        if text is None:
            sentences = prompts.class_sentences(self.class_names_, domains)
            text = self._opened().texts(self.class_names_, sentences)
        rows = self._rows(images, "training image", self.augment)
        scale = self._source.scale if self._source is not None else CLIP_SCALE
        task = Task(rows, numbers, text, domain_indices(domains), scale)
        tuning = Tuning([])
        if self._paths(images):
            tuning = plan(self.tune, task, self._opened(), Path(), self._paths(images), self.augment, self.seed,
                          prompts.plain_sentences(self.class_names_, domains))
        elif tune_names(self.tune) not in ([], ["auto"]):
            raise ValueError("tuning a tower needs images as paths, not as features")
        self.pipeline_ = Pipeline(head_names(",".join(self.heads or [])), self.seed).fit(task, tuning=tuning)
        self.n_features_in_ = task.text.shape[1]
        return self

    @exclusive()
    def predict_proba(self, images: Images) -> np.ndarray:
        """(N, K) probabilities of each image by itself, in the order of `classes_`."""
        self._require_fit()
        return self.pipeline_.answer(self._rows(images, "image to classify"), "off", self._rows_under(images)).probs

    def predict(self, images: Images, top: int = 1) -> np.ndarray:
        """(N,) likeliest labels, or (N, min(top, K)) with top > 1, best first."""
        return self._labels(self.predict_proba(images), top)

    @exclusive()
    def refine(self, images: Images) -> np.ndarray:
        """(N, K) probabilities of the images as a set: what one image says helps with the others."""
        self._require_fit()
        return self.pipeline_.answer(self._rows(images, "image to classify"), "auto", self._rows_under(images)).final

    def score(self, images: Images, labels: Sequence) -> float:
        """Mean accuracy, 0 to 1, as scikit-learn has it."""
        return float((self.predict(images) == np.asarray(labels)).mean())

    def save(self, path: Union[str, Path]) -> None:
        """Writes everything that `load` needs, as one .npz of plain arrays."""
        self._require_fit()
        settings = {"model": self.model, "augment": self.augment, "seed": self.seed, "weights": self.weights}
        arrays = {f"classifier/{key}": np.array(value) for key, value in settings.items()}
        save_arrays(Path(path), {**self.pipeline_.state(), **arrays, "classifier/classes": self.classes_,
                                      "classifier/class_names": np.array(self.class_names_)})

    @classmethod
    def load(cls, path: Union[str, Path], cache: Optional[str] = ".cache") -> "FewShotClassifier":
        """The classifier that `save` wrote.

        Raises:
            UserError: absent, damaged, or of another version.
        """
        arrays = load_arrays(Path(path), {**STATE_SCHEMA, **_SCHEMA})
        pipeline = Pipeline.from_state(arrays)
        classifier = cls(str(arrays["classifier/model"]), heads=pipeline.names, cache=cache,
                         augment=int(arrays["classifier/augment"]), seed=int(arrays["classifier/seed"]),
                         weights=str(arrays["classifier/weights"]))
        classifier.pipeline_ = pipeline
        classifier.classes_ = arrays["classifier/classes"]
        classifier.class_names_ = [str(name) for name in arrays["classifier/class_names"]]
        classifier.n_features_in_ = pipeline.task_.text.shape[1]
        return classifier

    def _opened(self) -> Source:
        if self._source is None:
            self._source = open_source(self.model, self.weights, cache=self.cache or "")
        return self._source

    def _domains_of(self, class_names: Sequence[str]) -> List[str]:
        if self.domains is None or self.domains is False:
            return domains_of(class_names) if self.domains is None else [""] * len(class_names)
        if self.domains is True:
            return [domain_of(name) for name in class_names]
        if isinstance(self.domains, str) or len(self.domains) != len(class_names):
            raise ValueError(f"domains must be None, True, or a list of {len(class_names)}, one a class")
        return [str(domain) for domain in self.domains]

    def _paths(self, images: Images) -> List[str]:
        """The images as paths; none where they are features."""
        return [] if isinstance(images, np.ndarray) and images.dtype.kind == "f" else [str(path) for path in images]

    def _rows_under(self, images: Images) -> Optional[RowsUnder]:
        """See Pipeline.answer; None where nothing is tuned, or images are given as features."""
        paths = self._paths(images)
        return tuned_rows(self._opened(), Path(), paths) if paths and self.pipeline_.tuned_ else None

    def _rows(self, images: Images, what: str, views: int = 0) -> np.ndarray:
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            return images
        paths = self._paths(images)
        if not paths:
            return np.zeros((0, 0), np.float32)
        rows, bad = self._opened().images(Path(), paths, views=views, seed=self.seed)
        if bad:
            index = min(bad)
            raise UserError(f"the {what} {paths[index]} cannot be read ({bad[index]}); replace it or leave it out"
                            + (f" ({len(bad) - 1} more cannot be read)" if len(bad) > 1 else ""))
        return rows

    def _labels(self, probs: np.ndarray, top: int) -> np.ndarray:
        best = self.classes_[best_classes(probs, top)]
        return best[:, 0] if top == 1 else best

    def _require_fit(self) -> None:
        if not hasattr(self, "pipeline_"):
            raise ValueError("call fit before predict")


def _plain_labels(labels: Sequence) -> np.ndarray:
    """Labels as an array that an .npz can hold: pandas and lists of Python objects come as objects.

    Raises:
        ValueError: labels of several kinds, or of none that can be sorted and saved.
    """
    given = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    labels = np.array(given)
    if labels.dtype == object or (labels.dtype.kind == "U" and not all(isinstance(label, str) for label in given)):
        raise ValueError("labels must all be of one kind: texts, or numbers")
    if labels.ndim != 1:
        raise ValueError(f"labels must be one axis, not of shape {labels.shape}")
    return labels
