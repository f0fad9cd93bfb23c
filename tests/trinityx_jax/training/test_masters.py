"""Float32 masters: updates smaller than bfloat16 can show are not lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.config import MeshConfig, TrainConfig
from trinityx_jax.sharding import make_mesh
from trinityx_jax.training.masters import masters, narrowed
from trinityx_jax.training.step import Loss, make_optimizer, make_step

NAME = "norm.scale"
STEPS = 200


def train(trainable, loss):
    """Constant gradient 1, learning rate 1e-4: each step moves a value of 1 by about 1e-4."""
    config = TrainConfig(steps=STEPS, learning_rate=1e-4, warmup_steps=0)
    optimizer = make_optimizer(config)
    opt_state = optimizer.init(trainable)
    step = make_step(loss, optimizer, (trainable, opt_state), make_mesh(MeshConfig(data=1)))
    for _ in range(STEPS):
        trainable, opt_state, metrics = step(trainable, opt_state, {}, {"x": jnp.ones(1)})
    return trainable, opt_state, metrics


@pytest.fixture
def parameters():
    return {NAME: jnp.ones(3, jnp.bfloat16)}


def loss_in(dtype):
    def part(trainable, frozen, batch):
        assert trainable[NAME].dtype == dtype  # what the model computes with
        return trainable[NAME].astype(jnp.float32).sum() * batch["x"][0], {}

    return Loss(lambda batch: batch, part)


def test_updates_below_the_resolution_of_bfloat16_are_kept(parameters):
    got, opt_state, metrics = train(
        masters(parameters), narrowed(loss_in(jnp.bfloat16), parameters)
    )
    assert got[NAME].dtype == jnp.float32
    moments = [x.dtype for x in jax.tree.leaves(opt_state) if x.ndim]
    assert moments == [jnp.float32] * 2
    moved = 1 - np.asarray(got[NAME])
    assert (moved > 0.008).all()  # cosine over 200 steps from 1e-4 to 1e-5: 0.011 in all
    # The loss is that of the rounded parameters: 3 times a bfloat16 below 1.
    assert float(metrics["loss"]) / 3 == float(jnp.bfloat16(float(metrics["loss"]) / 3))


def test_without_masters_they_are_lost(parameters):
    got, _, _ = train(parameters, loss_in(jnp.bfloat16))
    np.testing.assert_array_equal(got[NAME], 1)


def test_float32_parameters_are_their_own_masters():
    trainable = {NAME: jnp.ones(3)}
    assert masters(trainable)[NAME] is trainable[NAME]
