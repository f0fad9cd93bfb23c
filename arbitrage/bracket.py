"""A few exact thresholds in little more than one pass over the rows.

A sample says between which two gaps a threshold lies, with room for its own error (Floyd and
Rivest's selection, on sums instead of counts). One pass then adds up what all rows lose at the
lower end and picks out the few rows whose loss falls in between; only those are sorted. Sums are
exact and every bracket is checked, so a bad sample costs time and never a bit of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import jax
import numpy as np

from arbitrage.candidates import TINY
from arbitrage.errors import DataError
from arbitrage.kernels import losses_outside
from arbitrage.loss_curves import (
    TOO_LARGE,
    curves_of,
    loss_at,
    loss_limit,
    loss_quantum,
    prepared,
)
from arbitrage.losses import Loss
from arbitrage.rows import Rows
from arbitrage.selection import RiskSteps, Selection, risk_steps, select
from arbitrage.sources import HostRows, StreamRows, joined, padded, take
from arbitrage.threads import pipelined

SORT_ROWS = 1 << 14  # up to so many rows sorting is cheaper
RUN, STEP = 16, 17  # a sample is 16 rows in a row, out of every 16 * 17: whole cache lines
SPREAD_ROWS = 1 << 12  # rows that tell how much losses vary
DEVIATIONS = 3.0  # a bracket leaves room for so many standard errors of a sample on each side
TIED_STEPS = 4  # so few steps in a sample, each the fall of many rows, are tested one by one
FLAGGED_SHARE = 8  # more than one row in so many inside a bracket: it is not worth it
NEVER = np.iinfo(np.int64).max
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Bracket:
    """Where a sample expects a threshold: in (low, high], and at one of `tied` if there are any."""

    low: np.float32
    high: np.float32
    tied: tuple[np.float32, ...] = ()

    @property
    def points(self) -> list[np.float32]:
        """Where the loss sum must be known."""
        if self.tied:
            return [point for t in self.tied for point in (_below(t), t)]
        return [self.low]


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some of the risk steps: `steps`, and `before` (J,) int64, the sum just below each threshold.

    `to_end` says whether the steps go on to the full menu.
    """

    steps: RiskSteps
    before: np.ndarray
    to_end: bool

    def covers(self, budget: int) -> bool:
        """Whether the threshold of the budget is among the steps, or known not to exist."""
        first = int(np.searchsorted(-self.steps.totals, -budget, side="left"))
        return self.to_end if first == len(self.before) else bool(self.before[first] > budget)


def select_by_bracket(
    source: HostRows | StreamRows, n: int, budgets: Sequence[int], loss: Loss, bound: Fraction
) -> Selection | None:
    """The `Selection` of each budget over n rows; None where no bracket holds or a row is bad.

    `select_by_digits` then gives the answer, or the error. Meant for few budgets: each adds its
    share to the pass. Raises DataError where a stream does not have n rows.
    """
    search = _Search(loss, bound)
    try:
        stretches = search.stretches(source, n, budgets)
    except DataError as error:
        if error.row is None:
            raise
        return None  # seen in a sample, whose row numbers are its own
    chosen = []
    for stretch, budget in zip(stretches, budgets, strict=False):
        if stretch is None or not stretch.covers(budget):
            return None
        chosen.append(select(stretch.steps, [budget]))
    fields = zip(*((one.threshold, one.total, one.feasible) for one in chosen), strict=True)
    return Selection(*(np.concatenate(field) for field in fields))


@dataclass(frozen=True)
class _Search:
    loss: Loss
    bound: Fraction

    def stretches(
        self, source: HostRows | StreamRows, n: int, budgets: Sequence[int]
    ) -> list[Stretch | None]:
        """For each budget the steps around its threshold, or None."""
        known = source.rows if isinstance(source, HostRows) else source.first_chunk()
        spreads = [self.deviation(known, budget / n) for budget in budgets]
        pairs = list(zip(budgets, spreads, strict=True))
        if isinstance(source, HostRows):
            return [self.stretch(known, budget, budget, spread) for budget, spread in pairs]
        found = [self.bracket(known, n, budget, budget, spread) for budget, spread in pairs]
        brackets = [bracket for bracket in found if bracket is not None]
        return self.measure(source, n, brackets) if len(brackets) == len(found) else [None]

    def stretch(self, rows: Rows, most: int, least: int, spread: float) -> Stretch | None:
        """The steps of `rows` from the threshold of `most` to that of `least`, most >= least.

        `spread` is about the standard deviation of a row's loss there, in quanta.
        """
        n = len(rows.primary)
        if n <= SORT_ROWS:
            steps = risk_steps(curves_of(rows, self.loss, self.bound))
            return Stretch(steps, np.append(NEVER, steps.totals[:-1]), True)
        bracket = self.bracket(_sample(rows), n, most, least, spread)
        return bracket and self.measure(HostRows(rows), n, [bracket])[0]

    def bracket(self, sample: Rows, n: int, most: int, least: int, spread: float) -> Bracket | None:
        """Where a sample expects the thresholds of two budgets for n rows."""
        m, unit = len(sample.primary), float(self.bound) / loss_quantum(self.bound)
        # At least as if one more row had the largest loss: a small sample may have seen none.
        slack = DEVIATIONS * max(spread * math.sqrt(m), unit)
        most_m, least_m = math.ceil(most / n * m + slack), math.floor(least / n * m - slack)
        found = self.stretch(sample, most_m, least_m, spread)
        if found is None or not (found.covers(most_m) and found.covers(least_m)):
            return None
        thresholds, totals = found.steps.thresholds, found.steps.totals
        first, last = np.searchsorted(-totals, [-most_m, -least_m], side="left")
        if first == len(totals):  # not even the full menu is within the budget
            return Bracket(thresholds[-1], LARGEST)
        low = _below(thresholds[first])
        if last == len(totals):
            return Bracket(low, LARGEST)
        seen = thresholds[first : last + 1]
        fall = float(found.before[first] - totals[last]) if first else math.inf
        tied = len(seen) <= TIED_STEPS and fall > TIED_STEPS * len(seen) * unit
        return Bracket(low, seen[-1], tuple(seen) if tied else ())

    def deviation(self, rows: Rows, mean: float) -> float:
        """About the standard deviation of a row's loss where the mean is `mean`, in quanta."""
        few = take(rows, slice(None, None, -(-len(rows.primary) // SPREAD_ROWS)))
        steps = risk_steps(curves_of(few, self.loss, self.bound))
        threshold = select(steps, [int(mean * steps.n)]).threshold
        return float(loss_at(prepared(few, self.loss), threshold, 1 / steps.quantum).std())

    def measure(
        self, source: HostRows | StreamRows, n: int, brackets: Sequence[Bracket]
    ) -> list[Stretch | None]:
        """One pass: the steps inside each bracket, exactly; None where too many rows are inside."""
        points = np.array(sorted({p for one in brackets for p in one.points}), dtype=np.float32)
        wide = [one for one in brackets if not one.tied]
        passed = self._pass(source, n, points, wide)
        if passed is None:
            return [None] * len(brackets)
        sums, rows, numbers = passed
        quantum = loss_quantum(self.bound)
        inside = RiskSteps(np.zeros(1, np.float32), np.zeros(1, np.int64), 0, quantum)
        if len(numbers):
            inside = risk_steps(curves_of(rows, self.loss, self.bound, numbers))
        at = np.searchsorted(inside.thresholds, points, side="right") - 1
        total = dict(zip(points.tolist(), sums + inside.totals[at], strict=True))
        outside = dict(zip(points.tolist(), sums, strict=True))
        return [_inside(one, total, outside, inside, n) for one in brackets]

    def _pass(self, source, n: int, points: np.ndarray, wide: Sequence[Bracket]):
        """What unflagged rows lose at each point, the flagged rows, and their numbers; or None."""
        low = np.array([one.low for one in wide], dtype=np.float32)
        high = np.array([one.high for one in wide], dtype=np.float32)
        quantum = loss_quantum(self.bound)
        units = float(loss_limit(self.bound, quantum))
        rounded = np.float32(units)
        limit = np.array([rounded, np.float32(units - rounded)]) * np.float32(quantum)

        def sums(start: int, block: Rows):
            m = len(block.primary)
            with jax.enable_x64(True):
                found = losses_outside(
                    padded(block, source.block_rows), points, low, high, limit,
                    loss=self.loss, scale=1 / quantum,
                )  # fmt: skip
            found = np.asarray(found)[:, :m]
            flagged = np.flatnonzero(found[0] == TOO_LARGE)
            total = found.sum(axis=1, dtype=np.uint64).astype(np.int64)
            return m, total - len(flagged) * int(TOO_LARGE), take(block, flagged), flagged + start

        total, kept, count, inside = np.zeros(len(points), np.int64), [], 0, 0
        for m, block_total, rows, numbers in pipelined(sums, source.blocks()):
            total, count, inside = total + block_total, count + m, inside + len(numbers)
            kept.append((rows, numbers))
            if inside > max(n // FLAGGED_SHARE, SORT_ROWS):
                return None
        if count != n:
            raise DataError(f"the stream was said to have {n} rows and gave {count}")
        rows = joined([rows for rows, _ in kept])
        return total, rows, np.concatenate([numbers for _, numbers in kept])


def _sample(rows: Rows) -> Rows:
    n = len(rows.primary) // (RUN * STEP) * RUN * STEP

    def runs(array):
        return array[:n].reshape(-1, RUN * STEP, *array.shape[1:])[:, :RUN]

    each = (None if array is None else runs(array) for array in rows)
    return Rows(*(None if a is None else a.reshape(-1, *a.shape[2:]) for a in each))


def _below(threshold) -> np.float32:
    """The next smaller normal float32, or 0: gaps are never subnormal."""
    return np.nextafter(threshold, np.float32(0)) if threshold > TINY else np.float32(0)


def _inside(one: Bracket, total, outside, inside: RiskSteps, n: int) -> Stretch:
    if one.tied:
        thresholds = np.array(one.tied, dtype=np.float32)
        totals = np.array([total[float(t)] for t in one.tied])
        before = np.array([total[float(_below(t))] if t else NEVER for t in one.tied])
        return Stretch(RiskSteps(thresholds, totals, n, inside.quantum), before, False)
    first, last = np.searchsorted(inside.thresholds, [one.low, one.high], side="right")
    thresholds = np.append(one.low, inside.thresholds[first:last])
    totals = np.append(total[float(one.low)], inside.totals[first:last] + outside[float(one.low)])
    # What lies below `low` is unknown, unless nothing does.
    before = np.append(NEVER if one.low == 0 else totals[0], totals[:-1])
    steps = RiskSteps(thresholds, totals, n, inside.quantum)
    return Stretch(steps, before, bool(one.high == LARGEST))
