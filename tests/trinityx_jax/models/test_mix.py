"""The mixture of all experts' activations: the loop, its backward pass, and the TPU kernels."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.models import mix_tpu
from trinityx_jax.models.mix import loop, mix


def arguments(T, F, E, r, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 8)
    shapes = [(T, F), (T, F), (E, T, r), (E, T, r), (T, E), (E, r, F), (E, r, F), (E, F, r)]
    drawn = [jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]
    drawn[4] = jax.nn.softmax(drawn[4])
    return [x if i == 4 else x.astype(dtype) for i, x in enumerate(drawn)]


def cotangents(T, F, E, r, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.random.normal(keys[0], (T, F)).astype(dtype), jax.random.normal(keys[1], (E, T, r))


def by_hand(g0, u0, pg, pu, w, Bg, Bu, Ad):
    """In float64 NumPy, token by token and expert by expert."""
    T, E = w.shape
    mixed, q = np.zeros(g0.shape), np.zeros(pg.shape)
    for t in range(T):
        for e in range(E):
            gate, up = g0[t] + pg[e, t] @ Bg[e], u0[t] + pu[e, t] @ Bu[e]
            weighted = w[t, e] * gate / (1 + np.exp(-gate)) * up
            mixed[t] += weighted
            q[e, t] = weighted @ Ad[e]
    return mixed, q


def test_mix_is_the_formula():
    args = arguments(6, 10, 3, 2)
    found = mix(jax.nn.silu, *args)
    wanted = by_hand(*(np.asarray(x, np.float64) for x in args))
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, rtol=2e-5, atol=2e-5)


# On a CPU 1,024 tokens are taken in chunks, 6 and 1,000 as a whole.
@pytest.mark.parametrize(("T", "tolerance"), [(6, 1e-5), (1000, 1e-4), (1024, 1e-4)])
@pytest.mark.parametrize("act", [jax.nn.silu, jax.nn.gelu])
def test_values_and_recomputed_gradients_are_those_of_the_loop(act, T, tolerance):
    args, sent = arguments(T, 10, 3, 2), cotangents(T, 10, 3, 2)
    wanted, back = jax.vjp(functools.partial(loop, act), *args)
    found, again = jax.vjp(functools.partial(mix, act), *args)
    close = functools.partial(chex.assert_trees_all_close, rtol=tolerance, atol=tolerance)
    close(found, wanted)
    close(again(sent), back(sent))


def test_no_activation_of_an_expert_is_kept_for_the_backward_pass():
    T, F, E, r = 64, 128, 5, 2
    args = arguments(T, F, E, r)
    _, back = jax.vjp(functools.partial(mix, jax.nn.silu), *args)
    kept = sum(x.size for x in jax.tree.leaves(back) if isinstance(x, jax.Array))
    assert kept <= sum(x.size for x in args)


# Whole tiles, a last tile that is not whole, features narrower than a tile, several token tiles.
@pytest.mark.parametrize(
    ("T", "F", "E", "r"), [(128, 512, 1, 1), (128, 700, 3, 4), (384, 96, 2, 8)]
)
def test_kernels_equal_the_loop(T, F, E, r):
    args, sent = arguments(T, F, E, r), cotangents(T, F, E, r)
    wanted, back = jax.vjp(functools.partial(loop, jax.nn.silu), *args)
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-4)
    forward, backward = (
        functools.partial(kernel, act=jax.nn.silu, interpret=True)
        for kernel in (mix_tpu.forward, mix_tpu.backward)
    )
    close(tuple(forward(*args)), wanted)
    close(tuple(backward(*args, *sent)), back(sent))


def test_kernels_in_bfloat16_are_as_near_as_bfloat16_is():
    shape = (128, 256, 3, 4)
    args, sent = arguments(*shape, jnp.bfloat16), cotangents(*shape, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in args]
    wanted, back = jax.vjp(functools.partial(loop, jax.nn.silu), *exact)
    wanted = [*wanted, *back(tuple(x.astype(jnp.float32) for x in sent))]
    forward, backward = (
        functools.partial(kernel, act=jax.nn.silu, interpret=True)
        for kernel in (mix_tpu.forward, mix_tpu.backward)
    )
    found = [*forward(*args), *backward(*args, *sent)]
    for f, w in zip(found, wanted, strict=True):
        assert np.abs(f.astype(jnp.float32) - w).max() <= 0.03 * np.abs(w).max()


def test_kernels_take_whole_tiles_that_fit_into_memory():
    assert mix_tpu.fits(tokens=8192, narrow=3 * 64)
    assert not mix_tpu.fits(tokens=100, narrow=4)
    assert not mix_tpu.fits(tokens=2**20, narrow=3 * 64)
