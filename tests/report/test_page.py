"""The report: complete in itself, true to the record, readable with and without truth, pictures or images."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from jclip_fewshot.cli.commands import call
from jclip_fewshot.errors import UserError
from jclip_fewshot.report import analysis, drawing, figures
from jclip_fewshot.report import page as page_module
from jclip_fewshot.report.page import write_report
from jclip_fewshot.report.reading import read_run
from jclip_fewshot.storage.arrays import load_arrays, save_arrays
from tests.report.samples import WIDTH, Elements, cells, make_contest, make_run, make_validation


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
    assert write_report(made) == made / "report/index.html"
    return made


@pytest.fixture(scope="module")
def page(run):
    return (run / "report/index.html").read_text(encoding="utf-8")


@pytest.fixture
def copied(run, tmp_path):
    """The same run, to be changed; its page is made anew."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def change(path, by):
    """Changes a JSON file in place by `by(content)`."""
    content = json.loads(path.read_text())
    by(content)
    path.write_text(json.dumps(content))


def sources(page):
    """Every address that the page loads something from."""
    elements = Elements(page)
    return [element[key] for element in elements.of("img", "source", "image") for key in ("src", "srcset", "href")
            if key in element]


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
    assert not elements.of("link", "iframe", "object") and elements.of("script") == [{}]
    assert all(link["href"].startswith("#") for link in elements.of("a", "use"))
    assert "url(" not in page and "@import" not in page and "http" not in elements.text
    anchors = {element["id"] for _, element in elements.found if "id" in element}
    assert {link["href"][1:] for link in elements.of("a", "use")} <= anchors


def test_accessible(page):
    elements = Elements(page)
    assert all(element.get("alt") for element in elements.of("img"))
    assert all(element.get("aria-label") or element.get("aria-hidden") for element in elements.of("svg"))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    ids = [element["id"] for _, element in elements.found if "id" in element]
    assert len(ids) == len(set(ids))


def test_the_scores_are_the_records(run, page):
    scores = json.loads((run / "test_A.json").read_text())["scores"]
    for name, row in scores.items():
        wanted = [row["top1"], row["top5"], row["class_mean"]] + [row["domains"][d]["top1"] for d in ("Cat", "Dog")]
        found = cells(page, f'data-method="{name}"')
        assert [float(attributes["data-value"]) for attributes, _ in found] == wanted
        assert [text for _, text in found] == [f"{number:.2f}" for number in wanted]
    final = scores["ensemble_refined"]
    assert f'{final["top1"]:.1f}\u00a0%' in Elements(page).text


def test_the_parameters_are_counted(page):
    sizes = {part: int(cells(page, f'data-part="{part}"')[0][0]["data-value"])
             for part in ("encoder", "methods", "ensemble", "total")}
    # keys_ and learned.w; not the copy of the text rows, not the mask
    assert sizes == {"encoder": 151_277_313, "methods": 22 * WIDTH, "ensemble": 3, "total": 151_277_316 + 22 * WIDTH}


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
    made = read_run(run)
    found = analysis.alpha_beta_map(made.record, made.arrays)
    assert found.top1.shape == (len(found.alphas), len(found.betas)) and found.shots == 18
    assert found.chosen == [("Cat", 1.5, 5.5), ("Dog", 2.5, 5.5)]
    # by the formula, for one α and β: fold j leaves out the j-th shot of every class
    arrays = load_arrays(run / "model.npz")
    x, y, t = arrays["shots/features"].astype(float), arrays["shots/labels"], arrays["shots/text"].astype(float)
    a, b, hits = 12, 9, 0
    for s in range(18):
        kept = np.arange(18) % 3 != s % 3
        affinity = np.exp(-found.betas[b] * (1 - x[s] @ x[kept].T))
        hits += (100 * x[s] @ t.T + found.alphas[a] * 1.5 * affinity @ np.eye(6)[y[kept]]).argmax() == y[s]
    assert found.top1[a, b] == pytest.approx(100 * hits / 18)


def test_dark_drawings_hold_no_light_colour(run):
    drawn = figures.ladder({"zero_shot": {"top1": 70.0}, "gda": {"top1": 75.0}, "ensemble": {"top1": 60.0}}, [])
    for variant in (drawn.wide, drawn.narrow):
        for light, dark in ((drawing.INK, "#e8eaec"), (drawing.BLUE, "#56b4e9")):
            assert light in variant.light and light not in variant.dark and dark in variant.dark
    assert "75.0" in drawn.alt and drawn.narrow.width < 360


def test_the_same_run_makes_the_same_page(run, page, tmp_path, bare):
    one = write_report(run, out=tmp_path / "one").read_bytes()
    assert write_report(run, "A", tmp_path / "two").read_bytes() == one


def test_without_matplotlib_the_tables_remain(run, tmp_path, bare):
    path = write_report(run, out=tmp_path)
    text = path.read_text(encoding="utf-8")
    assert page_module.INSTALL.replace("'", "&#39;") in text and not list(tmp_path.glob("*.png"))
    scores = json.loads((run / "test_A.json").read_text())["scores"]
    assert float(cells(text, 'data-method="ensemble"')[0][0]["data-value"]) == scores["ensemble"]["top1"]
    assert "last epoch" in Elements(text).text and len(Elements(text).of("table")) >= 8
    check_images(text)


def test_without_truth_all_that_needs_none_is_there(tmp_path, bare):
    made = make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=False))
    text = page_of(made)
    elements = Elements(text)
    assert "not known here" in elements.text and "✓" not in elements.text
    assert 'id="scores"' not in text and 'id="confusions"' not in text and 'id="confidence"' in text
    arrays = load_arrays(made / "test_A.npz")
    assert "The 29 least confident" in elements.text
    least = arrays["names"][arrays["readable"]][arrays["probs"].max(axis=1).argmin()]
    assert re.search(r'least confident</h3>\s*<ul[^>]*>\s*<li[^>]*data-image="([^"]+)"', text).group(1) == least
    guess = arrays["probs"].argmax(axis=1)
    assert int(cells(text, 'data-domain="Dog"')[0][0]["data-value"]) == (guess >= 3).sum()


def test_an_unrefined_run_a_run_without_test_and_images_that_are_gone(tmp_path, bare):
    root = make_contest(tmp_path / "data", labelled=True)
    plain = make_run(tmp_path / "runs/plain", root, refined=False)
    text = page_of(plain)
    assert "Changed by refinement" not in text and "Refining" not in text and 'id="confusions"' in text
    (root / "TestSetA/image_3.jpg").write_bytes(b"no picture")
    shutil.rmtree(root / "TrainSet")
    gone = page_of(plain)
    assert "no image" in gone and "the file is gone" in gone
    untested = make_run(tmp_path / "runs/untested", make_contest(tmp_path / "other", labelled=True), tested=False)
    text = page_of(untested)
    assert "No test set has been answered yet" in text and 'id="learned"' in text
    shutil.rmtree(root)
    assert "no image" in page_of(plain)


def test_the_headline_says_what_refining_gained_or_lost(run, page, copied, bare):
    scores = json.loads((run / "test_A.json").read_text())["scores"]
    effect = scores["ensemble_refined"]["top1"] - scores["ensemble"]["top1"]
    assert effect < 0  # the sample's refinement is noise
    text = Elements(page).text
    assert f"lost {-effect:.2f} points" in text and f"−{-effect:.2f}" in text
    better = scores["ensemble_refined"]["top1"] - 1.25
    change(copied / "test_A.json", lambda tested: tested["scores"]["ensemble"].update(top1=better))
    text = Elements(page_of(copied)).text
    assert "gained 1.25 points" in text and "+1.25" in text


def test_confusions_say_of_how_many_and_by_domain(run, page):
    answers = read_run(run).answers
    for pair in analysis.confused_pairs(answers.truth, answers.guess):
        body = re.search(rf'data-pair="{pair.first},{pair.second}"(.*?)</li>', page, re.DOTALL).group(1)
        told = [Elements(part).text for part in re.findall(r'<p class="quiet">(.*?)</p>', body, re.DOTALL)]
        images = [int((answers.truth == label).sum()) for label in (pair.first, pair.second)]
        rows = [len(pair.as_second) or "none", len(pair.as_first) or "none"]
        assert [text.split(" read as ")[0] for text in told] == [f"{n} of {m}" for n, m in zip(rows, images)]
    found = [int(attributes["data-value"]) for domain in ("Cat", "Dog")
             for attributes, _ in cells(page, f'data-truth="{domain}"')]
    truth, guess = answers.truth >= 3, answers.guess >= 3
    assert found == [int(((truth == a) & (guess == b)).sum()) for a in (False, True) for b in (False, True)]


def test_a_class_shows_its_shots_and_mistakes_and_the_lowest_are_counted(run, page):
    made = read_run(run)
    answers, drawn = made.answers, len(re.findall("<image ", page))
    for k in range(6):
        card = re.search(rf'id="class-{k}">(.*?)</div>\s*</div>', page, re.DOTALL).group(1)
        misread = int(((answers.truth == k) & (answers.guess != k)).sum())
        taken = int(((answers.truth != k) & (answers.guess == k)).sum())
        assert card.count("<use ") == 3 + misread + taken
        assert f"Misread: {misread} image" in card or not misread
    wrong = int((answers.truth != answers.guess).sum())
    assert drawn == 18 + wrong  # every shot and every mistake once, however often it is shown
    listed = re.search(r'<table[^>]*data-search="mistakes".*?</table>', page, re.DOTALL).group()
    assert listed.count("<use ") == wrong
    mistakes = [row for row in answers.sure if answers.guess[row] != answers.truth[row]]
    assert re.findall(r'<th scope="row">(.*?)</th>', listed) == [answers.names[row] for row in mistakes]
    accuracy, _ = analysis.class_accuracy(answers.truth, answers.guess, 6)
    sharing = int((accuracy == accuracy.min()).sum())
    assert (f"shared by {sharing} classes" if sharing > 1 else "Lowest:") in Elements(page).text
    assert "0 of 0" not in page


def test_a_class_without_test_images_is_never_0_of_0(tmp_path, bare):
    root = make_contest(tmp_path / "data", labelled=True)
    made = make_run(tmp_path / "runs/one", root)
    arrays = load_arrays(made / "test_A.npz")
    truth = np.arange(1, 31) % 6
    truth[truth == 2] = 1  # the first class that is read as a class without any image
    save_arrays(made / "test_A.npz", {**arrays, "truth": truth})
    text = page_of(made)
    assert "0 of 0" not in text and "no test image" in text and ">none</td>" in text


def test_the_cost_of_none_of_these(run, page):
    answers = read_run(run).answers
    sure, right = answers.probs.max(axis=1), answers.guess == answers.truth
    for threshold in (30, 50, 70, 90):
        found = [float(attributes["data-value"]) for attributes, _ in cells(page, f'data-threshold="{threshold}"')]
        low = sure < threshold / 100
        assert found == pytest.approx([100 * low.mean(), 100 * right[~low].mean(), 100 * (right & low).mean()])


def test_commit_and_checkpoint_are_among_the_versions(run, page):
    commit = json.loads((run / "record.json").read_text())["versions"]["git commit"]
    text = Elements(page).text
    assert f"git commit{commit}" in text and "checkpointabcd1234" in text


def test_every_encoder_is_named_and_counted(copied, bare):
    more = {"model": "RN50", "weights": "", "name": "RN50", "weights_digest": "ef567890", "parameters": 1000}
    change(copied / "record.json", lambda record: record["encoder"].update(name="ViT-B-32", others=[more]))
    text = page_of(copied)
    said = Elements(text).text
    assert "checkpoint of ViT-B-32abcd1234" in said and "checkpoint of RN50ef567890" in said
    assert int(cells(text, 'data-part="encoder"')[0][0]["data-value"]) == 151_278_313
    more = {"features": "more.npz", "name": "more"}
    change(copied / "record.json", lambda record: record["encoder"].update(others=[more]))
    assert cells(page_of(copied), 'data-part="encoder"')[0][1] == "not recorded"


def test_without_truth_held_out_shots_give_an_estimate(tmp_path, bare):
    made = make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=False))
    text = page_of(made)
    found = read_run(made)
    estimate = analysis.held_out_estimate(found.arrays["held_out_probs"], found.shot_labels, found.record.domains,
                                          found.answers.guess)
    assert f"about {estimate.top1:.0f}\u00a0%" in Elements(text).text
    rejected = float(cells(text, 'data-threshold="50"')[0][0]["data-value"])
    assert rejected == pytest.approx(100 * (found.answers.probs.max(axis=1) < 0.5).mean())


def test_two_classes_and_none_of_the_newer_arrays(tmp_path):
    root = make_contest(tmp_path / "data", labelled=True, names=["cat", "dog"])
    made = make_run(tmp_path / "runs/one", root)
    text = Elements(page_of(made)).text
    assert "one of five" not in text and "two most likely" in text and "Domains" not in text
    older = {name: {key: value for key, value in load_arrays(made / name).items() if not re.match(prefix, key)}
             for name, prefix in (("model.npz", "alpha_beta|held_out"), ("test_A.npz", "nearest"))}
    for name, arrays in older.items():
        save_arrays(made / name, arrays)
    text = page_of(made)
    assert "nearest shot of" not in text and "α and β" not in text and 'id="confidence"' in text
    (root / "labels_TestSetA.txt").unlink()
    assert "suggest" not in page_of(made)


@pytest.mark.parametrize("name, key, spoil", [
    ("model.npz", "shots/labels", lambda a: a[:-1]), ("model.npz", "shots/text", lambda a: np.r_[a, a]),
    ("test_A.npz", "probs", lambda a: a[:, :-1]), ("test_A.npz", "nearest_guess", lambda a: a + 100),
    ("test_A.npz", "readable", lambda a: a + 5), ("test_A.npz", "names", lambda a: a.size)])
def test_arrays_that_do_not_fit_are_one_line(copied, bare, name, key, spoil):
    arrays = load_arrays(copied / name)
    save_arrays(copied / name, {**arrays, key: spoil(arrays[key])})
    with pytest.raises(UserError, match=f"{copied / name}"):
        write_report(copied)


def test_a_record_may_be_sparse_and_no_image_readable(copied):
    change(copied / "record.json", lambda record: record.update(seconds={}))
    change(copied / "test_A.json", lambda tested: tested.update(seconds={}) or tested["scores"].pop("ensemble"))
    assert "Refining" not in page_of(copied)
    arrays = load_arrays(copied / "test_A.npz")
    short = {key: value[:0] for key, value in arrays.items() if key in ("readable", "probs", "before") or "near" in key}
    save_arrays(copied / "test_A.npz", {**arrays, **short})
    assert "No image could be read." in page_of(copied)


def test_marks_beyond_the_map_are_arrows():
    pytest.importorskip("matplotlib")
    grid = np.geomspace(0.5, 16, 4)
    chosen = [("Cat", 40.0, 2.0), ("Dog", 1.0, 2.0), ("Caltech-101", 50.0, 2.0), ("Food-101", 60.0, 2.0)]
    found = analysis.AlphaBetaMap(grid, grid, np.arange(16.0).reshape(4, 4), chosen, 18)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a layout without room
        drawn = figures.alpha_beta(found)
    assert "Cat (α 40, β 2)" in drawn.wide.light and "Dog (α" not in drawn.wide.light


def test_the_report_never_starts_jittor(run, tmp_path):
    code = ("import sys; sys.modules['jittor'] = None\n"
            "from jclip_fewshot.report.page import write_report\n"
            f"write_report({str(run)!r}, out={str(tmp_path)!r})")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()
    assert (tmp_path / "alpha_beta.png").is_file()


def test_without_jinja2_one_line_says_what_brings_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match="needs jinja2: pip install"):
        write_report(run)
    assert page_module.report_line(run).startswith("no report, as jinja2 is not installed: pip install")


def test_the_leaderboard(tmp_path):
    pytest.importorskip("matplotlib")
    path = write_report(make_validation(tmp_path / "runs/local"))
    text = path.read_text(encoding="utf-8")
    check_images(text)
    assert {found.stem for found in path.parent.glob("*.png")} == {"shot_curve", "ladder"}
    wanted = [np.mean([70.0 + 3 + count, 71.0, 73.5]) for count in (1, 4)]
    found = cells(text, 'data-method="ensemble_refined"')
    assert [float(attributes["data-value"]) for attributes, _ in found] == pytest.approx(wanted)
    assert "<code>python -m jclip_fewshot validate</code>" in text  # the module's file alone cannot be run
    share = wanted[1] / 100
    assert f"standard error of about {100 * np.sqrt(share * (1 - share) / 3740):.1f} points" in text
    spread = np.std([77.0, 71.0, 73.5], ddof=1)
    assert found[1][1] == f"{wanted[1]:.2f} ± {spread:.2f}" and "374" in text


def test_the_command_finds_the_newest_and_says_what_is_wrong(tmp_path, capsys, monkeypatch, bare):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no finished run under runs"):
        call("report", [])
    make_run(tmp_path / "runs/one", make_contest(tmp_path / "data", labelled=True))
    make_validation(tmp_path / "runs/local")
    assert call("report", []) == 0
    assert capsys.readouterr().out.split() == ["runs/local/report/index.html"]
    assert call("report", ["runs/one", "--out", "here"]) == 0 and (tmp_path / "here/index.html").is_file()
    with pytest.raises(UserError, match="no finished run there"):
        call("report", ["runs/absent"])
    with pytest.raises(UserError, match="has not answered test set B"):
        call("report", ["runs/one", "--split", "B"])


FRAMES = """<!doctype html><title>waiting</title>{frames}<script>addEventListener("load", () => {{
  const pages = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument);
  for (const page of pages) for (const image of page.images) image.loading = "eager";
  setTimeout(() => {{ document.title = JSON.stringify(pages.map(page => {{
    const seen = {{
      images: page.images.length, broken: [...page.images].filter(image => !image.naturalWidth).length,
      width: page.documentElement.scrollWidth }};
    const table = page.querySelector("[data-search=classes]"), visible = () => [...table.tBodies[0].rows].filter(
      row => !row.hidden).map(row => row.cells[0].textContent);
    const link = page.querySelector("a[data-card]"), card = page.getElementById(link.dataset.card);
    link.click();
    seen.opened = [link.getAttribute("aria-expanded"), card.getBoundingClientRect().height > 100,
                   card.closest("tr").previousElementSibling === link.closest("tr")];
    table.tHead.rows[0].cells[0].querySelector("button").click();
    seen.closed = [link.getAttribute("aria-expanded"), card.getBoundingClientRect().height];
    seen.sorted = visible();
    const input = table.closest("details").querySelector("input");
    input.value = "BEAG";
    input.dispatchEvent(new Event("input"));
    seen.filtered = visible();
    return seen; }})); }}, 500); }});</script>"""


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
        (tmp_path / "frames.html").as_uri()], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert "CONSOLE" not in done.stderr.decode(), done.stderr.decode()[-2000:]
    seen = json.loads(re.search(r"<title>(\[.*?\])</title>", done.stdout.decode(), re.DOTALL).group(1))
    assert all(frame["images"] > 15 and frame["broken"] == 0 for frame in seen)
    for frame in seen:
        assert frame["opened"] == ["true", True, True] and frame["closed"] == ["false", 0]
        assert frame["sorted"] == sorted(frame["sorted"], key=str.lower) and len(frame["sorted"]) == 6
        assert frame["filtered"] == ["beagle"]
    assert [frame["width"] for frame in seen] == list(widths), "the page scrolls sideways"
