"""The mixture of `mix.py` as two Pallas kernels for TPUs: one pass over (T, F) in each direction.

XLA would write every expert's (T, F) low-rank products and activation to memory. Here a tile of g0
and u0 is read once, all experts are formed in VMEM, and one tile of the mixture is written.
Inside, the rank is never the last axis, (E, r, T) and (E, r, F): the last axis is padded to 128.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Act = Callable[[jax.Array], jax.Array]
_LANES = 128
_FEATURES = 512  # of a tile
_VMEM_BYTES = 96 * 2**20


def fits(tokens: int, narrow: int) -> bool:
    """Whether the kernels take this many tokens and narrow rows (E r): tiles must be whole, and
    three float32 arrays (E r, T) stay in VMEM during the backward pass."""
    return tokens % _LANES == 0 and 3 * 4 * narrow * tokens <= _VMEM_BYTES // 2


def forward(
    g0_tf: jax.Array,
    u0_tf: jax.Array,
    pg_etr: jax.Array,
    pu_etr: jax.Array,
    w_te: jax.Array,
    Bg_erf: jax.Array,
    Bu_erf: jax.Array,
    Ad_efr: jax.Array,
    *,
    act: Act,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(sum_e w_e a_e (T, F) in g0's dtype, (w_e a_e) Ad_e (E, T, r) float32)."""
    T, F = g0_tf.shape
    E, r, _ = Bg_erf.shape
    tm, tf = _tile(T, 512), min(_FEATURES, F)
    wide = pl.BlockSpec((tm, tf), lambda i, j: (i, j))
    narrow = pl.BlockSpec((E, r, tm), lambda i, j: (0, 0, i))
    weight = pl.BlockSpec((tm, E), lambda i, j: (i, 0))
    factor = pl.BlockSpec((E, r, tf), lambda i, j: (0, 0, j))
    size = g0_tf.dtype.itemsize
    mixed_tf, q_ert = pl.pallas_call(
        functools.partial(_forward, act=act, F=F),
        grid=(T // tm, pl.cdiv(F, tf)),
        in_specs=[wide, wide, narrow, narrow, weight, factor, factor, factor],
        out_specs=[wide, narrow],
        out_shape=[
            jax.ShapeDtypeStruct((T, F), g0_tf.dtype),
            jax.ShapeDtypeStruct((E, r, T), jnp.float32),
        ],
        compiler_params=_params("parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=E * T * F * (3 * 2 * r + 8),
            transcendentals=E * T * F,
            # Factors are read anew for every tile of tokens.
            bytes_accessed=3 * T * F * size + E * r * (8 * T + T // tm * 3 * F * size),
        ),
        interpret=interpret,
        name="mocae_forward",
    )(g0_tf, u0_tf, _turn(pg_etr), _turn(pu_etr), w_te, Bg_erf, Bu_erf, _turn(Ad_efr))
    return mixed_tf, _turn(q_ert)


def _forward(g0, u0, pg, pu, w, Bg, Bu, Ad, mixed, q, *, act: Act, F: int):
    t = _Tile(g0, F, feature_axis=1)
    g, u = g0[...].astype(jnp.float32), u0[...].astype(jnp.float32)
    total = jnp.zeros_like(g)

    @pl.when(pl.program_id(1) == 0)
    def _():
        q[...] = jnp.zeros_like(q)

    for e in range(Bg.shape[0]):
        a = act(g + t.tn(pg[e], Bg[e])) * (u + t.tn(pu[e], Bu[e]))
        weighted = t.inside(w[:, e : e + 1] * a)
        total += weighted
        q[e] += t.nt(t.inside(Ad[e]), weighted)
    mixed[...] = total.astype(mixed.dtype)


def backward(
    g0_tf: jax.Array,
    u0_tf: jax.Array,
    pg_etr: jax.Array,
    pu_etr: jax.Array,
    w_te: jax.Array,
    Bg_erf: jax.Array,
    Bu_erf: jax.Array,
    Ad_efr: jax.Array,
    dmixed_tf: jax.Array,
    dq_etr: jax.Array,
    *,
    act: Act,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Cotangents of the eight arguments of `forward`, from those of its two results; those of g0
    and u0 in their dtype, the others float32. Everything else is computed anew."""
    T, F = g0_tf.shape
    E, r, _ = Bg_erf.shape
    tm, tf = _tile(T, 256), min(_FEATURES, F)
    # Features outermost: sums over tokens stay in place while the tokens pass, and the sums over
    # features are narrow enough to stay as a whole.
    wide = pl.BlockSpec((tm, tf), lambda j, i: (i, j))
    narrow = pl.BlockSpec((E, r, tm), lambda j, i: (0, 0, i))
    weight = pl.BlockSpec((tm, E), lambda j, i: (i, 0))
    factor = pl.BlockSpec((E, r, tf), lambda j, i: (0, 0, j))
    whole = pl.BlockSpec((E, r, T), lambda j, i: (0, 0, 0))
    whole_weight = pl.BlockSpec((E, T), lambda j, i: (0, 0))
    shapes = [(T, F), (T, F), (E, r, T), (E, r, T), (E, T), (E, r, F), (E, r, F), (E, r, F)]
    dtypes = [g0_tf.dtype, u0_tf.dtype, *[jnp.float32] * 6]
    size = g0_tf.dtype.itemsize
    dg0, du0, dpg, dpu, dw_et, dBg, dBu, dAd = pl.pallas_call(
        functools.partial(_backward, act=act, F=F),
        grid=(pl.cdiv(F, tf), T // tm),
        in_specs=[wide, wide, narrow, narrow, weight, factor, factor, factor, wide, narrow],
        out_specs=[wide, wide, whole, whole, whole_weight, factor, factor, factor],
        out_shape=list(map(jax.ShapeDtypeStruct, shapes, dtypes)),
        compiler_params=_params("arbitrary", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=E * T * F * (8 * 2 * r + 20),
            transcendentals=2 * E * T * F,
            # The narrow arrays are read anew for every tile of features.
            bytes_accessed=5 * T * F * size
            + E * r * (8 * T + 24 * F + pl.cdiv(F, tf) * 3 * T * size),
        ),
        # g0 and u0 are not needed any more: their cotangents take their place.
        input_output_aliases={0: 0, 1: 1},
        interpret=interpret,
        name="mocae_backward",
    )(
        g0_tf, u0_tf, _turn(pg_etr), _turn(pu_etr), w_te, Bg_erf, Bu_erf, _turn(Ad_efr),
        dmixed_tf, _turn(dq_etr),
    )  # fmt: skip
    return dg0, du0, _turn(dpg), _turn(dpu), dw_et.T, dBg, dBu, _turn(dAd)


def _backward(
    g0, u0, pg, pu, w, Bg, Bu, Ad, dmixed, dq, dg0, du0, dpg, dpu, dw, dBg, dBu, dAd,
    *, act: Act, F: int,
):  # fmt: skip
    t = _Tile(g0, F, feature_axis=0)
    j, i = pl.program_id(0), pl.program_id(1)
    tokens = pl.ds(i * g0.shape[0], g0.shape[0])
    g, u = g0[...].astype(jnp.float32), u0[...].astype(jnp.float32)
    dm = dmixed[...].astype(jnp.float32)
    dg_total, du_total = jnp.zeros_like(g), jnp.zeros_like(g)
    ones = jnp.ones((8, g0.shape[1]), jnp.float32)

    @pl.when(i == 0)
    def _():
        for out in (dBg, dBu, dAd):
            out[...] = jnp.zeros_like(out)

    @pl.when((i == 0) & (j == 0))
    def _():
        for out in (dpg, dpu, dw):
            out[...] = jnp.zeros_like(out)

    for e in range(Bg.shape[0]):
        gate, up = g + t.tn(pg[e], Bg[e]), u + t.tn(pu[e], Bu[e])
        acted, act_vjp = jax.vjp(act, gate)
        weight = w[:, e : e + 1]
        dweighted = dm + t.tn(dq[e], Ad[e])
        da = weight * dweighted
        dgate, dup = t.inside(act_vjp(da * up)[0]), t.inside(da * acted)
        dg_total += dgate
        du_total += dup
        dw[e : e + 1, tokens] += t.nt(ones, t.inside(dweighted * acted * up))[:1]
        dpg[e, :, tokens] += t.nt(t.inside(Bg[e]), dgate)
        dpu[e, :, tokens] += t.nt(t.inside(Bu[e]), dup)
        dBg[e] += t.nn(pg[e], dgate)
        dBu[e] += t.nn(pu[e], dup)
        dAd[e] += t.nn(dq[e], t.inside(weight * acted * up))
    dg0[...] = dg_total.astype(dg0.dtype)
    du0[...] = du_total.astype(du0.dtype)


class _Tile:
    """Arithmetic on tiles: products in the wide arrays' dtype, summed in float32, and the mask of
    the last tile, whose columns beyond F may hold anything, NaN too."""

    def __init__(self, wide: Any, F: int, feature_axis: int):
        self._dtype = wide.dtype
        self._columns = wide.shape[1]
        self._left = F - self._columns * pl.program_id(feature_axis)
        self._whole = F % self._columns == 0

    def inside(self, x: jax.Array) -> jax.Array:
        if self._whole:
            return x
        column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(column < self._left, x, jnp.zeros_like(x))

    def tn(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a^T b."""
        return self._dot(a, b, (((0,), (0,)), ((), ())))

    def nt(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a b^T."""
        return self._dot(a, b, (((1,), (1,)), ((), ())))

    def nn(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a b."""
        return self._dot(a, b, (((1,), (0,)), ((), ())))

    def _dot(self, a: jax.Array, b: jax.Array, numbers: Any) -> jax.Array:
        return jax.lax.dot_general(
            a.astype(self._dtype),
            b.astype(self._dtype),
            numbers,
            precision=jax.lax.Precision.HIGHEST if self._dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )


def _turn(x: jax.Array) -> jax.Array:
    return x.swapaxes(1, 2)


def _tile(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `size`."""
    return next(t for t in range(most, 0, -_LANES) if size % t == 0)


def _params(*semantics: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM_BYTES)
