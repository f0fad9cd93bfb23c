"""The splash attention kernels, interpreted, against the plain formula."""

import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from trinityx_jax.config import ModelConfig
from trinityx_jax.models import attention_tpu
from trinityx_jax.models.attention import attend, causal, within
from trinityx_jax.models.transformer import Transformer

B, L, H, G, d = 2, 256, 4, 2, 128
SEGMENTS = jnp.repeat(jnp.array([[1, 1, 2, 0], [1, 2, 3, 3]]), L // 4, axis=1)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 0.0), (0, 5.0)])
def test_values_and_gradients_are_those_of_the_plain_formula(window, softcap):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys[:3], [(B, L, H, d), (B, G, L, d), (B, G, L, d)], strict=True)
    )
    q = q * d**-0.5
    index = jnp.broadcast_to(jnp.arange(L), (B, L))
    visible = within(window, causal(SEGMENTS), index, index)
    plain = functools.partial(attend, visible_bls=visible, softcap=softcap)

    def kernels(q, k, v):
        return attention_tpu.attend(
            q, k, v, SEGMENTS, window=window, softcap=softcap, interpret=True
        )

    wanted, back = jax.vjp(plain, q, k, v)
    found, again = jax.jit(lambda *args: jax.vjp(kernels, *args))(q, k, v)
    sent = jax.random.normal(keys[3], wanted.shape)
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=2e-4)
    close(found, wanted)
    close(again(sent), back(sent))


def test_only_rows_and_heads_of_whole_tiles_fit():
    assert attention_tpu.fits(2048, 128) and attention_tpu.fits(128, 256)
    assert not attention_tpu.fits(2000, 128) and not attention_tpu.fits(2048, 64)


def model(scan_layers: bool, windows: tuple[int, ...]):
    """Graph and arrays of two layers whose attention the kernels take."""
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        windows=windows,
        scan_layers=scan_layers,
    )
    return nnx.split(Transformer(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("windows", "kernels"), [((), 1), ((40, 40), 1), ((40, 0), 2)])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_model_for_tpus_has_one_kernel_for_each_window(windows, kernels, scan_layers):
    graphdef, state = model(scan_layers, windows)

    def logits(state, tokens_bl):
        return nnx.merge(graphdef, state)(tokens_bl).logits

    traced = jax.jit(logits).trace(state, jax.ShapeDtypeStruct((2, 128), jnp.int32))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == kernels


@pytest.mark.parametrize("windows", [(), (40, 0), (0, 40)])
def test_a_scanned_model_takes_each_layers_own_kernel(windows, monkeypatch):
    graphdef, state = model(True, windows)
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 0, 64)
    model_of = functools.partial(nnx.merge, graphdef)
    wanted = model_of(state)(tokens, segment_ids_bl=SEGMENTS).logits
    interpreted = functools.partial(attention_tpu.attend, interpret=True)
    calls = []

    def on_tpu(*args, tpu, **others):
        calls.append(tpu)
        return tpu(*args)

    monkeypatch.setattr(attention_tpu, "attend", interpreted)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)
    found = model_of(state)(tokens, segment_ids_bl=SEGMENTS).logits
    assert calls
    chex.assert_trees_all_close(found, wanted, rtol=2e-4, atol=2e-4)


SHARDED = """
import functools
import jax
jax.config.update("jax_num_cpu_devices", 8)
import chex
import jax.numpy as jnp
from trinityx_jax.config import MeshConfig, ModelConfig
from trinityx_jax.models import attention, attention_tpu
from trinityx_jax.sharding import make_mesh

B, L, H, G, d = 4, 128, 4, 2, 128
config = ModelConfig(num_attention_heads=H, num_key_value_heads=G, head_dim=d)
segments = jnp.repeat(jnp.array([[1, 1, 2, 0], [1, 2, 3, 3]] * 2), L // 4, axis=1)
keys = jax.random.split(jax.random.key(0), 4)
shapes = [(B, L, H, d), (B, G, L, d), (B, G, L, d), (B, L, H * d)]
q, k, v, sent = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
visible, packed = attention.causal(segments), attention_tpu.Packed(segments, 0)

def mix(*qkv):
    return attention._by_platform((*qkv, visible), packed, config)

def values_and_gradients(*qkv):
    mixed, back = jax.vjp(mix, *qkv)
    return mixed, *back(sent)

args = q * d**-0.5, k, v
wanted = values_and_gradients(*args)
attention_tpu.attend = functools.partial(attention_tpu.attend, interpret=True)
jax.lax.platform_dependent = lambda *args, tpu, default: tpu(*args)
with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, expert=2))):
    compiled = jax.jit(values_and_gradients).lower(*args).compile()
    assert "all-reduce" not in compiled.as_text()
    chex.assert_trees_all_close(compiled(*args), wanted, rtol=2e-4, atol=2e-4)
print("same")
"""


def test_every_device_computes_its_own_rows_and_heads():
    """Eight simulated devices, in a process of their own: the count is fixed once JAX starts."""
    command = [sys.executable, "-c", SHARDED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "same\n"
