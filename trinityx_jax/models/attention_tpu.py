"""Causal attention over packed rows on TPUs, by the splash attention kernels that come with JAX.

XLA writes the logits of every head, (L, L) each, to memory; the kernels keep a tile of them at a
time, and form it anew in the backward pass. Letters: B rows, L tokens, H query heads, G key/value
heads, d head width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

_TILES = (512, 256, 128)


class Packed(NamedTuple):
    """Who sees whom in a packed row: the last `window` (0: all) earlier tokens of its segment.

    The window of a scanned layer is one of the configuration's, known when it runs.
    """

    segments_bl: jax.Array
    window: int | jax.Array


def fits(L: int, d: int) -> bool:
    """Whether the kernels take rows of L tokens and heads of width d."""
    return L % _TILES[-1] == 0 and d % 128 == 0


def attend(
    q_blhd: jax.Array,
    key_bgld: jax.Array,
    value_bgld: jax.Array,
    segments_bl: jax.Array,
    *,
    window: int,
    softcap: float,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k) v, (B, L, H d); q is scaled, and the softmax is in float32."""
    B, L, H, d = q_blhd.shape
    mask = masks.LocalMask((L, L), (window - 1, 0), 0) if window else masks.CausalMask((L, L))
    tile = next(size for size in _TILES if L % size == 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )

    def row(q_hld, key_gld, value_gld, segments_l) -> jax.Array:
        segments = splash.SegmentIds(segments_l, segments_l)
        return cast(jax.Array, kernel(q_hld, key_gld, value_gld, segments))

    mixed_bhld = jax.vmap(row)(q_blhd.swapaxes(1, 2), key_bgld, value_bgld, segments_bl)
    return mixed_bhld.swapaxes(1, 2).reshape(B, L, H * d)
