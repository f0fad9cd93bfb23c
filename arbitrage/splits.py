"""Random halves of a data set, many at once, and the exact threshold of each calibration half.

The step functions are sorted once for all splits. A split then costs one pass over them: who is in
the calibration half, how much loss each stretch of events removes, and where the budget of each
alpha is met. Letters: N units, M events, S splits, A risk levels, b splits of one block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.errors import UsageError
from arbitrage.loss_curves import SHORTFALL, LossCurves, loss_curves
from arbitrage.losses import Loss
from arbitrage.selection import Levels, Number, exact_alphas, exact_number, loss_budget

STRETCH = 128  # events whose masked drops are first added up together
CHUNK_EVENTS = 1 << 13  # a multiple of STRETCH: events that are worked on at a time
BLOCK_SPLITS = 8  # splits that are worked on at a time


def calibration_size(n_units: int, *, size: int | None = None, fraction: Number = 0.5) -> int:
    """Units of the calibration half: `size`, or floor(fraction * n_units).

    Raises UsageError unless both halves hold at least one unit.
    """
    if size is None:
        count = math.floor(exact_number(fraction, "fraction") * n_units)
        given = f"fraction {fraction} of {n_units} units"
    else:
        count, given = int(size), f"size {size} of {n_units} units"
    if not 0 < count < n_units:
        raise UsageError(f"{given} leaves an empty half: the calibration half must hold 1 to N - 1")
    return count


def random_splits(
    n_units: int,
    splits: int | range,
    *,
    size: int | None = None,
    fraction: Number = 0.5,
    seed: int = 0,
    cluster=None,
) -> np.ndarray:
    """(S, N) bool: which units are in the calibration half of each split; the rest are the test.

    `splits` is a number of splits or a range of split numbers: split s is drawn from a stream of
    its own (seed, s), so it is the same however many others are drawn. Every subset of the given
    size is equally likely (up to 2^-40 for fewer than 2^24 units).

    With `cluster`, (n_units,) integer codes 0 .. C-1, the halves are drawn from the C clusters,
    `size` and `fraction` count clusters, and every row goes where its cluster goes.
    Raises UsageError for an empty half or a bad number of splits.
    """
    numbers = range(splits) if isinstance(splits, int) else splits
    if not len(numbers):
        raise UsageError("splits: draw at least one")
    count = n_units if cluster is None else int(np.max(cluster)) + 1
    wanted = calibration_size(count, size=size, fraction=fraction)
    members = np.empty((len(numbers), count), dtype=bool)
    for at, number in enumerate(numbers):
        members[at] = _random_subset(count, wanted, split_stream(seed, number, 0))
    return members if cluster is None else members[:, np.asarray(cluster)]


def split_stream(seed: int, number: int, purpose: int) -> np.random.SFC64:
    """The stream of random bits of one split for one purpose (0: who calibrates)."""
    return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(number, purpose)))


def _random_subset(n: int, size: int, stream: np.random.SFC64) -> np.ndarray:
    """A uniform subset of exactly `size`, (n,) bool.

    Independent coins first, then random members (or non-members) are flipped until the size is
    right. Given its size a set of coins is uniform, and flipping at random keeps it so; there are
    only about sqrt(n) to flip, which is much cheaper than ordering n keys.
    """
    if round(256 * size / n) == 128:
        bits = stream.random_raw(-(-n // 64)).astype("<u8", copy=False).view(np.uint8)
        member = np.unpackbits(bits)[:n].view(bool)
    else:
        bits = stream.random_raw(-(-n // 8)).astype("<u8", copy=False).view(np.uint8)
        member = bits[:n] < round(256 * size / n)
    while excess := int(np.count_nonzero(member)) - size:
        state, pool = excess > 0, (size + excess if excess > 0 else n - size - excess)
        draws = stream.random_raw(16 + 2 * abs(excess) * n // pool) % np.uint64(n)
        fit = draws[member[draws] == state]
        _, first = np.unique(fit, return_index=True)
        member[fit[np.sort(first)[: abs(excess)]]] = not state
    return member


@dataclass(frozen=True, eq=False)
class SortedEvents:
    """The events of `LossCurves` in order of their gap, padded to whole stretches.

    Fields:
      gap: (M,) float32, increasing.
      drop: (M',) int64, M' = M rounded up to a multiple of STRETCH; 0 in the padding.
      drop_float: the same as float64 (exact: drops and sums of a stretch are below 2^53).
      row: (M',) int64.
      run_end: (M,) int64, index of the last event with the same gap.
      floor: (N,) int64, loss of each unit at lambda = infinity, or None if all are 0.
      quantum: the unit of the losses.
    """

    gap: np.ndarray
    drop: np.ndarray
    drop_float: np.ndarray
    row: np.ndarray
    run_end: np.ndarray
    floor: np.ndarray | None
    quantum: float


def sort_events(curves: LossCurves) -> SortedEvents:
    """Sorts the events of `curves`, once for any number of splits. O(M log M)."""
    order = np.argsort(curves.gap, kind="stable")
    gap = curves.gap[order]
    padding = (0, -len(gap) % STRETCH or (0 if len(gap) else STRETCH))
    last = np.append(gap[1:] != gap[:-1], True) if len(gap) else np.zeros(0, dtype=bool)
    ends = np.flatnonzero(last)
    floor = curves.base.copy()
    np.subtract.at(floor, curves.row, curves.drop)
    drop = np.pad(curves.drop[order], padding)
    return SortedEvents(
        gap=gap,
        drop=drop,
        drop_float=drop.astype(np.float64),
        row=np.pad(curves.row[order], padding),
        run_end=ends[np.cumsum(last) - last],
        floor=floor if floor.any() else None,
        quantum=curves.quantum,
    )


@dataclass(frozen=True, eq=False)
class SplitSelection:
    """The threshold of every split and risk level.

    Fields:
      threshold: (S, A) float32; +inf where infeasible (always defer on the full menu).
      total: (S, A) int64, loss sum of the calibration half at the threshold, in quanta.
      feasible: (S, A) bool, whether any threshold is within the budget.
      n: (S,) int64, units of the calibration half.
    """

    threshold: np.ndarray
    total: np.ndarray
    feasible: np.ndarray
    n: np.ndarray


def split_thresholds(
    curves: LossCurves | SortedEvents, membership, alphas: Levels, bound: Number
) -> SplitSelection:
    """The CRC threshold of each calibration half, bit for bit that of `calibrate` on its rows.

    Args:
      curves: step functions of N units, or these already sorted (`sort_events`).
      membership: (S, N) bool, who is in the calibration half, for example from `random_splits`.
      alphas: A risk levels; bound: B. Both as in `calibrate`, and the same errors.

    Cost: O(M) per split without sorting, plus O(A log M). Splits are worked on in blocks, so
    memory beyond the result stays at a few MB.
    """
    exact_bound = exact_number(bound, "bound")
    levels, _ = exact_alphas(alphas, exact_bound)
    events = curves if isinstance(curves, SortedEvents) else sort_events(curves)
    membership = np.atleast_2d(np.asarray(membership, dtype=bool))
    n = np.array([np.count_nonzero(row) for row in membership], dtype=np.int64)
    budget = loss_budgets(tuple(levels), exact_bound, n, events.quantum)
    threshold, total = thresholds_within(events, membership, budget)
    return SplitSelection(threshold, total, threshold < np.inf, n)


def loss_budgets(
    alphas: tuple[Fraction, ...], bound: Fraction, n: np.ndarray, quantum: float
) -> np.ndarray:
    """(S, A) int64: `loss_budget` of every alpha for calibration halves of n (S,) units."""
    counts, which = np.unique(n, return_inverse=True)
    rows = [_budgets(alphas, bound, count, quantum) for count in counts.tolist()]
    return np.array(rows, dtype=np.int64)[which]


@functools.lru_cache(maxsize=4096)
def _budgets(alphas: tuple[Fraction, ...], bound: Fraction, n: int, quantum: float):
    return tuple(loss_budget(alpha, bound, n, quantum) for alpha in alphas)


def thresholds_within(
    events: SortedEvents, membership: np.ndarray, budget: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest threshold whose loss sum over the members is at most `budget`, and that sum.

    membership (S, N) bool, budget (S, A) int64 quanta. Returns (S, A) float32, +inf where no
    threshold will do, and (S, A) int64, there the sum at lambda = infinity.
    """
    threshold = np.empty(budget.shape, dtype=np.float32)
    total = np.empty(budget.shape, dtype=np.int64)
    for start in range(0, len(budget), BLOCK_SPLITS):
        rows = slice(start, start + BLOCK_SPLITS)
        threshold[rows], total[rows] = _block_thresholds(events, membership[rows], budget[rows])
    return threshold, total


def _block_thresholds(events: SortedEvents, member: np.ndarray, budget: np.ndarray):
    splits = np.arange(len(member))[:, None]
    # before[:, j]: what the stretches before stretch j remove.
    before = np.zeros((len(member), len(events.drop) // STRETCH + 1), dtype=np.int64)
    np.cumsum(_stretch_sums(events, member), axis=1, out=before[:, 1:])
    at_infinity = np.zeros(len(member), dtype=np.int64)
    if events.floor is not None:
        at_infinity = np.array([events.floor[one].sum() for one in member])
    at_zero = before[:, -1] + at_infinity
    if not len(events.gap):
        never = budget < at_infinity[:, None]
        flat = np.broadcast_to(at_zero[:, None], budget.shape)
        return np.where(never, np.float32(np.inf), np.float32(0)), flat
    need = at_zero[:, None] - budget
    inside = np.clip(need, 1, np.maximum(before[:, -1:], 1))
    stretch = np.array(
        [np.searchsorted(row[1:-1], wanted) for row, wanted in zip(before, inside, strict=True)]
    )
    within = np.cumsum(_of_stretches(events, member, stretch), axis=2)
    within += before[splits, stretch][..., None]
    # The first event that reaches the need: its gap is the threshold even inside a tied run.
    event = stretch * STRETCH + (within < inside[..., None]).sum(axis=2)
    event = np.minimum(event, len(events.gap) - 1)
    # The loss sum at that gap counts the whole run of equal gaps.
    end = events.run_end[event]
    part = _of_stretches(events, member, end // STRETCH)
    part *= np.arange(STRETCH) <= (end % STRETCH)[..., None]
    gone = before[splits, end // STRETCH] + part.sum(axis=2)
    none, never = need <= 0, budget < at_infinity[:, None]
    gap = np.where(never, np.float32(np.inf), events.gap[event])
    total = at_zero[:, None] - np.where(none, 0, np.where(never, before[:, -1:], gone))
    return np.where(none, np.float32(0), gap), total


def _stretch_sums(events: SortedEvents, member: np.ndarray) -> np.ndarray:
    """(b, M' / STRETCH) int64: what each stretch of events removes from the members' losses."""
    count, size = len(member), min(CHUNK_EVENTS, len(events.drop))
    sums = np.empty((count, len(events.drop) // STRETCH), dtype=np.int64)
    inside, factor = np.empty((count, size), dtype=bool), np.empty((count, size))
    # In chunks, so that what is written is still in cache when it is read.
    for start in range(0, len(events.drop), size):
        part = slice(start, min(start + size, len(events.drop)))
        taken, factors = inside[:, : part.stop - start], factor[:, : part.stop - start]
        np.take(member, events.row[part], axis=1, out=taken, mode="clip")
        factors[...] = taken
        drops = events.drop_float[part].reshape(-1, STRETCH)
        found = np.vecdot(factors.reshape(count, -1, STRETCH), drops)
        sums[:, start // STRETCH : part.stop // STRETCH] = found
    return sums


def _of_stretches(events: SortedEvents, member: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """(b, A, STRETCH) int64: what each event of stretch (b, A) removes."""
    event = stretch[..., None] * STRETCH + np.arange(STRETCH)
    inside = member[np.arange(len(member))[:, None, None], events.row[event]]
    return inside * events.drop[event]


def map_splits(
    work: Callable[[range], Any],
    n_splits: int,
    *,
    block: int = 32,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
) -> list[Any]:
    """`work` on each block of split numbers, in order, in threads (NumPy runs outside the GIL).

    `progress` is told the number of splits that are done after each block.
    """
    blocks = [range(at, min(at + block, n_splits)) for at in range(0, n_splits, block)]
    results = []
    with ThreadPoolExecutor(max_workers=threads) if threads > 1 else nullcontext() as pool:
        found = map(work, blocks) if pool is None else pool.map(work, blocks)
        for numbers, result in zip(blocks, found, strict=True):
            results.append(result)
            if progress is not None:
                progress(len(numbers))
    return results


def calibrate_splits(
    primary,
    guardian,
    *,
    alpha: Levels,
    bound: Number,
    n_splits: int = 1000,
    size: int | None = None,
    fraction: Number = "0.5",
    seed: int = 0,
    cluster=None,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
    threads: int = 1,
) -> SplitSelection:
    """`calibrate` on many random calibration halves, the step functions being built once.

    Args:
      primary, guardian, mask, label, loss, alpha, bound: as in `calibrate`, and the same errors.
      n_splits: how many; size, fraction, seed, cluster: as in `random_splits`, of the same halves.
      threads: of this process.
    """
    limit = exact_number(bound, "bound")
    levels = exact_alphas(alpha, limit)[0]
    curves = loss_curves(primary, guardian, bound=limit, mask=mask, label=label, loss=loss)
    events = sort_events(curves)

    def part(numbers: range) -> SplitSelection:
        halves = random_splits(
            curves.n, numbers, size=size, fraction=fraction, seed=seed, cluster=cluster
        )
        return split_thresholds(events, halves, levels, limit)

    parts = map_splits(part, n_splits, threads=threads)
    fields = zip(*((p.threshold, p.total, p.feasible, p.n) for p in parts), strict=True)
    return SplitSelection(*(np.concatenate(field) for field in fields))
