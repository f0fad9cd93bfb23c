"""The exact threshold from the step functions: one sort, integer sums, any number of alphas.

    lambda_hat = inf{ lam >= 0 : sum_i L_i(lam) + B <= alpha (n + 1) }

(conformal risk control, Angelopoulos et al., arXiv 2208.02814, Theorem 1). The sum only changes at
gaps, so the infimum is 0 or one of the gaps, and no grid is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.errors import UsageError
from arbitrage.loss_curves import LossCurves, loss_quantum

Number = float | int | str | Decimal | Fraction
Levels = Number | Iterable[Number] | np.ndarray


def exact_number(value: Any, name: str) -> Fraction:
    """The number as it is written in decimal: 0.1 is 1/10, not the binary float next to it.

    Equality counts in the selection: alpha = 0.1 and n = 9 leave a budget of exactly 0 for B = 1.
    """
    if isinstance(value, Fraction):
        return value
    try:
        number = float(value)
        if isinstance(value, (bool, np.bool_)) or not math.isfinite(number):
            raise ValueError
        # An exponent like 1e-999999999 must not be expanded.
        return Fraction(str(value)) if number else Fraction(0)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name} must be a finite number, not {value!r}") from None


def exact_alphas(alpha: Any, bound: Fraction) -> tuple[list[Fraction], bool]:
    """The risk levels as exact numbers, and whether `alpha` was a single one.

    Raises UsageError for a level outside (0, bound), an empty sequence, or a bad bound.
    """
    loss_quantum(bound)
    # A string is one level, and so is an array without dimensions.
    single = isinstance(alpha, str) or getattr(alpha, "ndim", 1) == 0
    single = single or not isinstance(alpha, Iterable)
    levels = [exact_number(value, "alpha") for value in ([alpha] if single else alpha)]
    if not levels:
        raise UsageError("alpha: give at least one risk level")
    for level in levels:
        if not 0 < level < bound:
            raise UsageError(
                f"alpha must lie strictly between 0 and the bound {float(bound):g}, not "
                f"{float(level):g}"
            )
    return levels, single


def loss_budget(alpha: Fraction, bound: Fraction, n: int, quantum: float) -> int:
    """floor((alpha (n + 1) - B) / quantum): the largest integer loss sum that is allowed."""
    return math.floor((alpha * (n + 1) - bound) / Fraction(quantum))


@dataclass(frozen=True, eq=False)
class RiskSteps:
    """The sum of all losses as one step function of lambda.

    Fields:
      thresholds: (J,) float32, increasing, the first is 0.
      totals: (J,) int64, decreasing: sum_i L_i(thresholds[j]) in units of `quantum`.
      n: number of examples.
      quantum: the unit.
    """

    thresholds: np.ndarray
    totals: np.ndarray
    n: int
    quantum: float

    @property
    def risk(self) -> np.ndarray:
        """(J,) float64: mean loss at each threshold."""
        return self.totals * self.quantum / self.n


def risk_steps(curves: LossCurves) -> RiskSteps:
    """Adds up the step functions. O(M log M); the order of the rows does not matter."""
    order = np.argsort(curves.gap)
    gap, removed = curves.gap[order], np.cumsum(curves.drop[order])
    # Inside a run of equal gaps the sum is that of no lambda: read it at the end of each run.
    ends = np.nonzero(np.append(gap[1:] != gap[:-1], True))[0] if len(gap) else np.array([], int)
    start = curves.base.sum(dtype=np.int64)
    return RiskSteps(
        thresholds=np.concatenate([np.zeros(1, np.float32), gap[ends]]),
        totals=np.concatenate([[start], start - removed[ends]]),
        n=curves.n,
        quantum=curves.quantum,
    )


@dataclass(frozen=True, eq=False)
class Selection:
    """The threshold of each risk level, all arrays of shape (A,).

    Fields:
      threshold: float32; +inf where infeasible (always defer on the full menu).
      total: int64, the loss sum at the threshold, in quanta.
      feasible: bool, whether any threshold is within the budget.
    """

    threshold: np.ndarray
    total: np.ndarray
    feasible: np.ndarray


def select(steps: RiskSteps, budgets: Sequence[int]) -> Selection:
    """The smallest threshold whose loss sum is within each budget (in quanta); equality passes."""
    # Searchsorted needs increasing totals; a budget below the last total has no threshold.
    wanted = [-min(budget, int(steps.totals[0])) for budget in budgets]
    first = np.searchsorted(-steps.totals, np.array(wanted, dtype=np.int64), side="left")
    feasible = first < len(steps.totals)
    first = np.minimum(first, len(steps.totals) - 1)
    return Selection(
        threshold=np.where(feasible, steps.thresholds[first], np.float32(np.inf)),
        total=steps.totals[first],
        feasible=feasible,
    )
