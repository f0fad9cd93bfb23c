"""Thresholds from weighted rows: known covariate shift, and rows that count less with age.

    lam(w) = inf{ lam >= 0 : sum_i w_i L_i(lam) + w B <= alpha (W + w) },   W = sum_i w_i

for a new row of weight w (conformal risk control, arXiv 2208.02814, Prop. 2). Weights are turned
into whole numbers of 2^-30 of the largest: rounded UP where they multiply a loss and DOWN in
alpha (W + w), so that the sums are exact integers, the same for any order of the rows, and never on
the unsafe side. Letters: N rows, M events, A levels, T new rows.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from arbitrage.errors import DataError, InfeasibleWarning, UsageError, first_row
from arbitrage.loss_curves import SHORTFALL, LossCurves, as_rows, curves_of, loss_at, prepared
from arbitrage.losses import Loss
from arbitrage.risk import MARGINAL, Calibration, CalibrationRequest
from arbitrage.selection import Levels, Number

WEIGHT_DIGITS = 30
# Products of a weight and a loss are below 2^62; their sums are held as two halves of 31 bits.
HALF = 31
REST = (1 << HALF) - 1


@dataclass(frozen=True, eq=False)
class WeightedThresholds:
    """The threshold of each level for each new row.

    Fields:
      threshold: (A,) float32 for one test weight, (A, T) for several; +inf where infeasible.
      feasible: bool of the same shape. Without losses on the full menu: w <= alpha W / (B - alpha).
    """

    threshold: np.ndarray
    feasible: np.ndarray


def weighted_thresholds(
    curves: LossCurves, weights, test_weight, alphas: Sequence[Fraction], bound: Fraction
) -> WeightedThresholds:
    """lam(w) of each level, exactly: 0, one of the gaps, or +inf.

    Args:
      curves: step functions of the N calibration rows.
      weights: (N,) finite numbers >= 0, not all 0: dP_new / dP_calibration of each row, up to one
        common factor. They must not depend on the losses.
      test_weight: the same ratio of the new row, a scalar or (T,); +inf is infeasible.
      alphas: levels in (0, bound), exact.
      bound: B, exact.

    If all weights are equal it is the unweighted threshold. See `covariate_shift_words` for the
    guarantee. Time O(M log M + T' log M) for T' different test weights.

    Raises UsageError for shapes and bad test weights, DataError naming the first row with a bad
    weight.
    """
    row_weights, largest = _checked_weights(weights, curves.n)
    tests = np.asarray(test_weight, dtype=np.float64)
    if tests.ndim > 1 or not (tests >= 0).all():
        raise UsageError("test_weight must be one number >= 0 or an array (T,) of them")
    # Fewer digits where the bound has many quanta, so that products stay below 2^62.
    digits = min(WEIGHT_DIGITS, 61 - math.ceil(bound / Fraction(curves.quantum)).bit_length())
    down, up = _whole_weights(row_weights, largest, digits)
    gap, high, low = _weighted_steps(curves, up)
    weight_sum = _exact_sum(down)

    def total(step: int) -> int:
        return (int(high[step]) << HALF) + int(low[step])

    each, where = np.unique(tests.reshape(-1), return_inverse=True)
    threshold = np.full((len(alphas), len(each)), np.inf, dtype=np.float32)
    feasible = np.zeros(threshold.shape, dtype=bool)
    for column, weight in enumerate(each.tolist()):
        if weight == math.inf:
            continue
        share = Fraction(weight) / Fraction(largest) * 2**digits
        for row, alpha in enumerate(alphas):
            budget = alpha * (weight_sum + math.floor(share)) - bound * math.ceil(share)
            allowed = math.floor(budget / Fraction(curves.quantum))
            # Totals fall with the step, so their negatives are in increasing order.
            step = bisect_left(range(len(gap)), -allowed, key=lambda j: -total(j))
            if step < len(gap):
                threshold[row, column], feasible[row, column] = gap[step], True
    shape = (len(alphas), *tests.shape)
    return WeightedThresholds(threshold[:, where].reshape(shape), feasible[:, where].reshape(shape))


def non_exchangeable_thresholds(
    curves: LossCurves, weights, alphas: Sequence[Fraction], bound: Fraction
) -> WeightedThresholds:
    """inf{ lam : sum_i w_i L_i(lam) + B <= alpha (N_w + 1) }, N_w = sum_i w_i, of each level.

    For rows that resemble the new one more or less (Farinhas et al., arXiv 2310.01262): recent rows
    with weights near 1, old ones near 0. `weights` is (N,) in [0, 1], fixed without looking at the
    rows' scores; all 1 is plain conformal risk control. Results have shape (A,). See
    `non_exchangeable_words` for the guarantee.

    Raises as `weighted_thresholds`; DataError for a weight above 1.
    """
    row_weights, _ = _checked_weights(weights, curves.n)
    row = first_row(row_weights > 1)
    if row is not None:
        raise DataError(f"row {row}: weight {row_weights[row]:g} is above 1", row)
    return weighted_thresholds(curves, row_weights, 1.0, alphas, bound)


def calibrate_weighted(
    primary,
    guardian,
    *,
    weights,
    test_weight: float,
    alpha: Levels,
    bound: Number,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
) -> Calibration:
    """`calibrate` for new questions that are distributed differently (covariate shift).

    The thresholds serve every new row whose likelihood ratio is at most `test_weight`: they do not
    fall as it grows (arXiv 2208.02814, Prop. 2). For one threshold per new row use
    `weighted_thresholds`. `weights` and the errors are as there, the rest as in `calibrate`;
    `empirical_risk` is the weighted mean. Warns InfeasibleWarning as `calibrate`.
    """
    request = CalibrationRequest.of(alpha, bound, loss, MARGINAL)
    rows = as_rows(primary, guardian, mask, label, loss)
    curves = curves_of(rows, loss, request.bound)
    found = weighted_thresholds(curves, weights, test_weight, request.alphas, request.bound)
    levels = np.array([float(level) for level in request.alphas])
    good = ", ".join(f"{level:g}" for level in levels[found.feasible])
    bad = ", ".join(f"{level:g}" for level in levels[~found.feasible])
    parts = [covariate_shift_words(good, curves.n, float(request.bound))] if good else []
    if bad:
        parts.append(
            f"alpha = {bad} is infeasible for new rows with weight {test_weight:g} among n = "
            f"{curves.n}: every row is deferred; more rows or a smaller test weight would do."
        )
        warnings.warn(parts[-1], InfeasibleWarning, stacklevel=2)
    at, scale = prepared(rows, loss), 1 / curves.quantum
    units = [np.asarray(loss_at(at, limit, scale), np.float64) for limit in found.threshold]
    risk = np.array([np.average(u, weights=weights) * curves.quantum for u in units])
    one = request.single
    return Calibration(
        threshold=found.threshold[0] if one else found.threshold,
        empirical_risk=float(risk[0]) if one else risk,
        alpha=float(levels[0]) if one else levels,
        bound=float(request.bound),
        n=curves.n,
        quantum=curves.quantum,
        feasible=bool(found.feasible[0]) if one else found.feasible,
        loss=loss.name,
        method="crc_weighted",
        guarantee=" ".join(parts),
    )


def covariate_shift_words(alphas: str, n: int, bound: float) -> str:
    """The guarantee of `weighted_thresholds`, and where it ends."""
    return (
        f"Averaged over the draw of the {n} calibration rows and of one new row, both independent "
        "and differing only in the distribution of the question as the weights say, the loss of "
        f"the deployed answer is at most alpha = {alphas} (losses within [0, {bound:g}]). This "
        "holds for weights that are known; with estimated weights there is no finite-sample "
        "guarantee. It is marginal: not a promise for one question, one group or one calibration "
        "set."
    )


def non_exchangeable_words(alphas: str, n: int, bound: float) -> str:
    """The guarantee of `non_exchangeable_thresholds`."""
    return (
        f"Averaged over the draw of the {n} calibration rows and of one new row, the loss of the "
        f"deployed answer is at most alpha = {alphas} plus {bound:g} times the sum over rows of "
        "w_i / (1 + sum of weights) times the total variation distance between the data and the "
        "data with row i and the new row exchanged. Rows exchangeable with the new one add "
        "nothing; how much others add is not known from the data."
    )


def _checked_weights(weights, n: int) -> tuple[np.ndarray, float]:
    """(N,) float64 and the largest of them."""
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise UsageError(f"weights must have shape ({n},), one for each row, not {values.shape}")
    row = first_row(~((values >= 0) & (values < np.inf)))
    if row is not None:
        raise DataError(f"row {row}: weight {values[row]:g} is not a finite number >= 0", row)
    largest = float(values.max())
    if largest == 0:
        raise DataError("row 0: all weights are 0; at least one row must count", 0)
    return values, largest


def _whole_weights(values: np.ndarray, largest: float, digits: int):
    """values / largest * 2^digits rounded down and up, (N,) int64 each, exactly."""
    scaled = values / largest * 2.0**digits
    down, up = np.floor(scaled).astype(np.int64), np.ceil(scaled).astype(np.int64)
    # The division was rounded, by less than 2^-22: decide next to whole numbers exactly.
    near = np.nonzero(np.abs(scaled - np.rint(scaled)) < 2.0**-20)[0]
    each, where = np.unique(values[near], return_inverse=True)
    exact = [Fraction(value) / Fraction(largest) * 2**digits for value in each.tolist()]
    down[near] = np.array([math.floor(share) for share in exact], dtype=np.int64)[where]
    up[near] = np.array([math.ceil(share) for share in exact], dtype=np.int64)[where]
    return down, up


def _weighted_steps(curves: LossCurves, weight: np.ndarray):
    """sum_i w_i L_i after each event: gap (M + 1,) float32, first 0, and two halves, int64.

    The sum is high * 2^31 + low; both halves are below 2^62 for fewer than 2^31 events. Inside a
    run of equal gaps the sum is that of no lambda, but the first event whose sum is small enough
    has the right gap all the same.
    """
    order = np.argsort(curves.gap)
    removed = weight[curves.row[order]] * curves.drop[order]
    start = _exact_sum(weight * curves.base)
    return (
        np.concatenate([np.zeros(1, np.float32), curves.gap[order]]),
        np.append(start >> HALF, (start >> HALF) - np.cumsum(removed >> HALF)),
        np.append(start & REST, (start & REST) - np.cumsum(removed & REST)),
    )


def _exact_sum(values: np.ndarray) -> int:
    """Sum of int64 values in [0, 2^62) without overflow."""
    return (int((values >> HALF).sum()) << HALF) + int((values & REST).sum())
