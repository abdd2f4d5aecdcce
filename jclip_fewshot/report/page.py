"""The report: one HTML page about a run, complete in itself.

    python -m jclip_fewshot report [RUN]

`reading` has the run's files, `analysis` the numbers, `figures` the drawings; here they are put together for
the templates, which hold all markup and escape every text. A number that stands for one of the record
carries it in full in `data-value`. Words: a class is *known* where a test image is of it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.data.prompts import plain_name
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import TOP, best_classes, refining_gain, short
from jclip_fewshot.features.sources import encoders_of
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import VALIDATE, Record, Score, read_validation
from jclip_fewshot.report import analysis, drawing, figures
from jclip_fewshot.report.drawing import Picture
from jclip_fewshot.report.figures import method_title
from jclip_fewshot.report.leaderboard import leaderboard_page
from jclip_fewshot.report.reading import Answers, ReportData, Thumbnails, read_run
from jclip_fewshot.storage.files import atomic_write

FOLDER, PAGE = "report", "index.html"
INSTALL = "pip install 'jclip_fewshot[report]'"  # brings matplotlib and jinja2
GALLERY = 12  # images of each kind of mistake
LISTED = 1000  # rows of the list of all mistakes
SHOTS, MISTAKES = 8, 12  # images of a class that are shown at a click
CURVES = ("loss", "train_top1", "held_out_loss", "held_out_top1")


def write_report(run_folder: str | Path, split: str = "", out: str | Path | None = None) -> Path:
    """Write the page and its pictures of a run or a validation; return the page's path.

    split: the test set to report on; by default the one that test.py answered last. A run that has answered none is
    reported without answers. out: where to write; by default the folder `report` inside the run's.
    Raise UserError if there is no such run, no such answers, a damaged file, or no jinja2.
    """
    folder = Path(run_folder)
    target = Path(out) if out else folder / FOLDER
    page = Page(folder)
    if (folder / VALIDATE).is_file():
        text = page.render("validation.html.j2", **leaderboard_page(page.draw, read_validation(folder)))
    else:
        text = page.render("run.html.j2", **run_page(page, read_run(folder, split)))
    files = {f"{picture.name}.png": picture.png for picture in page.pictures.values()}
    for name, content in {**files, PAGE: text.encode("utf-8")}.items():
        with atomic_write(target / name) as file:
            file.write(content)
    return target / PAGE


def report_line(run_folder: str | Path, split: str = "") -> str:
    """Return what a command says at its end: where the report lies, or what is missing to write it."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        return f"no report, as jinja2 is not installed: {INSTALL}, then {next_command('report')} {run_folder}"
    return f"report: {write_report(run_folder, split)}"


class Page:
    """The templates, the pictures drawn for them, and the thumbnails that they ask for."""

    def __init__(self, folder: Path) -> None:
        try:
            import jinja2
            from markupsafe import Markup
        except ImportError as error:
            raise UserError(f"the report needs jinja2: {INSTALL}") from error
        here = Path(__file__).parent
        self.draws = drawing.available()
        self.pictures: dict[str, Picture] = {}
        thumbnails = Thumbnails()
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True)
        self._environment.filters.update(
            n="{:,}".format, fixed=lambda value, digits=1: f"{value:.{digits}f}",
            value=lambda value: repr(value.item() if isinstance(value, np.generic) else value),
            signed=lambda value, digits=2: f"{value:+.{digits}f}".replace("-", "−"), short=short, vars=vars,
            method=method_title,
            svg=lambda text: "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode())
        self._environment.globals.update(
            folder=folder.resolve().name, draws=self.draws, install=INSTALL, pictures=self.pictures,
            thumbnails=thumbnails, style=Markup((here / "style.css").read_text(encoding="utf-8")),
            script=Markup((here / "page.js").read_text(encoding="utf-8")))

    def draw(self, figure: Callable[..., Picture], *arguments: object) -> None:
        """Keep the picture that `figure(*arguments)` makes; nothing without matplotlib."""
        if self.draws:
            found = figure(*arguments)
            self.pictures[found.name] = found

    def render(self, template: str, **context: object) -> str:
        """Return the whole page."""
        return self._environment.get_template(template).render(context)


def run_page(page: Page, run: ReportData) -> dict[str, Any]:
    """Return what the page of a trained run shows, with its answers where it has any."""
    names = [plain_name(name, domain) for name, domain in zip(run.record.classes, run.domains)]
    context: dict[str, Any] = {
        "run": run, "record": run.record, "names": names, "answers": run.answers,
        "seen": len(set(run.shot_labels.tolist())), "learned": _learned(page, run), "sizes": _sizes(run),
        "stages": _stages(run), "versions": _versions(run.record), "scores": None, "estimate": None}
    if run.answers:
        answers = run.answers
        context.update(known=answers.truth is not None, top=min(TOP, len(names)), best_classes=best_classes,
                       confidence=100 * analysis.mean_confidence(answers.probs), changes=_changes(answers),
                       scores=_scores(page, answers.record.scores), classes=_classes(page, run, answers, names),
                       certainty=_certainty(page, answers), balance=_balance(page, run, answers, names),
                       unsure=analysis.least_confident(answers.probs), gallery=GALLERY)
        if answers.truth is None:
            if "held_out_probs" in run.arrays:
                context["estimate"] = analysis.held_out_estimate(
                    run.arrays["held_out_probs"], run.shot_labels, run.domains, answers.guess)
        else:
            mistakes = analysis.confident_mistakes(answers.probs, answers.truth)
            context.update(mistakes=mistakes, listed=mistakes[:LISTED],
                           confusions=_confusions(answers.truth, answers.guess, run.domains),
                           best=best_classes(answers.probs), places=[f"guess {n + 1}" for n in range(context["top"])])
    return context


def _scores(page: Page, scores: Mapping[str, Score]) -> dict[str, Any] | None:
    """The table of scores: {method: {column: top-1 ...}}; the best of each column; images by domain."""
    if not scores:
        return None
    domains = list(dict.fromkeys(domain for row in scores.values() for domain in row["domains"]))
    domains = domains if len(domains) > 1 else []  # one domain says what the total says
    rows: dict[str, dict[str, float]] = {
        name: {"top1": row["top1"], "top5": row["top5"], "class_mean": row["class_mean"],
               **{domain: row["domains"][domain]["top1"] for domain in domains if domain in row["domains"]}}
        for name, row in scores.items()}
    columns = ["top1", "top5", "class_mean", *domains]
    panels = {"" if key == "top1" else key: {name: row[key] for name, row in rows.items() if key in row}
              for key in ["top1", *domains]}
    page.draw(figures.ladder, panels)
    final = list(scores)[-1]
    found = refining_gain(scores)
    return {"rows": rows, "columns": columns, "domains": domains, "final": final,
            "refinement": None if found is None else found[1] - found[0],
            "best": {key: max(row[key] for row in rows.values() if key in row) for key in columns},
            "images": {domain: inside["n"] for domain, inside in scores[final]["domains"].items()}}


def _changes(answers: Answers) -> dict[str, Any] | None:
    """What the refinement changed: all rows; where the truth is known, those for the better, for the worse, neither."""
    if not answers.refined:
        return None
    rows = analysis.changed_rows(answers.before, answers.probs)
    if answers.truth is None:
        return {"rows": rows}
    was, now = (probs[rows].argmax(axis=1) == answers.truth[rows] for probs in (answers.before, answers.probs))
    return {"rows": rows, "better": rows[~was & now], "worse": rows[was & ~now], "other": int((~was & ~now).sum())}


def _confusions(truth: np.ndarray, guess: np.ndarray, domains: Sequence[str]) -> dict[str, Any]:
    by_domain = analysis.domain_confusion(truth, guess, domains)
    return {"pairs": analysis.confused_pairs(truth, guess), "counts": np.bincount(truth, minlength=len(domains)),
            "domains": by_domain if len(by_domain) > 1 else {}}


def _classes(page: Page, run: ReportData, answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """A row a class, the lowest top-1 first, with the images that are shown at a click."""
    count = len(names)
    confidence = answers.probs.max(axis=1)
    shots, predicted = (np.bincount(ids, minlength=count) for ids in (run.shot_labels, answers.guess))
    known: list[int] = []
    order, accuracy, images = np.argsort(-predicted, kind="stable"), np.full(count, np.nan), np.zeros(count, int)
    if answers.truth is not None:
        accuracy, images = analysis.class_accuracy(answers.truth, answers.guess, count)
        order = np.argsort(accuracy, kind="stable")
        known = [int(k) for k in order if images[k]]
        if known:
            page.draw(figures.class_strip, accuracy, run.domains, names)

    def shown(rows: np.ndarray, others: np.ndarray | None, word: str) -> dict[str, Any]:
        """At most MISTAKES images, the most confident first: where each lies, its name, what is said of it."""
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        said = [f"{word} {names[others[row]]}, " if others is not None else "" for row in rows[:MISTAKES]]
        return {"more": max(len(rows) - MISTAKES, 0), "total": len(rows), "images": [
            (answers.paths[row], answers.names[row], f"{text}{100 * confidence[row]:.0f}\u00a0%")
            for row, text in zip(rows, said)]}

    rows = []
    for k in order:
        mine = answers.guess == k
        if answers.truth is None:
            groups = {"Read as this class": shown(np.flatnonzero(mine), None, "")}
        else:
            true = answers.truth == k
            groups = {"Misread": shown(np.flatnonzero(true & ~mine), answers.guess, "read as"),
                      "Others read as this class": shown(np.flatnonzero(mine & ~true), answers.truth, "truth:")}
        files = [(run.shot_paths[shot], run.record.shots.files[shot]) for shot in run.shots_of(k)[:SHOTS]]
        rows.append({"id": int(k), "top1": accuracy[k], "images": int(images[k]), "predicted": int(predicted[k]),
                     "shots": int(shots[k]), "shown": files,
                     "groups": {title: group for title, group in groups.items() if group["total"]}})
    lowest = [k for k in known if accuracy[k] == accuracy[known[0]] and accuracy[k] < 100]
    return {"rows": rows, "known": len(known), "perfect": int((accuracy[known] == 100).sum()) if known else 0,
            "lowest": lowest, "low": accuracy[lowest[0]] if lowest else None}


def _certainty(page: Page, answers: Answers) -> dict[str, Any] | None:
    """Confidence and calibration of the ensemble and of what is submitted; None where no image could be read."""
    if not len(answers.probs):
        return None
    shown = {"ensemble": answers.before, **({"ensemble_refined": answers.probs} if answers.refined else {})}
    confidence = {name: probs.max(axis=1) for name, probs in shown.items()}
    found: dict[str, Any] = {
        "means": {name: 100 * float(values.mean()) for name, values in confidence.items()},
        "low": int((answers.probs.max(axis=1) < 0.5).sum()), "bins": analysis.CALIBRATION_BINS,
        "rejections": analysis.rejection(answers.probs, answers.truth, (0.0, *analysis.THRESHOLDS)), "rows": {}}
    if answers.truth is None:
        page.draw(figures.confidence, confidence)
        return found
    curves = {name: analysis.calibration(probs, answers.truth) for name, probs in shown.items()}
    found["rows"] = {name: (found["means"][name], 100 * float((shown[name].argmax(axis=1) == answers.truth).mean()),
                            curve.ece) for name, curve in curves.items()}
    costs = analysis.rejection(answers.probs, answers.truth, np.arange(0, 1, 0.02).tolist())
    page.draw(figures.reliability, curves, confidence, costs)
    return found


def _balance(page: Page, run: ReportData, answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    domains = np.array(run.domains)
    predicted, shots = (np.bincount(ids, minlength=len(names)) for ids in (answers.guess, run.shot_labels))
    truth = None if answers.truth is None else np.bincount(answers.truth, minlength=len(names))
    share = shots / max(shots.sum(), 1)
    rows = {domain: {"predicted": int(predicted[inside].sum()), "shots": 100 * share[inside].sum(),
                     "truth": None if truth is None else int(truth[inside].sum())}
            for domain in dict.fromkeys(run.domains) for inside in [domains == domain]}
    page.draw(figures.class_balance, predicted, len(answers.names) * share, truth, run.domains, names)
    most = [(names[k], int(predicted[k])) for k in np.argsort(-predicted, kind="stable")[:5] if predicted[k]]
    return {"rows": rows, "most": most, "never": [names[k] for k in np.flatnonzero(predicted == 0)]}


def _learned(page: Page, run: ReportData) -> dict[str, Any]:
    """A row a method with its held-out score, seconds, size and settings; the last epoch of the trained ones."""
    settings, record = run.record.settings, run.record
    sizes, _ = analysis.parameter_count(None, run.arrays)
    rows = {name: {"score": chosen.get(analysis.HELD_OUT_SCORE), "seconds": record.seconds.get(f"method {name}"),
                   "size": sizes.get(name, 0), "settings": {key: value for key, value in chosen.items()
                                                            if key != analysis.HELD_OUT_SCORE}}
            for name, chosen in settings.items()}
    histories = {name: history for name, history in record.histories.items() if history}
    if histories:
        page.draw(figures.training_curves, histories,
                  {name: settings.get(name, {}).get("epoch") for name in histories})
    found = analysis.alpha_beta_map(record, run.arrays)
    if found is not None:
        page.draw(figures.alpha_beta, found)
    return {"rows": rows, "last": {name: history[-1] for name, history in histories.items()}, "curves": CURVES}


def _sizes(run: ReportData) -> dict[str, Any]:
    counted = [encoder.get("parameters") for encoder in encoders_of(run.record.encoder)]
    # one of unknown size: a sum would be too small
    encoder = None if None in counted else sum(count for count in counted if count is not None)
    sizes, total = analysis.parameter_count(encoder, run.arrays)
    ensemble = sizes.pop("ensemble", 0)
    return {"encoder": encoder, "methods": sum(sizes.values()), "count": len(sizes), "ensemble": ensemble,
            "total": total,
            "share": 100 * total / analysis.LIMIT, "limit": analysis.LIMIT // 10 ** 6}


def _stages(run: ReportData) -> dict[str, float]:
    trained = {f"train: {stage}": value for stage, value in run.record.seconds.items()
               if not stage.startswith("method ")}
    tested = run.answers.record.seconds if run.answers else {}
    return {**trained, **{f"test: {stage}": value for stage, value in tested.items()}}


def _versions(record: Record) -> dict[str, str]:
    """With the digests that tell one checkpoint, or one file of features, from another."""
    told = dict(record.versions)
    for encoder in encoders_of(record.encoder):
        of = f" of {encoder['name']}" if "name" in encoder else ""
        found = {f"checkpoint{of}": encoder.get("weights_digest") or encoder.get("fingerprint"),
                 f"features{of}": encoder.get("features_digest"), f"precision{of}": encoder.get("precision")}
        told.update({key: str(value) for key, value in found.items() if value})
    return {key: value for key, value in told.items() if value}
