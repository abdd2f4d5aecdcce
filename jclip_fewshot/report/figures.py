"""The report's figures, from the numbers of a run to the drawing; how they become pictures: drawing.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jclip_fewshot.methods import METHODS
from jclip_fewshot.report.analysis import AlphaBetaMap, Calibration, Rejection
from jclip_fewshot.report.drawing import (
    BLUE,
    DOMAIN_COLOURS,
    HAIR,
    INK,
    MUTED,
    NARROW,
    PAPER,
    RAMP,
    VERMILLION,
    WIDE,
    Picture,
    new_figure,
    picture,
)

DOMAIN_MARKS = "osDPX"
DASHED = (0, (4, 1.6))
FAR_BELOW = 8  # points under zero-shot that a panel of the benchmark still shows
TALLEST = 11  # dots of a stack before they begin to overlap

TITLES = {**{name: method.title for name, method in METHODS.items()}, "ensemble": "Ensemble",
          "ensemble_tuned": "Ensemble, tuned", "ensemble_refined": "Ensemble, refined"}


def method_title(name: str) -> str:
    """What the papers call a method: tip_adapter_f is Tip-Adapter-F."""
    return TITLES.get(name, name.replace("_", " "))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold the values with some room, within what percentages can be."""
    values = [value for value in values if np.isfinite(value)] or [0, 100]
    low, high = min(values), max(values)
    slack = max(0.08 * (high - low), 1.0)
    return max(low - slack, -1), min(high + slack, 101)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length - 1].rstrip() + "…"


def _panels(wide: bool, count: int, columns: int, height: float, more: float) -> tuple[Any, Sequence[Any]]:
    """A figure of `count` panels, each `height` CSS pixels tall, and `more` beside them for a legend."""
    rows = -(-count // columns)
    figure = new_figure(wide, rows * height + more)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes


def _legend(figure, columns: int) -> None:
    """Above the panels, what their curves stand for, each once."""
    handles = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns)


def ladder(panels: dict[str, dict[str, float]], spread: dict[str, float] | None = None) -> Picture:
    """Top-1 of every method, step by step, against zero-shot.

    panels: {"" for the total, or a domain: {method: top-1 in percent}}. spread: of the total, in points.
    """
    methods, domains = list(panels[""]), [name for name in panels if name]

    def rungs(ax, values: dict[str, float], title: str, numbers: bool, names: bool) -> None:
        shown = [values.get(method, np.nan) for method in methods]
        base = values.get("zero_shot", shown[0])
        y = np.arange(len(methods))
        low, high = _bounds(shown + [base])
        room = (high - low) * (0.3 if numbers else 0.06)
        ax.set(xlim=(low, high + room), ylim=(len(methods) - 0.4, -0.6), yticks=y)
        ax.axvline(base, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        ax.axhspan(len(methods) - 1.5, len(methods) - 0.5, color=HAIR, alpha=0.35, linewidth=0)
        for place, value in zip(y, shown):
            if np.isfinite(value):
                colour = BLUE if value >= base else VERMILLION
                ax.plot([base, value], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
                ax.plot(value, place, "o" if value >= base else "s", color=colour, markersize=6.5)
                if numbers:
                    ax.annotate(f"{value:.1f}", (max(value, base), place), (9, 0), textcoords="offset points",
                                va="center", fontsize=12, color=INK, annotation_clip=False)
        if spread and values is panels[""]:
            ax.errorbar(shown, y, xerr=[spread[method] for method in methods], fmt="none", ecolor=INK, elinewidth=1)
        ax.set_yticklabels([method_title(method) for method in methods] if names else [])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_title(title, color=INK, fontweight="bold")
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=4 if numbers else 3)

    def draw(wide: bool):
        row = 24 if wide else 22
        one = row * len(methods) + 62
        if wide:
            figure = new_figure(True, one)
            widths = [2.1 if domains else 1] + [1] * len(domains)
            columns = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
            for i, (ax, name) in enumerate(zip(columns, panels)):
                rungs(ax, panels[name], _shorten(name, 14) or "All images", i == 0, i == 0)
        else:
            rows = (len(domains) + 1) // 2
            figure = new_figure(False, one + rows * (0.8 * one))
            grid = figure.add_gridspec(1 + rows, 2, height_ratios=[1] + [0.8] * rows)
            rungs(figure.add_subplot(grid[0, :]), panels[""], "All images", True, True)
            for i, name in enumerate(domains):
                alone = i % 2 == 0 and i == len(domains) - 1
                place = grid[1 + i // 2, :] if alone else grid[1 + i // 2, i % 2]
                rungs(figure.add_subplot(place), panels[name], _shorten(name, 14), alone, i % 2 == 0)
                figure.axes[-1].tick_params(axis="y", labelsize=12 if alone else 10)
        return figure

    alt = (f"Top-1 of {len(methods)} methods, in percent: "
           + ", ".join(f"{method_title(name)} {panels[''][name]:.1f}" for name in methods) + ".")
    what = "The dashed line is zero-shot; a blue dot is above it, an orange square below."
    caption = (f"Mean top-1 in percent; black whiskers are one standard deviation over the seeds. {what}" if spread else
               f"Top-1 in percent. {what} The last rung, {method_title(methods[-1])}, is what is submitted.")
    return picture("ladder", alt, caption, draw)


def training_curves(histories: dict[str, list[dict]], chosen: dict[str, int | None]) -> Picture:
    """Loss and top-1 by epoch of each trained head; `chosen` is the epoch that was kept."""
    names = list(histories)

    def line(ax, history: list[dict], key: str, colour: str, style: Any, label: str) -> None:
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        if points:
            ax.plot(*zip(*points), color=colour, linestyle=style, label=label,
                    marker="o" if len(points) < 3 else None, markersize=4)

    def draw(wide: bool):
        columns = min(len(names), 4 if wide else 2)
        rows = -(-len(names) // columns)
        figure = new_figure(wide, rows * (250 if wide else 220) + 34)
        grid = figure.add_gridspec(2 * rows, columns)
        for i, name in enumerate(names):
            place = 2 * (i // columns), i % columns
            top, below = figure.add_subplot(grid[place]), figure.add_subplot(grid[place[0] + 1, place[1]])
            for ax, keys in ((top, ("train_top1", "held_out_top1")), (below, ("loss", "held_out_loss"))):
                line(ax, histories[name], keys[0], BLUE, "-", "shots, as trained")
                line(ax, histories[name], keys[1], VERMILLION, DASHED, "shots, held out")
                if chosen.get(name) is not None:
                    ax.axvline(chosen[name], color=INK, linewidth=1, linestyle=":", label="epoch kept")
                ax.grid(axis="y")
                ax.locator_params(axis="y", nbins=3)
                if not any(entry.get(key) is not None for entry in histories[name] for key in keys):
                    ax.set_yticks([])
                    ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=MUTED, fontsize=11)
                ax.locator_params(axis="x", nbins=4, integer=True)
                ax.tick_params(labelsize=9.5)
            top.set_title(method_title(name))
            top.tick_params(labelbottom=False)
            if place[1] == 0:
                top.set_ylabel("top-1, %")
                below.set_ylabel("loss, nats")
            if place[0] == 2 * rows - 2 or i + columns >= len(names):
                below.set_xlabel("epoch")
        _legend(figure, 3 if wide else 2)
        return figure

    ends = "; ".join(f"{method_title(name)} kept epoch {chosen[name]}" for name in names
                     if chosen.get(name) is not None)
    return picture("training", f"Training curves of {len(names)} heads. {ends}.",
                   "Top-1 and cross-entropy by epoch. Held out: each shot answered by a fit that did not see it.",
                   draw)


def class_strip(accuracy: np.ndarray, domains: Sequence[str], names: Sequence[str]) -> Picture:
    """Top-1 of each class, (K,) in percent, nan where unknown: a dot a class, stacked where equal."""
    known = np.flatnonzero(np.isfinite(accuracy))
    groups = {domain: [k for k in known if domains[k] == domain] for domain in dict.fromkeys(domains)}
    groups = {domain: inside for domain, inside in groups.items() if inside}

    def draw(wide: bool):
        bins = 51 if wide else 26
        size = (WIDE - 60) / 51 * 0.62 if wide else (NARROW - 40) / 26 * 0.66
        cells = np.rint(np.nan_to_num(accuracy) / 100 * (bins - 1)).astype(int)
        tallest = {domain: max(int(np.bincount(cells[inside]).max()), 4) for domain, inside in groups.items()}
        heights = [min(tall, TALLEST) for tall in tallest.values()]
        figure = new_figure(wide, sum(heights) * size * 1.25 + 66 * len(groups) + 30)
        axes = figure.subplots(len(groups), 1, squeeze=False, sharex=True,
                               height_ratios=[height + 2 for height in heights])[:, 0]
        for i, (ax, (domain, inside)) in enumerate(zip(axes, groups.items())):
            colour = DOMAIN_COLOURS[i % len(DOMAIN_COLOURS)]
            tall, place, spots = tallest[domain], Counter[int](), []
            for k in sorted(inside, key=lambda k: accuracy[k]):
                place[cells[k]] += 1
                spots.append((100 * cells[k] / (bins - 1), place[cells[k]] - 0.4))
            width = size * (0.6 + 0.4 * min(1.0, TALLEST / tall))
            ax.scatter(*zip(*spots), s=width ** 2, marker="o", color=colour, linewidths=0)
            mean = float(np.mean(accuracy[inside]))
            ax.plot([mean], [-0.75], marker="^", color=INK, markersize=7, clip_on=False)
            ax.set(xlim=(-2.5, 102.5), ylim=(-1.3, tall + 0.6), yticks=[])
            lowest = [k for k in inside if accuracy[k] == min(accuracy[inside])]
            worst = _shorten(names[lowest[0]], 22) if len(lowest) == 1 else f"{len(lowest)} classes"
            ax.set_title(f"{domain or 'All classes'}: {len(inside)} classes, mean {mean:.1f}")
            if spots[0][0] > (20 if wide else 45):  # left of the lowest class there is no dot
                ax.annotate(worst, spots[0], (-9, 0), textcoords="offset points", fontsize=11,
                            color=MUTED, ha="right", va="center")
            ax.tick_params(labelbottom=True)
        axes[-1].set_xlabel("top-1 of a class, %")
        return figure

    means = [f"{domain or 'all classes'} {np.mean(accuracy[inside]):.1f}" for domain, inside in groups.items()]
    return picture("classes", f"Top-1 by class; mean of {', '.join(means)} percent.",
                   "A dot is a class; the triangle marks a domain's mean; the lowest is named where there is "
                   "room, or how many share its place.", draw)


def alpha_beta(found: AlphaBetaMap) -> Picture:
    """Held-out top-1 of Tip-Adapter over α and β; a value beyond the map is an arrow at its edge."""
    def edges(values: np.ndarray) -> np.ndarray:
        logs = np.log(values)
        middle = (logs[1:] + logs[:-1]) / 2
        return np.exp(np.r_[2 * logs[0] - middle[0], middle, 2 * logs[-1] - middle[-1]])

    low, high = float(np.nanmin(found.top1)), float(np.nanmax(found.top1))

    def draw(wide: bool):
        from matplotlib.colors import ListedColormap
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
        figure = new_figure(wide, 380 if wide else 370)
        ax = figure.subplots()
        mesh = ax.pcolormesh(edges(found.alphas), edges(found.betas), found.top1.T, cmap=ListedColormap(RAMP),
                             vmin=low, vmax=max(high, low + 0.1), antialiased=False)
        ax.set(xscale="log", yscale="log", xlabel="α, weight of the cache", ylabel="β, sharpness")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 3)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        for i, (domain, alpha, beta) in enumerate(found.chosen):
            x, y = np.clip(alpha, *found.alphas[[0, -1]]), np.clip(beta, *found.betas[[0, -1]])
            mark = "<" if alpha < x else ">" if alpha > x else "v" if beta < y else "^" if beta > y else \
                DOMAIN_MARKS[i % 5]
            ax.plot(x, y, "o", markersize=13, color=PAPER, clip_on=False)
            label = _shorten(domain or "chosen", 16) + (f" (α {alpha:.3g}, β {beta:.3g})" if mark in "<>v^" else "")
            ax.plot(x, y, mark, markersize=7, color=VERMILLION, label=label, clip_on=False)
        longest = max(len(handle.get_label()) for handle in ax.lines[1::2])
        columns = (3 if wide else 2) if longest < 17 else (2 if wide else 1)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handletextpad=0.3, borderpad=0.2)
        bar = figure.colorbar(mesh, ax=ax, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        mesh.set_gid("mesh")
        bar.solids.set_gid("mesh-scale")
        bar.locator = MaxNLocator(5)
        bar.set_label("held-out top-1, %")
        return figure

    chosen = "; ".join(f"{domain + ': ' if domain else ''}α {alpha:.3g}, β {beta:.3g}"
                       for domain, alpha, beta in found.chosen)
    return picture("alpha_beta",
                   f"Held-out top-1 of Tip-Adapter between {low:.1f} and {high:.1f} percent. {chosen}.",
                   f"Leave-one-shot-out top-1 of {found.shots} shots; darker is better on a light page, lighter on a "
                   f"dark one. Marked: what the held-out log-loss chose ({chosen}); an arrow points off the map.", draw)


def reliability(curves: dict[str, Calibration], answers: dict[str, np.ndarray], costs: Sequence[Rejection]) -> Picture:
    """Right answers against confidence, how confident the first guesses are, and what rejecting the low ones costs.

    curves: {what answers: its calibration}, at most two; answers: {the same: (N,) probabilities}; costs: of the
    last one, by rising threshold.
    """
    def draw(wide: bool):
        figure = new_figure(wide, 460 if wide else 900)
        if wide:
            grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1])
            left, right, below = (figure.add_subplot(grid[place]) for place in (np.s_[:, 0], np.s_[0, 1], np.s_[1, 1]))
        else:
            left, right, below = figure.subplots(3, 1, height_ratios=[1.5, 1, 1])
        left.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        styles = [(INK, "s"), (BLUE, "o")][-len(curves):]
        for (name, found), (colour, mark) in zip(curves.items(), styles):
            held = found.counts > 0
            x, y = 100 * found.confidence[held], 100 * found.accuracy[held]
            left.plot(x, y, color=colour, linewidth=1, alpha=0.55)
            # the area says how many images a point stands for
            left.scatter(x, y, s=12 + 260 * found.counts[held] / found.counts.sum(), color=colour, marker=mark,
                         linewidths=0, alpha=0.9, zorder=3,
                         label=f"{method_title(name)}, calibration error {100 * found.ece:.1f}")
        left.set(xlim=(0, 104), ylim=(-3, 104), ylabel="right, %", xlabel="probability of the first guess, %")
        left.grid()
        _histogram(right, answers)
        thresholds = [cost.threshold for cost in costs]
        below.plot(thresholds, [cost.accuracy for cost in costs], color=BLUE, label="right of the rest")
        below.plot(thresholds, [cost.rejected for cost in costs], color=VERMILLION, linestyle=DASHED, label="rejected")
        below.set(xlim=(0, 100), ylim=(-3, 104), xlabel="threshold of rejection, %", ylabel="%")
        below.grid()
        below.legend(loc="best")
        legend = figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2 if wide else 1)
        for handle in legend.legend_handles:
            handle.set_sizes([36])
        return figure

    said = "; ".join(f"{method_title(name)}: expected calibration error {100 * found.ece:.1f} points"
                     for name, found in curves.items())
    half = min(costs, key=lambda cost: abs(cost.threshold - 50))
    return picture("calibration", f"Reliability diagram, histogram of confidence, cost of rejection. {said}. A "
                   f"threshold of {half.threshold:.0f} percent rejects {half.rejected:.1f} percent of the images; of "
                   f"the rest {half.accuracy:.1f} percent are right.",
                   "How many answers of a certain confidence are right: above the dashed line it is underconfident, "
                   "below it overconfident; a larger mark stands for more images. The histogram counts images by "
                   "confidence. The last panel: how many images a threshold rejects as “None of these”, and how often "
                   "the rest is right.", draw)


def _histogram(ax, answers: dict[str, np.ndarray]) -> None:
    for i, (name, values) in enumerate(answers.items()):
        last = i == len(answers) - 1
        look = dict(histtype="stepfilled", color=BLUE, alpha=0.75, linewidth=0) if last else \
            dict(histtype="step", color=INK, linewidth=1.6, zorder=2)
        ax.hist(100 * values, bins=np.arange(0, 101, 5), label=method_title(name), **look)
    ax.set(xlim=(0, 100), xlabel="probability of the first guess, %", ylabel="images")
    ax.grid(axis="y")


def confidence(answers: dict[str, np.ndarray]) -> Picture:
    """How confident the first guesses are: {what answers: (N,) probabilities}, at most two."""
    def draw(wide: bool):
        figure = new_figure(wide, 260)
        _histogram(figure.subplots(), answers)
        if len(answers) > 1:
            _legend(figure, 2)
        return figure

    means = ", ".join(f"{method_title(name)} {100 * values.mean():.1f}" for name, values in answers.items())
    return picture("confidence", f"Histogram of the first guess's probability; means in percent: {means}.",
                   "Images by the probability of their first guess.", draw)


def class_balance(predicted: np.ndarray, expected: np.ndarray, truth: np.ndarray | None,
                  domains: Sequence[str], names: Sequence[str]) -> Picture:
    """Images that a class gets, (K,), next to those that its share of the shots would give it, and the truth."""
    groups = {domain: [k for k in range(len(names)) if domains[k] == domain] for domain in dict.fromkeys(domains)}

    def draw(wide: bool):
        columns = (3 if len(groups) in (3, 5, 6) else min(len(groups), 2)) if wide else 1
        figure, axes = _panels(wide, len(groups), columns, 190, 40)
        for ax, (domain, inside) in zip(axes, groups.items()):
            inside = sorted(inside, key=lambda k: -predicted[k])
            x = np.arange(len(inside))
            ax.bar(x, predicted[inside], 0.86, color=BLUE, alpha=0.8, linewidth=0, label="predicted")
            ax.stairs(expected[inside], np.arange(len(inside) + 1) - 0.5, baseline=None, color=VERMILLION,
                      linewidth=1.6, linestyle=DASHED, label="if balanced as the shots")
            if truth is not None:
                ax.plot(x, truth[inside], "D", color=INK, markersize=3.4 if len(x) < 60 else 2.2, label="truth")
            ax.set_title(f"{domain or 'All classes'}: {int(predicted[inside].sum())} images")
            ax.annotate(_shorten(names[inside[0]], 24), (0, predicted[inside[0]]), (8, 2),
                        textcoords="offset points", fontsize=10, color=MUTED, annotation_clip=False)
            ax.set(xticks=[], xlim=(-0.8, len(inside) - 0.2))
            ax.set_ylim(0, 1.15 * max(1, predicted[inside].max(), expected[inside].max(),
                                      0 if truth is None else truth[inside].max()))
            ax.grid(axis="y")
            ax.locator_params(axis="y", nbins=4)
        _legend(figure, 3 if wide else 2)
        return figure

    most = int(predicted.argmax())
    return picture("balance", f"Images that each class gets: {names[most]} the most with {int(predicted[most])}; "
                   f"{int((predicted == 0).sum())} classes get none.",
                   "A bar is a class, sorted by how many images have it as their first guess; the class with the most "
                   "is named.", draw)


def shot_curves(curves: Mapping[str, Mapping[int, Mapping[str, Any]]], name: str = "benchmark") -> Picture:
    """A panel a data set, a curve a method: {data: {shots: {method: {"top1": [a random seed each]}}}}.

    A method may be missing with few shots, and is drawn from where it is there. name: of the picture.
    """
    methods = list(dict.fromkeys(method for curve in curves.values() for row in curve.values() for method in row))
    looks = [(colour, mark, line) for mark, line in zip("osD^v", ("-", "--", "-.", ":", (0, (1, 3))))
             for colour in DOMAIN_COLOURS]
    look_of = dict(zip(methods, looks * (1 + len(methods) // len(looks))))

    def panel(ax, curve: Mapping[int, Mapping[str, Any]]) -> None:
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
        for method in methods:
            known = [count for count in sorted(curve) if method in curve[count]]
            values = [curve[count][method]["top1"] for count in known]
            mean, spread = np.array([np.mean(one) for one in values]), np.array([np.std(one) for one in values])
            colour, mark, line = look_of[method]
            ax.fill_between(known, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
            ax.plot(known, mean, color=colour, marker=mark, linestyle=line, markersize=4.5, linewidth=1.4,
                    label=method_title(method))
        # a method that falls far below zero-shot would press all others into one line
        base = [np.mean(row["zero_shot"]["top1"]) for row in curve.values() if "zero_shot" in row]
        ax.set_ylim(bottom=max(ax.get_ylim()[0], min(base, default=0) - FAR_BELOW))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(sorted(curve)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.grid(axis="y")

    def draw(wide: bool):
        columns = min(len(curves), 3 if wide else 1)
        figure, axes = _panels(wide, len(curves), columns, (300 if wide else 280) + 80 * (len(curves) == 1),
                               20 * -(-len(methods) // (4 if wide else 2)))
        for ax, (data, curve) in zip(axes, curves.items()):
            panel(ax, curve)
            ax.set_title(_shorten(data, 30))
        axes[0].set_ylabel("top-1, %")
        axes[len(curves) - 1].set_xlabel("shots a class")
        _legend(figure, 4 if wide else 2)
        return figure

    return picture(name, f"Top-1 by shots a class on {', '.join(curves)}.",
                   "Mean top-1 over the random seeds; bands are one standard deviation. What lies more than "
                   f"{FAR_BELOW} points below zero-shot is cut off.", draw)
