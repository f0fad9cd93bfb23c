"""The shared-base identity against E complete FFNs, written out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.models.ffn import FFN
from trinityx_jax.models.mocae import MoCaE, TaskVector
from trinityx_jax.models.router import Forced, Mixture, Temperature, Uniform

CONFIG = ModelConfig(vocab_size=50, hidden_size=24, intermediate_size=40)
MOCAE = MoCaEConfig(rank=4, lora_alpha=6.0)
E = 3


@pytest.fixture(params=[0, 1, 2])
def layer(request):
    """A layer with random, large task vectors and uneven temperatures and importances."""
    rngs = nnx.Rngs(request.param)
    layer = MoCaE(CONFIG, MOCAE, rngs)
    for pair in (layer.task_vectors.gate, layer.task_vectors.up, layer.task_vectors.down):
        pair.B.set_value(jax.random.normal(rngs.params(), pair.B.shape))
    layer.router.kernel.set_value(jax.random.normal(rngs.params(), layer.router.kernel.shape))
    layer.router.temperature.set_value(jnp.array([0.5, 1.0, 2.0]))
    layer.router.gamma.set_value(jnp.array([0.5, 1.5, 1.0]))
    return layer


@pytest.fixture
def x_bld():
    return jax.random.normal(jax.random.key(7), (4, 5, CONFIG.hidden_size))


def plain_expert(layer, x, e):
    """E_e(x): the base FFN with We = W + s A_e B_e formed at full size."""

    def moved(base, pair):
        return base.kernel[...] + MOCAE.scale * pair.A[e] @ pair.B[e]

    gate = moved(layer.gate_proj, layer.task_vectors.gate)
    up = moved(layer.up_proj, layer.task_vectors.up)
    down = moved(layer.down_proj, layer.task_vectors.down)
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def plain_mixture(layer, x, w_ble):
    return jnp.stack([w_ble[..., e, None] * plain_expert(layer, x, e) for e in range(E)]).sum(0)


@pytest.mark.parametrize(
    "routing",
    [
        Mixture(),
        Mixture(top_k=1),
        Mixture(top_k=2),
        Mixture(gamma="output"),
        Mixture(top_k=2, gamma="logit"),
        Uniform(),
        Forced(jnp.array([2, 0, 1, 1])),
    ],
)
def test_equals_the_mixture_of_complete_ffns(layer, x_bld, routing):
    y, logits = layer(x_bld, routing)
    want = plain_mixture(layer, x_bld, routing.weights(logits, layer.router))
    chex.assert_shape(logits, (4, 5, E))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("routing", [Mixture(top_k=2), Forced(jnp.array([2, 0, 1, 1]))])
def test_gradient_equals_the_plain_formulas(layer, x_bld, routing):
    graphdef, state = nnx.split(layer)

    def loss(state, x, forward):
        layer = nnx.merge(graphdef, state)
        return (forward(layer, x) ** 2).sum()

    def plain(layer, x):
        return plain_mixture(layer, x, routing.weights(layer.router(x), layer.router))

    got = jax.grad(loss, argnums=(0, 1))(state, x_bld, lambda layer, x: layer(x, routing)[0])
    want = jax.grad(loss, argnums=(0, 1))(state, x_bld, plain)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5 * np.abs(w).max())


@pytest.mark.parametrize("routing", [Mixture(), Uniform(), Forced(jnp.array([2, 0, 1, 1]))])
def test_zero_task_vectors_leave_the_backbone_unchanged(x_bld, routing):
    layer = MoCaE(CONFIG, MOCAE, nnx.Rngs(0))
    base = FFN(CONFIG, nnx.Rngs(0))  # draws the same base weights, which come first
    np.testing.assert_array_equal(layer.up_proj.kernel[...], base.up_proj.kernel[...])
    np.testing.assert_allclose(layer(x_bld, routing)[0], base(x_bld)[0], rtol=1e-5, atol=1e-6)


def test_experts_differ_and_the_router_has_a_gradient(layer, x_bld):
    outputs = [layer(x_bld, Forced(jnp.full(4, e)))[0] for e in range(E)]
    for a, b in [(0, 1), (1, 2), (0, 2)]:
        assert np.abs(outputs[a] - outputs[b]).max() > 1e-3
    graphdef, state = nnx.split(layer)
    grad = jax.grad(lambda s: (nnx.merge(graphdef, s)(x_bld, Mixture())[0] ** 2).sum())(state)
    assert np.abs(grad.router.kernel[...]).max() > 0


def test_bfloat16_activations_keep_a_float32_router(x_bld):
    config = ModelConfig(vocab_size=50, hidden_size=24, intermediate_size=40, dtype="bfloat16")
    layer = MoCaE(config, MOCAE, nnx.Rngs(0))
    y, logits = layer(x_bld.astype(jnp.bfloat16), Mixture())
    assert y.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert Mixture().weights(logits, layer.router).dtype == jnp.float32


@pytest.mark.optimised
def test_low_rank_experts_cost_little_more_than_one_ffn():
    """Compiled FLOPs of the mixture stay near the dense FFN's; E full FFNs would be E times."""
    config = ModelConfig(vocab_size=50, hidden_size=128, intermediate_size=344)
    layer = MoCaE(config, MoCaEConfig(rank=2), nnx.Rngs(0))
    base = FFN(config, nnx.Rngs(0))
    x = jnp.ones((4, 64, 128))

    def flops(module, *args):
        graphdef, state = nnx.split(module)
        lowered = jax.jit(lambda s, *a: nnx.merge(graphdef, s)(*a)[0]).lower(state, *args)
        cost = lowered.compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    assert flops(layer, x, Mixture()) < 1.25 * flops(base, x)


def test_variables_have_their_own_kinds():
    layer = MoCaE(CONFIG, MOCAE, nnx.Rngs(0))
    assert len(jax.tree.leaves(nnx.state(layer, TaskVector))) == 6
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 3
    assert len(jax.tree.leaves(nnx.state(layer, Temperature))) == 1
