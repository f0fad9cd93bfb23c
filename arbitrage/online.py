"""A threshold that follows the stream: no exchangeability, a bound for ANY sequence of losses.

    lam_{t+1} = max(0, lam_t + eta (L_t - alpha)),   the full menu wherever lam_t >= lambda_max

(in the manner of Gibbs and Candes, arXiv 2106.00170). Since L_t = 0 on the full menu, lam_t never
exceeds lambda_max + eta (B - alpha), and adding up the steps gives for every T

    mean_{t<=T} L_t - alpha <= (lambda_max + eta (B - alpha) - lam_1) / (eta T).

L_t needs the Guardian's scores of the whole menu, also where the Primary acts alone. If they are
asked for with a known probability pi only, independently of everything else, A_t L_t / pi takes
their place: B becomes B / pi in the bound, which then holds for the expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from arbitrage.candidates import array_namespace
from arbitrage.errors import UsageError


class OnlineState(NamedTuple):
    """Scalars, NumPy or JAX; a pytree that `jax.lax.scan` can carry.

    Fields:
      threshold: lam_t >= 0, in the Primary's score units.
      loss_sum: sum of the (weighted) losses so far.
      steps: number of updates so far.
      threshold_rest, loss_rest: what rounding took away, so that float32 steps do not get lost.
    """

    threshold: Any
    loss_sum: Any
    steps: Any
    threshold_rest: Any
    loss_rest: Any

    @property
    def mean_loss(self) -> Any:
        """Mean (weighted) loss so far; NaN before the first step."""
        return self.loss_sum / self.steps


@dataclass(frozen=True)
class OnlineControl:
    """The update rule and its bound.

    Fields:
      alpha: the level that the mean loss is driven to, in (0, bound).
      eta: step size > 0, in threshold units per loss unit. Larger follows drift faster and makes
        the bound smaller for small T; smaller keeps the threshold steadier.
      lambda_max: > 0, from here on the full menu is shown; at least the largest gap that still
        matters, 1 for probabilities.
      bound: B, an upper bound of the loss; the loss on the full menu must be 0.
      audit_probability: pi in (0, 1], the probability that the loss of a step is observed.

    Raises UsageError for a value out of range.
    """

    alpha: float
    eta: float
    lambda_max: float
    bound: float = 1.0
    audit_probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "eta", "lambda_max", "bound", "audit_probability"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise UsageError(f"{name} must be a finite number above 0, not {value!r}")
        if self.alpha >= self.bound:
            raise UsageError(
                f"alpha must lie strictly between 0 and the bound {self.bound:g}, not "
                f"{self.alpha:g}"
            )
        if self.audit_probability > 1:
            raise UsageError(f"audit_probability must be at most 1, not {self.audit_probability:g}")

    def init(self, threshold: float = 0.0) -> OnlineState:
        """The state before the first row, in float64; inside JAX it takes the default float type.

        `threshold` is lam_1, from an offline calibration for example; +inf starts at lambda_max.
        """
        if not threshold >= 0:
            raise UsageError(f"threshold must be a number >= 0, not {threshold!r}")
        zero = np.float64(0)
        start = np.float64(min(float(threshold), self.lambda_max))
        return OnlineState(start, zero, np.int64(0), zero, zero)

    def threshold(self, state: OnlineState) -> Any:
        """The threshold to route the next row with: +inf, the full menu, from lambda_max on."""
        xp = array_namespace(state.threshold)
        return xp.where(state.threshold >= self.lambda_max, np.inf, state.threshold)[()]

    def update(self, state: OnlineState, loss, audited=True) -> OnlineState:
        """The state after a row whose loss at `threshold(state)` was `loss`.

        `loss` is a scalar in [0, bound]; `audited` says whether it was observed (if not, `loss` is
        ignored and may be NaN). Pure: NumPy or JAX, also under `jit`, `vmap` and `scan`. The loss
        must be that of the threshold in `state`: updates that come late have no guarantee.
        """
        xp = array_namespace(state.threshold, loss, audited)
        seen = xp.where(audited, loss, 0.0) / self.audit_probability
        step = self.eta * (seen - self.alpha)
        lam, rest = _add(state.threshold, state.threshold_rest, step)
        negative = lam + rest < 0
        total, total_rest = _add(state.loss_sum, state.loss_rest, seen)
        return OnlineState(
            threshold=xp.where(negative, 0.0, lam),
            loss_sum=total,
            steps=state.steps + 1,
            threshold_rest=xp.where(negative, 0.0, rest),
            loss_rest=total_rest,
        )

    def regret_bound(self, steps: int, threshold: float = 0.0) -> float:
        """The largest possible mean_t L_t - alpha after `steps` updates from lam_1 = `threshold`.

        (lambda_max + eta (B / pi - alpha) - lam_1) / (eta T). It holds for every sequence where all
        losses are observed; otherwise for the mean weighted loss of every sequence, and for the
        expected mean loss.
        """
        if steps < 1:
            raise UsageError(f"steps must be at least 1, not {steps!r}")
        start = min(float(threshold), self.lambda_max)
        largest = self.bound / self.audit_probability
        return (self.lambda_max + self.eta * (largest - self.alpha) - start) / (self.eta * steps)

    def words(self, steps: int, threshold: float = 0.0) -> str:
        """The guarantee in words."""
        limit = self.alpha + self.regret_bound(steps, threshold)
        whose = "the mean loss"
        if self.audit_probability < 1:
            whose = "the expected mean loss (over the draw of the audits)"
        return (
            f"For any sequence of rows, however they drift, {whose} of the first {steps} rows is "
            f"at most {limit:.6g} (alpha = {self.alpha:g}, losses within [0, {self.bound:g}]), "
            "provided that each loss is fed back before the next row is routed and that the full "
            "menu has loss 0. It says nothing about one row or about the threshold that is reached."
        )


def _add(high, low, step):
    """(high + low) + step as a rounded sum and the part that rounding took away (Knuth)."""
    step = step + low
    total = high + step
    part = total - high
    return total, (high - (total - part)) + (step - part)
