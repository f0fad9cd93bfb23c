"""The preference loss against NumPy, and its stage loss against one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.alignment.dpo import dpo_loss, preference_loss, preference_margins
from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Backbone, Forced
from trinityx_jax.sharding import make_mesh

SHAPE = ModelConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
)  # fmt: skip
NAMES = ("kind", "brief")
BETA = 0.3


def test_it_is_minus_log_sigmoid_of_the_margin():
    rng = np.random.default_rng(0)
    four = rng.normal(-20, 5, (4, 50)).astype(np.float32)
    got = preference_loss(*map(jnp.asarray, four), beta=BETA)
    pc, pr, rc, rr = four.astype(np.float64)
    want = -np.log(1 / (1 + np.exp(-BETA * ((pc - rc) - (pr - rr)))))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("margin", "loss", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(margin, loss, slope):
    def of(chosen):
        return preference_loss(chosen, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), 1.0)[0]

    value, gradient = jax.value_and_grad(of)(jnp.array([margin], jnp.float32))
    np.testing.assert_allclose([value, gradient[0]], [loss, slope], atol=1e-6)


def test_its_gradient_raises_the_chosen_response_and_lowers_the_rejected_one():
    four = [jnp.zeros(3)] * 4
    up, down, *_ = jax.grad(lambda f: preference_loss(*f, beta=BETA).sum())(four)
    np.testing.assert_allclose(up, -BETA / 2)  # a step against the gradient raises it
    np.testing.assert_allclose(down, BETA / 2)
    assert preference_margins(jnp.ones(3), *four[:3], beta=BETA).min() > 0


@pytest.fixture(scope="module")
def setting():
    """Architecture, parameters with zero moves, and three pairs of each objective."""
    arch = architecture(SHAPE, MoCaEConfig(objectives=NAMES, rank=2))
    parameters = arch.init(jax.random.key(0), make_mesh(MeshConfig()))
    rng = np.random.default_rng(1)
    batch = {
        "tokens": rng.integers(4, 31, (6, 2, 10)).astype(np.int32),
        "targets": rng.integers(4, 31, (6, 2, 10)).astype(np.int32),
        "loss_mask": (rng.random((6, 2, 10)) < 0.5).astype(np.float32),
        "objective": np.array([0, 0, 0, 1, 1, 1], np.int32),
    }
    return arch, parameters, {name: jnp.asarray(x) for name, x in batch.items()}


def parts(arch, parameters):
    trainable = arch.only(parameters, TaskVector)
    return trainable, {name: x for name, x in parameters.items() if name not in trainable}


def moved(arch, parameters):
    """Parameters whose task vectors are not zero."""
    keys = iter(jax.random.split(jax.random.key(5), len(parameters)))
    return {
        name: 0.3 * jax.random.normal(next(keys), x.shape) if name[-2:] == ".B" else x
        for name, x in parameters.items()
    }


def value(loss, arch, parameters, batch):
    return jax.jit(loss.part)(*parts(arch, parameters), loss.weigh(batch))


def test_zero_task_vectors_give_exactly_ln_2(setting):
    arch, parameters, batch = setting
    total, metrics = value(dpo_loss(arch, beta=BETA), arch, parameters, batch)
    assert float(total) == pytest.approx(2 * np.log(2), rel=1e-7)
    for name in NAMES:
        assert metrics[f"loss/{name}"] == np.float32(np.log(2))
        assert metrics[f"margin/{name}"] == metrics[f"reward_accuracy/{name}"] == 0


def test_the_stage_loss_is_the_mean_over_pairs_taken_one_by_one(setting):
    arch, parameters, batch = setting
    parameters = moved(arch, parameters)
    model = arch.merge(parameters)
    log_softmax = jax.jit(lambda tokens, how: jax.nn.log_softmax(model(tokens, how).logits[0]))

    def log_likelihood(i, side, routing):
        log_p = log_softmax(batch["tokens"][i, side][None], routing)
        own = np.asarray(log_p)[np.arange(10), batch["targets"][i, side]]
        return float((own * batch["loss_mask"][i, side]).sum())

    margins = []
    for i, objective in enumerate(batch["objective"]):
        expert = Forced(objective[None])
        policy, reference = (
            log_likelihood(i, 0, how) - log_likelihood(i, 1, how) for how in (expert, Backbone())
        )
        margins.append(BETA * (policy - reference))
    margins = np.array(margins)
    total, metrics = value(dpo_loss(arch, beta=BETA), arch, parameters, batch)
    own = {"kind": margins[:3], "brief": margins[3:]}
    for name, m in own.items():
        np.testing.assert_allclose(metrics[f"margin/{name}"], m.mean(), rtol=1e-3, atol=1e-4)
        want = np.log1p(np.exp(-m)).mean()
        np.testing.assert_allclose(metrics[f"loss/{name}"], want, rtol=1e-4)
        assert metrics[f"reward_accuracy/{name}"] == pytest.approx((m > 0).mean())
    np.testing.assert_allclose(total, sum(metrics[f"loss/{n}"] for n in NAMES), rtol=1e-6)


def test_parts_of_a_batch_add_up_and_each_expert_learns_from_its_own_pairs(setting):
    arch, parameters, batch = setting
    parameters = moved(arch, parameters)
    loss = dpo_loss(arch, beta=BETA)
    trainable, frozen = parts(arch, parameters)
    gradient = jax.jit(jax.grad(loss.part, has_aux=True))

    def some(rows, weighed):
        return gradient(trainable, frozen, {k: x[jnp.array(rows)] for k, x in weighed.items()})

    weighed = loss.weigh(batch)
    whole, metrics = gradient(trainable, frozen, weighed)
    two = [some(rows, weighed) for rows in ([0, 3, 4], [1, 2, 5])]
    for name, g in whole.items():
        np.testing.assert_allclose(g, two[0][0][name] + two[1][0][name], rtol=1e-3, atol=1e-6)
    for key, x in metrics.items():
        np.testing.assert_allclose(x, two[0][1][key] + two[1][1][key], rtol=1e-5, atol=1e-6)
    alone, named = some([0, 1, 2], loss.weigh({k: x[:3] for k, x in batch.items()}))
    np.testing.assert_allclose(named["loss/kind"], metrics["loss/kind"], rtol=1e-5)
    for name, g in alone.items():
        mine, others = (np.moveaxis(np.asarray(x), -3, 0) for x in (g, whole[name]))
        np.testing.assert_array_equal(mine[1], 0)
        np.testing.assert_allclose(mine[0], others[0], rtol=1e-3, atol=1e-6)


def test_a_job_of_some_objectives_reports_no_others(setting):
    arch, parameters, batch = setting
    loss = dpo_loss(arch, ["kind"], beta=BETA)
    _, metrics = jax.eval_shape(loss.part, *parts(arch, parameters), loss.weigh(batch))
    assert sorted(metrics) == ["loss/kind", "margin/kind", "reward_accuracy/kind"]
