"""The optimiser's parts against direct formulas, and what the step may touch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trinityx_jax.config import MeshConfig, TrainConfig
from trinityx_jax.sharding import make_mesh
from trinityx_jax.training.step import (
    Loss,
    clip_by_expert_norm,
    expert_norms,
    make_optimizer,
    make_step,
)

A = "layers.0.mlp.task_vectors.gate.A"
B = "layers.0.mlp.task_vectors.gate.B"
SIZE = np.array([10.0, 0.01, 1.0])[:, None, None]


def draw(*layers):
    rng = np.random.default_rng(0)
    return {
        A: jnp.asarray(rng.normal(size=(*layers, 3, 4, 2)) * SIZE, jnp.float32),
        B: jnp.asarray(rng.normal(size=(*layers, 3, 2, 5)) * SIZE, jnp.float32),
    }


@pytest.mark.parametrize("layers", [(), (2,)], ids=["one layer", "stack"])
def test_each_expert_is_clipped_by_its_own_norm(layers):
    gradients = draw(*layers)
    clip = clip_by_expert_norm(1.0)
    got: Any = clip.update(gradients, clip.init(gradients))[0]
    for e in range(3):
        own = {name: g[..., e, :, :] for name, g in gradients.items()}
        alone: Any = optax.clip_by_global_norm(1.0).update(own, optax.EmptyState())[0]
        for name in gradients:
            np.testing.assert_allclose(got[name][..., e, :, :], alone[name], rtol=1e-5)
    np.testing.assert_allclose(expert_norms(got)[0], 1, rtol=1e-5)


def test_zero_gradients_stay_zero():
    zero = jax.tree.map(jnp.zeros_like, draw())
    got, _ = clip_by_expert_norm(1.0).update(zero, optax.EmptyState())
    assert all((g == 0).all() for g in jax.tree.leaves(got))


SCALE, OTHER = "norm.scale", "layers.0.input_layernorm.scale"


def part(trainable, frozen, batch):
    y = trainable[SCALE] * frozen[OTHER]
    return ((y - batch["x"]) ** 2).sum(), {"y": y.sum()}


@pytest.fixture
def made():
    """(step, trainable, opt_state, frozen) of a least-squares problem."""
    optimizer = make_optimizer(TrainConfig(steps=5, learning_rate=0.1, warmup_steps=0))
    trainable = {SCALE: jnp.ones(3)}
    opt_state = optimizer.init(trainable)
    step = make_step(
        Loss(lambda batch: batch, part), optimizer, (trainable, opt_state), make_mesh(MeshConfig())
    )
    return step, trainable, opt_state, {OTHER: jnp.full(3, 2.0)}


def test_the_step_moves_only_what_is_trainable(made):
    step, trainable, opt_state, frozen = made
    sizes = [x.size for x in jax.tree.leaves(opt_state) if x.ndim]
    assert sizes == [3, 3]  # first and second moment of the trainable parameters, nothing else
    losses = []
    for _ in range(5):
        trainable, opt_state, metrics = step(trainable, opt_state, frozen, {"x": jnp.zeros(3)})
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_array_equal(frozen[OTHER], 2.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=["nan", "inf", "gradient overflows"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(made, value):
    step, trainable, opt_state, frozen = made
    trainable, opt_state, _ = step(trainable, opt_state, frozen, {"x": jnp.zeros(3)})
    before = jax.tree.map(np.array, (trainable, opt_state.inner))
    bad = {"x": jnp.array([0.0, value, 0.0])}
    for n in (1, 2):
        trainable, opt_state, metrics = step(trainable, opt_state, frozen, bad)
        assert (metrics["skipped_steps"], metrics["bad_steps"]) == (n, n)
    jax.tree.map(np.testing.assert_array_equal, (trainable, opt_state.inner), before)
    trainable, opt_state, metrics = step(trainable, opt_state, frozen, {"x": jnp.zeros(3)})
    assert (metrics["skipped_steps"], metrics["bad_steps"]) == (2, 0)
    assert (trainable[SCALE] < before[0][SCALE]).all()
