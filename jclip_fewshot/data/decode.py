"""Image files -> pixels for the encoder, ahead of it, in worker processes.

A worker is this module in a Python of its own: a fork of the parent would not survive its Jittor or CUDA,
multiprocessing's "spawn" runs the user's script again, and threads wait while Jittor computes with Python's lock. One
packet socket hands tasks to whoever is free, another takes back what became of the images; their pixels go into a ring
of batches in anonymous shared memory. Workers leave when the task socket closes, so none outlives its parent.

V views an image, H, W pixels of the result.
"""

import contextlib
import io
import itertools
import math
import mmap
import os
import pickle
import random
import select
import signal
import socket
import stat
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, features

from jclip_fewshot.clip.preprocess import eight_bits
from jclip_fewshot.data.recipe import PixelRecipe, as_seen
from jclip_fewshot.errors import UserError
from jclip_fewshot.storage.files import DIGEST_BYTES, content_digest

# Some of Pillow's other formats start programs (EPS: Ghostscript).
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
if "avif" in features.modules and features.check("avif"):
    FORMATS.append("AVIF")
BUFFERS = 3  # batches in flight: one with the encoder, two being decoded
PACKET_IMAGES = 8  # images a task at most
PACKET_BYTES = 1 << 20
MOST_BYTES = 256 << 20  # of an image file
MOST_MISSING = 0.9  # of the rows of a file that was cut off; what is missing has one colour
SAMPLE = 1000  # of these rows, and of their pixels, that are looked at
SHRUNK_PIXELS = 64 << 20  # libjpeg shrinks a larger JPEG while decoding it, in a fraction of the memory
JPEG_PIXELS = 400_000_000  # of a JPEG; Pillow's own limit, 179 million, is that of others and of a progressive one,
# all of which lies in memory


class Recipe(NamedTuple):
    pixels: PixelRecipe
    views: int = 0          # 0: the recipe's own view of the picture; more: that many random views instead
    seed: int = 0           # of the random views
    view: int = 0           # which of the test-time views, with views = 0: see `view_images`
    as_seen: bool = False   # turned as EXIF says, on white where transparent; CLIP's own preprocessing does neither

    def about(self) -> dict:
        """What the cache keeps rows of this recipe apart by, besides the encoder, which knows its own pixels."""
        fields = {"size": self.pixels.size[0], "views": self.views, "seed": self.seed, "draft": False}
        return {**fields, **{name: getattr(self, name) for name in ("view", "as_seen") if getattr(self, name)}}


class Done(NamedTuple):
    """What became of it: the digest of its bytes, why it could not be used (or ""), and what was missing (or "")."""

    digest: bytes
    reason: str
    note: str = ""


def open_image(data: bytes) -> tuple[Image.Image, str]:
    """Return a decoded image, and what a person should hear about it; of a cut-off file, what is there."""
    image = _opened(data)
    if image.format == "TIFF":
        held = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in getattr(image, "tile", ()))
        if held < image.width * image.height:  # Pillow leaves the rest black
            raise UserError("damaged: its strips hold a part of the picture alone")
    try:
        image.load()
        return image, ""
    except OSError as error:
        if "truncated" not in str(error):
            raise
        reason = str(error)
    del image  # it may be large, and is decoded once more
    image = _cut_off(data)
    rows = np.asarray(image.resize((min(image.width, SAMPLE), min(image.height, SAMPLE)), Image.Resampling.NEAREST))
    if max((rows == rows[end, -1]).reshape(len(rows), -1).all(axis=1).mean() for end in (0, -1)) > MOST_MISSING:
        raise OSError(reason)  # a BMP begins with its last row
    return image, "cut off: what is there was decoded; fetch it again"


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        if data[:2] != b"\xff\xd8":
            raise
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        if image.width * image.height > JPEG_PIXELS or "progressive" in image.info:
            raise
    if image.format in ("JPEG", "MPO") and image.width * image.height > SHRUNK_PIXELS:
        times = next((n for n in (2, 4) if image.width * image.height <= n * n * SHRUNK_PIXELS), 8)
        image.draft(None, (image.width // times, image.height // times))
    return image


def _cut_off(data: bytes) -> Image.Image:
    """What is there of a truncated file. A JPEG is given its end, after which libjpeg leaves out less than Pillow."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = _opened(data + b"\xff\xd9" if data[:2] == b"\xff\xd8" else data)
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    return image


def random_view(image: Image.Image, recipe: PixelRecipe, rng: random.Random) -> Image.Image:
    """Tip-Adapter's: torchvision's RandomResizedCrop(size, scale=(0.5, 1), ratio=(3/4, 4/3)), half of them mirrored."""
    width, height = image.size
    for _ in range(10):
        area = width * height * (0.5 + 0.5 * rng.random())
        ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            break
    else:  # a very long image: its middle, as near to square as the ratio allows
        w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
        left, top = (width - w) // 2, (height - h) // 2
    view = image.crop((left, top, left + w, top + h)).resize(recipe.size[::-1], recipe.interpolation)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


def view_images(image: Image.Image, digest: bytes, recipe: Recipe) -> Iterator[np.ndarray]:
    """The V views of one image, (H, W, 3) each; random ones are seeded by its content, not by its place.

    View 0 is the encoder's own, 1 the whole image squeezed to the size, 2 and 3 these two mirrored, others are random.
    """
    pixels, view = recipe.pixels, 4 if recipe.views else recipe.view
    image = as_seen(image) if recipe.as_seen else image
    if view == 0:
        yield pixels.pixels(image)
        return
    image = eight_bits(image).convert("RGB")
    if view == 2:
        yield pixels.pixels(image)[:, ::-1]
    elif view < 4:
        squeezed: np.ndarray = np.asarray(image.resize(pixels.size[::-1], pixels.interpolation), pixels.dtype)
        yield squeezed if view == 1 else squeezed[:, ::-1]
    else:
        # random.Random(int).random() is the one generator whose numbers Python promises to keep.
        rng = random.Random(int.from_bytes(digest, "little") + ((recipe.seed + recipe.view) << (8 * DIGEST_BYTES)))
        for _ in range(recipe.views or 1):
            yield np.asarray(random_view(image, pixels, rng))


def _bytes_of(path: str) -> bytes:
    kind = os.stat(path)
    if not stat.S_ISREG(kind.st_mode) and not stat.S_ISDIR(kind.st_mode):  # a pipe would be waited for
        raise UserError("unreadable: a device or pipe, no file")
    if kind.st_size > MOST_BYTES:
        raise UserError(f"too large: {kind.st_size >> 20} MB, {MOST_BYTES >> 20} MB are the limit")
    data = Path(path).read_bytes()
    if not data:
        raise UserError("the file is empty")
    return data


def digest_of(path: str) -> bytes | None:
    """The digest of a file's bytes, None where they cannot be read."""
    try:
        return content_digest(_bytes_of(path))
    except (OSError, ValueError, UserError):
        return None


def decode(path: str, recipe: Recipe, out: np.ndarray) -> Done:
    """Fill out (V, H, W, 3) from a file. No bad file makes it raise."""
    digest, data = bytes(DIGEST_BYTES), b""
    try:
        data = _bytes_of(path)
        digest = content_digest(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own name no file
            image, note = open_image(data)
            for v, view in enumerate(view_images(image, digest, recipe)):
                out[v] = view
        return Done(digest, "", note)
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile files
        out[:] = 0
        return Done(digest, _reason(error, data))


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        avif = data[4:12] in (b"ftypavif", b"ftypavis") and "AVIF" not in FORMATS
        return "AVIF, which this Pillow cannot read: install a newer one" if avif else "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return (f"too many pixels (a decompression bomb?): {JPEG_PIXELS // 10**6} million are the limit of a JPEG, 179 "
                "million that of other formats and of progressive JPEGs")
    if isinstance(error, OSError) and error.errno is not None:
        return f"unreadable: {error.strerror}"
    return f"damaged: {error}" if str(error) else f"damaged: {type(error).__name__}"


def _shared(fd: int, batch_shape: tuple[int, ...], dtype: type, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Which image each worker has in hand (-1: none) and, behind that in the memory, the ring of batches."""
    memory = mmap.mmap(fd, 0)
    batches: np.ndarray = np.frombuffer(memory, dtype, offset=8 * workers)
    return np.frombuffer(memory, np.int64, workers), batches.reshape(BUFFERS, *batch_shape)


def serve(task_fd: int, result_fd: int, memory_fd: int, batch_shape, workers: int, me: int, recipe: Recipe) -> None:
    """The life of a worker: tasks in, pixels and results out, until the parent closes the task socket."""
    os.nice(19)  # whoever encodes goes first: one of its threads pushed aside would make the others wait as well
    tasks, results = socket.socket(fileno=task_fd), socket.socket(fileno=result_fd)
    in_hand, batches = _shared(memory_fd, batch_shape, recipe.pixels.dtype, workers)
    with contextlib.suppress(OSError):  # the parent was killed
        while packet := tasks.recv(PACKET_BYTES):
            done = []
            buffer, images = pickle.loads(packet)  # from our own parent, over an anonymous socket
            for place, index, path in images:
                in_hand[me] = index
                done.append((index, decode(path, recipe, batches[buffer, place])))
            in_hand[me] = -1
            results.send(pickle.dumps(done))


class Decoder(contextlib.AbstractContextManager):
    """Decodes files in worker processes (workers = 0: in this one), in order, a few batches ahead."""

    def __init__(self, paths: Sequence, recipe: Recipe, batch_images: int, workers: int):
        self.paths = paths
        self.recipe = recipe
        self.batch_shape = (batch_images, max(1, recipe.views), *recipe.pixels.size, 3)
        self.workers: list[subprocess.Popen] = []
        self._waiting: deque[bytes] = deque()  # packets that the task socket has not taken yet
        self._done: dict[int, Done] = {}
        if workers > 0:
            self._start(workers)

    def _start(self, workers: int) -> None:
        self._tasks, tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tasks.setblocking(False)
        self._results.setblocking(False)
        # Not /dev/shm: containers give that 64 MB, and a killed run would leave its files there.
        with tasks, results, os.fdopen(os.memfd_create("decode"), "rb") as memory:
            fds = (tasks.fileno(), results.fileno(), memory.fileno())
            bytes_each = np.dtype(self.recipe.pixels.dtype).itemsize
            os.ftruncate(fds[2], 8 * workers + BUFFERS * math.prod(self.batch_shape) * bytes_each)
            self._in_hand, self._batches = _shared(fds[2], self.batch_shape, self.recipe.pixels.dtype, workers)
            self._in_hand[:] = -1
            root = str(Path(__file__).resolve().parents[2])
            environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
            for me in range(workers):
                arguments = fds + (self.batch_shape, workers, me, self.recipe)
                code = (f"import sys; sys.path[:] = {[root] + sys.path!r}\n"
                        f"from {__name__} import PixelRecipe, Recipe, serve; serve(*{arguments!r})")
                self.workers.append(subprocess.Popen(
                    [sys.executable, "-c", code], pass_fds=fds, env=environment, stdin=subprocess.DEVNULL,
                    start_new_session=True))  # so that Ctrl-C reaches the parent alone

    def __exit__(self, *_: object) -> None:
        """Ends the workers; safe to call twice and at any moment."""
        if self.workers:
            self._tasks.close()
            self._results.close()
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait()
        self.workers = []

    def batches(self, indices: Sequence[int]) -> Iterator[tuple[list[int], np.ndarray, list[Done]]]:
        """(indices, pixels (B, V, H, W, 3) valid until the next, results) in order; zeros where `Done` says why."""
        size = self.batch_shape[0]
        groups = [list(indices[i:i + size]) for i in range(0, len(indices), size)]
        if not self.workers:
            pixels: np.ndarray = np.zeros(self.batch_shape, self.recipe.pixels.dtype)
            for group in groups:
                done = [decode(os.fspath(self.paths[i]), self.recipe, pixels[n]) for n, i in enumerate(group)]
                yield group, pixels[:len(group)], done
            return
        ahead = iter(enumerate(groups))
        for b, group in enumerate(groups):
            for later, more in itertools.islice(ahead, 1 if b else BUFFERS):  # the encoder is done with that buffer
                # small enough that every worker gets some of each batch
                step = max(1, min(PACKET_IMAGES, len(more) // (2 * len(self.workers))))
                images = [(place, index, os.fspath(self.paths[index])) for place, index in enumerate(more)]
                self._waiting.extend(pickle.dumps((later % BUFFERS, images[i:i + step]))
                                     for i in range(0, len(images), step))
            self._hand_out()
            while not all(i in self._done for i in group):
                self._exchange()
            yield group, self._batches[b % BUFFERS, :len(group)], [self._done.pop(i) for i in group]

    def _hand_out(self) -> None:
        while self._waiting:
            try:
                self._tasks.send(self._waiting[0])
            except BlockingIOError:  # the socket is full: more than the workers can do for a while
                return
            except (BrokenPipeError, ConnectionResetError):
                self._check_workers(gone=True)
            self._waiting.popleft()

    def _exchange(self) -> None:
        """Waits until a result comes (or a worker dies), takes it, hands out more tasks."""
        ready, _, _ = select.select([self._results], [self._tasks] if self._waiting else [], [], 0.2)
        if ready:
            packet = self._results.recv(PACKET_BYTES)
            if not packet:
                self._check_workers(gone=True)
            self._done.update(pickle.loads(packet))
        else:
            self._check_workers()
        self._hand_out()

    def _check_workers(self, gone: bool = False) -> None:
        for me, worker in enumerate(self.workers):
            if gone:  # every worker has closed its end: they are dead or about to be
                worker.wait()
            status = worker.poll()
            if status is None:
                continue
            index = int(self._in_hand[me])
            where = f" at {self.paths[index]}" if index >= 0 else ""
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            why = " (out of memory?)" if status == -signal.SIGKILL else ""
            raise UserError(f"a decode worker {how}{where}{why}; finished features are kept in the cache: "
                            "look at that image, then run again")
