"""From scores to step functions: how each example's loss falls as lambda grows.

Per example, with Primary scores p, Guardian scores g over its valid options, and a loss family
(`losses`) that turns g into values v and a target:

    gap_a   = max p - p_a >= 0
    C_lam   = {a : gap_a <= lam}
    L(lam)  = target - max_{a in C_lam} v_a       (v = g, target = max g in arXiv 2506.00911, Eq. 2)

L is right-continuous and non-increasing, and jumps only at gaps: a base loss at lam = 0 and a list
of (gap, drop) events say all of it.  Losses are whole numbers of quanta, rounded up, so that sums
are associative: no order of rows, chunks, devices or hosts changes a bit.  Letters: N examples,
K options, M events.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from arbitrage.candidates import TINY, array_namespace, columns, exact_difference, gap_columns
from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.losses import GuardianShortfall, Loss
from arbitrage.rows import Rows
from arbitrage.threads import pipelined

CHUNK_ROWS = 1 << 14
MAX_ROWS = (1 << 31) - 1
MAX_BOUND = 1 << 30
# What a loss counts as when it does not fit 32 bits; it is above every bound.
TOO_LARGE = np.uint32(0xFFFFFFFF)
SHORTFALL = GuardianShortfall()
# Up to here comparing all pairs of options is cheaper than sorting each row.
PAIRWISE_OPTIONS = 16


def loss_quantum(bound: Fraction) -> float:
    """2^(floor(log2 B) - 30): at most 2^-30 of the bound, and a loss fits 32 bits.

    With at most 2^31 - 1 rows every sum fits 62 bits. Raises UsageError for a bound outside
    [2^-60, 2^30], where float32 scores could not be scaled exactly.
    """
    if not Fraction(1, 2**60) <= bound <= MAX_BOUND:
        raise UsageError(
            f"bound must be a number from 2^-60 to 2^30, not {float(bound):g}: rescale the "
            "Guardian's scores"
        )
    exponent = math.frexp(float(bound))[1]
    if Fraction(2) ** (exponent - 1) > bound:  # the float was rounded up to a power of two
        exponent -= 1
    return 2.0 ** (exponent - 1 - 30)


def ceil_units(high, low, scale) -> Any:
    """ceil((high - low) * scale) as uint32, exactly, for float32 arrays; 0 where low >= high.

    `scale` is a power of two, so the products are exact; what rounding takes from their difference
    is recovered, so that no 64-bit number is involved. What does not fit becomes `TOO_LARGE`.
    """
    xp = array_namespace(high, low)
    scale = np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        difference, lost = exact_difference(high * scale, low * scale)
        whole = xp.ceil(difference)
        # Rounding moves a number by less than its distance to the next whole one, if it is not one.
        more = xp.where(whole == difference, xp.ceil(lost), np.float32(0))
        units = whole.astype(np.uint32) + more.astype(np.int32).astype(np.uint32)
        # The rounded difference is good enough to tell 2^31 from 2^32; NaN counts as too large.
        units = xp.where(difference < np.float32(3 * 2**30), units, TOO_LARGE)
    # At least 1, also where XLA has rounded the difference of two tiny numbers to zero.
    return xp.where(high > low, xp.maximum(units, np.uint32(1)), np.uint32(0))


def costs_more(high, low, limit) -> Any:
    """Whether high - low > limit[0] + limit[1], exactly, for float32 arrays; true for NaN."""
    difference, lost = exact_difference(high, low)
    within = (difference < limit[0]) | ((difference == limit[0]) & (lost <= limit[1]))
    return ~within


class Prepared(NamedTuple):
    """What every statistic of n rows is made of; `gap`, `value` and `valid` hold K arrays (n,).

    `valid` is None where all options are. Options that are not valid have gap +inf, value -inf.
    """

    gap: Sequence[Any]
    value: Sequence[Any]
    target: Any
    valid: Sequence[Any] | None


def prepared(rows: Rows, loss: Loss) -> Prepared:
    """The gaps and the values of a loss family.

    Guardian scores below the smallest normal float32 count as 0, in NumPy as in XLA.
    """
    xp = array_namespace(rows.primary, rows.guardian)
    valid = None if rows.mask is None else columns(rows.mask)
    gap = gap_columns(columns(rows.primary), valid)
    guardian = [xp.where(xp.abs(g) < TINY, np.float32(0), g) for g in columns(rows.guardian)]
    value, target = loss.values(gap, guardian, valid, rows.label)
    if valid is not None:
        low = -np.float32(np.inf)
        value = [xp.where(on, v, low) for v, on in zip(value, valid, strict=True)]
    return Prepared(gap, value, target, valid)


def best_within(at: Prepared, threshold) -> Any:
    """(n,) float32: the best value among each row's candidates at `threshold`."""
    xp = array_namespace(*at.value)
    low = -np.float32(np.inf)
    kept = [xp.where(d <= threshold, v, low) for d, v in zip(at.gap, at.value, strict=True)]
    return functools.reduce(xp.maximum, kept)


def loss_at(at: Prepared, threshold, scale) -> Any:
    """(n,) uint32: each row's loss at `threshold`, in quanta, rounded up."""
    return ceil_units(at.target, best_within(at, threshold), scale)


def option_costs(at: Prepared, scale) -> list[Any]:
    """K arrays (n,) uint32: the loss of a row that ends with option a, in quanta, rounded up."""
    return [ceil_units(at.target, value, scale) for value in at.value]


def row_falls(gap: Sequence[Any], cost: Sequence[Any]) -> tuple[Any, list[Any]]:
    """base (n,) uint32 and K arrays fall (n,) uint32: option a lowers its row's loss at gap_a.

    With candidate set C a row loses the least of what its candidates cost. Options join in the
    order of (gap, index), so inside a run of equal gaps the falls add up to that of the run;
    options with gap 0 are in the base.
    """
    xp = array_namespace(*cost)
    at_zero = [xp.where(d == 0, c, TOO_LARGE) for d, c in zip(gap, cost, strict=True)]
    pairwise = len(cost) <= PAIRWISE_OPTIONS
    before = (_least_before_pairwise if pairwise else _least_before_sorted)(gap, cost)
    falls = []
    for d, c, least in zip(gap, cost, before, strict=True):
        joins = (d > 0) & (d < np.float32(np.inf)) & (c < least)
        falls.append(xp.where(joins, least - c, np.uint32(0)))
    return functools.reduce(xp.minimum, at_zero), falls


def _least_before_pairwise(gap: Sequence[Any], cost: Sequence[Any]) -> list[Any]:
    """The least cost strictly before each option in the order of (gap, index)."""
    xp = array_namespace(*cost)
    before = []
    for a in range(len(gap)):
        least = xp.full_like(cost[a], TOO_LARGE)
        for b in range(len(gap)):
            if b != a:
                earlier = gap[b] <= gap[a] if b < a else gap[b] < gap[a]
                least = xp.minimum(least, xp.where(earlier, cost[b], TOO_LARGE))
        before.append(least)
    return before


def _least_before_sorted(gap: Sequence[Any], cost: Sequence[Any]) -> list[Any]:
    xp = array_namespace(*cost)
    order = xp.argsort(xp.stack(gap), axis=0, stable=True)
    least = xp.minimum.accumulate(xp.take_along_axis(xp.stack(cost), order, axis=0), axis=0)
    before = xp.concatenate([xp.full_like(least[:1], TOO_LARGE), least[:-1]])
    return list(xp.take_along_axis(before, xp.argsort(order, axis=0, stable=True), axis=0))


@dataclass(frozen=True, eq=False)
class LossCurves:
    """Step functions of N examples in integer losses; one unit is `quantum`, rounded up.

    L_i(lam) / quantum = base[i] - sum(drop[m] for row[m] == i and gap[m] <= lam).

    Fields:
      base: (N,) int64, loss at lam = 0.
      gap: (M,) float32 > 0, where the loss falls. One row may hold an equal gap more than once.
      drop: (M,) int64 > 0, by how much.
      row: (M,) int64, whose loss.
      quantum: the unit, a power of two.
    """

    base: np.ndarray
    gap: np.ndarray
    drop: np.ndarray
    row: np.ndarray
    quantum: float

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.base)


def loss_curves(
    primary, guardian, *, bound: Fraction, mask=None, label=None, loss: Loss = SHORTFALL
) -> LossCurves:
    """The step function of each row of `primary` and `guardian`, both (N, K).

    Scores are taken as float32. Each loss is rounded UP to whole quanta, exactly (`ceil_units`): a
    rounded-up loss is still monotone, so sums are associative and stay on the safe side.

    Raises:
      UsageError: shapes that do not fit, a label missing, or a bound out of range.
      DataError: no rows, a row without a valid option, a NaN or infinite score at a valid option,
        or a loss above `bound`; names the first such row.
    """
    return curves_of(as_rows(primary, guardian, mask, label, loss), loss, bound)


def curves_of(rows: Rows, loss: Loss, bound: Fraction, numbers=None) -> LossCurves:
    """`loss_curves` of NumPy rows whose shapes fit; `numbers` (n,) are their names in errors."""
    numbers = np.arange(len(rows.primary)) if numbers is None else numbers
    quantum = loss_quantum(bound)

    def falls_of(start: int, chunk: Rows):
        at, base, falls = _checked(chunk, loss, bound, numbers[start : start + CHUNK_ROWS])
        places = [np.flatnonzero(fall) for fall in falls]
        found = zip(at.gap, falls, places, strict=True)
        return base, [(gap[row], fall[row], row + start) for gap, fall, row in found]

    bases, events = [], []
    for base, found in pipelined(falls_of, chunks(rows)):
        bases.append(base)
        events += found
    base = np.concatenate(bases).astype(np.int64)
    gap, drop, row = (np.concatenate(part) for part in zip(*events, strict=True))
    return LossCurves(base, gap, drop.astype(np.int64), row, quantum)


def curves_from_steps(points, losses, *, bound: Fraction) -> tuple[LossCurves, bool]:
    """Step functions that the caller has computed; right-continuous, of any shape.

    Args:
      points: (N, J) float32 >= 0, increasing along each row (equal or +inf points end a row
        early); where the loss changes.
      losses: (N, J + 1) in [0, bound]: before the first point, then from each point on.

    A loss that rises again is replaced by its running supremum sup_{t >= lam} L_i(t), which is
    monotone and not below it, so the guarantee holds (arXiv 2208.02814, Cor. 1). Returns the curves
    and whether any row needed that.

    Raises UsageError for shapes, DataError naming the first bad row.
    """
    at = np.asarray(points, dtype=np.float32)
    height = np.asarray(losses, dtype=np.float64)
    if at.ndim != 2 or height.shape != (at.shape[0], at.shape[1] + 1):
        raise UsageError(
            f"points must be (N, J) and losses (N, J + 1), not {at.shape} and {height.shape}"
        )
    if not len(at):
        raise DataError("no rows: calibration needs at least one example")
    with np.errstate(invalid="ignore"):
        row = first_row(~(at >= 0) | (np.diff(at, axis=1, prepend=np.float32(0)) < 0))
    if row is not None:
        raise DataError(f"row {row}: points must be numbers >= 0 in increasing order", row)
    row = first_row(~((height >= 0) & (height <= float(bound))))
    if row is not None:
        raise DataError(f"row {row}: losses must lie in [0, {float(bound):g}]", row)
    at = np.where(at < TINY, np.float32(0), at)
    quantum = loss_quantum(bound)
    envelope = np.maximum.accumulate(height[:, ::-1], axis=1)[:, ::-1]
    units = np.ceil(envelope / quantum).astype(np.int64)
    drop = units[:, :-1] - units[:, 1:]
    base = units[:, 0] - np.where(at == 0, drop, 0).sum(axis=1)
    row, step = np.nonzero((drop > 0) & (at > 0) & np.isfinite(at))
    curves = LossCurves(base, at[row, step], drop[row, step], row, quantum)
    return curves, bool((envelope != height).any())


def as_rows(primary, guardian, mask=None, label=None, loss: Loss = SHORTFALL) -> Rows:
    """The arguments as NumPy `Rows`, checked as in `check_shapes`."""
    with np.errstate(over="ignore"):
        p, g = np.asarray(primary, dtype=np.float32), np.asarray(guardian, dtype=np.float32)
    rows = Rows(
        p,
        g,
        None if mask is None else np.asarray(mask, dtype=bool),
        np.asarray(label) if loss.needs_label and label is not None else None,
    )
    check_shapes(rows, loss)
    return rows


def check_shapes(rows: Rows, loss: Loss) -> None:
    """Raises UsageError where shapes or types do not fit, DataError without rows."""
    p, g, mask, label = rows
    if p.ndim != 2 or p.shape != g.shape:
        raise UsageError(
            f"primary and guardian must both have shape (N, K), not {p.shape} and {g.shape}"
        )
    if mask is not None and mask.shape != p.shape:
        raise UsageError(f"mask must have the scores' shape {p.shape}, not {mask.shape}")
    if not len(p):
        raise DataError("no rows: calibration needs at least one example")
    if len(p) > MAX_ROWS:
        raise UsageError(f"{len(p)} rows are more than one calibration can hold ({MAX_ROWS})")
    if loss.needs_label and label is None:
        raise UsageError(f"the loss {loss.name} needs label=, the index of each row's right option")
    if label is not None and (label.shape != p.shape[:1] or label.dtype.kind not in "iu"):
        raise UsageError(f"label must hold {len(p)} integers, not {label.dtype} {label.shape}")


def chunks(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """The rows in blocks of CHUNK_ROWS, each with the number of its first row."""
    for start in range(0, len(rows.primary), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield start, Rows(*(None if array is None else array[part] for array in rows))


def unfit_rows(rows: Rows, at: Prepared) -> Any:
    """(n,) bool: rows that no loss can be worked out for. Pure, for compiled code."""
    xp = array_namespace(at.target)
    never = xp.zeros(at.target.shape, dtype=bool)
    unfit, known, shown = never, never, never
    scores = zip(columns(rows.primary), columns(rows.guardian), strict=True)
    for a, (p, g) in enumerate(scores):
        valid = ~never if at.valid is None else at.valid[a]
        wrong = ~(xp.isfinite(p) & xp.isfinite(g)) | (at.gap[a] == np.float32(np.inf))
        unfit = unfit | (wrong & valid)
        shown = shown | valid
        if rows.label is not None:
            known = known | ((rows.label == a) & valid)
    return unfit | ~shown if rows.label is None else unfit | ~known


def loss_limit(bound: Fraction, quantum: float) -> np.uint32:
    """The largest whole number of quanta within the bound."""
    return np.uint32(math.floor(bound / Fraction(quantum)))


def check_rows(rows: Rows, loss: Loss, bound: Fraction, start: int = 0) -> None:
    """Raises DataError naming the first bad row; `start` is the number of the first one given."""
    rows = Rows(*(None if array is None else np.asarray(array) for array in rows))
    _checked(rows, loss, bound, np.arange(start, start + len(rows.primary)))


def _checked(rows: Rows, loss: Loss, bound: Fraction, numbers: np.ndarray):
    """`Prepared` rows and their `row_falls`; DataError if one of them is bad."""
    at = prepared(_by_option(rows), loss)
    quantum = loss_quantum(bound)
    base, falls = row_falls(at.gap, option_costs(at, 1 / quantum))
    bad = first_row(unfit_rows(rows, at) | (base > loss_limit(bound, quantum)))
    if bad is not None:
        reason = _reason(rows, np.stack(at.gap, axis=1), bad)
        reason = reason or _above_bound(at, bad, bound)
        raise DataError(f"row {numbers[bad]}{reason}", int(numbers[bad]))
    return at, base, falls


def _by_option(rows: Rows) -> Rows:
    """The same rows with each option's scores contiguous in memory, for NumPy's sake."""
    arrays = [None if a is None else np.ascontiguousarray(a.T).T for a in rows[:3]]
    return Rows(arrays[0], arrays[1], arrays[2], rows.label)


def _reason(rows: Rows, gap: np.ndarray, row: int) -> str | None:
    valid = np.ones(gap.shape, dtype=bool) if rows.mask is None else rows.mask
    if not valid[row].any():
        return " has no valid option"
    for name, scores in (("Primary", rows.primary), ("Guardian", rows.guardian)):
        bad = valid[row] & ~np.isfinite(scores[row])
        if bad.any():
            option = int(np.argmax(bad))
            return (
                f": {name} score of option {option} is {scores[row, option]}; scores must "
                "be finite (leave out options that were not shown with mask=)"
            )
    if (valid[row] & (gap[row] == np.inf)).any():
        return ": the Primary's scores lie too far apart for float32"
    if rows.label is not None and rows.label[row] not in np.flatnonzero(valid[row]):
        return f": label {rows.label[row]} is not one of its valid options"
    return None


def _above_bound(at: Prepared, row: int, bound: Fraction) -> str:
    with np.errstate(invalid="ignore"):  # other rows may be broken in other ways
        losses = at.target.astype(np.float64) - best_within(at, np.float32(0))
    worst = float(losses[np.isfinite(losses)].max())
    enough = f"pass a bound of {math.ceil(worst * 1e6) / 1e6:g} or more (--bound), or "
    return (
        f": the Primary's choice costs {losses[row]:.9g} in the Guardian's score, more than the "
        f"bound {float(bound):g}: {enough if worst <= MAX_BOUND else ''}rescale the Guardian's "
        "scores"
    )
