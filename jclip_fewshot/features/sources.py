"""Where feature rows come from: a CLIP that encodes, or a file of features that somebody has computed.

train.py and test.py do not care which: both sources answer `images` and `texts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from jclip_fewshot.backend import ranks
from jclip_fewshot.config import MachineConfig, TrainConfig
from jclip_fewshot.console import tell, warn
from jclip_fewshot.encoders.base import Encoder
from jclip_fewshot.encoders.clip_encoder import open_encoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features.encode import Bad, encode_images, encode_texts
from jclip_fewshot.features.table import FeatureTable
from jclip_fewshot.storage.row_store import FeatureCache
from jclip_fewshot.task import CLIP_SCALE


class EncoderSource:
    """Encodes image files and sentences; what is in the cache is not computed again.

    Under mpirun each rank encodes a part of the images and finds the others' rows in the cache.
    """

    def __init__(self, encoder: Encoder, cache: Optional[FeatureCache], workers: Optional[int], record: dict) -> None:
        self._encoder = encoder
        self._cache = cache
        self._workers = workers
        self._record = record
        self._barrier = ranks.Barrier(cache.folder) if cache is not None else None

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0,
               stage: str = "images") -> Tuple[np.ndarray, Bad]:
        """(N, D) unit rows of files below `root`, and why some could not be read: {index: reason}."""
        def encode(shard: Tuple[int, int] = (0, 1)) -> Tuple[np.ndarray, Bad]:
            return encode_images(self._encoder, [root / path for path in paths], cache=self._cache, views=views,
                                 seed=seed, workers=self._workers, stage=stage, shard=shard)
        if ranks.size() > 1:
            encode((ranks.rank(), ranks.size()))
            self._barrier.wait()
        return encode()

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]], unit: bool = True) -> np.ndarray:
        """(K, D) rows, the mean over each class's sentences; normalised again with `unit`."""
        if not ranks.first():  # the first rank's rows are in the cache then
            self._barrier.wait()
        rows = encode_texts(self._encoder, sentences, cache=self._cache, unit=unit)
        if ranks.size() > 1 and ranks.first():
            self._barrier.wait()
        return rows

    @property
    def scale(self) -> float:
        """Of the cosines in zero-shot logits."""
        return self._encoder.scale

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return self._record


class TableSource:
    """Looks rows up in a --features file; views and sentences went into them when they were made."""

    def __init__(self, table: FeatureTable) -> None:
        self._table = table

    def images(self, root: Path, paths: Sequence[str], views: int = 0, seed: int = 0,
               stage: str = "images") -> Tuple[np.ndarray, Bad]:
        """(N, D) unit rows of paths below the data folder."""
        return self._table.lookup(paths), {}

    def texts(self, class_names: Sequence[str], sentences: Sequence[Sequence[str]], unit: bool = True) -> np.ndarray:
        """(K, D) unit rows of the classes."""
        return self._table.text_rows(class_names)

    scale = CLIP_SCALE  # a feature file does not say

    def record(self) -> dict:
        """What test.py needs to open the same source again."""
        return {"features": str(self._table.file)}


Source = Union[EncoderSource, TableSource]


def open_source(settings: TrainConfig) -> Source:
    """The source that train.py's settings name.

    Raises:
        UserError: no such checkpoint or feature file, or a damaged one.
    """
    if settings.features:
        return TableSource(FeatureTable.read(settings.features))
    return _encoder_source(settings.model, settings.weights, settings)


def reopen_source(record: dict, settings: MachineConfig) -> Source:
    """The source that a run was trained with.

    Raises:
        UserError: it is gone, or the checkpoint is another one now.
    """
    saved = record["encoder"]
    if "features" in saved:
        return TableSource(FeatureTable.read(saved["features"]))
    source = _encoder_source(saved["model"], saved["weights"], settings)
    if source.record()["fingerprint"] != saved["fingerprint"]:
        message = f"{saved['model']} is not the checkpoint that the run was trained with"
        if settings.device == "auto":
            # half precision on a GPU and single on the CPU give features that agree to about 1e-3
            warn(f"{message}, or runs in another precision here")
        else:
            raise UserError(f"{message}: train again, or put the old file back")
    return source


def _encoder_source(model: str, weights: str, settings: MachineConfig) -> EncoderSource:
    from jclip_fewshot.backend.runtime import on_cuda
    ranks.require_cache(settings.cache)
    cache = FeatureCache(settings.cache) if settings.cache else None
    encoder = open_encoder(model, download_root=weights, dtype="float16" if on_cuda() else "float32",
                           batch_size=settings.batch_size or None, cache=cache)
    tell(f"{encoder.name}: {encoder.width}-wide features of {encoder.image_size} px images")
    record = {"model": model, "weights": weights, "fingerprint": encoder.fingerprint, "width": encoder.width,
              "image_size": encoder.image_size, "parameters": encoder.parameters}
    return EncoderSource(encoder, cache, settings.workers or None, record)


def labelled_rows(source: Source, root: Path, images: Sequence[Tuple[str, int]], skip_bad: bool, views: int = 0,
                  stage: str = "images") -> Tuple[np.ndarray, List[Tuple[str, int]], Bad]:
    """Feature rows of labelled images that could be read, those images, and what was wrong with the others.

    Raises:
        UserError: an image that cannot be read, without `skip_bad`.
    """
    rows, bad = source.images(root, [path for path, _ in images], views=views, stage=stage)
    kept = require_readable(images, bad, skip_bad)
    return rows[kept], [images[i] for i in kept], bad


def require_readable(shots: Sequence[Tuple[str, int]], bad: Dict[int, str], skip: bool) -> List[int]:
    """Indices of the shots that could be read; with `skip`, the others are named in warnings.

    Raises:
        UserError: a shot that cannot be read, without `skip`.
    """
    for index in sorted(bad):
        path = shots[index][0]
        if not skip:
            raise UserError(f"training image {path} cannot be read ({bad[index]}); mend it, or --skip-bad goes without")
        warn(f"training image {path} cannot be read ({bad[index]}); left out")
    return [index for index in range(len(shots)) if index not in bad]
