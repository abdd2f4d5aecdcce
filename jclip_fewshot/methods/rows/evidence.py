"""Zero-shot plus weighted evidence: how every training-free method decides, and how its weights are found.

    logits = 100 x tᵀ + Σ_m α_m(x) E_m(x)                                                    (N, K)

Symbols: C_0 = 100 x tᵀ, C_m = E_m what the method reads out of the shots; w_0 the inverse temperature, w_m = w_0 α_m.

Each shot is scored by evidence built without it (leave-one-shot-out); w minimises the cross-entropy of softmax(Σ w C),
which is convex: a few Newton steps give the exact optimum. A setting that is not linear (β, ...) is chosen by the loss
that is left. An image's α is the mean of its domains' α under zero-shot's posterior over domains, so that all classes
of a row share it; a domain's α is fitted on its own shots, drawn to the common one by a Gaussian prior.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jclip_fewshot.backend.numerics import softmax
from jclip_fewshot.methods.base import DOMAIN_SHOTS, Method, top1
from jclip_fewshot.task import Fold, Task, zero_shot_logits

MAX_STEPS = 30
DOMAIN_SPREAD = 0.5  # prior standard deviation of a domain's weight around the common one, relative to it


class Mixture(NamedTuple):
    """The minimum of the regularised cross-entropy: w (1 + M,), mean loss in nats, the objective after each step."""

    weights: np.ndarray
    loss: float
    trace: list[float]
    converged: bool

    @property
    def alpha(self) -> np.ndarray:
        """Weights of the evidence on CLIP's scale, (M,), not negative."""
        return np.maximum(self.weights[1:], 0) / max(self.weights[0], 0.05)


def fit_mixture(components: np.ndarray, labels: np.ndarray, prior: np.ndarray, spread: np.ndarray,
                start: np.ndarray | None = None) -> Mixture:
    """Newton's method on Σ_s -log softmax(Σ_m w_m C_m)[s, y_s] + ½ Σ_m ((w_m - prior_m) / spread_m)², convex.

    components (1 + M, S, K) float32, zero-shot first; labels (S,); prior and spread (1 + M,).
    """
    M1, S, _ = components.shape
    # Against the label's own column the loss is a plain log-sum-exp and the numbers stay small.
    C = components - components[:, np.arange(S), labels][:, :, None]  # (1 + M, S, K)
    prior, precision = np.asarray(prior, float), 1 / np.asarray(spread, float) ** 2

    def evaluate(w):
        logits = np.tensordot(w.astype(np.float32), C, 1)  # (S, K)
        top = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - top)
        total = p.sum(axis=1, keepdims=True)
        loss = (top + np.log(total)).sum(dtype=float)
        p /= total
        return loss, loss + 0.5 * (precision * (w - prior) ** 2).sum(), p

    w = np.array(prior if start is None else start, float)
    loss, objective, p = evaluate(w)
    trace, converged = [objective], False
    while not converged and len(trace) <= MAX_STEPS:
        PC = p * C
        mean = PC.sum(axis=2, dtype=float)  # (1 + M, S)
        gradient = mean.sum(axis=1) + precision * (w - prior)
        hessian = np.diag(precision) - mean @ mean.T
        for a in range(M1):
            for b in range(a + 1):
                second = float(np.vdot(PC[a], C[b]))
                hessian[a, b] += second
                hessian[b, a] += second if a != b else 0
        step, size = np.linalg.lstsq(hessian, gradient, rcond=1e-10)[0], 1.0
        while size > 1e-4:
            new_loss, new_objective, new_p = evaluate(w - size * step)
            if new_objective <= objective:
                break
            size /= 2
        else:
            converged = True  # no descent left within float32
            break
        converged = objective - new_objective < 1e-6 * S
        w, loss, objective, p = w - size * step, new_loss, new_objective, new_p
        trace.append(objective)
    return Mixture(w, loss / S, trace, converged)


def weigh(zero_shot: np.ndarray, evidence: np.ndarray, alpha: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """100 x tᵀ + Σ_m α_m(x) E_m: (N, K), (M, N, K), alpha (M, domains), domains (K,) -> (N, K)."""
    if (alpha == alpha[:, :1]).all():
        return zero_shot + np.tensordot(alpha[:, 0].astype(np.float32), evidence, 1)
    posterior = softmax(zero_shot) @ np.eye(domains.max() + 1, dtype=np.float32)[domains]  # (N, domains)
    row_alpha = posterior @ alpha.T.astype(np.float32)  # (N, M)
    return zero_shot + (row_alpha.T[:, :, None] * evidence).sum(axis=0)


class EvidenceMethod(Method):
    """A method without training: a subclass reads evidence out of the shots, and its weights are found here.

    Weights given under the names in `evidence_names`, on the method's own scale, stay; None: leave-one-shot-out.
    `fixed` names the one setting that is no weight, with its value where nothing can be left out; `searched` has the
    values to try; `chosen_` has what was chosen.
    """

    evidence_names: ClassVar[tuple[str, ...]] = ("alpha",)
    fixed: ClassVar[dict[str, float]] = {}
    searched: ClassVar[Sequence[float]] = ()
    alpha: float | None = None
    state_dicts = ("chosen_",)

    def _learn(self, task: Task) -> None:
        """Set the learned arrays from all the shots, with the settings in `chosen_`."""
        raise NotImplementedError

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (M, N, K) from the learned arrays."""
        raise NotImplementedError

    def _evidence_of_fold(self, task: Task, fold: Fold, values: Sequence[float]) -> Iterator[np.ndarray]:
        """Evidence (M, n, K) of the n shots that the fold leaves out, for each value of the setting."""
        raise NotImplementedError

    def _scales(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Two (M,): factors from the published scale of α to one that does not depend on S; α on that one where nothing
        can be left out, which is also the mean of the fit's prior."""
        return np.ones(1), np.ones(1)

    def _fixed_settings(self, task: Task) -> dict[str, float]:
        """The settings where nothing can be left out; of those, what the user gave."""
        return {name: value if getattr(self, name) is None else float(getattr(self, name))
                for name, value in self.fixed.items()}

    def _candidates(self, task: Task) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        """(settings, held-out evidence (M, S, K)) for every value of the setting that is no weight."""
        name, = self.fixed
        values = self.searched if getattr(self, name) is None else (float(getattr(self, name)),)
        evidence = np.zeros((len(values), len(self.evidence_names), len(task), task.num_classes), np.float32)
        for fold in task.folds():
            for one, held_out in zip(evidence, self._evidence_of_fold(task, fold, values)):
                one[:, fold.left_out] = held_out
        yield from (({name: value}, one) for value, one in zip(values, evidence))

    def _fit(self, task: Task) -> None:
        zero_shot, task = task.zero_shot(task.features), task.evidence
        scale, alpha = self._scales(task)
        wanted = [getattr(self, name) for name in self.evidence_names]
        given = None not in wanted
        if given:
            alpha = np.asarray(wanted, float) * scale
        elif any(one is not None for one in wanted):
            raise ValueError(f"{self.name}: fix {' and '.join(self.evidence_names)} together, or none of them")
        self.alpha_ = np.tile(alpha[:, None], (1, int(task.domains.max()) + 1))
        if task.can_be_left_out.any():
            self._search(task, zero_shot, alpha, given)
        else:
            self.chosen_ = self._fixed_settings(task)
            self.settings_ = {**self.chosen_, "chosen_by": "fixed: one shot a class leaves nothing to leave out"}
        for name, values in zip(self.evidence_names, (self.alpha_ / scale[:, None]).tolist()):
            self.settings_[name] = values[0] if len(set(values)) == 1 else values
        self._learn(task)

    def _search(self, task: Task, zero_shot: np.ndarray, alpha: np.ndarray, given: bool) -> None:
        """Choose the settings whose held-out log-loss is least, and α where it was not given."""
        usable, (columns, labels) = task.can_be_left_out, task.seen_labels()
        labels, best = labels[usable], None
        for settings, evidence in self._candidates(task):
            C = np.concatenate([zero_shot[None], evidence])
            C = C if usable.all() and task.seen.all() else C[:, usable][:, :, columns]
            if given:  # only the temperature is fitted
                logits = C[0] + np.tensordot(alpha.astype(np.float32), C[1:], 1)
                mixture = fit_mixture(logits[None], labels, np.ones(1), np.ones(1))
            else:
                # weak prior, about as much as one shot could say: temperature 1, the published weight,
                # or whatever weight spreads a row's logits by 3 nats
                nats = 3 / np.maximum(C[1:].std(axis=2).mean(axis=1), 1e-6)
                mixture = fit_mixture(C, labels, np.r_[1.0, alpha], np.r_[1.0, np.maximum(3 * alpha, nats)],
                                      best[0].weights if best else None)
            if best is None or mixture.loss < best[0].loss:
                best = mixture, settings, evidence, C
        assert best is not None  # there is at least one candidate
        mixture, self.chosen_, evidence, C = best
        if not given:
            self.alpha_[:] = mixture.alpha[:, None]
            self._fit_domains(C, labels, task.domains[task.labels[usable]], mixture)
        self.fold_logits_ = weigh(zero_shot, evidence, self.alpha_, task.domains)
        self.settings_ = {**self.chosen_, "chosen_by": "given" if given else "leave-one-shot-out log-loss",
                          "held_out_log_loss": mixture.loss,
                          "held_out_top1": top1(self.fold_logits_[usable][:, columns], labels),
                          "temperature": float(1 / max(mixture.weights[0], 0.05))}
        self._record_converged(mixture.converged)

    def _fit_domains(self, C: np.ndarray, labels: np.ndarray, row_domains: np.ndarray, common: Mixture) -> None:
        domains, shots = np.unique(row_domains, return_counts=True)
        spread = DOMAIN_SPREAD * np.maximum(np.abs(common.weights), 1e-6)
        for domain in domains[shots >= DOMAIN_SHOTS] if len(domains) > 1 else ():
            rows = row_domains == domain
            self.alpha_[:, domain] = fit_mixture(C[:, rows], labels[rows], common.weights, spread).alpha

    def refit(self, task: Task) -> Any:
        other: Any = super().refit(task)
        if len(task):
            other._learn(task.evidence)
        return other

    def _logits(self, features: np.ndarray) -> np.ndarray:
        zero_shot = zero_shot_logits(features, self.text_, self.scale_)
        return weigh(zero_shot, self._evidence(self.evidence_rows(features)), self.alpha_, self.domains_)
