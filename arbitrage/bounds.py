"""What a threshold must pass: the expected-risk budget, and bounds that hold with probability.

A bound here is a p-value for the hypothesis "the risk is ABOVE alpha": a SMALL value speaks for
safety, and p <= delta certifies risk <= alpha with an error of probability at most delta. Bates et
al., arXiv 2101.02703 (risk-controlling prediction sets, RCPS); Angelopoulos et al., arXiv
2110.01052 (learn then test). The rows must be independent and identically distributed, and losses
and alpha are divided by their bound B first, so that both lie in [0, 1].

Hoeffding-Bentkus and binomial p-values grow with the mean loss. They are therefore the same search
as conformal risk control with another budget; the classes at the end are these budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import numpy as np

from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.selection import loss_budget

# Relative error allowed for p-values in float64: nearer to delta than this counts as failed.
ROUNDING = 1e-9
PValue = Callable[[Fraction, int, Fraction], float]
LOSS = "the loss of the deployed answer, in the Guardian's own score,"


def hoeffding_bentkus_p(mean_risk, n, alpha) -> Any:
    """p-value of "the risk is above alpha", for n independent losses in [0, 1].

    min( exp(-n h(min(r, alpha), alpha)),  e P(Bin(n, alpha) <= ceil(n r)),  1 ),
    h(a, b) = a ln(a/b) + (1-a) ln((1-a)/(1-b)), 0 ln 0 = 0   (arXiv 2110.01052)

    Args:
      mean_risk: r, mean loss, in [0, 1]; any shape. n r counts as a whole number where it is one
        up to 1e-12 of itself, the rounding error of a mean.
      n: number of rows. alpha: the level in (0, 1). Both broadcast with `mean_risk`.

    Returns float64 of the common shape. Zero risk gives (1 - alpha)^n exactly up to rounding.
    """
    mean_risk, n = np.asarray(mean_risk, dtype=np.float64), np.asarray(n, dtype=np.float64)
    return _hoeffding_bentkus(mean_risk, np.ceil(n * mean_risk * (1 - 1e-12)), n, alpha)


def _hoeffding_bentkus(mean_risk, whole, n, alpha) -> Any:
    from scipy.special import xlog1py

    level = np.asarray(alpha, dtype=np.float64)
    mean = np.minimum(mean_risk, level)
    # log1p of the difference: h is tiny where n is large, and n would multiply its rounding error.
    h = xlog1py(mean, (mean - level) / level) + xlog1py(1 - mean, (level - mean) / (1 - level))
    hoeffding = np.exp(-n * np.maximum(h, 0.0))
    return np.minimum(np.minimum(hoeffding, np.e * binomial_p(whole, n, level)), 1.0)


def binomial_p(count, n, alpha) -> Any:
    """p-value of "the risk is above alpha" for 0/1 losses: P(Bin(n, alpha) <= count), exact.

    `count` is the number of losses among n rows, 0..n; arguments broadcast; float64.
    """
    from scipy.special import betaincc

    count, n = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    below = np.minimum(count, n - 1)
    return np.where(count >= n, 1.0, betaincc(below + 1, n - below, np.asarray(alpha, float)))[()]


def _hoeffding_bentkus_total(total: Fraction, n: int, alpha: Fraction) -> float:
    return float(_hoeffding_bentkus(float(total / n), math.ceil(total), n, float(alpha)))


def _binomial_total(total: Fraction, n: int, alpha: Fraction) -> float:
    return float(binomial_p(math.ceil(total), n, float(alpha)))


def allowed_sum(
    p_value: PValue, n: int, alpha: Fraction, delta: float, units: Fraction | int
) -> int:
    """The largest whole S in 0..n*units whose p-value is at most delta; -1 without one.

    Args:
      p_value: of (S / units, n, alpha), the total loss being in units of B; must not fall as the
        total grows.
      n: number of rows.
      alpha: the level in units of B.
      delta: the allowed probability of error.
      units: B / quantum, the steps that the largest loss is divided into.

    By bisection. A p-value within 1e-9 of delta, relatively, counts as too large: float64 rounding
    must not decide for the unsafe side.
    """
    limit = delta * (1 - ROUNDING)
    passed, failed = -1, math.floor(n * units) + 1
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if p_value(Fraction(middle) / units, n, alpha) <= limit:
            passed = middle
        else:
            failed = middle
    return passed


def wsr_log_capital(losses, alpha: float, delta: float) -> np.ndarray:
    """Log capital of a bettor against "the risk is above alpha", after each row.

    mu_i = (1/2 + sum_{j<=i} L_j) / (i+1),  s_i = (1/4 + sum_{j<=i} (L_j - mu_j)^2) / (i+1),
    nu_i = min(1, sqrt(2 ln(1/delta) / (n s_{i-1}))), s_0 = 1/4,
    ln K_i = sum_{j<=i} ln(1 - nu_j (L_j - alpha))
    (Waudby-Smith and Ramdas, arXiv 2010.09686, one-sided; used for RCPS in arXiv 2101.02703)

    Args:
      losses: (n, ...) in [0, 1], rows in an order fixed before looking at them: K depends on it.
      alpha: the level in (0, 1).
      delta: tunes the bets for a test at this level; any value gives a valid capital.

    Returns (n, ...) float64. If the risk is above alpha, P(max_i K_i >= 1/d) <= d for every d.
    Raises DataError naming the first row with a loss outside [0, 1].
    """
    check_probability("alpha", alpha)
    check_probability("delta", delta)
    loss = np.asarray(losses, dtype=np.float64)
    n = len(loss)
    row = first_row(~((loss >= 0) & (loss <= 1)).reshape(n, math.prod(loss.shape[1:])))
    if row is not None:
        raise DataError(f"row {row}: a loss lies outside [0, 1]; divide losses by their bound", row)
    counts = np.arange(2.0, n + 2).reshape(n, *[1] * (loss.ndim - 1))
    mean = (0.5 + np.cumsum(loss, axis=0)) / counts
    spread = (0.25 + np.cumsum((loss - mean) ** 2, axis=0)) / counts
    # The bet on row i may only know the rows before it.
    before = np.concatenate([np.full_like(spread[:1], 0.25), spread[:-1]])
    bet = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (n * before)))
    return np.cumsum(np.log1p(-bet * (loss - alpha)), axis=0)


def wsr_p(losses, alpha: float, delta: float) -> Any:
    """p-value of "the risk is above alpha": min(1, 1 / max_i K_i). Arguments as above.

    Returns float64 of shape losses.shape[1:]. By Ville's inequality it is valid at every level;
    `delta` only tunes the bets.
    """
    best = wsr_log_capital(losses, alpha, delta).max(axis=0, initial=0.0)
    return np.exp(-best)[()]


def wsr_passes(losses, alpha: float, delta: float) -> Any:
    """Whether max_i K_i > 1/delta: risk <= alpha is certified with error at most delta.

    Returns bool of shape losses.shape[1:]. It may pass at one lambda and fail at a larger one, so
    lambdas must be scanned from the safe end of a fixed grid, not bisected.
    """
    return wsr_p(losses, alpha, delta) <= delta * (1 - ROUNDING)


class Control(Protocol):
    """What a calibration promises, as the largest total loss that it allows.

    `alpha` and `bound` (B) are in the loss's own units; a total is counted in whole quanta, losses
    having been rounded UP to quanta.
    """

    name: ClassVar[str]
    binary_only: ClassVar[bool]

    def budget(self, alpha: Fraction, bound: Fraction, n: int, quantum: float) -> int:
        """The largest allowed loss sum of n rows in quanta; below 0: no loss is small enough."""
        ...

    def rows_needed(self, alpha: Fraction, bound: Fraction) -> int:
        """The smallest n whose budget is not negative."""
        ...

    def words(self, alphas: str, n: int, bound: float, what: str = LOSS) -> str:
        """The guarantee in words.

        `alphas` is one level or several, separated by commas; `what` is kept at most alpha and
        stands before "is" (`losses.Loss.words`).
        """
        ...


@dataclass(frozen=True)
class ExpectedRisk:
    """Conformal risk control: E[L] <= alpha for exchangeable rows (arXiv 2208.02814, Theorem 1)."""

    name: ClassVar[str] = "crc"
    binary_only: ClassVar[bool] = False

    def budget(self, alpha: Fraction, bound: Fraction, n: int, quantum: float) -> int:
        """floor((alpha (n + 1) - B) / quantum)."""
        return loss_budget(alpha, bound, n, quantum)

    def rows_needed(self, alpha: Fraction, bound: Fraction) -> int:
        """The smallest n >= B / alpha - 1."""
        return math.ceil(bound / alpha - 1)

    def words(self, alphas: str, n: int, bound: float, what: str = LOSS) -> str:
        """The marginal guarantee, and what it does not say."""
        return (
            f"Averaged over the draw of the {n} calibration rows and of one new row exchangeable "
            f"with them, {what} is at most alpha = {alphas} (losses within [0, {bound:g}]). This "
            "is marginal: it is not a promise for one question, one group or one calibration set, "
            "and right answers count only as far as the Guardian's score knows them."
        )


@dataclass(frozen=True)
class HoeffdingBentkus:
    """P(risk <= alpha) >= 1 - delta for any independent losses in [0, B]; RCPS.

    Raises UsageError for a delta outside (0, 1).
    """

    delta: float = 0.1
    name: ClassVar[str] = "hoeffding_bentkus"
    binary_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_probability("delta", self.delta)

    def budget(self, alpha: Fraction, bound: Fraction, n: int, quantum: float) -> int:
        """The largest sum whose Hoeffding-Bentkus p-value is at most delta; -1 without one."""
        units = bound / Fraction(quantum)
        return allowed_sum(_hoeffding_bentkus_total, n, alpha / bound, self.delta, units)

    def rows_needed(self, alpha: Fraction, bound: Fraction) -> int:
        """The smallest n with (1 - alpha / B)^n <= delta."""
        return _rows_for_zero_loss(_hoeffding_bentkus_total, alpha / bound, self.delta)

    def words(self, alphas: str, n: int, bound: float, what: str = LOSS) -> str:
        """The guarantee with probability, and what it does not say."""
        return probable_words(alphas, n, bound, self.delta, what)


@dataclass(frozen=True)
class ExactBinomial:
    """As `HoeffdingBentkus`, sharper, for losses that are 0 or B and NOTHING between.

    The caller checks the losses: with others the bound does not hold. Raises UsageError for a delta
    outside (0, 1).
    """

    delta: float = 0.1
    name: ClassVar[str] = "binomial"
    binary_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability("delta", self.delta)

    def budget(self, alpha: Fraction, bound: Fraction, n: int, quantum: float) -> int:
        """B in quanta, rounded up as losses are, times the largest number of losses allowed."""
        count = allowed_sum(_binomial_total, n, alpha / bound, self.delta, 1)
        return -1 if count < 0 else count * math.ceil(bound / Fraction(quantum))

    def rows_needed(self, alpha: Fraction, bound: Fraction) -> int:
        """The smallest n with (1 - alpha / B)^n <= delta."""
        return _rows_for_zero_loss(_binomial_total, alpha / bound, self.delta)

    def words(self, alphas: str, n: int, bound: float, what: str = LOSS) -> str:
        """The guarantee with probability, and what it does not say."""
        return probable_words(alphas, n, bound, self.delta, what)


def probable_words(alphas: str, n: int, bound: float, delta: float, what: str = LOSS) -> str:
    """The guarantee of every bound with a delta."""
    alone = " Each alpha holds with this probability on its own." if "," in alphas else ""
    return (
        f"With probability at least {1 - delta:g} over the draw of the {n} calibration rows "
        f"(independent and identically distributed), {what} is on average over new rows from the "
        f"same source at most alpha = {alphas} (losses within [0, {bound:g}]).{alone} It is a mean "
        "over new rows, not a promise for one question or one group, and right answers count only "
        "as far as the Guardian's score knows them."
    )


def _rows_for_zero_loss(p_value: PValue, alpha: Fraction, delta: float) -> int:
    # The closed form can be one off where the powers meet delta; `allowed_sum` has the last word.
    n = max(1, math.ceil(math.log(delta) / math.log1p(-float(alpha))) - 1)
    while p_value(Fraction(0), n, alpha) > delta * (1 - ROUNDING):
        n += 1
    return n


def check_probability(name: str, value: float) -> None:
    """Raises UsageError unless 0 < value < 1."""
    if isinstance(value, (bool, str)) or not 0 < value < 1:
        raise UsageError(f"{name} must lie strictly between 0 and 1, not {value!r}")
