"""Everything as one object, in scikit-learn's manner, for notebooks and other programs: docs/classifier.md.

Letters: N images, S shots, K classes, D feature width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from jclip_fewshot import console
from jclip_fewshot.backend import exclusive
from jclip_fewshot.clip.download import weights_folder
from jclip_fewshot.console import warn
from jclip_fewshot.data import prompts
from jclip_fewshot.data.prompts import domain_of, domains_of
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes
from jclip_fewshot.export import linear_export, require_export_name, save_export, save_onnx
from jclip_fewshot.features.pictures import Images, as_files, pictures_or_rows
from jclip_fewshot.features.sources import Source, encoders_of, listed, open_source
from jclip_fewshot.labels import named, plain_labels, sklearns
from jclip_fewshot.methods.base import Given
from jclip_fewshot.methods.plan import choose
from jclip_fewshot.pipeline import STATE_SCHEMA, Answers, Pipeline
from jclip_fewshot.problem import queries_of, tower_of
from jclip_fewshot.storage.arrays import Field, load_arrays, save_arrays
from jclip_fewshot.task import CLIP_SCALE, EncoderSlice, Task, domain_indices, joined, joined_scale

_SCHEMA = {"classifier/model": Field("text"), "classifier/weights": Field("text", ""),
           **{f"classifier/{key}": Field("whole", "", low=0) for key in ("augment", "seed")},
           "classifier/views": Field("whole", "", low=1, needed=False),
           "classifier/digests": Field("text", "*", needed=False),
           "classifier/classes": Field("any", "K"), "classifier/class_names": Field("text", "K")}


@dataclass(eq=False, repr=False)
class FewShotClassifier:
    """Few-shot image classification on CLIP: docs/classifier.md.

    model: a released CLIP's name or a checkpoint file; a list: several encoders (docs/notes/encoders.md).
    class_names (K,): what the prompts say; labels are then the classes' places in it, or names of it. None: the labels
        are names. text: (K, D) text rows of the classes; None encodes the names; "none": the shots alone decide, as
        for rows of an encoder without text. `fit` takes both, too.
    methods: "auto", train.py's default; "fast", those without training; "all"; names with commas, or a list of them.
        Methods that tune CLIP's towers need images as paths.
    augment: random views averaged per training image; 0 takes the plain image. views: averaged per image to classify
        (docs/notes/views.md). seed: of the views and of training.
    weights: folder of checkpoints; None: weights/ beside the package. cache: of computed features; None keeps none.
    domains: of the classes, which choose their prompts. None: the part of a name before the first underscore, if for
        every class that is a domain of the contest ("Animal_Bear"). True: that part of every name. False: none. A list
        (K,): the domain of each class, "" for none.
    quiet: show no progress and no notes, for notebooks.

    Images are one or many of paths, Pillow images and uint8 pixels, or (N, D) CLIP features of the same model. Features
    of several encoders are a list, (N, D) of each; `text` then is a list too, with None for an encoder without text.
    After `fit`: `classes_` (K,) labels as they were given, sorted, `class_names_` (K,) in the same order, `pipeline_`,
    `n_features_in_`.
    """

    model: str | Sequence[str] = "ViT-B/32"
    _: KW_ONLY
    class_names: Sequence[str] | None = None
    text: None | str | np.ndarray = None
    methods: str | Sequence[str] = "auto"
    augment: int = 10
    views: int = 1
    seed: int = 0
    weights: str | None = None
    cache: str | None = ".cache"
    domains: None | bool | Sequence[str] = None
    quiet: bool = False

    # no annotations, which would make parameters of them
    _estimator_type = "classifier"  # for scikit-learn before 1.6
    _source = cast(Source | None, None)
    _digests = cast(Sequence[str], ())  # of the checkpoints that it has learned with

    def __repr__(self) -> str:
        defaults = {name: getattr(type(self), name) for name in self.get_params()}
        changed = [f"{name}={value!r:.60}" for name, value in self.get_params().items()
                   if value is not defaults[name] and not np.array_equal(value, defaults[name])]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __getstate__(self) -> dict:
        # a loaded checkpoint and open files are no state
        return {name: value for name, value in vars(self).items() if name != "_source"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  # scikit-learn's signature
        """The constructor's arguments by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Changes arguments of the constructor. Returns self."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"Invalid parameter {name!r}; there are {', '.join(known)}")
            setattr(self, name, value)
            self._source = None
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, Tags, TargetTags
        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True),
                    classifier_tags=ClassifierTags())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pipeline_")

    @exclusive()
    def fit(self, images: Images | None = None, y: Sequence | None = None, class_names: Sequence[str] | None = None,
            text: None | str | np.ndarray = None) -> FewShotClassifier:
        """Learn from S images; without any, from `class_names` alone. Return self.

        y (S,): labels: class names, or with `class_names` whole numbers, the places in it; classes without an image are
        then known by their text alone. class_names, text: see the class; these win over the constructor's.

        Raise UserError if an image cannot be read; ValueError if shapes do not fit, labels are numbers without names,
        or there are neither images nor names.
        """
        self._check_parameters()
        certain = class_names is not None
        class_names = class_names if certain else self.class_names
        text = self.text if text is None else text
        labels, rows = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        with self._told():
            parts, text = self._parts_of(images, text)
            if images is None and y is None:
                if class_names is None or isinstance(text, str):
                    raise ValueError("fit needs images with labels, or class_names that say what the classes are")
                certain = True
            else:
                images, labels = _plain(images), plain_labels(y)
            count = 0 if images is None else len(cast(list, images))
            if count != len(labels):
                raise ValueError(f"{count} images and {len(labels)} labels: as many are needed")
            classes, names, numbers, order = named(labels, class_names, certain, text is None)
            self._locate()
            domains = self._domains_of(names, order)
            if images is not None:
                rows = self._shots(images)
            text = self._text_rows(text, names, domains, order, rows.shape[1])
            scale = joined_scale(parts) if parts else CLIP_SCALE
            if self._source is not None and not parts:
                scale, parts = self._source.scale, self._source.parts
            task = Task(rows, numbers, text, domain_indices(domains), scale, parts)
            files = isinstance(images, list) and all(isinstance(image, (str, Path)) for image in images)
            tower = tower_of(self.source, Path(), [str(image) for image in cast(list, images)], self.augment, self.seed,
                             prompts.plain_sentences(names, domains)) if files else None
            self.pipeline_ = Pipeline(self.methods, self.seed).fit(task, Given(tower))
            self.classes_, self.class_names_, self.n_features_in_ = classes, names, task.text.shape[1]
            return self

    def predict_proba(self, images: Images) -> np.ndarray:
        """Return (N, K) probabilities of each image by itself, in the order of `classes_`."""
        return self._answers(images, "off").probs

    def predict(self, images: Images, top: int = 1) -> np.ndarray:
        """Return the most likely labels (N,), or (N, min(top, K)) with top > 1, best first; ValueError below 1."""
        if top < 1:
            raise ValueError(f"top must be 1 or more, not {top}")
        self._require_fit()
        none = isinstance(images, (list, tuple)) and not images
        probs = np.zeros((0, len(self.classes_)), np.float32) if none else self.predict_proba(images)
        best = self.classes_[best_classes(probs, top)]
        return best[:, 0] if top == 1 else best

    def refine(self, images: Images) -> np.ndarray:
        """Return (N, K) probabilities of the images as a set: what one image says helps with the others."""
        return self._answers(images, "auto").final

    def score(self, images: Images, y: Sequence) -> float:
        """Return the mean accuracy, 0 to 1, as scikit-learn has it."""
        return float((self.predict(images) == np.asarray(y)).mean())

    def save(self, path: str | Path) -> None:
        """Write everything that `load` needs, as one .npz of plain arrays."""
        self._require_fit()
        saved: dict[str, Any] = {"model": self.model_, "augment": self.augment, "views": self.views, "seed": self.seed,
                                 "weights": self.weights_, "classes": self.classes_, "class_names": self.class_names_}
        if self._digests:  # none where features were learned from
            saved["digests"] = self._digests
        save_arrays(Path(path), {**self.pipeline_.state(),
                                 **{f"classifier/{name}": np.array(value) for name, value in saved.items()}})

    @classmethod
    def load(cls, path: str | Path, cache: str | None = ".cache", model: str | Sequence[str] = "",
             weights: str | None = None) -> FewShotClassifier:
        """Return the classifier that `save` wrote.

        model, weights: where the checkpoint lies now, if it is no longer where it was. Raise UserError if the file is
        absent, damaged, or of another version.
        """
        arrays = load_arrays(Path(path), {**STATE_SCHEMA, **_SCHEMA})
        pipeline = Pipeline.from_state(arrays)
        saved = {name.partition("/")[2]: value.tolist() for name, value in arrays.items()
                 if name.startswith("classifier/")}
        classifier = cls(model or saved["model"], cache=cache,
                         methods=pipeline.methods,  # type: ignore[arg-type]  # names, of what was read
                         augment=saved["augment"], seed=pipeline.seed, views=saved.get("views", 1),
                         weights=weights or (saved["weights"] if os.path.isdir(saved["weights"]) else None))
        classifier._locate()
        classifier._digests = saved.get("digests", [])
        classifier.pipeline_ = pipeline
        classifier.classes_, classifier.class_names_ = arrays["classifier/classes"], saved["class_names"]
        classifier.n_features_in_ = pipeline.task_.text.shape[1]
        return classifier

    @exclusive()
    def export(self, path: str | Path, uint8: bool = False) -> dict[str, float | None]:
        """Write one linear classifier, .npz or .safetensors for NumPy, .onnx with CLIP's tower: docs/export.md.

        uint8: the .onnx takes pixels as Pillow has them. Return {"held_out_top1", "ensemble_held_out_top1"}: its own
        and that of `predict`, on the shots left out; None where none can be.
        """
        self._require_fit()
        require_export_name(path)
        found = linear_export(self.pipeline_)
        if Path(path).suffix == ".onnx":
            source = open_source(self.model_, self.weights_, cache=self.cache or "", precision="float32")
            save_onnx(path, found, self.class_names_, source, uint8)
        else:
            encoder = self._source.record() if self._source is not None else {"model": self.model}
            save_export(path, found, self.class_names_, encoder)
        return {"held_out_top1": found.held_out_top1, "ensemble_held_out_top1": found.ensemble_top1}

    def _check_parameters(self) -> None:
        """Complain before the work of what the constructor, which scikit-learn wants to take anything, was given."""
        for name, least in (("augment", 0), ("views", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, not {value!r}")
        if not isinstance(self.methods, (str, list, tuple)):
            raise ValueError(f"methods must be a text or a list of names, not {self.methods!r}")
        choose(self.methods)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """With `quiet`, progress and notes are left out while the block runs."""
        before, console.quiet = console.quiet, console.quiet or self.quiet
        try:
            yield
        finally:
            console.quiet = before

    def _locate(self) -> None:
        """Where the checkpoint lies, whatever the working directory will be."""
        if self._source is None:  # none has been learned with yet
            self._digests = []
        self.weights_ = os.path.abspath(self.weights if self.weights is not None else weights_folder())
        found = [os.path.abspath(name) if os.path.exists(name) else str(name) for name in listed(self.model)]
        self.model_ = found[0] if isinstance(self.model, (str, Path)) else found

    @property
    def source(self) -> Source:
        """What encodes pictures, opened; raise UserError if it is not the checkpoint that was learned with."""
        if self._source is None:
            source = open_source(self.model_, self.weights_, cache=self.cache or "")
            digests = [one.get("weights_digest", "") for one in encoders_of(source.record())]
            if self._digests and digests != self._digests:
                raise UserError(f"{', '.join(listed(self.model_))}: not the checkpoint that the classifier has learned "
                                "with; say with model= where that lies, or fit again")
            self._source, self._digests = source, digests
        return self._source

    def _parts_of(self, images: Any, text: Any) -> tuple[tuple[EncoderSlice, ...], Any]:
        """The encoders of features that come as a list of arrays, and their text rows side by side."""
        if not _of_several(images):
            return (), text
        given = list(text) if isinstance(text, (list, tuple)) else [text]
        if len(given) != len(images) or not isinstance(given[0], np.ndarray):
            raise ValueError(f"features of {len(images)} encoders need text rows of as many, a list; None for an "
                             "encoder without text, and the first has text")
        classes, parts = len(given[0]), []
        for number, (rows, one) in enumerate(zip(images, given), 1):
            width = rows.shape[1]
            given[number - 1] = one = np.zeros((classes, width), np.float32) if one is None else np.asarray(one)
            if one.shape != (classes, width):
                raise ValueError(f"encoder {number}: text rows {one.shape} do not fit {classes} classes and features "
                                 f"of width {width}")
            parts.append(EncoderSlice(f"encoder{number}", width, bool(one.any())))
        return tuple(parts), joined(given)

    def _text_rows(self, text: None | str | np.ndarray, class_names: Sequence[str], domains: Sequence[str],
                   order: np.ndarray, width: int) -> np.ndarray:
        """(K, D); order (K,): where the rows that were given have each class. Without text all have the same row."""
        if text is None:
            return self.source.texts(class_names, prompts.class_sentences(class_names, domains))
        if isinstance(text, str):
            if text != "none":
                raise ValueError(f"text must be rows (K, D), None or 'none', not {text!r}")
            return np.ones((len(class_names), width), np.float32)
        rows = np.asarray(text)
        return rows[order] if len(rows) == len(order) else rows  # Task says that they do not fit

    def _domains_of(self, class_names: Sequence[str], order: Sequence[int] | np.ndarray) -> list[str]:
        """The domain of each class; order (K,): where the constructor's list has each of them."""
        if self.domains is None or self.domains is False:
            return domains_of(class_names) if self.domains is None else [""] * len(class_names)
        if self.domains is True:
            return [domain_of(name) for name in class_names]
        if isinstance(self.domains, str) or len(self.domains) != len(class_names):
            raise ValueError(f"domains must be None, True, or a list of {len(class_names)}, one a class")
        return [str(self.domains[index]) for index in order]

    @exclusive()
    def _answers(self, images: Any, refine: str) -> Answers:
        self._require_fit()
        images, tuned = _plain(images), self.pipeline_.asks_images
        with self._told():
            if isinstance(images, np.ndarray):
                if tuned:
                    warn(f"{', '.join(tuned)} need images; the methods on features answer alone")
                return self.pipeline_.answer(self._checked_rows(images, fitting=False), refine)
            with as_files(images) as paths:
                rows = self._encoded(paths, images, "image to classify", test_views=self.views)
                queries = queries_of(self.source, Path(), paths, rows, self.views) if tuned else rows
                return self.pipeline_.answer(queries, refine)

    def _shots(self, images: Any) -> np.ndarray:
        if isinstance(images, np.ndarray):
            return self._checked_rows(images, fitting=True)
        with as_files(images) as paths:
            return self._encoded(paths, images, "training image", views=self.augment)

    def _encoded(self, paths: list[str], images: Sequence, what: str, **views: Any) -> np.ndarray:
        """Rows (N, D) of pictures; views: as the source takes them."""
        rows, bad = self.source.images(Path(), paths, seed=self.seed, **views)
        if bad:
            index = min(bad)
            name = images[index] if isinstance(images[index], (str, os.PathLike)) else f"number {index}"
            raise UserError(f"the {what} {name} cannot be read ({bad[index]}); replace it or leave it out"
                            + (f" ({len(bad) - 1} more cannot be read)" if len(bad) > 1 else ""))
        return rows

    def _checked_rows(self, rows: np.ndarray, fitting: bool) -> np.ndarray:
        """Return features (N, D) in float32. Raise ValueError in scikit-learn's words, which programs look for."""
        if rows.ndim != 2:
            raise ValueError(f"Expected 2D array of features (N, D), got shape {rows.shape}. Reshape your data: one "
                             "row is array.reshape(1, -1)")
        if 0 in rows.shape:
            raise ValueError(f"Found array with 0 {'sample' if len(rows) == 0 else 'feature'}(s) (shape={rows.shape}) "
                             "while a minimum of 1 is required.")
        if not fitting and rows.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                             f"{self.n_features_in_} features as input")
        rows = np.asarray(rows, np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("Input X contains NaN or infinity: features are finite numbers")
        return rows

    def _require_fit(self) -> None:
        if not hasattr(self, "pipeline_"):
            raise sklearns("NotFittedError", ValueError)(
                f"This {type(self).__name__} instance is not fitted yet: call fit before predict")


def _of_several(images: Any) -> bool:
    """Whether images are features of several encoders: a list of (N, D)."""
    return isinstance(images, (list, tuple)) and len(images) > 1 and all(
        isinstance(one, np.ndarray) and one.ndim == 2 and one.dtype.kind == "f" for one in images)


def _plain(images: Any) -> Any:
    """Return a list of pictures, or rows (N, D), of several encoders side by side; see `pictures_or_rows`."""
    if _of_several(images):
        if len({len(one) for one in images}) > 1:
            raise ValueError("features of several encoders need as many rows of each, not "
                             f"{[len(one) for one in images]}")
        images = joined(images)
    return pictures_or_rows(images)
