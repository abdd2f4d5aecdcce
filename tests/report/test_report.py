"""The report: complete in itself, true to the record, readable with and without truth, pictures or images."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jclip_fewshot import runs
from jclip_fewshot.__main__ import report as report_command
from jclip_fewshot.data.contest import read_contest, read_labels
from jclip_fewshot.data.contest import test_images as read_test_images
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, score
from jclip_fewshot.report import figures as report_pictures
from jclip_fewshot.report import run as report
from jclip_fewshot.storage.arrays import load_arrays, save_arrays, save_json

NASTY = 'Cat_<b>&"$x_1$\'</b>'  # markup, quotes, and what matplotlib takes for a formula
NAMES = ["Cat_tabby", "Cat_siamese", NASTY, "Dog_pug", "Dog_beagle", "Dog_golden_retriever"]
WIDTH = 16


class Elements(HTMLParser):
    """Every element as (tag, attributes), and all text outside the style sheet."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        self.text += "" if self._inside == "style" else data

    def of(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


def make_contest(root, labelled):
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).save(path)

    (root / "TrainSet").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(NAMES)), encoding="utf-8")
    lines = [f"TrainSet/{k}_{n}.jpg {k}\n" for k in range(6) for n in range(3)]
    for text in lines:
        draw(root / text.split()[0])
    (root / "train.txt").write_text("".join(lines))
    for n in range(1, 31):
        draw(root / f"TestSetA/image_{n}.jpg")
    if labelled:
        (root / "labels_TestSetA.txt").write_text("".join(f"image_{n}.jpg {n % 6}\n" for n in range(1, 31)))
    return root


def make_run(folder, root, refined=True, tested=True):
    """What train.py and test.py would leave for that contest, in their own words."""
    rng = np.random.default_rng(1)
    contest = read_contest(root)
    text = rng.standard_normal((6, WIDTH)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)

    def near(labels):
        rows = text[labels] + rng.standard_normal((len(labels), WIDTH)).astype(np.float32) / 3
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    labels = np.array([label for _, label in contest.train])
    folder.mkdir(parents=True)
    save_arrays(folder / runs.MODEL, {
        "shots/features": near(labels), "shots/labels": labels, "shots/text": text,
        "shots/domains": np.array([0, 0, 0, 1, 1, 1]), "heads/tip_adapter/text_": text,
        "heads/tip_adapter/keys_": np.zeros((18, WIDTH), np.float32), "heads/tip_adapter/seen_": np.ones(6, bool),
        "heads/clip_adapter/learned.w": np.zeros((4, WIDTH), np.float32), "ensemble/weights": np.zeros(3, np.float32),
        "names": np.array(["zero_shot", "tip_adapter", "clip_adapter"])})
    history = [{"epoch": 0, "held_out_loss": 2.0, "held_out_top1": 50.0}] + [
        {"epoch": e, "loss": 1 / e, "train_top1": 60.0 + e, "held_out_loss": 1 + 1 / e, "held_out_top1": 55.0 + e}
        for e in range(1, 6)]
    runs.save_record(folder, {
        "command": "python train.py --data 'a <b>'", "date": "2025-11-21 03:12:44", "versions": runs.versions(),
        "device": "the CPU", "config": {"data": str(root), "board": "A", "demo": False, "shots": 3, "name": ""},
        "encoder": {"model": "ViT-B/32", "weights": "", "parameters": 151_277_313}, "classes": contest.class_names,
        "domains": contest.domains, "shots": {"rule": "random: 3 a class, seed 0",
                                              "files": [path for path, _ in contest.train], "labels": labels},
        "settings": {"zero_shot": {}, "tip_adapter": {"alpha": [1.5, 2.5], "beta": 5.5, "held_out_top1": 81.0},
                     "clip_adapter": {"epoch": 3, "lr": 1e-3, "held_out_top1": 82.0},
                     "ensemble": {"temperature": 1.2}},
        "histories": {"clip_adapter": history},
        "seconds": {"sentences": 1.0, "shots": 2.0, "heads": 3.0, "head clip_adapter": 2.5}})
    if tested:
        answer(folder, contest, near, text, refined)
    return folder


def answer(folder, contest, near, text, refined):
    rng = np.random.default_rng(2)
    tests = read_test_images(contest.root)
    known = read_labels(contest)
    truth = np.arange(1, 31) % 6
    features = near(truth)
    readable = [index for index in range(30) if index != 4]
    before = softmax(25 * features[readable] @ text.T)
    final = softmax(np.log(before) + rng.standard_normal(before.shape)) if refined else before
    answers = {"zero_shot": 100 * features[readable] @ text.T, "ensemble": before}
    answers.update({"ensemble_refined": final} if refined else {})
    scores = {} if known is None else {name: score(best_classes(a), truth[readable], contest.domains)
                                       for name, a in answers.items()}
    runs.save_test(folder, "A", {
        "command": "python test.py", "date": "2025-11-21 03:13:00", "device": "the CPU", "config": {"data": ""},
        "images": 30, "unreadable": {"image_5.jpg": "cut <short>"},
        "refinement": {"converged": True, "trace": [1, 2]} if refined else None, "scores": scores,
        "seconds": {"features": 4.0}},
        {"names": tests.names, "best": best_classes(final), "probs": final, "before": before, "readable": readable,
         "features": features})


@pytest.fixture
def bare(monkeypatch):
    """A machine without matplotlib."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with known answers, and its page with all pictures."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    made = make_run(folder / "runs/one", make_contest(folder / "data", labelled=True))
    assert report.write_report(made) == made / "report/index.html"
    return made


@pytest.fixture(scope="module")
def page(run):
    return (run / "report/index.html").read_text(encoding="utf-8")


def sources(page):
    """Every address that the page loads something from."""
    elements = Elements(page)
    return [element[key] for element in elements.of("img", "source") for key in ("src", "srcset") if key in element]


def check_images(page):
    for uri in sources(page):
        kind, data = re.fullmatch(r"data:(image/[a-z+]+);base64,([A-Za-z0-9+/=]+)", uri).groups()
        data = base64.b64decode(data, validate=True)
        if kind == "image/svg+xml":
            assert ElementTree.fromstring(data).tag.endswith("svg")
        else:
            Image.open(io.BytesIO(data)).load()


def test_every_picture_is_inside_the_page_and_decodes(run, page):
    assert len(sources(page)) > 36
    check_images(page)
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert pictures == {"ladder", "classes", "calibration", "balance", "training", "alpha_beta"}
    for path in (run / "report").glob("*.png"):
        assert Image.open(path).width > 1000
    assert len(page) < 6e6


def test_nothing_is_fetched(page):
    elements = Elements(page)
    assert not elements.of("script", "link", "iframe", "object")
    assert all(link["href"].startswith("#") for link in elements.of("a"))
    assert "url(" not in page and "@import" not in page and "http" not in elements.text
    anchors = {element["id"] for _, element in elements.found if "id" in element}
    assert {link["href"][1:] for link in elements.of("a")} <= anchors


def test_accessible(page):
    elements = Elements(page)
    assert all(element.get("alt") for element in elements.of("img"))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    ids = [element["id"] for _, element in elements.found if "id" in element]
    assert len(ids) == len(set(ids))


def cells(page, row):
    """The table row that carries the attribute `row`: [(attributes, text) of its cells]."""
    found = re.search(rf"<tr[^>]*{re.escape(row)}[^>]*>(.*?)</tr>", page, re.DOTALL).group(1)
    return [(Elements(start).found[0][1], Elements(text).text) for start, text in
            re.findall(r"(<td[^>]*>)(.*?)</td>", found, re.DOTALL)]


def test_the_scores_are_the_records(run, page):
    scores = json.loads((run / "test_A.json").read_text())["scores"]
    for name, row in scores.items():
        wanted = [row["top1"], row["top5"], row["macro"]] + [row["domains"][d]["top1"] for d in ("Cat", "Dog")]
        found = cells(page, f'data-method="{name}"')
        assert [float(attributes["data-value"]) for attributes, _ in found] == wanted
        assert [text for _, text in found] == [f"{number:.2f}" for number in wanted]
    final = scores["ensemble_refined"]
    assert f'{final["top1"]:.1f}\u00a0%' in Elements(page).text


def test_the_parameters_are_counted(page):
    sizes = {part: int(cells(page, f'data-part="{part}"')[0][0]["data-value"])
             for part in ("encoder", "heads", "ensemble", "total")}
    # keys_ and learned.w; not the copy of the text rows, not the mask
    assert sizes == {"encoder": 151_277_313, "heads": 22 * WIDTH, "ensemble": 3, "total": 151_277_316 + 22 * WIDTH}


def test_the_guesses_are_the_answers(run, page):
    arrays = load_arrays(run / "test_A.npz")
    cards = re.findall(r'<li class="card answer" data-image="([^"]+)">(.*?)</ol>', page, re.DOTALL)
    assert cards
    for name, body in cards:
        row = list(arrays["names"][arrays["readable"]]).index(name)
        wanted = np.sort(arrays["probs"][row])[::-1][:5]
        assert [float(text) for text in re.findall(r'data-value="([^"]+)"', body)] == pytest.approx(list(wanted))


def test_the_classes_and_the_calibration_are_right(run, page):
    arrays = load_arrays(run / "test_A.npz")
    truth = (np.arange(1, 31) % 6)[arrays["readable"]]
    guess = arrays["probs"].argmax(axis=1)
    for k, name in ((0, "Cat_tabby"), (5, "Dog_golden_retriever")):
        found = float(cells(page, f'data-class="{name}"')[1][0]["data-value"])
        assert found == pytest.approx(100 * (guess[truth == k] == k).mean())
    wrong = int((guess != truth).sum())
    assert f"All {wrong} mistakes" in Elements(page).text
    sure = arrays["probs"].max(axis=1)
    gap = sum(abs((guess == truth)[inside].sum() - sure[inside].sum()) for inside in
              (np.floor(sure * 15).clip(0, 14) == b for b in range(15)))
    shown = re.findall(r'data-value="([^"]+)" data-metric="ece"', page)
    assert float(shown[1]) == pytest.approx(gap / len(sure), abs=1e-6)


def test_names_are_escaped(page):
    assert "<b>&amp;" not in page and "&lt;b&gt;" in page
    assert "cut &lt;short&gt;" in page and "a &lt;b&gt;" in page
    assert '<b>&"$x' not in page


def test_the_map_is_what_the_head_computes(run):
    found = report.alpha_beta_map(report.read_run(run))
    assert found.top1.shape == (len(found.alphas), len(found.betas)) and found.shots == 18
    assert found.chosen == [("Cat", 1.5, 5.5), ("Dog", 2.5, 5.5)]
    # by the formula, for one α and β: fold j leaves out the j-th shot of every class
    arrays = load_arrays(run / runs.MODEL)
    x, y, t = arrays["shots/features"].astype(float), arrays["shots/labels"], arrays["shots/text"].astype(float)
    a, b, hits = 12, 9, 0
    for s in range(18):
        kept = np.arange(18) % 3 != s % 3
        affinity = np.exp(-found.betas[b] * (1 - x[s] @ x[kept].T))
        hits += (100 * x[s] @ t.T + found.alphas[a] * 1.5 * affinity @ np.eye(6)[y[kept]]).argmax() == y[s]
    assert found.top1[a, b] == pytest.approx(100 * hits / 18)


def test_dark_drawings_hold_no_light_colour(run):
    drawn = report_pictures.ladder({"": {"zero_shot": 70.0, "gda": 75.0, "ensemble": 60.0}})
    for variant in (drawn.wide, drawn.narrow):
        for light, dark in ((report_pictures.INK, "#e8eaec"), (report_pictures.BLUE, "#56b4e9")):
            assert light in variant.light and light not in variant.dark and dark in variant.dark
    assert "75.0" in drawn.alt and drawn.narrow.width < 360


def test_the_same_run_makes_the_same_page(run, page, tmp_path, bare):
    one = report.write_report(run, out=tmp_path / "one").read_bytes()
    assert report.write_report(run, "A", tmp_path / "two").read_bytes() == one


def test_without_matplotlib_the_tables_remain(run, tmp_path, bare):
    path = report.write_report(run, out=tmp_path)
    text = path.read_text(encoding="utf-8")
    assert report.INSTALL.replace("'", "&#x27;") in text and not list(tmp_path.glob("*.png"))
    scores = json.loads((run / "test_A.json").read_text())["scores"]
    assert float(cells(text, 'data-method="ensemble"')[0][0]["data-value"]) == scores["ensemble"]["top1"]
    assert "last epoch" in Elements(text).text and len(Elements(text).of("table")) >= 8
    check_images(text)


def test_without_truth_all_that_needs_none_is_there(tmp_path, bare):
    made = make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=False))
    text = report.write_report(made).read_text(encoding="utf-8")
    elements = Elements(text)
    assert "not known here" in elements.text and "✓" not in elements.text
    assert 'id="scores"' not in text and 'id="confusions"' not in text and 'id="sureness"' in text
    arrays = load_arrays(made / "test_A.npz")
    assert "The 29 least sure" in elements.text
    least = arrays["names"][arrays["readable"]][arrays["probs"].max(axis=1).argmin()]
    assert re.search(r'least sure</h3><ul[^>]*><li[^>]*data-image="([^"]+)"', text).group(1) == least
    guess = arrays["probs"].argmax(axis=1)
    assert int(cells(text, 'data-domain="Dog"')[0][0]["data-value"]) == (guess >= 3).sum()


def test_an_unrefined_run_a_run_without_test_and_images_that_are_gone(tmp_path, bare):
    root = make_contest(tmp_path / "data", labelled=True)
    plain = make_run(tmp_path / "runs/plain", root, refined=False)
    text = report.write_report(plain).read_text(encoding="utf-8")
    assert "Changed by refinement" not in text and 'id="confusions"' in text
    (root / "TestSetA/image_3.jpg").write_bytes(b"no picture")
    shutil.rmtree(root / "TrainSet")
    gone = report.write_report(plain).read_text(encoding="utf-8")
    assert "no image" in gone and "the file is gone" in gone
    untested = make_run(tmp_path / "runs/untested", make_contest(tmp_path / "other", labelled=True), tested=False)
    text = report.write_report(untested).read_text(encoding="utf-8")
    assert "No test set has been answered yet" in text and 'id="learned"' in text
    shutil.rmtree(root)
    assert "no image" in report.write_report(plain).read_text(encoding="utf-8")


def make_validation(folder):
    curve = {count: {name: {"top1": [70.0 + s + count, 71.0, 73.5], "top5": [90.0, 91.0, 92.0],
                            "domains": {"Cat": [60.0, 61.0, 62.0], "Dog": [80.0, 81.0, 83.0]}}
                     for s, name in enumerate(("zero_shot", "gda", "ensemble", "ensemble_refined"))}
             for count in (1, 4)}
    folder.mkdir(parents=True)
    save_json(folder / report.VALIDATE, {
        "command": "python -m jclip_fewshot validate", "date": "2025-11-21", "versions": {"numpy": "1"},
        "config": {"seeds": 3, "board_mix": True}, "n": 3740, "k": 374, "curve": curve, "held_out": []})
    return folder


def test_the_leaderboard(tmp_path):
    pytest.importorskip("matplotlib")
    path = report.write_report(make_validation(tmp_path / "runs/local"))
    text = path.read_text(encoding="utf-8")
    check_images(text)
    assert {found.stem for found in path.parent.glob("*.png")} == {"shot_curve", "ladder"}
    wanted = [np.mean([70.0 + 3 + count, 71.0, 73.5]) for count in (1, 4)]
    found = cells(text, 'data-method="ensemble_refined"')
    assert [float(attributes["data-value"]) for attributes, _ in found] == pytest.approx(wanted)
    spread = np.std([77.0, 71.0, 73.5], ddof=1)
    assert found[1][1] == f"{wanted[1]:.2f} ± {spread:.2f}" and "374" in text


def test_the_command_finds_the_newest_and_says_what_is_wrong(tmp_path, capsys, monkeypatch, bare):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no finished run under runs"):
        report_command([])
    make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=True))
    make_validation(tmp_path / "runs/local")
    assert report_command([]) == 0
    assert capsys.readouterr().out.split() == ["runs/local/report/index.html"]
    assert report_command(["runs/one", "--out", "here"]) == 0 and (tmp_path / "here/index.html").is_file()
    with pytest.raises(UserError, match="no finished run there"):
        report_command(["runs/absent"])
    with pytest.raises(UserError, match="has not answered test set B"):
        report_command(["runs/one", "--split", "B"])


def test_confused_pairs_count_both_ways():
    truth = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    guess = np.array([0, 1, 1, 0, 1, 0, 2, 2])
    pairs = report.confused_pairs(truth, guess)
    assert [(pair.first, pair.second, pair.total) for pair in pairs] == [(0, 1, 3), (2, 0, 1)]
    assert list(pairs[0].as_second) == [1, 2] and list(pairs[0].as_first) == [3]
    assert report.confused_pairs(truth, truth) == [] and len(report.confused_pairs(truth, guess, most=1)) == 1


def test_calibration_of_perfect_and_overconfident_answers():
    sure = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 5]
    assert report.calibration(sure, np.array([0, 1, 2, 3] * 5)).ece == 0
    assert report.calibration(sure, np.array([1, 2, 3, 0] * 5)).ece == pytest.approx(1)


def test_changed_rows_and_orders():
    before = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])
    after = np.array([[0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    assert list(report.changed_rows(before, after)) == [2, 0]
    assert list(report.least_sure(after, 2)) == [0, 1]
    assert list(report.surest_mistakes(after, np.array([0, 0, 0]))) == [2, 0]


FRAMES = """<!doctype html><title>waiting</title>{frames}<script>addEventListener("load", () => {{
  const pages = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument);
  for (const page of pages) for (const image of page.images) image.loading = "eager";
  setTimeout(() => {{ document.title = JSON.stringify(pages.map(page => ({{
    images: page.images.length, broken: [...page.images].filter(image => !image.naturalWidth).length,
    width: page.documentElement.scrollWidth }}))); }}, 500); }});</script>"""


def test_a_browser_opens_it_without_complaint_on_desktop_and_phone(page, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here to open the page with")
    widths = (1280, 390)  # in frames, as a headless window is at least 500 pixels wide
    frame = '<iframe style="border: 0; width: {}px; height: 900px" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(width, html.escape(page)) for width in widths)
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    done = subprocess.run([
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars",
        "--window-size=1400,900", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom",
        (tmp_path / "frames.html").as_uri()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert "CONSOLE" not in done.stderr.decode(), done.stderr.decode()[-2000:]
    seen = json.loads(re.search(r"<title>(\[.*?\])</title>", done.stdout.decode(), re.DOTALL).group(1))
    assert all(frame["images"] > 20 and frame["broken"] == 0 for frame in seen)
    assert [frame["width"] for frame in seen] == list(widths), "the page scrolls sideways"
