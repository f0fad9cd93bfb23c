"""A threshold certified by betting: sharper than Hoeffding-Bentkus where losses vary little.

The test (Waudby-Smith and Ramdas, `bounds.wsr_passes`) uses the spread of the losses, not their sum
alone, so there is no budget to search with. It may pass at one lambda and fail at a larger one:
a grid of lambdas, fixed before looking, is scanned from the safe end and left at the first failure
(fixed-sequence testing, arXiv 2110.01052).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.bounds import check_probability, probable_words, wsr_passes
from arbitrage.errors import UsageError, first_row
from arbitrage.loss_curves import (
    SHORTFALL,
    Prepared,
    as_rows,
    check_rows,
    loss_at,
    loss_quantum,
    prepared,
)
from arbitrage.losses import Loss
from arbitrage.rows import Rows
from arbitrage.selection import Levels, Number, exact_alphas, exact_number

# Losses held at once: rows times lambdas.
CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, eq=False)
class BettingCalibration:
    """Thresholds certified by betting.

    `threshold`, `empirical_risk`, `alpha` and `feasible` are scalars for a single alpha and arrays
    of shape (A,) for a sequence.

    Fields:
      threshold: float32, a point of the grid; +inf defers every row on its full menu.
      empirical_risk: float64, mean loss of the calibration rows at the threshold.
      alpha: float64, the risk level, in the Guardian's score units.
      feasible: bool. False: not even the full menu could be certified (with a loss that is 0
        there: n is too small). True with an infinite threshold: no finite lambda passed.
      bound: B, the largest possible loss.
      n: number of calibration rows.
      delta: probability that the true risk is above alpha.
      seed: of the permutation of the rows.
      loss: what was kept below alpha.
    """

    threshold: Any
    empirical_risk: Any
    alpha: Any
    feasible: Any
    bound: float
    n: int
    delta: float
    seed: int
    loss: Loss

    @property
    def guarantee(self) -> str:
        """What is guaranteed, and which alphas are infeasible."""
        levels, passed = np.atleast_1d(self.alpha), np.atleast_1d(self.feasible)
        good, bad = (", ".join(f"{a:g}" for a in levels[ok]) for ok in (passed, ~passed))
        parts = []
        if good:
            parts.append(probable_words(good, self.n, self.bound, self.delta, self.loss.words))
        if bad:
            parts.append(f"Infeasible with n = {self.n}, so every row is deferred: alpha = {bad}.")
        return " ".join(parts)


def calibrate_betting(
    primary,
    guardian,
    *,
    alpha: Levels,
    bound: Number,
    delta: float = 0.1,
    lambdas=None,
    seed: int = 0,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
) -> BettingCalibration:
    """The smallest lambda reached from the safe end with P(risk <= alpha) >= 1 - delta.

    Args:
      primary, guardian: (N, K) scores as in `calibrate`, independent and identically distributed
        rows.
      alpha: one risk level or several in (0, bound). Each is certified on its own.
      bound: B, an upper bound of the loss.
      delta: probability of error, in (0, 1).
      lambdas: (J,) increasing, >= 0, taken as float32; 0, 0.001, ..., 1 if None, which suits
        probabilities. Fix it BEFORE seeing the rows: thresholds taken from their gaps are not
        allowed. The full menu (+inf) is always added as the safe end.
      seed: fixes the order in which the rows are bet on. Choose it before looking: the best of
        several seeds has no guarantee.
      mask, label, loss: as in `calibrate`.

    Time O(N K J) at most; memory O(N K) and 2^20 losses.

    Raises UsageError for bad arguments, DataError naming the first row with bad content.
    """
    limit = exact_number(bound, "bound")
    alphas, single = exact_alphas(alpha, limit)
    check_probability("delta", delta)
    grid = _checked_grid(lambdas)
    rows = as_rows(primary, guardian, mask, label, loss)
    check_rows(rows, loss, limit)
    order = np.random.default_rng(seed).permutation(len(rows.primary))
    at = prepared(Rows(*(None if array is None else array[order] for array in rows)), loss)
    threshold, risk, feasible = _scan(at, grid, alphas, limit, delta)
    levels = np.array([float(level) for level in alphas])
    return BettingCalibration(
        threshold=threshold[0] if single else threshold,
        empirical_risk=float(risk[0]) if single else risk,
        alpha=float(levels[0]) if single else levels,
        feasible=bool(feasible[0]) if single else feasible,
        bound=float(limit),
        n=len(order),
        delta=delta,
        seed=seed,
        loss=loss,
    )


def losses_at(at: Prepared, lam: np.ndarray, bound: Fraction) -> np.ndarray:
    """(N, J) float64 in [0, 1]: L / B of each row at each of `lam`, (J,) float32.

    Losses are rounded up to quanta as everywhere; +inf is the full menu.
    """
    quantum = loss_quantum(bound)
    units = np.stack([loss_at(at, each, 1 / quantum) for each in lam], axis=1)
    return units / float(bound / Fraction(quantum))


def _scan(at: Prepared, grid, alphas: list[Fraction], bound: Fraction, delta: float):
    """Threshold, mean loss and feasibility of each alpha, (A,) each."""
    threshold = np.full(len(alphas), np.inf, dtype=np.float32)
    risk = np.full(len(alphas), losses_at(at, grid[-1:], bound).mean() * float(bound))
    feasible = np.zeros(len(alphas), dtype=bool)
    running = list(range(len(alphas)))
    # The safe end often decides alone where n is small: start narrow.
    width, stop = 8, len(grid)
    while running and stop:
        lam = grid[max(0, stop - width) : stop][::-1]
        loss = losses_at(at, lam, bound)
        for index in list(running):
            passes = wsr_passes(loss, float(alphas[index] / bound), delta)
            count = len(lam) if passes.all() else int(np.argmin(passes))
            if count:
                feasible[index] = True
                threshold[index] = lam[count - 1]
                risk[index] = loss[:, count - 1].mean() * float(bound)
            if count < len(lam):
                running.remove(index)
        stop -= len(lam)
        width = max(1, min(2 * width, CHUNK_CELLS // len(loss)))
    return threshold, risk, feasible


def _checked_grid(lambdas) -> np.ndarray:
    """(J,) float32, strictly increasing, ending in +inf."""
    if lambdas is None:
        lambdas = np.arange(1001) / 1000
    with np.errstate(over="ignore"):
        grid = np.asarray(lambdas, dtype=np.float32)
    if grid.ndim != 1 or not len(grid):
        raise UsageError(f"lambdas must have shape (J,) with J >= 1, not {grid.shape}")
    bad = first_row(~np.append(grid[:1] >= 0, grid[1:] > grid[:-1]))
    if bad is not None:
        raise UsageError(
            f"lambdas must be >= 0 and increase as float32; entry {bad} is {grid[bad]:g}"
        )
    return grid if grid[-1] == np.inf else np.append(grid, np.float32(np.inf))
