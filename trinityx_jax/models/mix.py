"""The heart of MoCaE: all experts' activations from one FFN's products, mixed and gone.

    a_e = act(g0 + p^g_e Bg_e) * (u0 + p^u_e Bu_e)
    mixed = sum_e w_e a_e        q_e = (w_e a_e) Ad_e

The E activations (T, F) are never kept for the backward pass, which forms them anew from g0 and u0:
training needs what a dense FFN's needs. On TPUs both passes are Pallas kernels (`mix_tpu.py`); CPUs
take the tokens in chunks that stay in the cache; elsewhere XLA fuses a loop over experts. Letters:
T tokens, D model width, F FFN width, E experts, r rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from trinityx_jax.models import mix_tpu
from trinityx_jax.sharding import mesh_axes, per_device, ways_here

Act = Callable[[jax.Array], jax.Array]
_CHUNK = 512  # tokens


def mix(
    act: Act,
    g0_tf: jax.Array,
    u0_tf: jax.Array,
    pg_etr: jax.Array,
    pu_etr: jax.Array,
    w_te: jax.Array,
    Bg_erf: jax.Array,
    Bu_erf: jax.Array,
    Ad_efr: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(mixed (T, F), q (E, T, r) float32)."""
    args = (g0_tf, u0_tf, pg_etr, pu_etr, w_te, Bg_erf, Bu_erf, Ad_efr)
    return cast(tuple[jax.Array, jax.Array], _mix(act, *args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(act: Act, *args):
    return _by_platform(functools.partial(loop, act), _kernel(act), args, _IN, _OUT)


def loop(act: Act, g0_tf, u0_tf, pg_etr, pu_etr, w_te, Bg_erf, Bu_erf, Ad_efr):
    """`mix` as the formula says it."""
    mixed_tf, q = jnp.zeros_like(g0_tf), []
    for e in range(w_te.shape[1]):
        gate, up = g0_tf + pg_etr[e] @ Bg_erf[e], u0_tf + pu_etr[e] @ Bu_erf[e]
        weighted_tf = w_te[:, e, None].astype(gate.dtype) * act(gate) * up
        mixed_tf = mixed_tf + weighted_tf
        q.append(weighted_tf @ Ad_efr[e])
    return mixed_tf, jnp.stack(q).astype(jnp.float32)


def _forward(act: Act, *args):
    return _mix(act, *args), args


def _backward(act: Act, args, cotangents):
    def anew(*args_and_cotangents):
        args, cotangents = args_and_cotangents[:8], args_and_cotangents[8:]
        return jax.vjp(functools.partial(loop, act), *args)[1](cotangents)

    every = (*args, *cotangents)
    return _by_platform(anew, _kernel_vjp(act, args), every, (*_IN, *_OUT), _IN)


_mix.defvjp(_forward, _backward)

# Logical axes of the arguments and results: tokens lie over `batch`, features over `ffn`.
_T, _F = "batch", "ffn"
_WIDE, _NARROW = (_T, _F), (None, _T, None)
_IN = (
    _WIDE, _WIDE, _NARROW, _NARROW, (_T, None), (None, None, _F), (None, None, _F), (None, _F, None)
)  # fmt: skip
_OUT = (_WIDE, _NARROW)


def _by_platform(anywhere: Callable, kernel: Callable, args: tuple, given: tuple, wanted: tuple):
    """`anywhere`, in chunks on a CPU; on TPUs `kernel`, where each device's share fits it."""
    T, F = args[0].shape
    E, _, r = args[2].shape
    ways = ways_here(_T), ways_here(_F)
    branches: dict[str, Callable] = {"default": anywhere}
    if ways[0] == 1 and T > _CHUNK and T % _CHUNK == 0:
        branches["cpu"] = functools.partial(_chunked, anywhere, given, wanted)
    if T % ways[0] == F % ways[1] == 0 and mix_tpu.fits(T // ways[0], E * r):
        branches["tpu"] = per_device(kernel, given, wanted)
    return jax.lax.platform_dependent(*args, **branches)


def _chunked(function: Callable, given: tuple, wanted: tuple, *args):
    """`function` of _CHUNK tokens at a time; results without a token axis are added up."""

    def one(tokens):
        parts = iter(tokens)
        return function(*(next(parts) if _T in a else x for a, x in zip(given, args, strict=True)))

    def split(x: jax.Array, axis: int) -> jax.Array:
        x = x.reshape(*x.shape[:axis], -1, _CHUNK, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def join(x: jax.Array, axes: tuple) -> jax.Array:
        if _T not in axes:
            return x.sum(axis=0)
        axis = axes.index(_T)
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    tokens = [split(x, a.index(_T)) for a, x in zip(given, args, strict=True) if _T in a]
    return tuple(map(join, jax.lax.map(one, tokens), wanted))


def _kernel(act: Act) -> Callable:
    def local(*args):
        mixed_tf, q_etr = mix_tpu.forward(*args, act=act)
        return mixed_tf, _sum(q_etr, _F)

    return local


def _kernel_vjp(act: Act, like: tuple) -> Callable:
    def local(*args):
        dg0, du0, dpg, dpu, dw, *factors = mix_tpu.backward(*args, act=act)
        narrow = (_sum(x, _F) for x in (dpg, dpu, dw))
        found = (dg0, du0, *narrow, *(_sum(x, _T) for x in factors))
        return tuple(x.astype(y.dtype) for x, y in zip(found, like, strict=True))

    return local


def _sum(x: jax.Array, logical: str) -> jax.Array:
    return x if ways_here(logical) == 1 else jax.lax.psum(x, mesh_axes(logical))
