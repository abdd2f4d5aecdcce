"""The report: one HTML page about a run, complete in itself.

    python -m jclip_fewshot report [RUN]

`reading` has the run's files, `analysis` the numbers, `figures` the drawings, the templates all markup and captions;
they escape every text. A number that stands for one of the record carries it in full in `data-value`.
"""

import base64
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jclip_fewshot.data.prompts import plain_name
from jclip_fewshot.errors import UserError
from jclip_fewshot.evaluation.scores import best_classes, refining_gain, short, shown_domains
from jclip_fewshot.features.sources import encoders_of
from jclip_fewshot.provenance import next_command
from jclip_fewshot.records import VALIDATE, Record, Row, Validation, read_validation
from jclip_fewshot.report import analysis, drawing, figures
from jclip_fewshot.report.reading import Answers, ReportData, Thumbnails, read_run
from jclip_fewshot.storage.files import atomic_write

FOLDER, PAGE = "report", "index.html"
INSTALL = "pip install 'jclip_fewshot[report]'"  # brings matplotlib and jinja2
LIMIT = 500_000_000  # the contest's bound on a model's parameters
SCORES = ("top1", "top5", "class_mean")


def write_report(run_folder: str | Path, split: str = "", out: str | Path | None = None) -> Path:
    """Write the page and its pictures of a run or a validation; return the page's path.

    split: the test set to report on, else the one answered last, if any. out: where to write, else to the folder's
    `report`. Raise UserError if there is no such run, no such answers, a damaged file, or no jinja2.
    """
    folder = Path(run_folder)
    target, page = Path(out) if out else folder / FOLDER, Page(folder)
    if (folder / VALIDATE).is_file():
        template, context = "validation.html.j2", leaderboard_page(page.draw, read_validation(folder))
    else:
        template, context = "run.html.j2", run_page(page, read_run(folder, split))
    text = page.environment.get_template(template).render(context)
    files = {f"{name}.png": picture.png for name, picture in page.pictures.items()}
    for name, content in {**files, PAGE: text.encode("utf-8")}.items():
        with atomic_write(target / name) as file:
            file.write(content)
    return target / PAGE


def report_line(run_folder: str | Path, split: str = "") -> str:
    """Return what a command says at its end: where the report lies, or what is missing to write it."""
    if find_spec("jinja2") is None:
        return f"no report, as jinja2 is not installed: {INSTALL}, then {next_command('report')} {run_folder}"
    return f"report: {write_report(run_folder, split)}"


class Page:
    """The templates, the pictures drawn for them, and the thumbnails that they ask for."""

    def __init__(self, folder: Path) -> None:
        if find_spec("jinja2") is None:
            raise UserError(f"the report needs jinja2: {INSTALL}")
        import jinja2
        from markupsafe import Markup
        here = Path(__file__).parent
        self.draws = drawing.available()
        self.pictures: dict[str, drawing.Picture] = {}
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True)
        self.environment.filters.update(
            n="{:,}".format, fixed=lambda value, digits=1: f"{value:.{digits}f}",
            value=lambda value: repr(value.item() if isinstance(value, np.generic) else value),
            signed=lambda value, digits=2: f"{value:+.{digits}f}".replace("-", "−"), short=short, vars=vars,
            method=figures.method_title,
            svg=lambda text: "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode())
        self.environment.globals.update(
            folder=folder.resolve().name, draws=self.draws, install=INSTALL, pictures=self.pictures,
            thumbnails=Thumbnails(), style=Markup((here / "style.css").read_text(encoding="utf-8")),
            script=Markup((here / "page.js").read_text(encoding="utf-8")))

    def draw(self, figure: Callable[..., drawing.Picture], *arguments: object) -> None:
        """Keep the picture that `figure(*arguments)` makes; nothing without matplotlib."""
        if self.draws:
            found = figure(*arguments)
            self.pictures[found.name] = found


def leaderboard_page(draw: Callable[..., None], record: Validation) -> dict[str, Any]:
    """Return what the page of a validation shows; draw(figure, *arguments) keeps a figure for it."""
    counts = sorted(record.curve)
    boards = {count: {name: _over_seeds(row) for name, row in record.curve[count].items()} for count in counts}
    board = boards[counts[-1]]
    domains, deviations = shown_domains(board), {name: row["top1"][1] for name, row in board.items()}
    if len(counts) > 1:
        draw(figures.shot_curves, {"held-out images": record.curve}, "shot_curve")
    draw(figures.ladder, {name: {"top1": row["top1"][0], **row["domains"]} for name, row in board.items()}, domains,
         deviations)
    final = list(board)[-1]
    top1 = board[final]["top1"]
    share = top1[0] / 100
    return {
        "record": record, "boards": boards, "counts": counts, "final": final, "top1": top1, "domains": domains,
        "seeds": len(record.curve[counts[-1]][final]["top1"]), "same": not any(deviations.values()),
        "sampling": 100 * math.sqrt(share * (1 - share) / record.n),  # binomial: one standard error
        "headings": {count: f"{count} shot{'s' if count > 1 else ''}" for count in counts},
        "menu": [*[("curve", "Curve")] * (len(counts) > 1),
                 *((f"shots-{count}", f"{count}-shot") for count in counts[::-1]), ("run", "Run")]}


def _over_seeds(row: Row) -> dict[str, Any]:
    """Mean and standard deviation, 0 for one seed; of domains the mean."""
    top1, top5 = ((statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                  for values in (row["top1"], row["top5"]))
    domains = {domain: statistics.mean(values) for domain, values in row["domains"].items()}
    return {"top1": top1, "top5": top5, "domains": domains}


def run_page(page: Page, run: ReportData) -> dict[str, Any]:
    """Return what the page of a trained run shows, with its answers where it has any."""
    record, answers, domains = run.record, run.answers, run.record.domains
    names = [plain_name(name, domain) for name, domain in zip(record.classes, domains)]
    kept, grid = analysis.parameter_count(run.arrays), analysis.alpha_beta_map(record, run.arrays)
    histories = {name: history for name, history in record.histories.items() if history}
    stages = {f"train: {stage}": seconds for stage, seconds in record.seconds.items()
              if not stage.startswith("method ")}
    context: dict[str, Any] = {
        "run": run, "record": record, "names": names, "answers": answers, "kept": kept, "sizes": _sizes(record, kept),
        "histories": histories, "map": grid, "stages": stages, "versions": _versions(record), "scores": None,
        "estimate": None}
    if histories:
        page.draw(figures.training_curves, histories,
                  {name: record.settings.get(name, {}).get("epoch") for name in histories})
    if grid is not None:
        page.draw(figures.alpha_beta, grid)
    if answers is None:
        return context
    stages.update({f"test: {stage}": seconds for stage, seconds in answers.record.seconds.items()})
    context.update(best=best_classes(answers.probs), unsure=np.argsort(answers.probs.max(axis=1), kind="stable"),
                   changes=_changes(answers), scores=_scores(page, answers.record.scores),
                   classes=_classes(page, run, answers, names), certainty=_certainty(page, answers),
                   balance=_balance(page, run, answers, names))
    if answers.truth is None:
        if "held_out_probs" in run.arrays:
            context["estimate"] = analysis.held_out_estimate(
                run.arrays["held_out_probs"], run.shot_labels, domains, answers.guess)
        return context
    mistakes = answers.sure[answers.guess[answers.sure] != answers.truth[answers.sure]]
    confusion = analysis.domain_confusion(answers.truth, answers.guess, domains)
    context.update(mistakes=mistakes, places=[f"guess {n + 1}" for n in range(context["best"].shape[1])],
                   confusions={"pairs": analysis.confused_pairs(answers.truth, answers.guess),
                               "counts": np.bincount(answers.truth, minlength=len(names)),
                               "domains": confusion if len(confusion) > 1 else {}})
    return context


def _scores(page: Page, scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of scores: {method: {column: top-1 ...}}, and the best of each column."""
    if not scores:
        return None
    domains, final, gain = shown_domains(scores), list(scores)[-1], refining_gain(scores)
    rows = {name: {**{key: row[key] for key in SCORES},
                   **{domain: row["domains"][domain]["top1"] for domain in domains if domain in row["domains"]}}
            for name, row in scores.items()}
    page.draw(figures.ladder, rows, domains)
    return {"rows": rows, "domains": domains, "final": final,
            "refinement": None if gain is None else gain[1] - gain[0],
            "best": {key: max(row[key] for row in rows.values() if key in row) for key in (*SCORES, *domains)}}


def _changes(answers: Answers) -> dict[str, Any] | None:
    """What the refinement changed: all rows; where the truth is known, those for the better, for the worse, neither."""
    if not answers.record.refinement:
        return None
    rows = analysis.changed_rows(answers.before, answers.probs)
    if answers.truth is None:
        return {"rows": rows}
    was, now = (probs[rows].argmax(axis=1) == answers.truth[rows] for probs in (answers.before, answers.probs))
    return {"rows": rows, "better": rows[~was & now], "worse": rows[was & ~now], "other": int((~was & ~now).sum())}


def _classes(page: Page, run: ReportData, answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """A row a class, the lowest top-1 first; the images shown at a click: {title: (rows, what is said, of whom)}."""
    shots, predicted = (np.bincount(ids, minlength=len(names)) for ids in (run.shot_labels, answers.guess))
    order, accuracy, images = np.argsort(-predicted, kind="stable"), np.full(len(names), np.nan), np.zeros(len(names))
    if answers.truth is not None:
        accuracy, images = analysis.class_accuracy(answers.truth, answers.guess, len(names))
        order = np.argsort(accuracy, kind="stable")
        if images.any():
            page.draw(figures.class_strip, accuracy, run.record.domains, names)
    sure, rows = answers.sure, []
    guess, truth = answers.guess[sure], None if answers.truth is None else answers.truth[sure]
    for k in order.tolist():
        mine = guess == k
        groups: dict[str, tuple] = {"Read as this class": (sure[mine], "", None)} if truth is None else {
            "Misread": (sure[(truth == k) & ~mine], "read as", answers.guess),
            "Others read as this class": (sure[mine & (truth != k)], "truth:", answers.truth)}
        rows.append({"id": k, "top1": accuracy[k], "images": int(images[k]), "predicted": int(predicted[k]),
                     "shots": int(shots[k]), "groups": groups})
    low = accuracy[order[0]]
    return {"rows": rows, "known": np.count_nonzero(images), "perfect": int((accuracy == 100).sum()), "low": low,
            "lowest": [k for k in order.tolist() if accuracy[k] == low < 100]}


def _certainty(page: Page, answers: Answers) -> dict[str, Any] | None:
    """Confidence and calibration of the ensemble and of what is submitted; None where no image could be read."""
    if not len(answers.probs):
        return None
    shown = {"ensemble": answers.before, **({"ensemble_refined": answers.probs} if answers.record.refinement else {})}
    confidence = {name: probs.max(axis=1) for name, probs in shown.items()}
    means = {name: 100 * float(values.mean()) for name, values in confidence.items()}
    rows = {}
    if answers.truth is None:
        page.draw(figures.confidence, confidence)
    else:
        curves = {name: analysis.calibration(probs, answers.truth) for name, probs in shown.items()}
        costs = analysis.rejection(answers.probs, answers.truth, np.arange(0, 1, 0.02).tolist())
        page.draw(figures.reliability, curves, confidence, costs)
        rows = {name: (means[name], 100 * float((shown[name].argmax(axis=1) == answers.truth).mean()), curve.ece)
                for name, curve in curves.items()}
    return {"means": means, "low": int((answers.probs.max(axis=1) < 0.5).sum()), "bins": analysis.CALIBRATION_BINS,
            "rejections": analysis.rejection(answers.probs, answers.truth, (0.0, *analysis.THRESHOLDS)), "rows": rows}


def _balance(page: Page, run: ReportData, answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """What is answered, the share of the shots and, where it is known, the truth, by class and by domain."""
    predicted, shots = (np.bincount(ids, minlength=len(names)) for ids in (answers.guess, run.shot_labels))
    truth = None if answers.truth is None else np.bincount(answers.truth, minlength=len(names))
    share, rows = shots / max(shots.sum(), 1), {}
    page.draw(figures.class_balance, predicted, len(answers.names) * share, truth, run.record.domains, names)
    for domain in dict.fromkeys(run.record.domains):
        inside = np.array(run.record.domains) == domain
        rows[domain] = {"predicted": int(predicted[inside].sum()), "shots": 100 * share[inside].sum(),
                        "truth": None if truth is None else int(truth[inside].sum())}
    most = [(names[k], int(predicted[k])) for k in np.argsort(-predicted, kind="stable")[:5] if predicted[k]]
    return {"rows": rows, "most": most, "never": [names[k] for k in np.flatnonzero(predicted == 0)]}


def _sizes(record: Record, kept: Mapping[str, int]) -> dict[str, Any]:
    """How many numbers answer an image: CLIP's, None where one encoder's is not recorded, and what methods keep."""
    counts: list[Any] = [encoder.get("parameters") for encoder in encoders_of(record.encoder)]
    encoder, ensemble = None if None in counts else sum(counts), kept.get("ensemble", 0)
    total = sum(kept.values()) + (encoder or 0)
    return {"encoder": encoder, "methods": sum(kept.values()) - ensemble, "count": len(kept.keys() - {"ensemble"}),
            "total": total, "ensemble": ensemble, "share": 100 * total / LIMIT, "limit": LIMIT // 10 ** 6}


def _versions(record: Record) -> dict[str, str]:
    """With the digests that tell one checkpoint, or one file of features, from another."""
    told = dict(record.versions)
    for encoder in encoders_of(record.encoder):
        of = f" of {encoder['name']}" if "name" in encoder else ""
        told |= {f"checkpoint{of}": encoder.get("weights_digest") or encoder.get("fingerprint", ""),
                 f"features{of}": encoder.get("features_digest", ""), f"precision{of}": encoder.get("precision", "")}
    return {key: str(value) for key, value in told.items() if value}
