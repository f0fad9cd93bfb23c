"""Algebra of task vectors: trees of low-rank factors A (E, in, r), B (E, r, out), or of the
layers of a stack, A (n, E, in, r), B (n, E, r, out).

The move of expert e in a projection is T_e = s A_e B_e; inner products of such products need only
r x r matrices: <A B, A' B'> = sum((A^T A') * (B B'^T)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from trinityx_jax.errors import UsageError
from trinityx_jax.sharding import leaf_name


def low_rank_pairs(task_vectors: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{"layers.0.mlp.task_vectors.gate": (A (..., E, in, r), B (..., E, r, out))} from a tree."""
    leaves = {leaf_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(task_vectors)}
    return {
        name[:-2]: (leaves[name], leaves[name[:-1] + "B"]) for name in leaves if name[-1] == "A"
    }


def gram_matrix(task_vectors: Any) -> jax.Array:
    """<T_e, T_f> up to the factor s^2, summed over layers and projections: (E, E) float32."""
    total = jnp.zeros(())
    for A, B in low_rank_pairs(task_vectors).values():
        AtA = jnp.einsum("...eir,...fis->...efrs", A, A, precision="highest")
        BBt = jnp.einsum("...ero,...fso->...efrs", B, B, precision="highest")
        gram = (AtA * BBt).sum(axis=(-1, -2))
        total = total + gram.reshape(-1, *gram.shape[-2:]).sum(axis=0)
    return total


def importances(
    task_vectors: Any, objectives: Sequence[str], reference_e: jax.Array | None = None
) -> jax.Array:
    """gamma_e = <T_e, T_ref>, normalised to mean 1 over experts: (E,) (TrinityX, sec. 3).

    `reference_e` holds the coefficients of T_ref in the experts; default the mean task vector.
    Raises UsageError for a non-positive gamma: such a weight is no importance.
    """
    gram = gram_matrix(task_vectors)
    E = len(objectives)
    gamma = gram @ (jnp.full(E, 1 / E) if reference_e is None else jnp.asarray(reference_e))
    for objective, value in zip(objectives, gamma, strict=True):
        if not value > 0:
            raise UsageError(
                f"gamma of objective {objective!r} is {float(value):.3g}, not positive; choose "
                "another reference task vector, or mocae.gamma: none"
            )
    return gamma / gamma.mean()


def combine(task_vectors: Any, coefficient_e: Sequence[float]) -> Any:
    """T_e -> c_e T_e for every expert: negation (-1), scaling, removal (0). Scales B only."""
    c = jnp.asarray(coefficient_e, jnp.float32)

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf * c[:, None, None] if leaf_name(path).endswith("B") else leaf

    return jax.tree_util.tree_map_with_path(scale, task_vectors)


def add(first: Any, second: Any) -> Any:
    """T_e + T'_e exactly, as factors of rank r + r': A side by side, B stacked."""

    def join(path: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x, y], axis=-1 if leaf_name(path).endswith("A") else -2)

    return jax.tree_util.tree_map_with_path(join, first, second)
