"""The built-in contest: its files, its world, and its CLIP."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot import clip
from jclip_fewshot.config import TrainConfig
from jclip_fewshot.data import demo, prompts
from jclip_fewshot.data.demo import drawing, world
from jclip_fewshot.data.formats import read_data_set
from jclip_fewshot.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
needs_checkpoint = pytest.mark.skipif(not demo.CHECKPOINT.is_file(), reason="no demo_clip.safetensors")


@pytest.fixture(scope="module")
def contest_folder(tmp_path_factory) -> Path:
    return demo.make_contest(tmp_path_factory.mktemp("demo") / "contest")


@pytest.fixture(scope="module")
def trainer():
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location("train_demo_clip", ROOT / "tools" / "train_demo_clip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_labels(folder: Path) -> dict:
    lines = (folder / "labels_TestSetA.txt").read_text().splitlines()
    return {name: int(label) for name, label in (line.split() for line in lines)}


def test_layout_is_the_contests(contest_folder):
    contest = read_data_set(contest_folder)
    tests = contest.split("A")
    labels = read_labels(contest_folder)
    assert len(contest.class_names) >= 60 and len(set(contest.domains)) == 4
    assert len(set(contest.class_names)) == len(contest.class_names)
    assert len(tests.names) >= 600 and tests.notes == [] and set(tests.names) == set(labels)
    assert np.bincount([label for _, label in contest.train]).tolist() == [8] * len(contest.class_names)
    assert set(labels.values()) == set(range(len(contest.class_names)))
    beasts = np.mean([contest.domains[label] == "Beast" for label in labels.values()])
    assert 0.4 < beasts < 0.6


def test_images_vary_as_photographs_do(contest_folder):
    files = sorted((contest_folder / "TestSetA").iterdir())
    sizes, modes = set(), set()
    for file in files[:150]:
        with Image.open(file) as image:
            assert image.format == "JPEG" and 90 <= min(image.size) <= max(image.size) <= 220
            sizes.add(image.size)
            modes.add(image.mode)
    assert len(sizes) > 100 and modes == {"RGB", "L"}
    assert {file.suffix for file in files} == {".jpg", ".jpeg"}


def test_same_seed_same_images():
    one, two, other = (world.contest_classes(seed) for seed in (5, 5, 6))
    assert one == two and one != other
    first, second, third = (drawing.draw(one[9].domain, one[9].scene, np.random.default_rng(seed), (100, 120))
                            for seed in (3, 3, 4))
    assert first.tobytes() == second.tobytes() != third.tobytes()


def test_a_drawn_contest_is_the_same_byte_for_byte(contest_folder, tmp_path):
    again = demo.make_contest(tmp_path / "again")
    one, two = ({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
                for folder in (contest_folder, again))
    assert one == two


@pytest.mark.parametrize("domain", world.DOMAINS)
def test_training_never_sees_a_contest_class(trainer, domain):
    rng = np.random.default_rng(0)
    named = world.DOMAINS[domain].named
    classes = {tuple(c.scene[a] for a in named) for seed in range(3) for c in world.contest_classes(seed)
               if c.domain == domain}
    scenes = [trainer.free_scene(domain, rng) for _ in range(3000)]
    seen = {tuple(scene[a] for a in named) for scene in scenes}
    assert classes and not classes & seen
    assert all({combination[i] for combination in seen} == set(values)  # but every word of theirs
               for i, values in enumerate(named.values()))


def test_the_drawings_are_the_scenes_that_training_names(trainer):
    """`scene_of` repeats the draw that `draw_part` makes."""
    assert all(not world.held_out(trainer.domain_of(i), trainer.scene_of(i, 0)) for i in range(40))
    assert trainer.scene_of(7, 0) == trainer.scene_of(7, 0) != trainer.scene_of(8, 0)


def test_vocabulary_holds_every_sentence(trainer):
    templates = {domain: prompts.load().templates[domain] for domain in (*world.DOMAINS, "default")}
    vocabulary = trainer.Vocabulary(trainer.all_sentences(templates))
    rng = np.random.default_rng(1)
    said = [trainer.sentence(domain, world.random_scene(domain, rng), rng, templates)
            for domain in world.DOMAINS for _ in range(300)]
    said += [s for c in world.contest_classes(demo.SEED) for s in prompts.sentences(c.name, c.domain)]
    assert not set(np.unique(clip.token_array(said, 32))) - set(vocabulary.used)
    assert (vocabulary.used[vocabulary.tokens(said)] == clip.token_array(said, 32)).all()


@needs_checkpoint
def test_prepare_draws_once(tmp_path, monkeypatch):
    drawn = []

    def make_contest(folder, seed):
        drawn.append(seed)
        folder.mkdir()
        (folder / demo.COMPLETE).write_text(demo.EDITION.format(seed) + "\n")

    monkeypatch.setattr(demo, "make_contest", make_contest)
    folder = tmp_path / "demo"
    (tmp_path / "demo.part").mkdir()  # an interrupted drawing
    (tmp_path / "demo.part" / "classes.txt").write_text("half")
    assert demo.prepare(folder, 1) == (folder, demo.CHECKPOINT)
    assert demo.prepare(folder, 1) == (folder, demo.CHECKPOINT)
    assert drawn == [1] and not (tmp_path / "demo.part").exists() and not (folder / "classes.txt").exists()
    demo.prepare(folder, 2)
    assert drawn == [1, 2]
    (folder / demo.COMPLETE).unlink()
    (folder / "thesis.doc").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        demo.prepare(folder, 2)
    assert (folder / "thesis.doc").exists()


def test_prepare_says_that_the_checkpoint_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="train_demo_clip.py"):
        demo.prepare(tmp_path / "demo")


@pytest.mark.parametrize("seed, folder", [(demo.SEED, "demo"), (7, "demo-7")])
def test_settings_change_only_data_and_model(monkeypatch, seed, folder):
    checkpoint = Path("weights/demo_clip.safetensors")
    drawn = []
    monkeypatch.setattr(demo, "prepare", lambda *given: drawn.append(given) or (given[0], checkpoint))
    given = TrainConfig(demo=True, demo_seed=seed, shots=2, board="B")
    assert demo.settings(given) == TrainConfig(demo=True, demo_seed=seed, shots=2, board="A", data=folder,
                                               model=(str(checkpoint),))
    assert drawn == [(Path(folder), seed)]


@needs_checkpoint
def test_checkpoint_is_small_and_of_openais_layout():
    assert demo.CHECKPOINT.stat().st_size <= 8_000_000
    state = clip.read_state_dict(demo.CHECKPOINT)
    assert state["token_embedding.weight"].shape == (49408, 64)
    assert all(value.dtype == np.float16 and np.isfinite(value).all() for value in state.values())


@needs_checkpoint
def test_zero_shot_is_well_above_chance(contest_folder):
    model, _ = clip.load(demo.CHECKPOINT)
    contest = read_data_set(contest_folder)
    labels = read_labels(contest_folder)
    names = sorted(labels)[:200]
    sentences = [prompts.sentences(name)[0] for name in contest.class_names]
    text = model.encode_text(clip.token_array(sentences, model.context_length)).numpy()
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    size = model.visual.input_resolution
    images = [clip.image_array(Image.open(contest_folder / "TestSetA" / name), size) for name in names]
    features = model.encode_image(np.stack(images)).numpy()
    found = (features @ text.T).argmax(1)
    assert np.mean(found == [labels[name] for name in names]) >= 0.3  # chance: 0.014


def test_encoders_that_are_named_stay_with_the_demo(monkeypatch):
    monkeypatch.setattr(demo, "prepare", lambda *given: (given[0], Path("weights/demo_clip.safetensors")))
    assert demo.settings(TrainConfig(demo=True, model=("a.pt", "b.pt"))).model == ("a.pt", "b.pt")
