"""Writes the README's results table and the figures of the guide, from `evaluate` on the feature suites.

    python benchmarks/results.py SUITE.npz ... [--curves SUITE.npz ...] [--folder bench_results]

Each evaluation is kept as one JSON file in --folder and not repeated; delete the folder to measure again. With the four
suites, and the curves of two of them, this takes about ten minutes on two quiet cores.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip_fewshot.methods import METHODS
from jclip_fewshot.report.drawing import BLUE, GREEN, HAIR, MUTED, VERMILLION

FIGURES = ROOT / "docs/figures"
COMBINED = {"ensemble": "**ensemble** (each image by itself)",
            "ensemble_refined": "**ensemble, refined** (the whole set)"}
LINES = {"zero_shot": ("zero-shot CLIP", MUTED, ":"), "tip_adapter": ("Tip-Adapter", GREEN, "--"),
         "ensemble": ("ensemble", BLUE, "-"), "ensemble_refined": ("ensemble, refined", VERMILLION, "-")}


def evaluated(suite: Path, shots: int, folder: Path) -> dict:
    """Return what `evaluate --json` says of a suite with so many shots a class; -1: all that it has."""
    out = folder / f"{suite.stem}_{'all' if shots < 0 else shots}.json"
    if not out.exists():
        subprocess.run([sys.executable, "-m", "jclip_fewshot", "evaluate", "--suite", str(suite), "--methods", "auto",
                        "--shots", str(shots), "--json", str(out)], check=True, cwd=ROOT)
    return json.loads(out.read_text())


def table(results: list[dict]) -> str:
    """Return the Markdown table: a method in a row, top-1 of each suite, paper, what to type."""
    names = [result["suite"].replace("_4shot", "") for result in results]
    lines = ["| method | " + " | ".join(names) + " | paper | `--methods` |", "|---" * (len(names) + 3) + "|"]
    for name in results[0]["methods"]:
        if name not in METHODS and name not in COMBINED:
            continue
        scores = " | ".join(f"{result['methods'][name]['top1']:.1f}" for result in results)
        title, paper = (METHODS[name].title, METHODS[name].paper) if name in METHODS else (COMBINED[name], "")
        lines.append(f"| {title} | {scores} | {paper} | `{name if name in METHODS else 'auto'}` |")
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Put the table between its two marks in both READMEs."""
    for name in ("README.md", "README.zh.md"):
        page = ROOT / name
        page.write_text(re.sub("(?<=<!-- results -->\n).*(?=<!-- end of results -->)", text + "\n",
                               page.read_text(encoding="utf-8"), flags=re.S), encoding="utf-8")


def draw(results: list[dict], curves: dict[str, dict[int, dict]]) -> None:
    """Write the figures' PNG files into docs/figures/."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 110})
    FIGURES.mkdir(exist_ok=True)

    figure, axes = plt.subplots(1, len(results), figsize=(9, 2.2), layout="constrained")
    for ax, result in zip(axes, results):
        steps = [result["methods"][name]["top1"] for name in LINES]
        labels, colors, _ = zip(*LINES.values())
        ax.scatter(steps, labels, color=colors, s=40)
        for step, label in zip(steps, labels):
            ax.annotate(f"{step:.1f}", (step, label), (6, 0), textcoords="offset points", va="center")
        ax.grid(axis="y", color=HAIR)
        ax.set(xlim=(min(steps) - 1, max(steps) + 3), title=result["suite"].replace("_4shot", ""), xlabel="top-1, %")
        ax.margins(y=0.15)
        ax.set_axisbelow(True)
        ax.invert_yaxis()
        if ax is not axes[0]:
            ax.set_yticklabels([])
    figure.savefig(FIGURES / "parts.png")

    figure, axes = plt.subplots(1, len(curves), figsize=(8, 3), layout="constrained", squeeze=False)
    for ax, (name, by_shots) in zip(axes[0], curves.items()):
        for method, (label, color, style) in LINES.items():
            names = (method, "zero_shot_refined") if method == "ensemble_refined" else (method,)
            known = {shots: one["methods"][name]["top1"] for shots, one in by_shots.items() for name in names
                     if name in one["methods"]}
            ax.plot(list(known), list(known.values()), style, color=color, marker="o", markersize=3, label=label)
        ax.set(title=name.replace("_4shot", ""), xlabel="shots a class", ylabel="top-1, %", xticks=list(by_shots))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(FIGURES / "shots.png")

    figure, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
    before, after = ([100 - one["methods"][name]["top1"] for one in results]
                     for name in ("ensemble", "ensemble_refined"))
    mended, spoiled = zip(*(_moves(result) for result in results))
    places = np.arange(len(results))
    ax.barh(places, mended, color=BLUE, label="wrong before, right after")
    ax.barh(places, [-share for share in spoiled], color=VERMILLION, label="right before, wrong after")
    ax.set(yticks=places, yticklabels=[f"{r['suite'].replace('_4shot', '')}\nerrors {b:.1f} → {a:.1f} %"
                                       for r, b, a in zip(results, before, after)], xlabel="% of the test images")
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.invert_yaxis()
    ax.legend(frameon=False)
    figure.savefig(FIGURES / "refinement.png")


def _moves(result: dict) -> tuple[float, float]:
    """How many answers the refinement corrects and spoils, in percent of the test images."""
    before, after = (np.array(list(result["correct"][name])) == "1" for name in ("ensemble", "ensemble_refined"))
    return 100 * (after & ~before).mean(), 100 * (before & ~after).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", type=Path)
    parser.add_argument("--curves", nargs="*", type=Path, default=[], help="suites to draw with 0, 1, 2 and all shots")
    parser.add_argument("--folder", type=Path, default=Path("bench_results"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    results = [evaluated(suite.resolve(), -1, args.folder.resolve()) for suite in args.suites]
    curves = {suite.stem: {shots if shots >= 0 else 4: evaluated(suite.resolve(), shots, args.folder.resolve())
                           for shots in (0, 1, 2, -1)} for suite in args.curves}
    write_table(table(results))
    draw(results, curves)


if __name__ == "__main__":
    main()
