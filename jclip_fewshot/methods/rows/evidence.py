"""Zero-shot plus weighted evidence: how every training-free method decides, and how its weights are found.

    logits = 100 x tᵀ + Σ_m α_m(x) E_m(x)                                                    (N, K)

E_m is what the method reads out of the shots (Tip-Adapter's cache, GDA's discriminants, ...).

Symbols: C_0 = 100 x tᵀ, C_m = E_m the M evidences; w_0 the inverse temperature, w_m = w_0 α_m.

The weights come from the shots alone. Each shot is scored by evidence built without it (leave-one-shot-out);
then w minimises the cross-entropy of softmax(Σ w C), which is convex in w: a few Newton steps give the exact
optimum for all α at once, where a grid would score hundreds. Settings that are not linear (β, ...) are
compared by the loss that is left. Log-loss with a free temperature was chosen over held-out top-1 because
with four shots a class top-1 is a staircase whose best step is chance.

Domains: an image's α is the mean of its domains' α under zero-shot's posterior over domains, so that all
classes of a row share it. A domain's α is fitted on its own shots, drawn to the common one by a Gaussian
prior.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jclip_fewshot.backend.numerics import softmax
from jclip_fewshot.methods.base import DOMAIN_SHOTS, Method, top1
from jclip_fewshot.task import Task, zero_shot_logits

MAX_STEPS = 30
DOMAIN_SPREAD = 0.5  # prior standard deviation of a domain's weight around the common one, relative to it


@dataclass(frozen=True)
class Mixture:
    """The minimum of the regularised cross-entropy: weights (1 + M,), mean loss in nats, how it went."""

    weights: np.ndarray
    loss: float
    trace: tuple[float, ...]
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
    return Mixture(w, loss / S, tuple(trace), converged)


def domain_posterior(zero_shot: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """Zero-shot's probability that a row belongs to each domain: (N, K), (K,) -> (N, domains)."""
    membership = np.eye(domains.max() + 1, dtype=np.float32)[domains]
    return softmax(zero_shot) @ membership


def weigh(zero_shot: np.ndarray, evidence: np.ndarray, alpha: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """100 x tᵀ + Σ_m α_m(x) E_m: (N, K), (M, N, K), alpha (M, domains) -> (N, K)."""
    if (alpha == alpha[:, :1]).all():
        return zero_shot + np.tensordot(alpha[:, 0].astype(np.float32), evidence, 1)
    row_alpha = domain_posterior(zero_shot, domains) @ alpha.T.astype(np.float32)  # (N, M)
    return zero_shot + (row_alpha.T[:, :, None] * evidence).sum(axis=0)


class EvidenceMethod(Method):
    """A method without training. Subclasses read evidence from shots; the weights are found here.

    Domains with at least 40 held-out shots have their own α. Fixed weights, in the method's own scale, are given under
    the names in `evidence_names`; None: leave-one-shot-out. The other settings, once chosen, are in `chosen_`.
    """

    evidence_names: ClassVar[tuple[str, ...]] = ("alpha",)
    fixed_alpha: ClassVar[tuple[float, ...]] = (1.0,)  # where nothing can be left out, in the published scale
    fixed: ClassVar[dict[str, float]] = {}  # the settings that are no weight, where nothing can be left out
    alpha: float | None = None
    state_dicts = ("chosen_",)

    def _candidates(self, task: Task) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        """(settings, held-out evidence (M, S, K)) for every setting that is not a weight."""
        raise NotImplementedError

    def _fixed_settings(self, task: Task) -> dict[str, float]:
        """The settings where nothing can be left out; of those, what the user gave."""
        return {name: value if getattr(self, name) is None else float(getattr(self, name))
                for name, value in self.fixed.items()}

    def _learn(self, task: Task) -> None:
        """Set the learned arrays from all the shots, with the settings in `chosen_`."""
        raise NotImplementedError

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (M, N, K) from the learned arrays."""
        raise NotImplementedError

    def _alpha_scale(self, task: Task) -> np.ndarray:
        """Factor from the published scale of α to the evidence's, which does not depend on S: () or (M,)."""
        return np.ones(())

    def _fixed_alpha(self, task: Task) -> np.ndarray:
        """α in the evidence's scale where nothing can be left out, (M,); the mean of the fit's prior."""
        return np.asarray(self.fixed_alpha, float) * self._alpha_scale(task)

    def _fit(self, task: Task) -> None:
        zero_shot, task = task.zero_shot(task.features), task.evidence
        scale = np.broadcast_to(self._alpha_scale(task), len(self.evidence_names))
        wanted = [getattr(self, name) for name in self.evidence_names]
        if None in wanted and any(one is not None for one in wanted):
            raise ValueError(f"{self.name}: fix {' and '.join(self.evidence_names)} together, or none of them")
        given = None if None in wanted else np.asarray(wanted, float) * scale
        fixed = self._fixed_alpha(task) if given is None else given
        if task.can_be_left_out.any():
            settings = self._search(task, zero_shot, given, fixed)
        else:
            settings = self._fixed_settings(task)
            self.alpha_ = np.tile(fixed[:, None], (1, int(task.domains.max()) + 1))
            self.settings_ = {**settings, "chosen_by": "fixed: one shot a class leaves nothing to leave out"}
        for m, name in enumerate(self.evidence_names):
            values = (self.alpha_[m] / scale[m]).tolist()
            self.settings_[name] = values[0] if len(set(values)) == 1 else values
        self.chosen_ = settings
        self._learn(task)

    def _search(self, task: Task, zero_shot: np.ndarray, given: np.ndarray | None, fixed: np.ndarray
                ) -> dict[str, float]:
        """Return the settings whose held-out log-loss is least, and set α and what the held-out shots say."""
        usable, (columns, labels) = task.can_be_left_out, task.seen_labels()
        prior, best = np.r_[1.0, fixed], None
        for settings, evidence in self._candidates(task):
            C = np.concatenate([zero_shot[None], evidence])
            C = C if usable.all() and task.seen.all() else C[:, usable][:, :, columns]
            if given is None:
                # weak prior, about as much as one shot could say: temperature 1, the published weight,
                # or whatever weight spreads a row's logits by 3 nats
                nats = 3 / np.maximum(C[1:].std(axis=2).mean(axis=1), 1e-6)
                spread = np.r_[1.0, np.maximum(3 * fixed, nats)]
                mixture = fit_mixture(C, labels[usable], prior, spread, best[1].weights if best else None)
            else:  # only the temperature is fitted
                logits = C[0] + np.tensordot(given.astype(np.float32), C[1:], 1)
                mixture = fit_mixture(logits[None], labels[usable], np.ones(1), np.ones(1))
            if best is None or mixture.loss < best[1].loss:
                best = settings, mixture, evidence, C
        assert best is not None  # there is at least one candidate
        settings, mixture, evidence, C = best
        self.alpha_ = np.tile((mixture.alpha if given is None else given)[:, None], (1, int(task.domains.max()) + 1))
        if given is None:
            self._fit_domains(C, labels[usable], task.domains[task.labels[usable]], mixture)
        self.fold_logits_ = weigh(zero_shot, evidence, self.alpha_, task.domains)
        held_out = self.fold_logits_[usable][:, columns]
        self.settings_ = {**settings, "chosen_by": "leave-one-shot-out log-loss" if given is None else "given",
                          "held_out_log_loss": mixture.loss, "held_out_top1": top1(held_out, labels[usable]),
                          "temperature": float(1 / max(mixture.weights[0], 0.05))}
        self._record_converged(mixture.converged)
        return settings

    def _fit_domains(self, C: np.ndarray, labels: np.ndarray, row_domains: np.ndarray, common: Mixture) -> None:
        held_out_shots = np.bincount(row_domains, minlength=self.alpha_.shape[1])
        if np.count_nonzero(held_out_shots) < 2:
            return
        spread = DOMAIN_SPREAD * np.maximum(np.abs(common.weights), 1e-6)
        for domain in np.flatnonzero(held_out_shots >= DOMAIN_SHOTS):
            rows = row_domains == domain
            self.alpha_[:, domain] = fit_mixture(C[:, rows], labels[rows], common.weights, spread).alpha

    def _relearn(self, task: Task) -> None:
        self._learn(task.evidence)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        zero_shot = zero_shot_logits(features, self.text_, self.scale_)
        return weigh(zero_shot, self._evidence(self.evidence_rows(features)), self.alpha_, self.domains_)
