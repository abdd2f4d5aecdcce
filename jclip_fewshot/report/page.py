"""The report as one HTML page: nothing in it is fetched from anywhere, and it needs no script.

`el` escapes every text that goes into the page, so class and file names may hold anything. A number that
stands for one of the record carries it in full in `data-value`.
"""

from __future__ import annotations

import base64
import html
import statistics
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from jclip_fewshot.data.prompts import plain_name
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import TOP, best_classes
from jclip_fewshot.report import figures as pictures
from jclip_fewshot.report import run as report
from jclip_fewshot.report.figures import Picture, method_title
from jclip_fewshot.report.run import Answers, Run
from jclip_fewshot.report.style import STYLE

GALLERY = 12  # images of each kind of mistake
LISTED = 1000  # rows of the list of all mistakes
PHONE = 640  # CSS pixels up to which the phone's drawings are shown


class Html(str):
    """Text that is markup already."""


Part = Optional[Html]


def el(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element; text children and attributes are escaped, None and False left out.

    A trailing underscore in an attribute's name is dropped, others become hyphens: class_, data_value.
    """
    said = ""
    for key, value in attributes.items():
        if value is not None and value is not False:
            said += " " + key.rstrip("_").replace("_", "-")
            said += "" if value is True else f'="{html.escape(str(value))}"'
    if tag in ("img", "source", "meta"):
        return Html(f"<{tag}{said}>")
    return Html(f"<{tag}{said}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Children one after another; text is escaped, None left out; a percent sign stays with its number."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)).replace(" %", "\u00a0%")
                        for child in children if child is not None))


def number(shown: str, value: object = None, small: str = "", best: bool = False, **data: object) -> Html:
    """A table's cell with a number, its full value, and something small after it."""
    return el("td", shown, el("small", small) if small else None, class_="n best" if best else "n",
              data_value=None if value is None else repr(value), **data)


def heading(*labels: str, left: int = 1) -> Html:
    """A table's first row; the first `left` labels stand to the left, as their columns do."""
    return el("tr", *(el("th", label, scope="col", class_=None if place < left else "n")
                      for place, label in enumerate(labels)))


def line(title: str, *cells: Part, hint: Optional[str] = None, **attributes: object) -> Html:
    """A table's row."""
    return el("tr", el("th", title, scope="row", title=hint), *cells, **attributes)


def table(head: Html, rows: Sequence[Html], caption: str) -> Html:
    """A table that scrolls inside its own box; the box takes the focus so that keys can scroll it."""
    return join([el("p", caption, class_="caption"),
                 el("div", el("table", el("thead", head), el("tbody", *rows), aria_label=caption),
                    class_="scroll", tabindex="0", role="region", aria_label=f"{caption} (scrolls)")])


def details(title: str, inside: Html) -> Html:
    """Something that opens on a click."""
    return el("details", el("summary", title), inside)


class Page:
    """Collects sections, pictures and the menu."""

    def __init__(self) -> None:
        self.draws = pictures.available()
        self.pictures: List[Picture] = []
        self._sections: List[Html] = []
        self._menu: List[Tuple[str, str]] = []

    def section(self, key: str, short: str, title: str, parts: Iterable[Part]) -> None:
        """A section, and its short name in the menu."""
        self._menu.append((key, short))
        self._sections.append(el("section", el("h2", title, id=key), *parts, aria_labelledby=key))

    def figure(self, draw, *arguments: object) -> Part:
        """The picture that `draw(*arguments)` makes, and saved beside the page; None without matplotlib."""
        if not self.draws:
            return None
        found = draw(*arguments)
        self.pictures.append(found)
        narrow = dict(width=found.narrow.width, height=found.narrow.height)
        wide = dict(width=found.wide.width, height=found.wide.height)
        phone, dark = f"(max-width: {PHONE}px)", "(prefers-color-scheme: dark)"
        return el("figure", el(
            "picture",
            el("source", media=f"{phone} and {dark}", srcset=_svg(found.narrow.dark), **narrow),
            el("source", media=phone, srcset=_svg(found.narrow.light), **narrow),
            el("source", media=dark, srcset=_svg(found.wide.dark), **wide),
            el("img", src=_svg(found.wide.light), alt=found.alt, **wide)),
            el("figcaption", found.caption), class_="drawing")

    def html(self, title: str, masthead: Html) -> str:
        """The whole page."""
        links = [el("li", el("a", name, href=f"#{key}")) for key, name in self._menu]
        head = [el("meta", charset="utf-8"),
                el("meta", name="viewport", content="width=device-width, initial-scale=1"),
                el("meta", name="color-scheme", content="light dark"),
                el("title", title), Html(f"<style>{STYLE}</style>")]
        body = [masthead, el("nav", el("ul", *links), aria_label="Contents"), el("main", *self._sections),
                el("footer", el("p", "Made by jclip_fewshot. This file is complete in itself; its pictures also "
                                     "lie beside it as PNG files."))]
        return (f'<!doctype html>\n<html lang="en"><head>{join(head)}</head>\n'
                f'<body>{join(body)}</body></html>\n')


def _svg(text: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def run_page(run: Run) -> Tuple[str, List[Picture]]:
    """The page of a trained run, with its answers where it has any, and the pictures in it."""
    page, answers = Page(), run.answers
    names = [plain_name(name, domain) for name, domain in zip(run.class_names, run.domains)]
    if answers:
        known = answers.truth is not None
        if answers.record["scores"]:
            page.section("scores", "Scores", "Scores", _scores(page, answers.record["scores"]))
        if known:
            page.section("confusions", "Confusions", "Confused classes", _confusions(run, answers, names))
            page.section("classes", "Classes", "Class by class", _classes(page, run, answers, names))
            page.section("images", "Images", "Image by image", _gallery(run, answers, names))
        page.section("sureness", "Sureness", "How sure it is", _sureness(page, answers))
        page.section("balance", "Balance", "Class balance", _balance(page, run, answers, names))
        if not known:
            page.section("images", "Images", "Image by image", _gallery(run, answers, names))
    page.section("learned", "Learning", "What the heads learned", _learned(page, run))
    page.section("run", "Run", "What was run", _what_was_run(run))
    return page.html(f"{run.folder.resolve().name} · jclip_fewshot", _masthead(page, run)), page.pictures


def _masthead(page: Page, run: Run) -> Html:
    answers, shots, classes = run.answers, len(run.shot_labels), len(run.class_names)
    learned = f"learned from {shots:,} shots of {len(set(run.shot_labels.tolist())):,} classes"
    when, commands = run.record["date"], [run.record["command"]]
    if answers is None:
        lead = join([f"It {learned}. No test set has been answered yet: ", el("code", "python test.py"),
                     " does, and this report then shows how well."])
        tiles = [_tile("Classes", f"{classes:,}", classes), _tile("Shots", f"{shots:,}", shots)]
        return _header(page, "Run report", run.folder, when, lead, tiles, commands)
    images, scores = answers.record["images"], answers.record["scores"]
    if scores:
        final = scores[list(scores)[-1]]
        zero = scores.get("zero_shot", final)
        gain = final["top1"] - zero["top1"]
        lead = join([f"Of {images:,} test images, the first guess is right for ",
                     el("strong", f"{final['top1']:.1f} %"), f" and one of five for {final['top5']:.1f} %; "
                     f"zero-shot CLIP gets {zero['top1']:.1f} %. It {learned}."])
        tiles = [_tile("Top-1", f"{final['top1']:.2f}", final["top1"], "%"),
                 _tile("Top-5", f"{final['top5']:.2f}", final["top5"], "%"),
                 _tile("Class mean", f"{final['macro']:.2f}", final["macro"], "%"),
                 _tile("Over zero-shot", f"{gain:+.2f}".replace("-", "−"), gain, "pts")]
    else:
        lead = (f"{images:,} test images of {classes:,} classes are answered by a run that {learned}. Their "
                "true classes are not known here: this page shows all that needs no truth.")
        used, sure = len(set(answers.guess.tolist())), 100 * report.mean_sureness(answers.probs)
        tiles = [_tile("Images", f"{images:,}", images),
                 _tile("Classes answered", f"{used:,}", used, f"of {classes:,}"),
                 _tile("Mean sureness", f"{sure:.1f}", sure, "%")]
    if answers.refined:
        changed = len(report.changed_rows(answers.before, answers.probs))
        tiles.append(_tile("Refinement changed", f"{changed:,}", changed, _images(changed)))
    unreadable = len(answers.record["unreadable"])
    if unreadable:
        tiles.append(_tile("Unreadable", f"{unreadable:,}", unreadable, _images(unreadable)))
    return _header(page, "Run report", run.folder, f"{when} · test set {answers.split}", lead, tiles,
                   commands + [answers.record["command"]])


def _header(page: Page, kind: str, folder: Path, where: str, lead: object, tiles: Sequence[Html],
            commands: Sequence[str]) -> Html:
    hint = el("p", "The pictures are left out, as matplotlib is not installed: ", el("code", report.INSTALL),
              " brings it.", class_="note")
    return el("header", el("p", f"jclip_fewshot · {kind}", class_="over"), el("h1", folder.resolve().name),
              el("p", where, class_="where"), el("p", lead, class_="lead"), el("dl", *tiles, class_="tiles"),
              el("div", *(el("pre", el("code", command)) for command in commands), class_="commands"),
              None if page.draws else hint)


def _tile(label: str, shown: str, value: object, unit: str = "") -> Html:
    return el("div", el("dt", label), el("dd", shown, el("small", f" {unit}"), data_value=repr(value)))


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _scores(page: Page, scores: Dict[str, dict]) -> List[Part]:
    domains = list(dict.fromkeys(domain for row in scores.values() for domain in row["domains"]))
    domains = domains if len(domains) > 1 else []  # one domain says what the total says
    columns = {key: {name: row[key] for name, row in scores.items()} for key in ("top1", "top5", "macro")}
    panels = {"": columns["top1"]}
    for domain in domains:
        panels[domain] = {name: row["domains"][domain]["top1"] for name, row in scores.items()
                          if domain in row["domains"]}
        columns[domain] = panels[domain]
    rows = []
    for name in scores:
        cells = [number(f"{values[name]:.2f}", values[name], best=values[name] == max(values.values()),
                        data_metric=key) if name in values else el("td") for key, values in columns.items()]
        rows.append(line(method_title(name), *cells, data_method=name,
                         class_="final" if name == list(scores)[-1] else None))
    counted = next(iter(scores.values()))["domains"]
    images = ", ".join(f"{domain} {inside['n']:,}" for domain, inside in counted.items())
    return [page.figure(pictures.ladder, panels),
            table(heading("method", "top-1", "top-5", "class mean", *domains), rows,
                  "Scores in percent, the best of a column in bold; the last row is what is submitted."),
            el("p", f"Images: {images}.", class_="quiet") if images else None]


def _image(path: Optional[Path], alt: str, size: int, class_: str = "thumb") -> Html:
    """A thumbnail; where the file is gone, a box that says so."""
    uri = report.thumbnail(path, size) if path else None
    if uri is None:
        return el("span", el("span", "no image", aria_hidden="true"), class_=f"{class_} gone", role="img",
                  aria_label=f"{alt}: the file is gone or cannot be read")
    return el("img", src=uri, alt=alt, class_=class_, loading="lazy", width=size, height=size)


def _shots_of(run: Run, label: int) -> np.ndarray:
    return np.flatnonzero(run.shot_labels == label)


def _confusions(run: Run, answers: Answers, names: Sequence[str]) -> List[Part]:
    pairs = report.confused_pairs(answers.truth, answers.guess)
    if not pairs:
        return [el("p", "No class is taken for another one.")]
    counts = np.bincount(answers.truth, minlength=len(names))

    def side(label: int, other: int, rows: np.ndarray) -> Html:
        """A shot of the class, and a test image of it that is read as the other; else another shot."""
        shots = [(run.shot_paths[shot], "shot", f"shot of {names[label]}") for shot in _shots_of(run, label)]
        told = f"{names[label]}, read as {names[other]}"
        misread = [(answers.paths[row], "misread", f"{answers.names[row]}: {told}") for row in rows]
        shown = (shots[:1] + misread[:1]) if misread else shots[:2]
        return el("div", el("h4", names[label]),
                  el("div", *(el("figure", _image(path, alt, 160), el("figcaption", kind), class_=f"mini {kind}")
                              for path, kind, alt in shown), class_="pair"),
                  el("p", f"{len(rows)} of {counts[label]} misread", class_="quiet"), class_="side")

    cards = [el("li", el("h3", f"{names[pair.first]} and {names[pair.second]}", class_="unseen"),
                side(pair.first, pair.second, pair.as_second), side(pair.second, pair.first, pair.as_first),
                class_="card confusion", data_pair=f"{pair.first},{pair.second}", data_value=pair.total)
             for pair in pairs]
    wrong, inside = int((answers.truth != answers.guess).sum()), sum(pair.total for pair in pairs)
    return [el("p", f"The {len(pairs)} pairs of classes that are most often taken for each other, both ways "
               f"together: {inside:,} of all {wrong:,} mistakes. Each side shows a shot of the class and, marked, "
               "a test image of it that is read as the other.", class_="intro"),
            el("ul", *cards, class_="grid pairs")]


def _classes(page: Page, run: Run, answers: Answers, names: Sequence[str]) -> List[Part]:
    accuracy, counts = report.class_accuracy(answers.truth, answers.guess, len(names))
    shots = np.bincount(run.shot_labels, minlength=len(names))
    predicted = np.bincount(answers.guess, minlength=len(names))
    known = [k for k in np.argsort(accuracy, kind="stable") if counts[k]]
    rows = [line(names[k], el("td", run.domains[k]), number(f"{accuracy[k]:.1f}", float(accuracy[k])),
                 number(str(counts[k])), number(str(predicted[k])), number(str(shots[k])),
                 hint=run.class_names[k], data_class=run.class_names[k]) for k in known]
    perfect = int((accuracy[known] == 100).sum())
    said = f"{perfect:,} of {len(known):,} classes are right throughout."
    worst = ", ".join(f"{names[k]} {accuracy[k]:.0f} %" for k in known[:5] if accuracy[k] < 100)
    return [el("p", said, f" Lowest: {worst}." if worst else None, class_="intro"),
            page.figure(pictures.class_strip, accuracy, run.domains, names) if known else None,
            details(f"All {len(known):,} classes, the lowest first", table(
                heading("class", "domain", "top-1", "images", "predicted", "shots", left=2), rows,
                "Top-1 in percent, number of test images, how often predicted, shots"))]


def _guesses(probs: np.ndarray, names: Sequence[str], truth: Optional[int]) -> Html:
    """The five likeliest classes of one image as bars, and the truth below where it is none of them."""
    best, rows = best_classes(probs[None])[0], []
    for place, k in enumerate(best):
        kind = "right" if k == truth else "wrong" if truth is not None and place == 0 else None
        share = 100 * float(probs[k])
        rows.append(el("li", el("span", names[k], el("b", " ✓ truth") if k == truth else None, class_="name"),
                       el("span", f"{share:.1f}" if share < 99.95 else "100", class_="share"), class_=kind,
                       style=f"--p:{share:.1f}%", data_value=repr(float(probs[k]))))
    below = None
    if truth is not None and truth not in best:
        place = int((probs > probs[truth]).sum()) + 1
        below = el("p", f"✓ truth: {names[truth]}, place {place}, {100 * float(probs[truth]):.1f} %",
                   class_="beyond")
    return el("div", el("ol", *rows, class_="guesses"), below)


def _card(run: Run, answers: Answers, row: int, names: Sequence[str], explain: bool, before: bool) -> Html:
    truth = None if answers.truth is None else int(answers.truth[row])
    alt = f"{answers.names[row]}, read as {names[answers.guess[row]]}"
    alt += "" if truth is None else f", truth {names[truth]}"
    first = int(answers.before[row].argmax())
    was = el("p", "Before refinement: ", el("b", names[first]), f", {100 * answers.before[row, first]:.1f} %",
             class_="was")
    return el("li", el("div", _image(answers.paths[row], alt, 160), class_="picture"),
              el("div", el("h4", answers.names[row]), _guesses(answers.probs[row], names, truth),
                 was if before else None, class_="said"),
              _nearest_shots(run, answers, row, names) if explain else None,
              class_="card answer", data_image=answers.names[row])


def _nearest_shots(run: Run, answers: Answers, row: int, names: Sequence[str]) -> Part:
    """The shots nearest to an image among those of its first guess and of its true class."""
    if answers.features is None:
        return None
    found = []
    for said, label in (("answer", int(answers.guess[row])), ("truth", int(answers.truth[row]))):
        shots = _shots_of(run, label)
        if len(shots):
            cosine = run.arrays["shots/features"][shots] @ answers.features[row]
            nearest = run.shot_paths[shots[cosine.argmax()]]
            image = _image(nearest, f"nearest shot of {names[label]}", 72, "thumb small")
            found.append(el("figure", image, el("figcaption", "nearest shot of ", el("b", names[label]),
                                                f" ({said}): cosine {cosine.max():.3f}")))
    return el("div", *found, class_="nearest") if found else None


def _gallery(run: Run, answers: Answers, names: Sequence[str]) -> List[Part]:
    def cards(rows: np.ndarray, explain: bool = False, before: bool = False) -> Html:
        if not len(rows):
            return el("p", "None.")
        return el("ul", *(_card(run, answers, int(row), names, explain, before) for row in rows),
                  class_="grid answers")

    known = answers.truth is not None
    intro = "The square that CLIP sees of an image, and its five guesses with their probability in percent"
    parts: List[Part] = [el("p", intro, "; ✓ marks the truth." if known else ".", class_="intro")]
    changed = report.changed_rows(answers.before, answers.probs) if answers.refined else np.zeros(0, int)
    if not known:
        if answers.refined:
            parts += [el("h3", f"Changed by refinement: {len(changed):,}"),
                      cards(changed[:GALLERY], before=True)]
        unsure = report.least_sure(answers.probs)
        return parts + [el("h3", f"The {len(unsure)} least sure"), cards(unsure)]
    mistakes = report.surest_mistakes(answers.probs, answers.truth, LISTED)
    parts += [el("h3", "Surest mistakes"), cards(mistakes[:GALLERY], explain=True)]
    if answers.refined:
        was, now = (probs[changed].argmax(axis=1) == answers.truth[changed]
                    for probs in (answers.before, answers.probs))
        for title, rows in (("better", changed[~was & now]), ("worse", changed[was & ~now])):
            parts += [el("h3", f"Changed by refinement for the {title}: {len(rows):,}"),
                      cards(rows[:GALLERY], before=True)]
        other = int((~was & ~now).sum())
        if other:
            parts.append(el("p", f"{other:,} more changed from one wrong class to another.", class_="quiet"))
    return parts + [_all_mistakes(answers, mistakes, names) if len(mistakes) else None]


def _all_mistakes(answers: Answers, rows: np.ndarray, names: Sequence[str]) -> Html:
    total = int((answers.guess != answers.truth).sum())
    best = best_classes(answers.probs[rows])
    lines = []
    for row, five in zip(rows, best):
        truth = int(answers.truth[row])
        guesses = [el("td", f"{names[k]} {100 * answers.probs[row, k]:.0f}",
                      class_="right" if k == truth else None) for k in five]
        lines.append(line(answers.names[row], el("td", names[truth]), *guesses))
    title = f"All {total:,} mistakes" if total <= LISTED else f"The {LISTED:,} surest of {total:,} mistakes"
    labels = ["image", "truth"] + [f"guess {i + 1}" for i in range(best.shape[1])]
    return details(f"{title}, the surest first", table(
        heading(*labels, left=len(labels)), lines, "Mistakes, five guesses, their probability in percent"))


def _sureness(page: Page, answers: Answers) -> List[Part]:
    if not len(answers.probs):
        return [el("p", "No image could be read.")]
    shown = {"ensemble": answers.before, **({"refined": answers.probs} if answers.refined else {})}
    sure = {name: probs.max(axis=1) for name, probs in shown.items()}
    if answers.truth is None:
        means = ", ".join(f"{name} {100 * values.mean():.1f} %" for name, values in sure.items())
        low = int((answers.probs.max(axis=1) < 0.5).sum())
        return [el("p", f"Mean probability of the first guess: {means}. {low:,} {_images(low)} with a first "
                   "guess below 50 %.", class_="intro"), page.figure(pictures.sureness, sure)]
    curves = {name: report.calibration(probs, answers.truth) for name, probs in shown.items()}
    rows = []
    for name, curve in curves.items():
        right = 100 * float((shown[name].argmax(axis=1) == answers.truth).mean())
        rows.append(line("Ensemble" if name == "ensemble" else "Ensemble, refined",
                         number(f"{100 * sure[name].mean():.1f}"), number(f"{right:.1f}", right),
                         number(f"{100 * curve.ece:.2f}", curve.ece, data_metric="ece")))
    return [page.figure(pictures.reliability, curves, sure),
            table(heading("answer", "mean sureness", "right", "calibration error"), rows,
                  "In percent. Calibration error (ECE): mean distance between sure and right over "
                  f"{report.CALIBRATION_BINS} bins.")]


def _balance(page: Page, run: Run, answers: Answers, names: Sequence[str]) -> List[Part]:
    predicted = np.bincount(answers.guess, minlength=len(names))
    shots = np.bincount(run.shot_labels, minlength=len(names))
    expected = len(answers.names) * shots / max(shots.sum(), 1)
    truth = None if answers.truth is None else np.bincount(answers.truth, minlength=len(names))
    rows = []
    for domain in dict.fromkeys(run.domains):
        inside = np.array(run.domains) == domain
        count, share = int(predicted[inside].sum()), 100 * shots[inside].sum() / max(shots.sum(), 1)
        rows.append(line(domain or "all classes", number(f"{count:,}", count),
                         number(f"{100 * count / max(len(answers.names), 1):.1f}"), number(f"{share:.1f}"),
                         None if truth is None else number(f"{truth[inside].sum():,}"), data_domain=domain))
    labels = ["domain", "predicted", "share, %", "share of shots, %"] + ([] if truth is None else ["truth"])
    most = ", ".join(f"{names[k]} {predicted[k]}" for k in np.argsort(-predicted, kind="stable")[:5]
                     if predicted[k])
    never = [names[k] for k in np.flatnonzero(predicted == 0)]
    more = f" and {len(never) - 8} more" if len(never) > 8 else ""
    return [el("p", f"Predicted most: {most}.", f" Never: {', '.join(never[:8])}{more}." if never else None,
               class_="intro"),
            page.figure(pictures.class_balance, predicted, expected, truth, run.domains, names),
            table(heading(*labels), rows, "Images by domain of their first guess")]


def _learned(page: Page, run: Run) -> List[Part]:
    settings, histories = run.record["settings"], run.record["histories"]
    sizes, rows = dict(report.parameter_count(run)[0]), []
    for name, chosen in settings.items():
        score = chosen.get(report.HELD_OUT_SCORE)
        seconds = run.record["seconds"].get(f"head {name}")
        told = [el("span", el("i", key.replace("_", " ")), f" {_short(value)}", class_="setting")
                for key, value in chosen.items() if key != report.HELD_OUT_SCORE]
        rows.append(line(method_title(name), el("td") if score is None else number(f"{score:.1f}", score),
                         number("" if seconds is None else f"{seconds:.1f}"),
                         number(f"{sizes.get(name, 0):,}"), el("td", *told, class_="settings"), data_method=name))
    head = el("tr", *(el("th", label, scope="col", class_=kind) for label, kind in (
        ("method", None), ("held-out top-1", "n"), ("seconds", "n"), ("numbers", "n"),
        ("chosen on the shots", None))))
    parts: List[Part] = [table(head, rows, "What each method chose on the shots, by leaving shots out; numbers: "
                                           "how many it keeps")]
    histories = {name: history for name, history in histories.items() if history}
    if histories:
        kept = {name: settings.get(name, {}).get("epoch") for name in histories}
        parts += [el("h3", "Training curves"), page.figure(pictures.training_curves, histories, kept)
                  if page.draws else _last_epochs(histories)]
    found = report.alpha_beta_map(run) if page.draws else None
    if found is not None:
        parts += [el("h3", "Tip-Adapter: α and β"), page.figure(pictures.alpha_beta, found)]
    return parts


def _last_epochs(histories: Dict[str, List[dict]]) -> Html:
    keys = ("loss", "train_top1", "held_out_loss", "held_out_top1")
    rows = []
    for name, history in histories.items():
        last = history[-1]
        cells = [number("" if last.get(key) is None else f"{last[key]:.4g}", last.get(key)) for key in keys]
        rows.append(line(method_title(name), number(str(last["epoch"])), *cells))
    return table(heading("head", "epochs", *(key.replace("_", " ") for key in keys)), rows,
                 "The last epoch of each trained head")


def _short(value: object) -> str:
    """A setting as a person reads it: 0.333 rather than 0.3333333."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def _what_was_run(run: Run) -> List[Part]:
    record, tested = run.record, run.answers.record if run.answers else None
    encoder = record["encoder"]
    facts = [("Device", record["device"]),
             ("Encoder", encoder.get("model") or f"features from {encoder.get('features', 'a file')}"),
             ("Shots", record["shots"]["rule"]), ("Date", record["date"])]
    seconds = {f"train: {stage}": value for stage, value in record["seconds"].items()
               if not stage.startswith("head ")}
    if tested:
        if tested["device"] != record["device"]:
            facts.insert(1, ("Device of the test", tested["device"]))
        refinement = tested["refinement"] if isinstance(tested["refinement"], dict) else {}
        scalars = {key.replace("_", " "): value for key, value in refinement.items()
                   if isinstance(value, (str, int, float))}
        facts += [("Refinement", _short(scalars))] if scalars else []
        seconds.update({f"test: {stage}": value for stage, value in tested["seconds"].items()})
    parts = [el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in facts), class_="facts"),
             el("h3", "Parameters"), *_parameters(run), el("h3", "Seconds a stage"), *_seconds(seconds)]
    if tested and tested["unreadable"]:
        parts += [el("h3", "Images that could not be read"),
                  el("ul", *(el("li", f"{name}: {reason}") for name, reason in tested["unreadable"].items()))]
    parts.append(_settings("Configuration of train.py", record["config"]))
    parts.append(_settings("Configuration of test.py", tested["config"]) if tested else None)
    return parts + [_settings("Versions", record["versions"])]


def _parameters(run: Run) -> List[Part]:
    parts, total = report.parameter_count(run)
    sizes = dict(parts)
    encoder, ensemble = sizes.pop("encoder"), sizes.pop("ensemble", 0)
    share = 100 * total / report.LIMIT
    said = f"{share:.1f} % of the contest's limit of {report.LIMIT // 10**6} million"
    if encoder is None:
        said += ", the encoder aside: its size is not recorded, as the features come from elsewhere"
    said += (". Counted strictly: all of CLIP, and every number that a head or the ensemble keeps, stored shots "
             "included.")
    rows = [line(title, number("not recorded" if size is None else f"{size:,}", size), data_part=key)
            for key, title, size in (("encoder", "CLIP, image and text encoder", encoder),
                                     ("heads", f"{len(sizes)} heads", sum(sizes.values())),
                                     ("ensemble", "Ensemble", ensemble))]
    rows.append(line("Together" if encoder else "Together, without the encoder", number(f"{total:,}", total),
                     data_part="total", class_="final"))
    return [el("p", said, class_="intro"),
            el("div", el("span", style=f"width:{min(share, 100):.2f}%"), class_="meter", role="img",
               aria_label=f"{share:.1f} percent of the limit"),
            table(heading("part", "numbers"), rows, "What counts")]


def _seconds(seconds: Dict[str, float]) -> List[Part]:
    longest = max(seconds.values(), default=0) or 1
    rows = [el("li", el("span", stage, class_="name"), el("span", f"{value:.1f} s", class_="share"),
               style=f"--p:{100 * value / longest:.1f}%", data_value=repr(float(value)))
            for stage, value in seconds.items()]
    return [el("ol", *rows, class_="guesses stages"),
            el("p", f"{sum(seconds.values()):.1f} s in all.", class_="quiet")]


def _settings(title: str, settings: Dict[str, object]) -> Html:
    rows = [line(key, el("td", _short(value) or "(empty)")) for key, value in settings.items()]
    return details(title, table(heading("setting", "value", left=2), rows, title))


def validation_page(folder: Path, record: dict) -> Tuple[str, List[Picture]]:
    """The page of a local leaderboard: a table for each number of shots, and the curve over them.

    Raises:
        UserError: a record without scores.
    """
    curve = {int(count): methods for count, methods in record["curve"].items()}
    if not curve or not all(curve.values()):
        raise UserError(f"{folder / report.VALIDATE} holds no scores: validate again")
    page, counts, config = Page(), sorted(curve), record["config"]
    spread = {count: {name: _mean_and_deviation(row["top1"]) for name, row in methods.items()}
              for count, methods in curve.items()}
    if len(counts) > 1:
        page.section("curve", "Curve", "More shots",
                     [page.figure(pictures.shot_curve, spread), _shot_table(spread)])
    for count in reversed(counts):
        panels = _mean_panels(curve[count])
        deviations = {name: deviation for name, (_, deviation) in spread[count].items()}
        figure = page.figure(pictures.ladder, panels, deviations) if count == counts[-1] else None
        title, short = f"{count} shot{'s' if count > 1 else ''} a class", f"{count}-shot"
        page.section(f"shots-{count}", short, title, [figure, _leaderboard(curve[count], list(panels)[1:])])
    page.section("run", "Run", "What was run", [_settings("Configuration", config),
                                                _settings("Versions", record["versions"])])
    final = list(spread[counts[-1]])[-1]
    seeds, (mean, deviation) = len(curve[counts[-1]][final]["top1"]), spread[counts[-1]][final]
    plus = f" ± {deviation:.2f}" if seeds > 1 else ""
    mix = " Totals weigh the domains as board A's test set seems to." if config.get("board_mix") else ""
    lead = join([f"With {counts[-1]} shots a class, {method_title(final)} scores ",
                 el("strong", f"{mean:.2f}{plus} %"),
                 f" on {record['n']:,} labelled training images that were held out.{mix}"])
    tiles = [_tile("Top-1", f"{mean:.2f}", mean, f"{plus} %".strip()),
             _tile("Held out", f"{record['n']:,}", record["n"], "images"),
             _tile("Classes", f"{record['k']:,}", record["k"]), _tile("Seeds", str(seeds), seeds)]
    masthead = _header(page, "Local leaderboard", folder, record["date"], lead, tiles, [record["command"]])
    return page.html(f"{folder.resolve().name} · jclip_fewshot", masthead), page.pictures


def _mean_and_deviation(values: Sequence[float]) -> Tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_panels(methods: Dict[str, dict]) -> Dict[str, Dict[str, float]]:
    """{"" for the total, or a domain: {method: mean top-1}}; the total alone unless there are two domains."""
    panels = {"": {name: statistics.mean(row["top1"]) for name, row in methods.items()}}
    for domain in dict.fromkeys(domain for row in methods.values() for domain in row["domains"]):
        panels[domain] = {name: statistics.mean(row["domains"][domain]) for name, row in methods.items()
                          if domain in row["domains"]}
    return panels if len(panels) > 2 else {"": panels[""]}


def _spread_cell(mean: float, deviation: float, metric: str) -> Html:
    return number(f"{mean:.2f}", mean, f" ± {deviation:.2f}" if deviation else "", data_metric=metric)


def _shot_table(spread: Dict[int, Dict[str, Tuple[float, float]]]) -> Html:
    counts = sorted(spread)
    rows = [line(method_title(name), *(_spread_cell(*spread[count][name], str(count)) for count in counts),
                 data_method=name) for name in spread[counts[0]]]
    return table(heading("method", *(f"{count} shot{'s' if count > 1 else ''}" for count in counts)), rows,
                 "Mean top-1 in percent ± standard deviation over the seeds")


def _leaderboard(methods: Dict[str, dict], domains: Sequence[str]) -> Html:
    rows = []
    for name, row in methods.items():
        cells = [_spread_cell(*_mean_and_deviation(row[key]), key) for key in ("top1", "top5")]
        for domain in domains:
            mean = statistics.mean(row["domains"].get(domain) or [float("nan")])
            cells.append(number(f"{mean:.1f}", mean, data_metric=domain))
        rows.append(line(method_title(name), *cells, data_method=name,
                         class_="final" if name == list(methods)[-1] else None))
    return table(heading("method", "top-1", f"top-{TOP}", *domains), rows,
                 "In percent, mean ± standard deviation over the seeds")
