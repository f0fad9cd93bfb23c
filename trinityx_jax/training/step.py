"""The loss of a stage, the optimiser and the compiled step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from trinityx_jax.config import TrainConfig
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.sharding import state_shardings
from trinityx_jax.training.accumulate import total_and_gradients
from trinityx_jax.training.guard import Guarded, skip_bad_steps

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Part = Callable[[Parameters, Parameters, Batch], tuple[jax.Array, Metrics]]
Step = Callable[[Parameters, Any, Parameters, Batch], tuple[Parameters, Any, Metrics]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a stage minimises, as a sum over rows, so that a batch may be taken in parts.

    `weigh`: batch -> batch with whatever fields, (B, ...), need the whole batch: the weights that
    make means of sums. `part`: (trainable, frozen, some rows of the weighed batch) -> (loss,
    metrics); the losses and metrics of all parts add up to the batch's.
    """

    weigh: Callable[[Batch], Batch]
    part: Part


def make_optimizer(
    config: TrainConfig, clip: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """AdamW with warm-up and cosine decay to a tenth, after clipping (default: by global norm).

    Steps whose gradient is not finite are left out (see trinityx_jax.training.guard).
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, config.steps - 1),
        decay_steps=config.steps,
        end_value=config.learning_rate / 10,
    )
    return skip_bad_steps(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm) if clip is None else clip,
            optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay),
        )
    )


def expert_norms(gradients: Parameters) -> jax.Array:
    """Gradient norm of each expert, (E,), from leaves (E, a, b) or, of stacked layers,
    (n, E, a, b)."""
    squares = []
    for g in gradients.values():
        others = tuple(axis for axis in range(g.ndim) if axis != g.ndim - 3)
        squares.append((g.astype(jnp.float32) ** 2).sum(axis=others))
    return jnp.sqrt(jnp.stack(squares).sum(axis=0))


def clip_by_expert_norm(max_norm: float) -> optax.GradientTransformation:
    """Global-norm clipping within each expert: no objective's gradient shrinks another's."""

    def update(updates, state, params=None):
        del params
        scale_e = jnp.minimum(1.0, max_norm / jnp.maximum(expert_norms(updates), 1e-12))
        return jax.tree.map(lambda g: g * scale_e[:, None, None], updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    like: Any,
    mesh: Mesh,
    accumulate: int = 1,
) -> Step:
    """Jitted (trainable, opt_state, frozen, batch) -> (trainable, opt_state, metrics).

    Only `trainable` has gradients and optimiser state; both are donated. `like` is the pair
    (trainable, opt_state), whose shardings the step keeps. Gradients are those of the whole batch,
    taken in `accumulate` parts one after the other. A step whose loss or gradient is not finite
    changes nothing but the count of such steps, `skipped_steps`; `bad_steps` are those in a row.
    """
    shardings = state_shardings(like, mesh)

    def step(trainable, opt_state, frozen, batch):
        value, metrics, gradients = total_and_gradients(
            loss.part, trainable, frozen, loss.weigh(batch), parts=accumulate, mesh=mesh
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, state = optimizer.update(gradients, opt_state, trainable, finite=finite)
        state = cast(Guarded, state)
        metrics = {
            "loss": value,
            **metrics,
            "grad_norm": norm,
            "skipped_steps": state.skipped,
            "bad_steps": state.in_a_row,
        }
        return optax.apply_updates(trainable, updates), state, metrics

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(*shardings, None))
