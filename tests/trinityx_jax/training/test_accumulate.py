"""A batch in parts has the whole batch's gradient; only the balance loss is a product of means."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_job as tiny

from trinityx_jax.config import MeshConfig, MoCaEConfig, RouterLossConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Forced, Mixture, RouterWeight
from trinityx_jax.sharding import make_mesh
from trinityx_jax.stages.experts import expert_loss
from trinityx_jax.stages.pretrain import language_model_loss
from trinityx_jax.stages.router import router_loss
from trinityx_jax.training.accumulate import split, total_and_gradients

ROUTER = RouterLossConfig(gate=0.7, balance=0.0, z=0.1, entropy=0.2, kl=0.3)
MODEL = dataclasses.replace(tiny.MODEL, num_hidden_layers=1, scan_layers=False)
ARCH = architecture(MODEL, MoCaEConfig(rank=2))
MESH = make_mesh(MeshConfig(data=1))
BATCH = {key: jnp.asarray(x) for key, x in tiny.batch(3).items()}


def stage(name):
    """Loss, trainable and frozen parameters of a stage."""
    if name == "pretrain":
        arch = architecture(MODEL)
        return language_model_loss(arch), tiny.parameters(arch, MESH), {}
    loss = expert_loss(ARCH) if name == "experts" else router_loss(ARCH, ROUTER, Mixture())
    drawn = tiny.parameters(ARCH, MESH)
    trainable = ARCH.only(drawn, TaskVector if name == "experts" else RouterWeight)
    return loss, trainable, {n: x for n, x in drawn.items() if n not in trainable}


@functools.cache
def gradients(name, parts):
    """Loss, metrics and gradients of BATCH."""
    loss, trainable, frozen = stage(name)

    def of(trainable, frozen, batch):
        return total_and_gradients(
            loss.part, trainable, frozen, loss.weigh(batch), parts=parts, mesh=MESH
        )

    return run(of, trainable, frozen, BATCH)


def run(function, *arguments):
    """Compiled without optimisation: that takes half the time and is as exact."""
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


@pytest.mark.parametrize("name", ["experts", "router", "pretrain"])
def test_parts_add_up_to_the_whole(name):
    want_loss, want_metrics, want = gradients(name, 1)
    got_loss, got_metrics, got = gradients(name, 4)
    np.testing.assert_allclose(got_loss, want_loss, rtol=1e-5)
    for key in want:
        size = float(jnp.abs(want[key]).max())
        assert size > 0
        np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-5 * size, err_msg=key)
    for key in want_metrics.keys() - {"balance"}:
        np.testing.assert_allclose(
            got_metrics[key], want_metrics[key], rtol=1e-4, atol=1e-6, err_msg=key
        )


def test_the_means_are_of_the_whole_batch():
    """Against a loop over tokens: the parts' own means, of other numbers of tokens, differ."""
    _, metrics, _ = gradients("experts", 4)
    _, trainable, frozen = stage("experts")
    logits = run(
        lambda p: ARCH.merge(p)(
            BATCH["tokens"], Forced(BATCH["objective"]),
            positions_bl=BATCH["positions"], segment_ids_bl=BATCH["segment_ids"],
        ).logits,
        trainable | frozen,
    )  # fmt: skip
    log_p = np.asarray(jax.nn.log_softmax(logits))
    for o, name in enumerate(("helpful", "harmless", "honest")):
        terms = [
            -log_p[b, t, BATCH["targets"][b, t]]
            for b in np.flatnonzero(BATCH["objective"] == o)
            for t in np.flatnonzero(BATCH["loss_mask"][b])
        ]
        np.testing.assert_allclose(metrics[f"loss/{name}"], np.mean(terms), rtol=1e-5)


def test_balance_is_each_parts_own_by_its_share():
    """The docstring's promise, and that it is not the whole batch's."""
    loss, trainable, frozen = stage("router")

    def own(rows):
        return loss.part(trainable, frozen, loss.weigh(rows))[1]["balance"]

    parts = [{key: x[i::4] for key, x in BATCH.items()} for i in range(4)]
    compiled = jax.jit(own)
    real = np.array([(part["segment_ids"] > 0).sum() for part in parts])
    want = np.array([compiled(part) for part in parts]) @ real / real.sum()
    got = float(gradients("router", 4)[1]["balance"])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert abs(got - float(gradients("router", 1)[1]["balance"])) > 1e-4


def test_each_part_has_an_equal_share_of_every_objective():
    rows = split(BATCH, 2, MESH)
    for objective in rows["objective"]:
        assert np.bincount(objective).tolist() == [2, 2, 2]
    got = np.sort(np.asarray(rows["tokens"]).reshape(-1, tiny.LENGTH), axis=0)
    np.testing.assert_array_equal(got, np.sort(BATCH["tokens"], axis=0))


def test_a_batch_that_does_not_divide_is_one_line():
    with pytest.raises(UsageError, match=r"accumulate=5: a batch of 12 rows.*multiple of 5"):
        split(BATCH, 5, MESH)
