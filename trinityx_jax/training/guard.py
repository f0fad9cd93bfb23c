"""Optimiser updates that are left out where a loss or a gradient is not finite, and counted."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax


class Guarded(NamedTuple):
    """The guarded optimiser's state, and how many steps were left out: in all, and in a row."""

    inner: Any
    skipped: jax.Array  # () int32
    in_a_row: jax.Array  # () int32, 0 after a good step


def skip_bad_steps(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner` for updates with `finite=True`; otherwise zero updates and its state as it was.

    `finite` is a () bool. The counts are state, so that a checkpoint keeps them.
    """

    def init(params):
        return Guarded(inner.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, finite, **extra):
        del extra
        moved, after = inner.update(updates, state.inner, params)
        bad = 1 - finite.astype(jnp.int32)
        return (
            jax.tree.map(lambda u: jnp.where(finite, u, 0), moved),
            Guarded(
                jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state.inner),
                state.skipped + bad,
                (state.in_a_row + bad) * bad,
            ),
        )

    # Its own annotation leaves out the extra arguments.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
