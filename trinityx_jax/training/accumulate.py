"""Gradients of a whole batch, taken in parts one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trinityx_jax.errors import UsageError
from trinityx_jax.sharding import MESH_AXES, state_shardings, ways

Tree = dict[str, jax.Array]


def total_and_gradients(
    part: Callable[[Tree, Tree, Tree], tuple[jax.Array, Tree]],
    trainable: Tree,
    frozen: Tree,
    batch: Tree,
    *,
    parts: int,
    mesh: Mesh,
) -> tuple[jax.Array, Tree, Tree]:
    """Sums over the batch's `parts` of `part`'s loss, metrics and gradients by `trainable`.

    Memory holds the activations of one part and one more copy of the gradients, in the dtype of
    `trainable`. Raises UsageError for a batch that does not divide.
    """
    both = jax.value_and_grad(part, has_aux=True)
    if parts == 1:
        (value, metrics), gradients = both(trainable, frozen, batch)
        return value, metrics, gradients

    def one(rows: Tree) -> Any:
        (value, metrics), gradients = both(trainable, frozen, rows)
        return value, metrics, jax.lax.with_sharding_constraint(gradients, shardings)

    def add(total: Any, rows: Tree) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(rows)), None

    shardings = state_shardings(trainable, mesh)
    rows = split(batch, parts, mesh)
    shapes = jax.eval_shape(one, {name: x[0] for name, x in rows.items()})
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, rows)[0]


def split(batch: Tree, parts: int, mesh: Mesh) -> Tree:
    """Arrays (B, ...) to (parts, B / parts, ...): part i has rows i, i + parts, ...

    So each part has an equal share of every objective's block whose rows `parts` divides, and each
    device keeps the rows that it has.
    """
    devices = ways(mesh, "batch")
    rows = len(next(iter(batch.values())))
    if rows % (parts * devices):
        raise UsageError(
            f"config accumulate={parts}: a batch of {rows} rows cannot be taken in {parts} parts "
            f"over {devices} devices (mesh axes data x fsdp); use a multiple of {parts * devices}"
        )
    sharding = NamedSharding(mesh, P(None, MESH_AXES["batch"]))

    def of(x: jax.Array) -> jax.Array:
        x = x.reshape(rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return {name: of(x) for name, x in batch.items()}
