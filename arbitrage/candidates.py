"""How far each option is from the Primary's top: the one formula of calibration and routing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from arbitrage.errors import UsageError

# Smallest normal float32. XLA rounds smaller numbers to zero and NumPy does not, so both do here.
TINY = np.float32(np.finfo(np.float32).tiny)


def array_namespace(*arrays: Any):
    """`jax.numpy` if any argument is a JAX array or tracer, else `numpy`; never imports JAX."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(array, jax.Array) for array in arrays):
        return jax.numpy
    return np


def gaps(primary, mask=None) -> Any:
    """gap_a = max_b p_b - p_a over the valid options b, in float32; +inf at masked options.

    `primary` (..., K) of any real type, `mask` (..., K) bool or None for all valid; NumPy or JAX,
    also under `jit` and `vmap`. The result is the same to the bit in both. A row with a NaN or
    infinite score at a valid option has gap 0 everywhere: all its options stay candidates, so it
    goes to the Guardian with its full menu.
    """
    xp = array_namespace(primary, mask)
    with np.errstate(over="ignore"):
        p = xp.asarray(primary, dtype=xp.float32)
    if mask is None:
        return xp.stack(gap_columns(columns(p), None), axis=-1)
    valid = xp.broadcast_to(xp.asarray(mask, dtype=bool), p.shape)
    return xp.stack(gap_columns(columns(p), columns(valid)), axis=-1)


def columns(array) -> list[Any]:
    """The options of (..., K) as a list of K arrays.

    Row mathematics runs over such lists: XLA and NumPy vectorise over rows, not over a short K.
    Raises UsageError without options.
    """
    if not array.ndim or not array.shape[-1]:
        raise UsageError(f"scores must have shape (..., K) with K >= 1, not {array.shape}")
    return [array[..., a] for a in range(array.shape[-1])]


def gap_columns(primary: Sequence[Any], valid: Sequence[Any] | None) -> list[Any]:
    """`gaps` for K float32 arrays of one shape; `valid` None if all are."""
    xp = array_namespace(*primary)
    zero, infinity = np.float32(0), np.float32(np.inf)
    finite = [xp.isfinite(p) for p in primary]
    if valid is None:
        broken = ~functools.reduce(xp.logical_and, finite)
    else:
        wrong = [on & ~ok for on, ok in zip(valid, finite, strict=True)]
        broken = functools.reduce(xp.logical_or, wrong)
    with np.errstate(over="ignore", invalid="ignore"):
        clean = [
            xp.where(ok & (xp.abs(p) >= TINY), p, zero)
            for p, ok in zip(primary, finite, strict=True)
        ]
        top = masked_max(clean, valid)
        # Also turns -0.0 into +0.0.
        gap = [xp.where(broken | (top - p < TINY), zero, top - p) for p in clean]
    if valid is None:
        return gap
    return [xp.where(on, d, infinity) for d, on in zip(gap, valid, strict=True)]


def masked_max(values: Sequence[Any], valid: Sequence[Any] | None) -> Any:
    """The largest of K arrays where valid; -inf where none is."""
    xp = array_namespace(*values)
    if valid is not None:
        low = -np.float32(np.inf)
        values = [xp.where(on, v, low) for v, on in zip(values, valid, strict=True)]
    return functools.reduce(xp.maximum, values)


def exact_difference(a, b) -> tuple[Any, Any]:
    """a - b as rounded, and the part that rounding took away (Knuth's TwoSum)."""
    difference = a - b
    part = difference - a
    return difference, (a - (difference - part)) + (-b - part)
