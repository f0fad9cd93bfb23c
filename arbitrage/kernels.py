"""Compiled passes over a block of rows: what each row loses, and how much falls at which gap.

The bodies are the same pure functions as everywhere (`loss_curves`), compiled by XLA. Sums are
64-bit integers, so callers run these under `jax.enable_x64`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from arbitrage.loss_curves import (
    TOO_LARGE,
    bad_rows,
    best_before,
    best_within,
    ceil_units,
    drop_of,
    joins,
    loss_at,
    prepared,
)
from arbitrage.losses import Loss
from arbitrage.rows import Rows

GAP_BITS = 31  # a gap is a float32 >= 0: its bits, read as an integer, have its order


@functools.partial(jax.jit, static_argnames=("loss", "scale"))
def losses_outside(rows: Rows, points, low, high, limit, *, loss: Loss, scale: float):
    """(T, n) uint32: each row's loss at each of `points` (T,), or TOO_LARGE in all of them.

    TOO_LARGE marks rows that need a closer look: those whose loss falls within one of the brackets
    (low_j, high_j], and bad ones. `limit` is the largest loss within the bound.
    """
    at = prepared(rows, loss)
    flagged = bad_rows(rows, at, loss_at(at, np.float32(0), scale), limit)
    for j in range(low.shape[0]):
        flagged = flagged | (best_within(at, high[j]) > best_within(at, low[j]))
    found = [ceil_units(at.target, best_within(at, point), scale) for point in points]
    return jnp.stack([jnp.where(flagged, TOO_LARGE, units) for units in found])


class DigitSums(NamedTuple):
    """Sums over rows.

    Fields:
      fall: (slots * 2^bits,) int64, how much the loss falls at gaps with this digit.
      base: () int64, the loss at lambda = 0.
      first_bad: () int64, number of the first bad row; a number past the last row without one.
    """

    fall: jax.Array
    base: jax.Array
    first_bad: jax.Array


def digit_sums(rows: Rows, start, stop, slot_of, limit, *, loss, scale, shift, bits, slots):
    """`DigitSums` of a block whose first row has number `start`; rows from `stop` on are padding.

    A gap's bits are split as prefix | digit (`bits`) | rest (`shift`). `slot_of` (prefixes,) int32
    says which slot adds up a prefix; `slots` where none does. It is None when there is no prefix.
    """
    at = prepared(rows, loss)
    base = loss_at(at, np.float32(0), scale)
    numbers = start + jnp.arange(base.shape[0])
    live = numbers < stop
    fall = jnp.zeros(slots << bits, jnp.int64)
    for gap, value, before in zip(at.gap, at.value, best_before(at), strict=True):
        drop = drop_of(at.target, before, value, scale)
        key = jax.lax.bitcast_convert_type(gap, jnp.uint32)
        digit = ((key >> shift) & ((1 << bits) - 1)).astype(jnp.int32)
        if slot_of is not None:
            digit = (slot_of[key >> (shift + bits)] << bits) | digit
        wanted = jnp.where(live & joins(gap, value, before), digit, slots << bits)
        fall = fall.at[wanted].add(drop.astype(jnp.int64), mode="drop")
    bad = live & bad_rows(rows, at, base, limit)
    never = jnp.iinfo(jnp.int64).max
    return DigitSums(
        fall,
        jnp.sum(jnp.where(live, base, 0).astype(jnp.int64)),
        jnp.min(jnp.where(bad, numbers.astype(jnp.int64), never)),
    )


_DIGIT_STATIC = ("loss", "scale", "shift", "bits", "slots")
digit_sums_of_block = jax.jit(digit_sums, static_argnames=_DIGIT_STATIC)


@functools.partial(jax.jit, static_argnames=(*_DIGIT_STATIC, "sharding"))
def digit_sums_of_shards(rows: Rows, slot_of, limit, *, sharding: NamedSharding, **static):
    """`DigitSums` of arrays whose rows are split over a mesh: each device adds up its own rows.

    `sharding` is that of the score arrays; only rows may be split. Every device gets the result.
    """
    axes = sharding.spec[0]

    def of_device(mine: Rows, slot_of, limit):
        size = mine.primary.shape[0]
        start = jax.lax.axis_index(axes) * size
        sums = digit_sums(mine, start, start + size, slot_of, limit, **static)
        fall, base = jax.lax.psum((sums.fall, sums.base), axes)
        return DigitSums(fall, base, jax.lax.pmin(sums.first_bad, axes))

    specs = (_row_specs(rows, axes), None if slot_of is None else P(), P())
    over_devices = jax.shard_map(of_device, mesh=sharding.mesh, in_specs=specs, out_specs=P())
    return over_devices(rows, slot_of, limit)


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

    specs = (_row_specs(rows, axes), P())
    return jax.shard_map(of_device, mesh=sharding.mesh, in_specs=specs, out_specs=P())(rows, number)


def _row_specs(rows: Rows, axes) -> Rows:
    return Rows(*(None if a is None else P(axes, *[None] * (a.ndim - 1)) for a in rows))


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
