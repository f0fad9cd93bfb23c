"""Compiled passes over a block of rows: what each row loses, and how much falls at which gap.

The bodies are the same pure functions as everywhere (`loss_curves`), compiled by XLA. Sums are
64-bit integers, so callers run these under `jax.enable_x64`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from arbitrage.loss_curves import (
    TOO_LARGE,
    best_within,
    ceil_units,
    costs_more,
    loss_at,
    option_costs,
    prepared,
    row_falls,
    unfit_rows,
)
from arbitrage.losses import Loss
from arbitrage.rows import Rows

GAP_BITS = 31  # a gap is a float32 >= 0: its bits, read as an integer, have its order


@functools.partial(jax.jit, static_argnames=("loss", "scale"))
def losses_outside(rows: Rows, points, low, high, limit, *, loss: Loss, scale: float):
    """(T, n) uint32: each row's loss at each of `points` (T,), or TOO_LARGE in all of them.

    TOO_LARGE marks rows that need a closer look: those whose loss falls within one of the brackets
    (low_j, high_j], and bad ones. `limit` is the bound as two float32 whose sum it is.
    """
    at = prepared(rows, loss)
    flagged = unfit_rows(rows, at)
    flagged = flagged | costs_more(at.target, best_within(at, np.float32(0)), limit)
    for j in range(low.shape[0]):
        flagged = flagged | (best_within(at, high[j]) > best_within(at, low[j]))
    found = [ceil_units(at.target, best_within(at, point), scale) for point in points]
    return jnp.stack([jnp.where(flagged, TOO_LARGE, units) for units in found])


class Falls(NamedTuple):
    """Where and by how much each row's loss falls.

    Fields:
      bin: K arrays (n,) int32, the bin of gaps to which an option's fall belongs, or a last one
        that is left out.
      fall: K arrays (n,) uint32.
      base: (n,) uint32, the loss at lambda = 0.
      bad: (n,) bool.
    """

    bin: list[Any]
    fall: list[Any]
    base: Any
    bad: Any


class Costs(NamedTuple):
    """What each option costs its row.

    Fields:
      gap: K arrays (n,) float32.
      cost: K arrays (n,) uint32, in quanta.
      unfit: (n,) bool, rows that no loss can be worked out for.
    """

    gap: Sequence[Any]
    cost: Sequence[Any]
    unfit: Any


def costs(rows: Rows, *, loss: Loss, scale: float) -> Costs:
    """The `Costs` of a block."""
    at = prepared(rows, loss)
    return Costs(at.gap, option_costs(at, scale), unfit_rows(rows, at))


def falls(found: Costs, count, slot_of, limit, *, shift: int, bits: int, slots: int) -> Falls:
    """The `Falls` of a block; rows from number `count` on are padding.

    A gap's bits are split as prefix | digit (`bits`) | rest (`shift`). `slot_of` (prefixes,) int32
    says which slot adds up a prefix; `slots` where none does. It is None when there is no prefix.
    """
    base, fall = row_falls(found.gap, found.cost)
    live = jnp.arange(base.shape[0]) < count
    bins = []
    for gap, units in zip(found.gap, fall, strict=True):
        key = jax.lax.bitcast_convert_type(gap, jnp.uint32)
        digit = ((key >> shift) & ((1 << bits) - 1)).astype(jnp.int32)
        wanted = live & (units > 0)
        if slot_of is not None:
            slot = slot_of[key >> (shift + bits)]
            digit = (slot << bits) | digit
            wanted = wanted & (slot < slots)
        bins.append(jnp.where(wanted, digit, slots << bits))
    return Falls(bins, fall, jnp.where(live, base, 0), live & (found.unfit | (base > limit)))


class DigitSums(NamedTuple):
    """Sums over rows.

    Fields:
      fall: (slots * 2^bits,) int64, how much the loss falls in each bin of gaps.
      base: () int64, the loss at lambda = 0.
      first_bad: () int64, number of the first bad row; a number past the last row without one.
    """

    fall: Any
    base: Any
    first_bad: Any


def digit_sums(found: Falls, start, bins: int) -> DigitSums:
    """Adds up the rows; the first has number `start`."""
    sums = jnp.zeros(bins + 1, jnp.int64)
    for where, fall in zip(found.bin, found.fall, strict=True):
        sums = sums.at[where].add(fall.astype(jnp.int64), mode="promise_in_bounds")
    numbers = start + jnp.arange(found.bad.shape[0], dtype=jnp.int64)
    first_bad = jnp.min(jnp.where(found.bad, numbers, jnp.iinfo(jnp.int64).max))
    return DigitSums(sums[:-1], jnp.sum(found.base.astype(jnp.int64)), first_bad)


# Three programs: in one, XLA would work out costs and falls again for whatever uses them.
_COSTS, _FALLS = ("loss", "scale"), ("shift", "bits", "slots")
costs_of_block = jax.jit(costs, static_argnames=_COSTS)
falls_of_block = jax.jit(falls, static_argnames=_FALLS)
digit_sums_of_block = jax.jit(digit_sums, static_argnames="bins")


@functools.partial(jax.jit, static_argnames=(*_COSTS, "sharding"))
def costs_of_shards(rows: Rows, *, sharding: NamedSharding, **static) -> Costs:
    """The `Costs` of arrays whose rows are split over a mesh, split in the same way."""
    split = P(sharding.spec[0])
    of_device = functools.partial(costs, **static)
    return jax.shard_map(of_device, mesh=sharding.mesh, in_specs=(split,), out_specs=split)(rows)


@functools.partial(jax.jit, static_argnames=(*_FALLS, "sharding"))
def falls_of_shards(found: Costs, slot_of, limit, *, sharding: NamedSharding, **static) -> Falls:
    """The `Falls` of costs that are split over a mesh, split in the same way."""
    split = P(sharding.spec[0])

    def of_device(mine: Costs, slot_of, limit):
        return falls(mine, mine.unfit.shape[0], slot_of, limit, **static)

    in_specs = (split, P(), P())
    over_devices = jax.shard_map(of_device, mesh=sharding.mesh, in_specs=in_specs, out_specs=split)
    return over_devices(found, slot_of, limit)


@functools.partial(jax.jit, static_argnames=("bins", "sharding"))
def digit_sums_of_shards(found: Falls, *, bins: int, sharding: NamedSharding) -> DigitSums:
    """Each device adds up its own rows, then all devices add up theirs; each gets the result."""
    axes = sharding.spec[0]

    def of_device(mine: Falls):
        start = jax.lax.axis_index(axes) * mine.base.shape[0]
        sums = digit_sums(mine, start, bins)
        fall, base = jax.lax.psum((sums.fall, sums.base), axes)
        return DigitSums(fall, base, jax.lax.pmin(sums.first_bad, axes))

    over_devices = jax.shard_map(of_device, mesh=sharding.mesh, in_specs=(P(axes),), out_specs=P())
    return over_devices(found)


@functools.partial(jax.jit, static_argnames="sharding")
def row_of_shards(rows: Rows, number, *, sharding: NamedSharding) -> Rows:
    """One row of arrays that are split over a mesh, (1, ...) on every device."""
    axes = sharding.spec[0]

    def of_device(mine: Rows, number):
        at = number - jax.lax.axis_index(axes) * mine.primary.shape[0]
        mine_has_it = (at >= 0) & (at < mine.primary.shape[0])

        def one(array):
            row = jax.lax.dynamic_slice_in_dim(array, at, 1)
            return jax.lax.psum(jnp.where(mine_has_it, row, 0).astype(row.dtype), axes)

        return jax.tree.map(one, mine)

    over_devices = jax.shard_map(
        of_device, mesh=sharding.mesh, in_specs=(P(axes), P()), out_specs=P()
    )
    return over_devices(rows, number)


def threshold_by_bisection(rows: Rows, budget, *, loss: Loss, scale: float):
    """() float32: the smallest threshold with a loss sum within `budget`, in quanta; else +inf.

    31 sums, one for each bit of a gap: the plainest exact selection, for code that must run whole
    under `jit` and `vmap`, such as a simulation. Needs 64-bit integers.
    """
    at = prepared(rows, loss)

    def total(key):
        point = jax.lax.bitcast_convert_type(key.astype(jnp.uint32), jnp.float32)
        return jnp.sum(loss_at(at, point, scale).astype(jnp.int64))

    def halve(_, span):
        low, high = span  # the sum is within the budget at `high`, and not at `low`
        middle = (low + high) // 2
        met = total(middle) <= budget
        return jnp.where(met, low, middle), jnp.where(met, middle, high)

    infinite = jnp.int64(0x7F800000)  # the bits of +inf: one above the largest gap
    span = (jnp.int64(-1), infinite)
    key = jax.lax.fori_loop(0, GAP_BITS, halve, span)[1]
    return jax.lax.bitcast_convert_type(key.astype(jnp.uint32), jnp.float32)
