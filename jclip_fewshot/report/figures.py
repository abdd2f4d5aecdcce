"""The report's figures, from the numbers of a run to the drawing; how they become pictures: drawing.py."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any

import numpy as np

from jclip_fewshot.methods import METHODS
from jclip_fewshot.report import drawing
from jclip_fewshot.report.analysis import AlphaBetaMap, Calibration, Rejection
from jclip_fewshot.report.drawing import BLUE, HAIR, INK, MUTED, PAPER, VERMILLION, Picture, picture

DOMAIN_MARKS = "osDPX"
DOTTED, DASHED = (0, (3, 3)), (0, (4, 1.6))
FAR_BELOW = 8  # points under zero-shot that a panel still shows, as its caption says
TALLEST = 11  # dots of a stack before they begin to overlap

TITLES = {**{name: method.title for name, method in METHODS.items()}, "ensemble": "Ensemble",
          "ensemble_tuned": "Ensemble, tuned", "ensemble_refined": "Ensemble, refined"}


def method_title(name: str) -> str:
    """Return what the papers call a method: tip_adapter_f is Tip-Adapter-F."""
    return TITLES.get(name, name.replace("_", " "))


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length - 1].rstrip() + "…"


def _panels(figure: Any, count: int, columns: int) -> Sequence[Any]:
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    return axes


def _legend(figure: Any, columns: int) -> None:
    """Above the panels, what their curves stand for, each once."""
    handles = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns)


def _by_domain(classes: np.ndarray, domains: Sequence[str]) -> dict[str, list[int]]:
    """The classes of each domain that has any, in their order."""
    groups = {domain: [k for k in classes if domains[k] == domain] for domain in dict.fromkeys(domains)}
    return {domain: inside for domain, inside in groups.items() if inside}


def ladder(rows: Mapping[str, Mapping[str, float]], domains: list[str], spread: dict[str, float] | None = None
           ) -> Picture:
    """Top-1 of each method against zero-shot: {method: {"top1" or a domain: percent}}; spread: of "top1", in points."""
    methods = list(rows)

    def rungs(ax: Any, name: str, whole: bool, left: bool) -> None:
        shown = [row.get(name or "top1", np.nan) for row in rows.values()]
        base, y = rows.get("zero_shot", {}).get(name or "top1", shown[0]), np.arange(len(methods))
        known = [value for value in (*shown, base) if np.isfinite(value)] or [0, 100]
        slack = max(0.08 * (max(known) - min(known)), 1.0)
        low, high = max(min(known) - slack, -1), min(max(known) + slack, 101)
        room = (high - low) * (0.3 if whole else 0.06)
        ax.set(xlim=(low, high + room), ylim=(len(methods) - 0.4, -0.6), yticks=y)
        ax.axvline(base, color=MUTED, linewidth=1, linestyle=DOTTED)
        ax.axhspan(len(methods) - 1.5, len(methods) - 0.5, color=HAIR, alpha=0.35, linewidth=0)
        for place, value in zip(y, shown):
            if np.isfinite(value):
                colour = BLUE if value >= base else VERMILLION
                ax.plot([base, value], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
                ax.plot(value, place, "o" if value >= base else "s", color=colour, markersize=6.5)
                if whole:
                    ax.annotate(f"{value:.1f}", (max(value, base), place), (9, 0), textcoords="offset points",
                                va="center", fontsize=12, color=INK, annotation_clip=False)
        if spread and not name:
            ax.errorbar(shown, y, xerr=[spread[method] for method in methods], fmt="none", ecolor=INK, elinewidth=1)
        ax.set_yticklabels([method_title(method) for method in methods] if left else [])
        ax.tick_params(axis="y", labelcolor=INK, labelsize=12 if whole else 10)
        ax.set_title(_shorten(name, 14) or "All images")
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=4 if whole else 3)

    def draw(figure: Any, wide: bool) -> float:
        one = (24 if wide else 22) * len(methods) + 62
        pairs = [(domains[i:i + 2] * 2)[:2] for i in range(0, len(domains), 2)]  # the last of an odd number alone
        if wide:
            rows, ratios = [["", *domains]], {"width_ratios": [2.1 if domains else 1] + [1] * len(domains)}
        else:
            rows, ratios = [["", ""], *pairs], {"height_ratios": [1] + [0.8] * len(pairs)}
        for name, ax in figure.subplot_mosaic(rows, empty_sentinel=None, **ratios).items():
            rungs(ax, name, not name or [name, name] in rows, name in [row[0] for row in rows])
        return one if wide else one + len(pairs) * 0.8 * one

    values = ", ".join(f"{method_title(name)} {row['top1']:.1f}" for name, row in rows.items())
    return picture("ladder", f"Top-1 of {len(methods)} methods, in percent: {values}.", draw)


def training_curves(histories: dict[str, list[dict]], chosen: dict[str, int | None]) -> Picture:
    """Loss and top-1 by epoch of each trained method; `chosen` is the epoch that was kept."""
    looks: list[dict[str, Any]] = [{"color": BLUE, "linestyle": "-", "label": "shots, as trained"},
                                   {"color": VERMILLION, "linestyle": DASHED, "label": "shots, held out"}]

    def curves(ax: Any, name: str, keys: Sequence[str]) -> None:
        for key, look in zip(keys, looks):
            points = [(entry["epoch"], entry[key]) for entry in histories[name] if entry.get(key) is not None]
            if points:
                ax.plot(*zip(*points), marker="o" if len(points) < 3 else None, markersize=4, **look)
        recorded = len(ax.lines)
        if chosen.get(name) is not None:
            ax.axvline(chosen[name], color=INK, linewidth=1, linestyle=":", label="epoch kept")
        ax.grid(axis="y")
        ax.locator_params(axis="y", nbins=3)
        if not recorded:
            ax.set_yticks([])
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=MUTED, fontsize=11)
        ax.locator_params(axis="x", nbins=4, integer=True)
        ax.tick_params(labelsize=9.5)

    def draw(figure: Any, wide: bool) -> float:
        columns = min(len(histories), 4 if wide else 2)
        rows = -(-len(histories) // columns)
        axes = figure.subplots(2 * rows, columns, squeeze=False).reshape(rows, 2, columns)
        pairs = axes.swapaxes(1, 2).reshape(-1, 2)
        for i, (name, (top, below)) in enumerate(zip(histories, pairs)):
            curves(top, name, ("train_top1", "held_out_top1"))
            curves(below, name, ("loss", "held_out_loss"))
            top.set_title(method_title(name))
            top.tick_params(labelbottom=False)
            if i % columns == 0:
                top.set_ylabel("top-1, %")
                below.set_ylabel("loss, nats")
            if i + columns >= len(histories):
                below.set_xlabel("epoch")
        for ax in pairs[len(histories):].ravel():
            ax.remove()
        _legend(figure, 3 if wide else 2)
        return rows * (250 if wide else 220) + 34

    ends = "; ".join(f"{method_title(name)} kept epoch {epoch}" for name, epoch in chosen.items() if epoch is not None)
    return picture("training", f"Training curves of {len(histories)} methods. {ends}.", draw)


def class_strip(accuracy: np.ndarray, domains: Sequence[str], names: Sequence[str]) -> Picture:
    """Top-1 of each class, (K,) in percent, nan where unknown: a dot a class, stacked where equal."""
    order = np.argsort(accuracy, kind="stable")
    groups = _by_domain(order[np.isfinite(accuracy[order])], domains)

    def draw(figure: Any, wide: bool) -> float:
        bins, size = (51, 860 / 51 * 0.62) if wide else (26, 300 / 26 * 0.66)
        cells = np.rint(np.nan_to_num(accuracy) / 100 * (bins - 1)).astype(int)
        tallest = [max(int(np.bincount(cells[inside]).max()), 4) for inside in groups.values()]
        heights = [min(tall, TALLEST) for tall in tallest]
        axes = figure.subplots(len(groups), 1, squeeze=False, sharex=True,
                               height_ratios=[height + 2 for height in heights])[:, 0]
        for ax, (domain, inside), tall, colour in zip(axes, groups.items(), tallest, cycle(drawing.DOMAIN_COLOURS)):
            stack, spots = Counter[int](), []
            for k in inside:
                stack[cells[k]] += 1
                spots.append((100 * cells[k] / (bins - 1), stack[cells[k]] - 0.4))
            width = size * (0.6 + 0.4 * min(1.0, TALLEST / tall))
            ax.scatter(*zip(*spots), s=width ** 2, marker="o", color=colour, linewidths=0)
            mean = float(np.mean(accuracy[inside]))
            ax.plot([mean], [-0.75], marker="^", color=INK, markersize=7, clip_on=False)
            ax.set(xlim=(-2.5, 102.5), ylim=(-1.3, tall + 0.6), yticks=[])
            ax.set_title(f"{domain or 'All classes'}: {len(inside)} classes, mean {mean:.1f}")
            if spots[0][0] > (20 if wide else 45):  # left of the lowest class there is no dot
                lowest = int((accuracy[inside] == accuracy[inside[0]]).sum())
                worst = _shorten(names[inside[0]], 22) if lowest == 1 else f"{lowest} classes"
                ax.annotate(worst, spots[0], (-9, 0), textcoords="offset points", fontsize=11, color=MUTED,
                            ha="right", va="center")
            ax.tick_params(labelbottom=True)
        axes[-1].set_xlabel("top-1 of a class, %")
        return sum(heights) * size * 1.25 + 66 * len(groups) + 30

    means = [f"{domain or 'all classes'} {np.mean(accuracy[inside]):.1f}" for domain, inside in groups.items()]
    return picture("classes", f"Top-1 by class; mean of {', '.join(means)} percent.", draw)


def alpha_beta(found: AlphaBetaMap) -> Picture:
    """Held-out top-1 of Tip-Adapter over α and β; a value beyond the map is an arrow at its edge."""
    low, high = float(np.nanmin(found.top1)), float(np.nanmax(found.top1))

    def edges(values: np.ndarray) -> np.ndarray:
        logs = np.log(values)
        middle = (logs[1:] + logs[:-1]) / 2
        return np.exp(np.r_[2 * logs[0] - middle[0], middle, 2 * logs[-1] - middle[-1]])

    def draw(figure: Any, wide: bool) -> float:
        from matplotlib.colors import ListedColormap
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
        ax = figure.subplots()
        mesh = ax.pcolormesh(edges(found.alphas), edges(found.betas), found.top1.T, cmap=ListedColormap(drawing.RAMP),
                             vmin=low, vmax=max(high, low + 0.1), antialiased=False)
        ax.set(xscale="log", yscale="log", xlabel="α, weight of the cache", ylabel="β, sharpness")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 3)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        labels = []
        for (domain, alpha, beta), mark in zip(found.chosen, cycle(DOMAIN_MARKS)):
            x, y = np.clip(alpha, *found.alphas[[0, -1]]), np.clip(beta, *found.betas[[0, -1]])
            arrow = "<" if alpha < x else ">" if alpha > x else "v" if beta < y else "^" if beta > y else ""
            labels.append(_shorten(domain or "chosen", 16) + (f" (α {alpha:.3g}, β {beta:.3g})" if arrow else ""))
            ax.plot(x, y, "o", markersize=13, color=PAPER, clip_on=False)
            ax.plot(x, y, arrow or mark, markersize=7, color=VERMILLION, label=labels[-1], clip_on=False)
        columns = (3 if wide else 2) if max(map(len, labels)) < 17 else (2 if wide else 1)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handletextpad=0.3, borderpad=0.2)
        bar = figure.colorbar(mesh, ax=ax, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        mesh.set_gid("mesh")
        bar.solids.set_gid("mesh-scale")
        bar.locator = MaxNLocator(5)
        bar.set_label("held-out top-1, %")
        return 380 if wide else 370

    return picture("alpha_beta", f"Held-out top-1 of Tip-Adapter between {low:.1f} and {high:.1f} percent. "
                        f"{found.said()}.", draw)


def _histogram(ax: Any, answers: dict[str, np.ndarray]) -> None:
    """Images by the probability of their first guess; answers: as of `confidence`."""
    looks: list[dict[str, Any]] = [{"histtype": "step", "color": INK, "linewidth": 1.6, "zorder": 2},
                                   {"histtype": "stepfilled", "color": BLUE, "alpha": 0.75, "linewidth": 0}]
    for (name, values), look in zip(answers.items(), looks[-len(answers):]):
        ax.hist(100 * values, bins=np.arange(0, 101, 5), label=method_title(name), **look)
    ax.set(xlim=(0, 100), xlabel="probability of the first guess, %", ylabel="images")
    ax.grid(axis="y")


def confidence(answers: dict[str, np.ndarray]) -> Picture:
    """How confident the first guesses are: {what answers: (N,) probabilities}, at most two."""
    def draw(figure: Any, _wide: bool) -> float:
        _histogram(figure.subplots(), answers)
        if len(answers) > 1:
            _legend(figure, 2)
        return 260

    means = ", ".join(f"{method_title(name)} {100 * values.mean():.1f}" for name, values in answers.items())
    return picture("confidence", f"Histogram of the first guess's probability; means in percent: {means}.", draw)


def reliability(curves: dict[str, Calibration], answers: dict[str, np.ndarray], costs: Sequence[Rejection]) -> Picture:
    """Right answers against confidence, how confident the first guesses are, and what rejecting the low ones costs.

    curves, answers: {what answers: …}, at most two, as of `confidence`; costs: of the last one, by rising threshold.
    """
    def draw(figure: Any, wide: bool) -> float:
        axes = figure.subplot_mosaic("ab;ac", width_ratios=[1.15, 1]) if wide else \
            figure.subplot_mosaic("a;b;c", height_ratios=[1.5, 1, 1])
        right, cost = axes["a"], axes["c"]
        right.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=DOTTED)
        for (name, found), (colour, mark) in zip(curves.items(), [(INK, "s"), (BLUE, "o")][-len(curves):]):
            held = found.counts > 0
            x, y = 100 * found.confidence[held], 100 * found.accuracy[held]
            right.plot(x, y, color=colour, linewidth=1, alpha=0.55)
            # the area says how many images a point stands for
            right.scatter(x, y, s=12 + 260 * found.counts[held] / found.counts.sum(), color=colour, marker=mark,
                          linewidths=0, alpha=0.9, zorder=3,
                          label=f"{method_title(name)}, calibration error {100 * found.ece:.1f}")
        right.set(xlim=(0, 104), ylim=(-3, 104), ylabel="right, %", xlabel="probability of the first guess, %")
        right.grid()
        legend = figure.legend(*right.get_legend_handles_labels(), loc="outside upper left", ncols=2 if wide else 1)
        for handle in legend.legend_handles:
            handle.set_sizes([36])
        _histogram(axes["b"], answers)
        thresholds = [one.threshold for one in costs]
        cost.plot(thresholds, [one.accuracy for one in costs], color=BLUE, label="right of the rest")
        cost.plot(thresholds, [one.rejected for one in costs], color=VERMILLION, linestyle=DASHED, label="rejected")
        cost.set(xlim=(0, 100), ylim=(-3, 104), xlabel="threshold of rejection, %", ylabel="%")
        cost.grid()
        cost.legend(loc="best")
        return 460 if wide else 900

    said = "; ".join(f"{method_title(name)}: expected calibration error {100 * found.ece:.1f} points"
                     for name, found in curves.items())
    half = min(costs, key=lambda cost: abs(cost.threshold - 50))
    return picture("calibration", f"Reliability diagram, histogram of confidence, cost of rejection. {said}. A "
                        f"threshold of {half.threshold:.0f} percent rejects {half.rejected:.1f} percent of the images; "
                        f"of the rest {half.accuracy:.1f} percent are right.", draw)


def class_balance(predicted: np.ndarray, expected: np.ndarray, truth: np.ndarray | None,
                  domains: Sequence[str], names: Sequence[str]) -> Picture:
    """Images that a class gets, (K,), next to those that its share of the shots would give it, and the truth."""
    groups = _by_domain(np.argsort(-predicted, kind="stable"), domains)

    def draw(figure: Any, wide: bool) -> float:
        columns = (3 if len(groups) in (3, 5, 6) else min(len(groups), 2)) if wide else 1
        for ax, (domain, inside) in zip(_panels(figure, len(groups), columns), groups.items()):
            x = np.arange(len(inside))
            ax.bar(x, predicted[inside], 0.86, color=BLUE, alpha=0.8, linewidth=0, label="predicted")
            ax.stairs(expected[inside], np.arange(len(inside) + 1) - 0.5, baseline=None, color=VERMILLION,
                      linewidth=1.6, linestyle=DASHED, label="if balanced as the shots")
            if truth is not None:
                ax.plot(x, truth[inside], "D", color=INK, markersize=3.4 if len(x) < 60 else 2.2, label="truth")
            ax.set_title(f"{domain or 'All classes'}: {int(predicted[inside].sum())} images")
            ax.annotate(_shorten(names[inside[0]], 24), (0, predicted[inside[0]]), (8, 2),
                        textcoords="offset points", fontsize=10, color=MUTED, annotation_clip=False)
            most = max(1, *(counts[inside].max() for counts in (predicted, expected, truth) if counts is not None))
            ax.set(xticks=[], xlim=(-0.8, len(inside) - 0.2), ylim=(0, 1.15 * most))
            ax.grid(axis="y")
            ax.locator_params(axis="y", nbins=4)
        _legend(figure, 3 if wide else 2)
        return -(-len(groups) // columns) * 190 + 40

    most = int(predicted.argmax())
    return picture("balance", f"Images that each class gets: {names[most]} the most with {int(predicted[most])}; "
                        f"{int((predicted == 0).sum())} classes get none.", draw)


def shot_curves(curves: Mapping[str, Mapping[int, Mapping[str, Any]]], name: str = "benchmark") -> Picture:
    """A panel a data set, a curve a method where it is there: {data: {shots: {method: {"top1": [a seed each]}}}}."""
    methods = list(dict.fromkeys(method for curve in curves.values() for row in curve.values() for method in row))
    looks = product(zip("osD^v", ("-", "--", "-.", ":", (0, (1, 3)))), drawing.DOMAIN_COLOURS)
    look_of = dict(zip(methods, cycle(looks)))

    def draw(figure: Any, wide: bool) -> float:
        columns = min(len(curves), 3 if wide else 1)
        axes = _panels(figure, len(curves), columns)
        for ax, (data, curve) in zip(axes, curves.items()):
            counts = sorted(curve)
            for method in methods:
                known = [count for count in counts if method in curve[count]]
                values = [curve[count][method]["top1"] for count in known]
                mean, spread = np.array([np.mean(one) for one in values]), np.array([np.std(one) for one in values])
                (mark, line), colour = look_of[method]
                ax.fill_between(known, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
                ax.plot(known, mean, color=colour, marker=mark, linestyle=line, markersize=4.5, linewidth=1.4,
                        label=method_title(method))
            # a method that falls far below zero-shot would press all others into one line
            base = [np.mean(row["zero_shot"]["top1"]) for row in curve.values() if "zero_shot" in row]
            ax.set_ylim(bottom=max(ax.get_ylim()[0], min(base, default=0) - FAR_BELOW))
            ax.set_xscale("log", base=2)
            ax.set_xticks(counts, list(map(str, counts)))
            ax.set_xticks([], minor=True)
            ax.grid(axis="y")
            ax.set_title(_shorten(data, 30))
        axes[0].set_ylabel("top-1, %")
        axes[len(curves) - 1].set_xlabel("shots a class")
        _legend(figure, 4 if wide else 2)
        one = (300 if wide else 280) + 80 * (len(curves) == 1)
        return -(-len(curves) // columns) * one + 20 * -(-len(methods) // (4 if wide else 2))

    return picture(name, f"Top-1 by shots a class on {', '.join(curves)}.", draw)
