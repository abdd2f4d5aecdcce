"""Images and sentences to rows: order, bad files, views, the cache, workers that die, Ctrl-C, kill -9."""

import contextlib
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot.clip.preprocess import image_array, normalize
from jclip_fewshot.data import decode
from jclip_fewshot.data.recipe import PixelRecipe
from jclip_fewshot.encoders import open_encoder
from jclip_fewshot.encoders.base import ROWS, Encoder
from jclip_fewshot.encoders.clip_encoder import ClipEncoder
from jclip_fewshot.errors import UserError
from jclip_fewshot.features import encode as features
from jclip_fewshot.features.encode import encode_images, encode_texts, encode_views
from jclip_fewshot.features.sources import TableSource
from jclip_fewshot.storage import feature_cache
from jclip_fewshot.storage.feature_cache import FeatureCache

ROOT = Path(__file__).resolve().parents[2]
SIZE, WIDTH, BATCH = 32, 24, 8
PROJECTION = np.random.default_rng(0).standard_normal((3 * SIZE * SIZE, WIDTH))


def project(pixels):
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (SIZE, SIZE, 3)
    # in float64, so that a row is the same to the bit in a batch of any size
    return (normalize(pixels).reshape(len(pixels), -1).astype(np.float64) @ PROJECTION).astype(np.float32)


def spell(sentences):
    """A toy tokenizer: letters, then an end mark that is higher than all of them."""
    tokens = np.zeros((len(sentences), 40), np.int32)
    for row, sentence in zip(tokens, sentences):
        row[:len(sentence)] = [ord(letter) for letter in sentence]
        row[len(sentence)] = 999
    return tokens


def read_aloud(tokens):
    sums = tokens @ np.arange(1, 41)
    return np.sin(np.outer(sums, np.arange(1, WIDTH + 1))).astype(np.float32)


class ToyEncoder(Encoder):
    """Its functions can be changed, by the names of what they make."""

    def __init__(self, weights_digest="f" * 32, batch_size=BATCH, images=project, texts=read_aloud, tokens=spell):
        super().__init__("toy", weights_digest, "float32", SIZE, WIDTH, 100.0, batch_size)
        self._functions = images, texts, tokens

    def images(self, pixels, _depth=ROWS):
        return self._functions[0](pixels)

    def texts(self, tokens):
        return self._functions[1](tokens)

    def lengths(self, tokens):
        return tokens.argmax(axis=1)

    def tokens(self, sentences):
        return self._functions[2](sentences)


ENCODER = ToyEncoder()


def picture(seed, size=None):
    rng = np.random.default_rng(seed)
    size = size or tuple(int(s) for s in rng.integers(33, 120, 2))
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    return image.convert("L") if seed % 5 == 0 else image


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.{'png' if i % 7 == 0 else 'jpeg' if i % 3 else 'jpg'}" for i in range(45)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    return paths


@pytest.fixture(scope="module")
def expected(paths):
    rows = np.stack([image_array(Image.open(path), SIZE).reshape(-1) for path in paths]) @ PROJECTION
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def decoded(monkeypatch):
    """Counts the files that are decoded (in any process) and notes the decoders."""
    class Counting(decode.Decoder):
        files, made = [], []

        def __init__(self, *args):
            super().__init__(*args)
            self.made.append(self)
            self.most = len(self.workers)

        def batches(self, indices):
            self.files.extend(indices)
            return super().batches(indices)
    monkeypatch.setattr(features, "Decoder", Counting)
    Counting.files, Counting.made = [], []
    return Counting


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_rows_are_those_of_the_preprocessing_in_order(paths, expected, workers, batch):
    rows, bad = encode_images(ToyEncoder(batch_size=batch), paths, workers=workers)
    assert not bad and rows.dtype == np.float32 and rows.shape == (45, WIDTH)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_rows_do_not_depend_on_company(paths):
    everything, _ = encode_images(ENCODER, paths, workers=0)
    some, _ = encode_images(ENCODER, paths[11:14][::-1], workers=0)
    assert (some == everything[11:14][::-1]).all()


def test_the_encoder_sees_batches_of_one_size(paths):
    sizes = set()

    def images(batch):
        sizes.add(len(batch))
        return project(batch)
    encode_images(ToyEncoder(images=images), paths[:11], workers=0)
    encode_images(ToyEncoder(images=images), paths[:3], views=4, workers=0)
    assert sizes == {BATCH}


def test_no_images(tmp_path):
    rows, bad = encode_images(ENCODER, [], cache=FeatureCache(tmp_path))
    assert rows.shape == (0, WIDTH) and not bad


def test_no_images_leave_what_the_cache_keeps(paths, tmp_path, capsys):
    encode_images(ENCODER, paths, cache=FeatureCache(tmp_path))
    with FeatureCache(tmp_path) as cache:
        size = cache.size()
        encode_images(ENCODER, [], cache=cache)
        assert cache.size() == size and "damaged" not in capsys.readouterr().err
    images = ToyEncoder(images=lambda _: pytest.fail("encoded again"))
    encode_images(images, paths, cache=FeatureCache(tmp_path))


def bad_files(folder):
    buffer = io.BytesIO()
    picture(1, (200, 200)).save(buffer, "JPEG")
    files = {"truncated.jpg": buffer.getvalue()[:buffer.getvalue().index(b"\xff\xda") + 16], "empty.jpg": b"",
             "text.jpg": b"<html>404 not found</html>",
             "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Image.new("1", (14000, 13000)).save(folder / "bomb.png")
    (folder / "folder.jpg").mkdir()
    return [(folder / name, reason) for name, reason in [
        ("truncated.jpg", "truncated"), ("empty.jpg", "empty"), ("text.jpg", "not an image"),
        ("script.jpg", "not an image"), ("bomb.png", "bomb"), ("folder.jpg", "directory"),
        ("absent.jpg", "No such file")]]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_and_hurt_nobody_else(tmp_path, paths, expected, workers):
    bad = bad_files(tmp_path)
    mixed = [path for (path, _), good in zip(bad, paths) for path in (path, good)]
    with FeatureCache(tmp_path / "cache") as cache:
        for _ in range(2):  # the second time from the cache; bad files are looked at again
            rows, reasons = encode_images(ENCODER, mixed, workers=workers, cache=cache)
            assert sorted(reasons) == list(range(0, 14, 2))
            for index, (_, reason) in enumerate(bad):
                assert reason in reasons[2 * index]
            assert not rows[0::2].any()
            np.testing.assert_allclose(rows[1::2], expected[:7], atol=1e-6)


def test_pipes_and_huge_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(decode.MOST_BYTES + 1)
    _, reasons = encode_images(ENCODER, [tmp_path / name for name in ("fifo.jpg", "huge.jpg")], workers=0)
    assert "pipe" in reasons[0] and "too large" in reasons[1]


def test_a_thin_image_takes_little_memory(tmp_path):
    picture(3, (1, 40000)).save(tmp_path / "thin.jpg")
    code = (f"from jclip_fewshot.data import decode\nimport numpy, resource\n"
            f"before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"for views in (1, 3):\n"
            f"    out = numpy.zeros((views, 224, 224, 3), numpy.uint8)\n"
            f"    recipe = decode.Recipe(decode.PixelRecipe((224, 224)), views)\n"
            f"    assert not decode.decode({str(tmp_path / 'thin.jpg')!r}, recipe, out).reason\n"
            f"    assert out.std() > 5\n"
            f"print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) < 64 << 10  # kB


def test_a_worker_imports_little():
    code = ("import sys; from jclip_fewshot.data.decode import serve; print(*sys.modules)")
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    ours = {name for name in loaded.stdout.split() if name.startswith("jclip_fewshot")}
    assert ours == {"jclip_fewshot", "jclip_fewshot.errors", "jclip_fewshot.data", "jclip_fewshot.data.decode",
                    "jclip_fewshot.data.recipe", "jclip_fewshot.clip", "jclip_fewshot.clip.preprocess",
                    "jclip_fewshot.storage", "jclip_fewshot.storage.files"}
    assert not {"jittor", "tqdm", "urllib.request", "zipfile"} & set(loaded.stdout.split())


# Views

def test_views_depend_on_content_and_seed_alone(paths, tmp_path):
    rows, _ = encode_views(ENCODER, paths[:12], views=5, workers=2)
    assert rows.shape == (12, 5, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-6)
    moved = tmp_path / "elsewhere.jpg"
    moved.write_bytes(paths[7].read_bytes())
    again, _ = encode_views(ENCODER, [paths[3], moved], views=5, workers=0)
    assert (again == rows[[3, 7]]).all()
    assert not np.allclose(encode_views(ENCODER, paths[:12], views=5, seed=1, workers=0)[0], rows)
    fewer, _ = encode_views(ENCODER, paths[:2], views=3, workers=0)
    np.testing.assert_allclose(fewer, rows[:2, :3], atol=1e-6)


def test_the_row_of_an_image_is_the_normalised_mean_of_its_views(paths):
    views, _ = encode_views(ENCODER, paths[:9], views=4, workers=0)
    rows, _ = encode_images(ENCODER, paths[:9], views=4, workers=0)
    mean = views.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(rows, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (61, 64), (40, 1000), (1, 1)])
def test_random_views_are_tip_adapters(size):
    """Crops of at least half the area (where the shape allows), aspect 3/4 to 4/3, half of them mirrored."""
    seen = []

    class Watched:
        size = None

        def crop(self, box):
            seen.append(box)
            return Image.new("RGB", (box[2] - box[0], box[3] - box[1]))
    watched = Watched()
    watched.size = size
    rng = random.Random(0)
    for _ in range(300):
        assert decode.random_view(watched, PixelRecipe((SIZE, SIZE)), rng).size == (SIZE, SIZE)
    boxes = np.array(seen)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all() and (boxes[:, 2] <= size[0]).all() and (boxes[:, 3] <= size[1]).all()
    if max(size) < 2 * min(size) and min(size) > 1:
        area, ratio = w * h / (size[0] * size[1]), w / h
        most = min(1, 4 / 3 * min(size) / max(size))  # of the area that the aspect leaves
        assert 0.48 < area.min() < 0.52 and area.max() > 0.93 * most
        assert 0.72 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.37
        assert len(set(map(tuple, seen))) > 250


def test_half_of_the_views_are_mirrored():
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    rng = random.Random(0)
    mirrored = [np.asarray(decode.random_view(image, PixelRecipe((8, 8)), rng))[4, 0, 0] < 128 for _ in range(400)]
    assert 0.4 < np.mean(mirrored) < 0.6


# The cache

def test_a_second_run_decodes_nothing_and_gives_the_same_bytes(paths, tmp_path, decoded):
    for views in (1, 3):
        fresh, _ = encode_images(ENCODER, paths, views=views, cache=FeatureCache(tmp_path), workers=0)
        decoded.files.clear()
        again, _ = encode_images(ENCODER, paths, views=views, cache=FeatureCache(tmp_path))
        assert (again == fresh).all() and not decoded.files
    separate, _ = encode_views(ENCODER, paths, views=3, cache=FeatureCache(tmp_path))
    assert not decoded.files and separate.shape == (45, 3, WIDTH)


def test_only_content_counts(paths, tmp_path, decoded):
    copies = [tmp_path / f"{i}.JPG" for i in range(10)]
    for copy, path in zip(copies, paths):
        copy.write_bytes(path.read_bytes())
    rows, _ = encode_images(ENCODER, paths[:10], cache=FeatureCache(tmp_path / "cache"))
    decoded.files.clear()
    moved, _ = encode_images(ENCODER, copies, cache=FeatureCache(tmp_path / "cache"))
    assert not decoded.files and (moved == rows).all()
    copies[4].write_bytes(paths[20].read_bytes())
    changed, _ = encode_images(ENCODER, copies, cache=FeatureCache(tmp_path / "cache"))
    assert decoded.files == [4]
    assert (changed[4] == encode_images(ENCODER, paths[20:21])[0][0]).all()


def test_unchanged_files_are_not_even_read(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "RACY_SECONDS", 0)
    encode_images(ENCODER, paths, cache=FeatureCache(tmp_path), workers=0)

    def no_reading(*_):
        raise AssertionError("a file was read")
    monkeypatch.setattr(decode, "decode", no_reading)
    monkeypatch.setattr(features, "digest_of", no_reading)
    encode_images(ENCODER, paths, cache=FeatureCache(tmp_path), workers=0)


def test_what_the_rows_depend_on_is_in_the_key(paths, tmp_path, decoded):
    cache = FeatureCache(tmp_path)
    other = ToyEncoder(weights_digest="0" * 32)
    for encoder, settings in [(ENCODER, {}), (other, {}), (ENCODER, {"views": 2}),
                              (ENCODER, {"views": 2, "seed": 1}), (ENCODER, {"as_seen": True})]:
        decoded.files.clear()
        encode_images(encoder, paths[:5], cache=cache, workers=0, **settings)
        assert len(decoded.files) == 5
    decoded.files.clear()
    encode_images(ENCODER, paths[:5], cache=cache, seed=7)  # without effect without random views
    assert not decoded.files


def test_damage_in_the_cache_is_computed_again(paths, tmp_path):
    fresh, _ = encode_images(ENCODER, paths, cache=FeatureCache(tmp_path), workers=0)
    shard = max(tmp_path.glob("*/*.rows"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-100] ^= 64
    shard.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum"), FeatureCache(tmp_path) as cache:
        again, _ = encode_images(ENCODER, paths, cache=cache, workers=0)
    assert (again == fresh).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_work_and_get_the_same_bytes(paths, tmp_path, ranks, decoded):
    alone, _ = encode_images(ENCODER, paths, workers=0)
    decoded.files.clear()
    for rank in range(ranks):
        encode_images(ENCODER, paths[rank::ranks], cache=FeatureCache(tmp_path), workers=0)
    assert len(decoded.files) == 45
    for _ in range(ranks):
        together, _ = encode_images(ENCODER, paths, cache=FeatureCache(tmp_path))
        assert (together == alone).all()
    assert len(decoded.files) == 45


# Accidents

def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("victims", [1, 2])
def test_a_worker_that_dies_is_an_error_not_a_hang(paths, tmp_path, decoded, victims):
    def images(batch):
        for worker in decoded.made[-1].workers[:victims]:
            worker.kill()
        return project(batch)
    cache = FeatureCache(tmp_path)
    # One of two may die between two tasks: the other then does them all, and nothing is lost.
    expected = pytest.raises(UserError, match="worker was killed by SIGKILL.*kept")
    with expected if victims == 2 else contextlib.suppress(UserError):
        encode_images(ToyEncoder(images=images), paths * 20, workers=2, cache=cache)
    rows, _ = encode_images(ENCODER, paths, cache=cache)
    assert len(decoded.files) < 45 * 21  # what was finished was kept


def test_a_worker_that_cannot_start_is_an_error(paths, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="worker ended with status 1"):
        encode_images(ENCODER, paths, workers=2)


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(paths, tmp_path, decoded, capsys):
    calls = []

    def images(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return project(batch)
    with pytest.raises(KeyboardInterrupt, match=f"{2 * BATCH} of 45 are encoded and kept"):
        encode_images(ToyEncoder(images=images), paths, workers=2, cache=FeatureCache(tmp_path))
    assert not decoded.made[-1].workers
    decoded.files.clear()
    encode_images(ENCODER, paths, cache=FeatureCache(tmp_path))
    assert decoded.files == list(range(2 * BATCH, 45))
    assert f"images: {2 * BATCH} of 45 cached" in capsys.readouterr().err
    calls.clear()
    with pytest.raises(KeyboardInterrupt) as stopped:
        encode_images(ToyEncoder(images=images), paths, workers=0)
    assert "kept" not in str(stopped.value)


def test_a_bar_counts_images_from_the_cached_ones_on(paths, tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **about):
            bars.append(about)
            self.update = lambda n: bars.append(n)
        __enter__ = lambda bar: bar  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
    cache = FeatureCache(tmp_path)
    encode_images(ENCODER, paths[:10], cache=cache, views=3, workers=0)
    monkeypatch.setattr(features, "progress", lambda _=None, **about: Bar(**about) if _ is None else _)
    encode_images(ENCODER, paths[:20], cache=cache, views=3, workers=0)
    assert bars[0] == dict(stage="images x 3 views", unit="images", total=20, initial=10) and sum(bars[1:]) == 10


def test_there_are_never_more_workers_than_images(paths, decoded):
    encode_images(ENCODER, paths[:3], workers=300)
    assert [decoder.most for decoder in decoded.made] == [3]


KILLED = """
import sys, time
sys.path[:0] = [{root!r}]
from tests.features import test_encode as toy
from jclip_fewshot.data import decode
from jclip_fewshot.storage import row_store
from jclip_fewshot.features import encode as features
row_store.FLUSH_SECONDS = 0

class Telling(decode.Decoder):
    def __init__(self, *args):
        super().__init__(*args)
        print("workers", *[worker.pid for worker in self.workers], flush=True)
features.Decoder = Telling

def images(batch):
    print("batch", flush=True)
    time.sleep(0.2)
    return toy.project(batch)
toy.encode_images(toy.ToyEncoder(images=images), sys.argv[2:], workers=2,
                  cache=toy.FeatureCache(sys.argv[1]))
"""


def test_kill_9_leaves_no_worker_and_the_next_run_goes_on(paths, tmp_path, decoded):
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), str(tmp_path)] + list(map(str, paths))
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = [int(word) for word in child.stdout.readline().split()[1:]]
    for _ in range(4):
        assert child.stdout.readline() == "batch\n"
    child.kill()
    child.wait()
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)))
    assert child.stderr.read() == ""  # the workers wrote there too
    encode_images(ENCODER, paths, cache=FeatureCache(tmp_path))
    assert decoded.files == list(range(3 * BATCH, 45))


def test_rows_that_are_no_numbers_are_refused_and_not_kept(paths, tmp_path, decoded):
    broken = ToyEncoder(images=lambda batch: project(batch) * np.float32("nan"))
    with pytest.raises(UserError, match="no numbers"):
        encode_images(broken, paths, workers=0, cache=FeatureCache(tmp_path))
    decoded.files.clear()
    encode_images(ENCODER, paths, workers=0, cache=FeatureCache(tmp_path))
    assert len(decoded.files) == 45


# Sentences

def test_text_rows_are_normalised_means_of_normalised_rows():
    classes = [["a dog", "a hound"], ["a cat"], ["a dog", "a bird", "a long sentence about a bird"]]
    rows = encode_texts(ENCODER, classes)
    for row, sentences in zip(rows, classes):
        single = read_aloud(spell(sentences)).astype(np.float64)
        mean = (single / np.linalg.norm(single, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_sentences_are_encoded_once_shortest_first_and_then_never_again(tmp_path):
    seen = []

    def texts(tokens):
        seen.extend(map(tuple, tokens))
        return read_aloud(tokens)
    encoder = ToyEncoder(texts=texts)
    classes = [[f"{'x' * (i * 7 % 13)} {i % 50}", "the same"] for i in range(100)]
    first = encode_texts(encoder, classes, cache=FeatureCache(tmp_path))
    lengths = np.argmax(seen, axis=1)
    assert len(set(seen)) == len({tuple(row) for row in spell([c[0] for c in classes] + ["the same"])})
    assert len(seen) <= len(set(seen)) + features.TEXT_STEP
    assert (np.diff(lengths[:features.TEXT_BATCH]) >= 0).all()
    seen.clear()
    again = encode_texts(encoder, classes[::-1], cache=FeatureCache(tmp_path))
    assert not seen and (again[::-1] == first).all()


def test_a_class_without_sentences_is_an_error():
    with pytest.raises(UserError, match="class 1 has no sentence"):
        encode_texts(ENCODER, [["a"], []])


# Tables of features

@pytest.fixture
def table(tmp_path):
    def make(**arrays):
        rng = np.random.default_rng(0)
        whole = dict(path=np.array(["TestSetA/a.jpg", "TrainSet/x/b.jpg"]), feature=rng.random((2, 5)),
                     classes=np.array(["x", "y", "z"]), text=rng.random((3, 5)))
        whole.update(arrays)
        present = {name: value for name, value in whole.items() if value is not None}
        np.savez(tmp_path / "features.npz", **present)
        return tmp_path / "features.npz"
    return make


def test_table_gives_unit_rows_by_path_and_by_class(table):
    read = TableSource(table())
    rows = read.images(None, [Path("TrainSet/x/b.jpg"), "TestSetA/a.jpg"])[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert (rows[::-1] == read.feature).all() and rows.dtype == np.float32
    assert (read.texts(["z", "x"]) == read.text[[2, 0]]).all()
    unnamed = TableSource(table(classes=None))
    assert (unnamed.texts(["any", "three", "classes"]) == unnamed.text).all()


def test_table_names_what_is_missing(table):
    read = TableSource(table())
    with pytest.raises(UserError, match=r"no feature for TestSetA/c.jpg \(1 of 2"):
        read.images(None, ["TestSetA/c.jpg", "TestSetA/a.jpg"])[0]
    with pytest.raises(UserError, match=r"no text row for w \(1 of 2"):
        read.texts(["w", "x"])
    with pytest.raises(UserError, match="3 text rows without names for 2"):
        TableSource(table(classes=None)).texts(["x", "y"])
    with pytest.raises(UserError, match="no array 'text'"):
        TableSource(table(text=None)).texts(["x"])


def test_table_with_a_class_twice_is_refused_unless_it_has_the_data_sets_order(table):
    read = TableSource(table(classes=np.array(["x", "y", "x"])))
    for asked in (["x", "y"], ["x"], ["y", "x", "x"]):
        with pytest.raises(UserError, match="several text rows for x;"):
            read.texts(asked)
    assert (read.texts(["y"]) == read.text[[1]]).all() and (read.texts(["x", "y", "x"]) == read.text).all()


def test_table_of_the_case_that_failed(shared):
    with pytest.raises(UserError, match="several text rows for D_a;"):
        TableSource(shared / "cases/features_class_twice.npz").texts(["D_a", "D_b"])


@pytest.mark.parametrize("arrays, message", [
    (dict(path=None), "no array 'path'"), (dict(feature=None), "no array 'feature'"),
    (dict(feature=np.zeros((3, 5))), r"\(2, D\)"),
    (dict(feature=np.zeros((2, 5))), "row 0 of feature is zero"),
    (dict(feature=np.full((2, 5), np.nan)), "not finite"), (dict(text=np.ones((2, 5))), r"\(3, 5\)"),
    (dict(text=np.ones((3, 4))), r"\(3, 5\)"), (dict(path=np.array(["a.jpg", "./a.jpg"])), "listed twice"),
    (dict(path=np.array([{}, {}])), r"Python objects: .astype\(str\)")])
def test_table_that_does_not_fit_is_refused(table, arrays, message):
    with pytest.raises(UserError, match=message):
        TableSource(table(**arrays))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_table_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(UserError, match="f.npz: cannot be read"):
        TableSource(tmp_path / "f.npz")
    with pytest.raises(UserError, match="no such file"):
        TableSource(tmp_path / "g.npz")


def test_table_of_the_genuine_features(shared):
    read = TableSource(shared / "photos/features_vitb32.npz")
    names = (shared / "photos/classes.txt").read_text().split("\n")
    text = read.texts([line.rsplit(" ", 1)[0] for line in names if line])
    words = (shared / "photos/labels_TestSetA.txt").read_text().split()
    rows = read.images(None, ["TestSetA/" + Path(name).name for name in words[::2]])[0]
    right = (rows @ text.T).argmax(axis=1) == [int(k) for k in words[1::2]]
    assert right.mean() == pytest.approx(0.925, abs=0.01)


# The real encoder

def test_open_encoder_is_clip_itself(shared, paths, tmp_path):
    from jclip_fewshot import clip
    with FeatureCache(tmp_path) as cache:
        folder = shared / "reference/clip"
        files = [folder / "tiny_vit.safetensors", folder / "tiny_vit_torchscript.pt"]
        said = {"activation": "quick_gelu", "head_width": 64}
        encoder = open_encoder(files[0], cache=cache, **said)
        rows, bad = encode_images(encoder, paths[:3], cache=cache)
        reference = np.load(folder / "tiny_vit_expected.npz")
        assert rows.shape == (3, encoder.width) and not bad
        model, _ = clip.load(files[0])
        pixels = np.stack([image_array(Image.open(path), encoder.image_size) for path in paths[:3]])
        direct = model.encode_image(pixels).numpy()
        np.testing.assert_allclose(rows, direct / np.linalg.norm(direct, axis=1, keepdims=True), atol=1e-5)
        np.testing.assert_allclose(encoder.texts(reference["tokens"]), reference["text_features"], atol=1e-4)
        assert open_encoder(files[0], cache=cache, **said).fingerprint == encoder.fingerprint
        assert open_encoder(files[1], **said).fingerprint != encoder.fingerprint


def test_normalising_on_the_device_is_normalising():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    encoder = SimpleNamespace(device="cuda", recipe=PixelRecipe((5, 5)))
    np.testing.assert_allclose(ClipEncoder.prepared(encoder, pixels).numpy(), normalize(pixels), atol=1e-6)
