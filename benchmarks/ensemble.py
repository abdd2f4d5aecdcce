"""What each part of the ensemble is worth, on suites and on fresh draws of their shots.

    python benchmarks/ensemble.py ../shared/features/*.npz                     about 8 minutes on 2 cores
    python benchmarks/ensemble.py SUITE.npz --draws 5 --heads gda,text_profile,vicinal
    python benchmarks/ensemble.py ../shared/features/*.npz --ceiling           what no choice on shots can pass

A draw pools a suite's shots and test rows, draws --shots a class as shots, and tests on the rest: how a
rule does over many draws says more than one suite's last half point, which is chance (1,500 rows have a
standard error of 1 point). Top-1 in percent, a column a draw, then their mean and the mean log-loss.

Rows with ! look at the test labels and are no method: they say what the heads hold. Weights fitted to the test
rows themselves are the best that any rule for weights can hope for; biases fitted to them show what knowing
how often each class is chosen too much would be worth.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]
from resplit import draw

from jclip_fewshot.backend.numerics import log_softmax
from jclip_fewshot.combine.ensemble import Ensemble, fit_pool
from jclip_fewshot.evaluation.scores import table
from jclip_fewshot.evaluation.suites import load_suite
from jclip_fewshot.methods.base import log_loss, top1
from jclip_fewshot.pipeline import head_names, make_head


def rules(held_out, logits, task):
    """{rule: (N, K) log p or scores} of the ways to make one answer of many."""
    everything = np.stack(list(logits.values()))
    spread = everything.std(axis=2, keepdims=True)
    answers = {name: one for name, one in logits.items()}
    log_probs = log_softmax(everything)
    answers["= mean of probabilities"] = np.log(np.exp(log_probs).mean(axis=0))
    answers["= mean of log-probabilities"] = log_probs.mean(axis=0)
    centred = everything - everything.mean(axis=2, keepdims=True)
    answers["= mean of z-scores"] = (centred / spread).mean(axis=0)
    variants = {"equal weights, no bias": (1e6, 1e6), "learned weights, no bias": (10, 1e6),
                "bias, equal weights": (1e6, 4), "kappa 3": (3, 4), "kappa 30": (30, 4), "rho 1": (10, 1),
                "rho 16": (10, 16), "ensemble": (10, 4)}
    for name, (kappa, rho) in variants.items():
        answers[f"= {name}"] = np.log(Ensemble(kappa, rho).fit(held_out, task).probs(logits))
    if task.seen.all() and len(np.unique(task.domains)) > 1 and (task.counts > 1).all():
        answers["= weights by domain"] = by_domain(held_out, logits, task)
    for left_out in logits:
        if len(logits) > 2:
            names = [name for name in logits if name != left_out]
            fitted = Ensemble().fit({name: held_out[name] for name in names}, task)
            answers[f"- {left_out}"] = np.log(fitted.probs({name: logits[name] for name in names}))
    return answers


def ceilings(held_out, logits, task, labels):
    """{rule: (N, K) log p} of pools that are fitted to, or picked by, the test labels."""
    everything = np.stack(list(logits.values()))
    answers = {"! weights fitted to the test labels": fit_pool(everything, labels, 0.01, 1e6)(everything),
               "! weights and class biases fitted to them": fit_pool(everything, labels, 0.01, 4)(everything)}
    scale = Ensemble().fit(held_out, task).pool_.scale
    log_probs = [log_softmax(np.float32(a) * one) for a, one in zip(scale, everything)]
    for size in (2, 3, 4):
        means = (sum(log_probs[m] for m in some) for some in combinations(range(len(log_probs)), size))
        answers[f"! best mean of {size} heads, picked by them"] = max(means, key=lambda mean: top1(mean, labels))
    return answers


def by_domain(held_out, logits, task):
    """The way that was not taken: p(domain) of the ensemble times a pool of its own in every domain."""
    held_all, test_all = np.stack(list(held_out.values())), np.stack(list(logits.values()))
    common = Ensemble().fit(held_out, task)
    p = common.probs(logits)
    answer = np.empty(p.shape)
    for domain in np.unique(task.domains):
        columns = np.flatnonzero(task.domains == domain)
        rows = np.flatnonzero(task.domains[task.labels] == domain)
        labels = np.searchsorted(columns, task.labels[rows])
        pool = fit_pool(held_all[:, rows][:, :, columns], labels, 10.0, 4.0)
        answer[:, columns] = pool(test_all[:, :, columns]) + np.log(p[:, columns].sum(axis=1, keepdims=True))
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=0, help="fresh draws a suite, in addition to its own shots")
    parser.add_argument("--shots", type=int, default=4, help="shots a class of a fresh draw")
    parser.add_argument("--heads", default="", help="names, with commas; default: all")
    parser.add_argument("--ceiling", action="store_true", help="with the rows that look at the test labels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    columns, accuracy, losses = [], {}, {}
    for path in arguments.suites:
        suite = load_suite(path)
        for seed in range(arguments.draws + 1):
            task, features, labels = draw(suite, seed, arguments.shots)
            held_out, logits = {}, {}
            for name in head_names(arguments.heads or "all"):
                head = make_head(name, arguments.seed).fit(task)
                held_out[name], logits[name] = head.held_out_logits(), head.logits(features)
            columns.append(suite.name.split("_")[0] + f"/{seed}")
            answers = rules(held_out, logits, task)
            if arguments.ceiling:
                answers.update(ceilings(held_out, logits, task, labels))
            for rule, answer in answers.items():
                accuracy.setdefault(rule, {})[columns[-1]] = top1(answer, labels)
                losses.setdefault(rule, {})[columns[-1]] = log_loss(answer, labels)
            reached = accuracy["= ensemble"][columns[-1]]
            print(f"{suite.name} draw {seed}: ensemble {reached:.2f}", file=sys.stderr)
    rows = [[rule, *(f"{found[c]:.2f}" if c in found else "" for c in columns),
             f"{np.mean(list(found.values())):.2f}", f"{np.mean(list(losses[rule].values())):.3f}"]
            for rule, found in accuracy.items()]
    print(table(["rule", *columns, "mean", "log-loss"], rows))


if __name__ == "__main__":
    main()
