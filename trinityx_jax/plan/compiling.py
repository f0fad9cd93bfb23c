"""Compiling for TPU devices that are not there: what fits, what it needs, and the limit itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

QUICK = {"exec_time_optimization_effort": -1.0}
# Else a gather and its product may become a loop of permutes, whose FLOPs are counted once.
WITHOUT_LOOPS = {
    "xla_tpu_enable_windowed_einsum_for_all_gather": False,
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": False,
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = r"([\d.]+)([KMGTP]?)"
_REFUSALS = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


@dataclasses.dataclass(frozen=True)
class TooBig:
    """The compiler's refusal: what the program needs and what a device has, in bytes.

    Both come from its message, which has two decimals.
    """

    needed: int
    limit: int


def compile_for(
    lowered: jax.stages.Lowered, options: Mapping[str, Any]
) -> jax.stages.Compiled | TooBig:
    """The compiled program, or by how much it is too big for a device's memory."""
    try:
        return lowered.compile(compiler_options=dict(options))
    except JaxRuntimeError as e:
        refusal = refusal_of(str(e))
        if refusal is None:
            raise
        return refusal


def refusal_of(message: str) -> TooBig | None:
    """What a compiler's error says about memory; None where it is another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _REFUSALS:
        if match := pattern.search(message):
            needed, limit = (
                round(float(number) * _UNITS[unit])
                for number, unit in (match.group(1, 2), match.group(3, 4))
            )
            return TooBig(needed, limit)
    return None


def memory_limit(device: Any) -> int:
    """Bytes of memory that the compiler lets a program use on this device.

    It says so only when it refuses a program, so it is given one of 64 TiB.
    """
    mesh = Mesh(np.array([device]), ("one",))
    whole = NamedSharding(mesh, PartitionSpec())
    huge = jax.jit(lambda: jnp.zeros(1 << 46, jnp.int8), out_shardings=whole)
    refusal = compile_for(huge.lower(), QUICK)
    assert isinstance(refusal, TooBig), "the compiler accepted 64 TiB"
    return refusal.limit
