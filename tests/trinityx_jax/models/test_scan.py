"""Scanned layers are the unrolled ones: values, gradients, caches, chosen layers, compile size."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture, architecture, by_expert_layer
from trinityx_jax.models.router import Forced, Mixture, Temperature
from trinityx_jax.models.transformer import View
from trinityx_jax.sharding import make_mesh

# Windows that differ by layer travel with the scan.
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    windows=(0, 3, 0, 3),
)
TOKENS = jax.random.randint(jax.random.key(5), (2, 7), 0, 40)
ROUTINGS = {
    "mixture": Mixture(),
    "own expert": Forced(jnp.array([2, 0])),
    "two experts a row": Forced(jnp.array([0, 0, 1, 1])),
}


def moved(arch: Architecture) -> dict[str, np.ndarray]:
    """Parameters by layer with task vectors that are not zero."""
    random = np.random.default_rng(0)
    shapes = arch.unrolled().shapes
    return {
        name: (name.endswith("scale") or "temp" in name or "gamma" in name)
        + 0.3 * random.standard_normal(x.shape, np.float32)
        for name, x in shapes.items()
    }


def stacked(arch: Architecture, parameters):
    return arch.stack(dict(parameters), make_mesh(MeshConfig(), jax.devices()[:1]))


@partial(jax.jit, static_argnums=0)
def value_and_gradients(arch, parameters, routing):
    def loss(parameters):
        out = arch.merge(parameters)(TOKENS, routing)
        return (out.logits**2).mean() + (out.gate_logits**2).mean(), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
    return out, gradients


@pytest.mark.parametrize("layers", [(), (1, 3), (2, 3)], ids=["all", "every second", "last two"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_scanned_equals_unrolled(layers, routing):
    arch = architecture(CONFIG, MoCaEConfig(rank=2, layers=layers))
    parameters = moved(arch)
    wanted = value_and_gradients(arch.unrolled(), parameters, ROUTINGS[routing])
    out, gradients = value_and_gradients(arch, stacked(arch, parameters), ROUTINGS[routing])
    found = (out, arch.unstack(jax.device_get(gradients)))
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(out.gate_logits) == (len(layers) or 4)


@pytest.mark.parametrize("remat", ["dots", "layers"])
@pytest.mark.parametrize("scan", [True, False])
def test_recomputing_changes_memory_alone(remat, scan):
    config = dataclasses.replace(CONFIG, scan_layers=scan)
    mocae = MoCaEConfig(rank=2)
    kept = architecture(config, mocae)
    parameters = stacked(kept, moved(kept))
    wanted = value_and_gradients(kept, parameters, Mixture())
    again = architecture(dataclasses.replace(config, remat=remat), mocae)
    chex.assert_trees_all_close(
        value_and_gradients(again, parameters, Mixture()), wanted, rtol=1e-4, atol=1e-4
    )


@pytest.mark.optimised
def test_recomputed_layers_keep_less():
    def kept(remat: str) -> int:
        config = dataclasses.replace(CONFIG, remat=remat, num_hidden_layers=8, windows=())
        arch = architecture(config, MoCaEConfig(rank=2))
        tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)

        def loss(trained, frozen, tokens):
            return arch.merge(trained, frozen)(tokens, Mixture()).logits.sum()

        trained = arch.only(arch.shapes, TaskVector)
        frozen = {name: x for name, x in arch.shapes.items() if name not in trained}
        compiled = jax.jit(jax.grad(loss)).lower(trained, frozen, tokens).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    none, dots, layers = map(kept, ("none", "dots", "layers"))
    assert layers < 0.7 * dots < 0.7 * none


def test_stacking_is_its_own_inverse_and_keeps_what_init_draws():
    arch = architecture(CONFIG, MoCaEConfig(rank=2, layers=(2, 3)))
    assert {name.split(".mlp")[0] for name in arch.shapes if ".mlp" in name} == {
        "stacks.0",
        "stacks.1",
    }
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    drawn = arch.init(jax.random.key(3), one)
    apart = arch.unstack(drawn)
    chex.assert_trees_all_equal(apart, arch.unrolled().init(jax.random.key(3), one))
    chex.assert_trees_all_equal(arch.stack(dict(apart), one), drawn)


def test_stacking_takes_the_arrays_it_stacks():
    arch = architecture(CONFIG)
    parameters = arch.unrolled().init(jax.random.key(0), make_mesh(MeshConfig(), jax.devices()[:1]))
    stacked_ones = arch.stack(parameters, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert stacked_ones.keys() == arch.shapes.keys()
    assert not parameters


def test_values_by_expert_layer_go_to_their_layers():
    arch = architecture(CONFIG, MoCaEConfig(rank=2, layers=(0, 2, 3)))
    tau = np.arange(9, dtype=np.float32).reshape(3, 3)
    for form in (arch, arch.unrolled()):
        found = form.unstack(by_expert_layer(form, Temperature, jnp.asarray(tau)))
        for row, layer in enumerate((0, 2, 3)):
            np.testing.assert_array_equal(found[f"layers.{layer}.mlp.router.temperature"], tau[row])


def test_parameters_move_between_models_with_other_layers_of_experts():
    backbone, some = architecture(CONFIG), architecture(CONFIG, MoCaEConfig(rank=2, layers=(1,)))
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    parameters = backbone.init(jax.random.key(0), one)
    adopted = some.adopt(parameters, backbone, one)
    assert adopted.keys() <= some.shapes.keys()
    chex.assert_trees_all_equal(some.unstack(adopted), backbone.unstack(parameters))


@pytest.mark.parametrize("scan", [True, False])
def test_a_cache_read_slot_by_slot_gives_the_whole_pass(scan):
    arch = architecture(dataclasses.replace(CONFIG, scan_layers=scan), MoCaEConfig(rank=2))
    model = arch.merge(stacked(arch, moved(arch)))
    L = TOKENS.shape[1]

    @jax.jit
    def whole():
        return model(TOKENS, Mixture()).logits

    @jax.jit
    def slot_by_slot():
        cache, logits = model.new_cache(2, L), []
        keys = jnp.broadcast_to(jnp.arange(L), (2, L))
        for at in range(L):
            query = jnp.full((2, 1), at)
            view = View(query, keys, keys[:, None] <= at)
            hidden = model.hidden(TOKENS[:, at, None], Mixture(), view, cache, at)
            cache = hidden.cache
            logits.append(model.logits(hidden.states))
        return jnp.concatenate(logits, axis=1)

    np.testing.assert_allclose(slot_by_slot(), whole(), rtol=1e-4, atol=1e-4)


def test_a_program_does_not_grow_with_depth():
    def size(layers: int) -> int:
        config = dataclasses.replace(CONFIG, num_hidden_layers=layers, windows=())
        arch = architecture(config, MoCaEConfig(rank=2))
        tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)

        def gradients(parameters, tokens):
            return jax.grad(lambda p: arch.merge(p)(tokens, Mixture()).logits.sum())(parameters)

        return len(jax.jit(gradients).lower(arch.shapes, tokens).as_text().splitlines())

    assert size(8) == size(2)
