"""The heart of MoCaE: all experts' activations from one FFN's products, mixed and gone.

    a_e = act(g0 + p^g_e Bg_e) * (u0 + p^u_e Bu_e)
    mixed = sum_e w_e a_e        q_e = (w_e a_e) Ad_e

The E activations (T, F) are never kept for the backward pass, which forms them anew from g0 and u0:
training needs what a dense FFN's needs. On TPUs both passes are Pallas kernels (`mix_tpu.py`), and
elsewhere a loop over experts that XLA fuses. Letters: T tokens, F FFN width, E experts, r rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from trinityx_jax.models import mix_tpu
from trinityx_jax.sharding import mesh_axes, ways_here

Act = Callable[[jax.Array], jax.Array]


def mix(
    act: Act,
    g0_tf: jax.Array,
    u0_tf: jax.Array,
    pg_ert: jax.Array,
    pu_ert: jax.Array,
    w_te: jax.Array,
    Bg_erf: jax.Array,
    Bu_erf: jax.Array,
    Ad_erf: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(mixed (T, F), q (E, r, T) float32). `Ad_erf` is A of the down projection, transposed."""
    args = (g0_tf, u0_tf, pg_ert, pu_ert, w_te, Bg_erf, Bu_erf, Ad_erf)
    return cast(tuple[jax.Array, jax.Array], _mix(act, *args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(act: Act, *args):
    return _by_platform(functools.partial(loop, act), functools.partial(_kernel, act), args)


def loop(act: Act, g0_tf, u0_tf, pg_ert, pu_ert, w_te, Bg_erf, Bu_erf, Ad_erf):
    """`mix` as the formula says it."""
    mixed_tf, q = jnp.zeros_like(g0_tf), []
    for e in range(w_te.shape[1]):
        gate, up = g0_tf + pg_ert[e].T @ Bg_erf[e], u0_tf + pu_ert[e].T @ Bu_erf[e]
        weighted_tf = w_te[:, e, None].astype(gate.dtype) * act(gate) * up
        mixed_tf = mixed_tf + weighted_tf
        q.append(jnp.einsum("rf,tf->rt", Ad_erf[e], weighted_tf))
    return mixed_tf, jnp.stack(q).astype(jnp.float32)


def _forward(act: Act, *args):
    return _mix(act, *args), args


def _backward(act: Act, args, cotangents):
    def anew(*args_and_cotangents):
        args, cotangents = args_and_cotangents[:8], args_and_cotangents[8:]
        return jax.vjp(functools.partial(loop, act), *args)[1](cotangents)

    return _by_platform(anew, functools.partial(_kernel_vjp, act), (*args, *cotangents))


_mix.defvjp(_forward, _backward)


def _by_platform(anywhere: Callable, on_tpu: Callable, args: tuple):
    """`on_tpu` where the program is lowered for TPUs and each device's share fits the kernels."""
    T, F = args[0].shape
    E, r, _ = args[2].shape
    if T % ways_here("batch") or F % ways_here("ffn"):
        return anywhere(*args)
    if not mix_tpu.fits(T // ways_here("batch"), E * r):
        return anywhere(*args)
    return jax.lax.platform_dependent(*args, tpu=on_tpu, default=anywhere)


# Wide arrays, narrow ones, weights and factors; tokens lie over `batch`, features over `ffn`.
_T, _F = "batch", "ffn"
_IN = ((_T, _F), (_T, _F), (None, None, _T), (None, None, _T), (_T, None), *[(None, None, _F)] * 3)
_OUT = ((_T, _F), (None, None, _T))


def _kernel(act: Act, *args):
    def local(*args):
        mixed_tf, q_ert = mix_tpu.forward(*args, act=act)
        return mixed_tf, _sum(q_ert, _F)

    return _per_device(local, _IN, _OUT)(*args)


def _kernel_vjp(act: Act, *args):
    dtypes = [x.dtype for x in args[:8]]

    def local(*args):
        dg0, du0, dpg, dpu, dw, *factors = mix_tpu.backward(*args, act=act)
        narrow = (_sum(x, _F) for x in (dpg, dpu, dw))
        return dg0, du0, *narrow, *(_sum(x, _T) for x in factors)

    found = _per_device(local, (*_IN, *_OUT), _IN)(*args)
    return tuple(x.astype(dtype) for x, dtype in zip(found, dtypes, strict=True))


def _per_device(local: Callable, arguments: tuple, results: tuple) -> Callable:
    """`local` on every device's own part; XLA does not partition a kernel by itself."""
    if ways_here(_T) * ways_here(_F) == 1:
        return local
    specs = [tuple(P(*map(mesh_axes, axes)) for axes in group) for group in (arguments, results)]
    # A kernel's results carry no record of the axes over which they vary.
    return jax.shard_map(local, in_specs=specs[0], out_specs=specs[1], check_vma=False)


def _sum(x: jax.Array, logical: str) -> jax.Array:
    return x if ways_here(logical) == 1 else jax.lax.psum(x, mesh_axes(logical))
