"""Exact thresholds by reading digits: a weighted quantile without a sort, in two or three passes.

A gap is a float32 >= 0, so its bits, read as an integer, have its order. The first pass adds up how
much loss falls in each bin of leading bits; a budget is met inside one bin, whose next bits the
next pass reads. Memory is constant, any order of rows is as good as any other, and the sums of
blocks, devices and hosts simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import numpy as np

from arbitrage.errors import DataError
from arbitrage.kernels import (
    GAP_BITS,
    DigitSums,
    costs_of_block,
    costs_of_shards,
    digit_sums_of_block,
    digit_sums_of_shards,
    falls_of_block,
    falls_of_shards,
    row_of_shards,
)
from arbitrage.loss_curves import check_rows, loss_limit, loss_quantum
from arbitrage.losses import Loss
from arbitrage.rows import Rows
from arbitrage.selection import Selection
from arbitrage.sources import HostRows, StreamRows, padded, take
from arbitrage.threads import pipelined

FEW = 8  # up to so many budgets two passes with large tables; beyond, three with small ones
TWO_PASSES, THREE_PASSES = (16, 15), (11, 10, 10)

# (slot_of, shift, bits, slots) -> fall (slots, 2^bits) int64, loss at lambda = 0, number of rows
Pass = Callable[[np.ndarray | None, int, int, int], tuple[np.ndarray, int, int]]


def select_by_digits(
    one_pass: Pass, count: int, budgets: Callable[[int], Sequence[int]]
) -> tuple[Selection, int]:
    """The `Selection` of `count` budgets, and the number of rows.

    `one_pass` adds up over all rows (`block_pass`, `device_pass`); `budgets` gives the budgets, in
    quanta, for a number of rows.
    """
    plan = TWO_PASSES if count <= FEW else THREE_PASSES
    shift = GAP_BITS - plan[0]
    fall, base, n = one_pass(None, shift, plan[0], 1)
    last = base - int(fall.sum())
    budget = np.array([min(b, base) for b in budgets(n)], dtype=np.int64)
    feasible, at_zero = budget >= last, budget >= base
    # Those met at lambda = 0, or never, have no digits to read.
    total = np.where(at_zero, base, last)
    key = np.zeros(count, dtype=np.int64)
    search = np.flatnonzero(feasible & ~at_zero)
    before = np.full(count, base)  # the loss sum below the bin that is being read
    slot = np.zeros(len(search), dtype=np.int64)
    for level, bits in enumerate(plan):
        if not len(search):
            break
        if level:
            shift -= bits
            known, slot = np.unique(key[search], return_inverse=True)
            slots = 1 << (len(known) - 1).bit_length()  # a power of two: few programs to compile
            slot_of = np.full(1 << (GAP_BITS - shift - bits), slots, dtype=np.int32)
            slot_of[known] = np.arange(len(known))
            fall, _, _ = one_pass(slot_of, shift, bits, slots)
        for at, row in zip(search, slot, strict=True):
            after = before[at] - np.cumsum(fall[row])
            digit = int(np.searchsorted(-after, -budget[at], side="left"))
            key[at] = key[at] << bits | digit
            before[at], total[at] = after[digit] + fall[row, digit], after[digit]
    threshold = key.astype(np.uint32).view(np.float32)
    threshold = np.where(feasible, threshold, np.float32(np.inf))
    return Selection(threshold, total, feasible), n


def block_pass(
    source: HostRows | StreamRows, loss: Loss, bound: Fraction, expected: int | None
) -> Pass:
    """Passes over the blocks of rows in memory or of a stream.

    A pass raises DataError naming the first bad row, or where it does not give the `expected`
    number of rows, or that of the pass before.
    """
    quantum = loss_quantum(bound)
    limit = loss_limit(bound, quantum)
    static = {"loss": loss, "scale": 1 / quantum}
    seen = [] if expected is None else [expected]

    def one_pass(slot_of, shift, bits, slots):
        def sums(start: int, block: Rows):
            stop = start + len(block.primary)
            size = {"shift": shift, "bits": bits, "slots": slots}
            with jax.enable_x64(True):
                each = costs_of_block(padded(block, source.block_rows), **static)
                each = falls_of_block(each, stop - start, slot_of, limit, **size)
                found = as_numpy(digit_sums_of_block(each, start, bins=slots << bits))
            if found.first_bad < stop:
                check_rows(block, loss, bound, start)
            return found.fall, int(found.base), stop

        fall, base, n = np.zeros(slots << bits, dtype=np.int64), 0, 0
        for block_fall, block_base, stop in pipelined(sums, source.blocks()):
            fall += block_fall
            base, n = base + block_base, stop
        if seen and seen[0] != n:
            raise DataError(f"the stream was said to have {seen[0]} rows and gave {n}")
        seen.append(n)
        return fall.reshape(slots, -1), base, n

    return one_pass


def device_pass(rows: Rows, loss: Loss, bound: Fraction) -> Pass:
    """Passes over JAX arrays where they lie; rows may be split over a mesh and over hosts."""
    quantum = loss_quantum(bound)
    static = {"loss": loss, "scale": 1 / quantum}
    limit = loss_limit(bound, quantum)
    n = rows.primary.shape[0]
    split = rows.primary.sharding.num_devices > 1
    where = {"sharding": rows.primary.sharding}
    with jax.enable_x64(True):
        # The same in every pass: the device keeps them.
        costs = (
            costs_of_shards(rows, **where, **static) if split else costs_of_block(rows, **static)
        )

    def one_pass(slot_of, shift, bits, slots):
        size = {"shift": shift, "bits": bits, "slots": slots}
        with jax.enable_x64(True):
            if split:
                each = falls_of_shards(costs, slot_of, limit, **where, **size)
                found = digit_sums_of_shards(each, bins=slots << bits, **where)
            else:
                each = falls_of_block(costs, n, slot_of, limit, **size)
                found = digit_sums_of_block(each, 0, bins=slots << bits)
            found = as_numpy(found)
        if found.first_bad < n:
            _raise_bad(rows, int(found.first_bad), loss, bound, split)
        return found.fall.reshape(slots, -1), int(found.base), n

    return one_pass


def as_numpy(found: DigitSums) -> DigitSums:
    """The sums in host memory."""
    return DigitSums(*(np.asarray(array) for array in found))


def _raise_bad(rows: Rows, row: int, loss: Loss, bound: Fraction, split: bool) -> None:
    if split:
        mask = None if rows.mask is None else rows.mask.astype(np.int8)  # sums are not for bool
        one = row_of_shards(rows._replace(mask=mask), row, sharding=rows.primary.sharding)
        one = one if mask is None else one._replace(mask=np.asarray(one.mask) != 0)
    else:
        one = take(rows, slice(row, row + 1))
    check_rows(one, loss, bound, row)
