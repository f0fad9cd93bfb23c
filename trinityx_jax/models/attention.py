"""Grouped-query attention with rotary position embedding, over a sequence or over a cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import ModelConfig
from trinityx_jax.models import attention_tpu
from trinityx_jax.models.attention_tpu import Packed
from trinityx_jax.models.cache import KeyValue, Slot
from trinityx_jax.models.ffn import Linear
from trinityx_jax.models.norm import RMSNorm
from trinityx_jax.models.rope import rotary
from trinityx_jax.sharding import per_device, ways_here


class Attention(nnx.Module):
    """`self_attn`: H query heads share G key/value heads."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, d = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.config = config
        self.q_proj = Linear(D, H * d, config, rngs, use_bias=config.qkv_bias)
        self.k_proj = Linear(D, G * d, config, rngs, use_bias=config.qkv_bias)
        self.v_proj = Linear(D, G * d, config, rngs, use_bias=config.qkv_bias)
        self.o_proj = Linear(H * d, D, config, rngs, use_bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(d, config)
            self.k_norm = RMSNorm(d, config)

    def __call__(
        self,
        x_bld: jax.Array,
        positions_bl: jax.Array,
        visible_bls: jax.Array,
        slot: Slot | None = None,
        packed: Packed | None = None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """(B, L, D) to (B, L, D), and the cache with the new keys and values, if there is one.

        `visible` (B, L, S) is True where a query may see a key. With a `slot`, the L new keys and
        values are written there; the queries see the whole cache where S is its size, and the new
        keys alone where S is L. `packed`, where given, says the same as `visible`.
        """
        c = self.config
        heads = (*x_bld.shape[:2], -1, c.head_dim)
        q, k = self.q_proj(x_bld).reshape(heads), self.k_proj(x_bld).reshape(heads)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        v = self.v_proj(x_bld).reshape(heads)
        seen = KeyValue(rotary(k, positions_bl, c).swapaxes(1, 2), v.swapaxes(1, 2))
        cache = None
        if slot is not None:
            cache = slot.cache.write(seen, slot.at, slot.layer)
            if visible_bls.shape[-1] != x_bld.shape[1]:
                seen = cache.read(slot.layer)
        q = rotary(q, positions_bl, c) * (c.query_scale or c.head_dim) ** -0.5
        return self.o_proj(_by_platform((q, *seen, visible_bls), packed, c)), cache


def _by_platform(args: tuple, packed: Packed | None, c: ModelConfig) -> jax.Array:
    """`attend`; on TPUs the kernels, where each device's share fits them."""
    anywhere = partial(attend, softcap=c.attention_softcap)
    (B, L, _, d), G = args[0].shape, args[1].shape[1]
    divides = B % ways_here("dispatched") == G % ways_here("heads") == 0
    if packed is None or not divides or not attention_tpu.fits(L, d):
        return anywhere(*args)
    segments_bl, window = packed

    def kernel(window: int) -> Callable:
        # Every mesh axis has its part: over others, shard_map would add gradients up.
        return per_device(
            partial(attention_tpu.attend, window=window, softcap=c.attention_softcap),
            (("dispatched", None, "heads"), *[("dispatched", "heads")] * 2, ("dispatched",)),
            ("dispatched", None, "heads"),
        )

    def kernels(q, k, v, visible_bls, segments_bl):
        if isinstance(window, int):
            return kernel(window)(q, k, v, segments_bl)
        windows = sorted(set(c.windows))
        which = jnp.searchsorted(jnp.array(windows), window)
        return jax.lax.switch(which, list(map(kernel, windows)), q, k, v, segments_bl)

    return jax.lax.platform_dependent(
        *args,
        segments_bl,
        tpu=kernels,
        default=lambda *args: anywhere(*args[:-1]),
    )


def attend(
    q_blhd: jax.Array,
    key_bgsd: jax.Array,
    value_bgsd: jax.Array,
    visible_bls: jax.Array,
    *,
    softcap: float = 0.0,
) -> jax.Array:
    """softmax(q k) v of scaled q with the heads side by side: (B, L, H * d); softmax in float32.

    `softcap` c bounds the logits by c tanh(x / c) (Gemma 2), which jax.nn.dot_product_attention
    has no argument for.
    """
    B, L, H, d = q_blhd.shape
    G = key_bgsd.shape[1]
    q = q_blhd.reshape(B, L, G, H // G, d).transpose(0, 2, 3, 1, 4)
    # One query axis for the R heads of a group: with two, XLA reshapes the cache, by a copy a step.
    q_bgmd = q.reshape(B, G, -1, d)
    logits = jnp.einsum("bgmd,bgsd->bgms", q_bgmd, key_bgsd, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, G, H // G, L, -1)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    # Not -inf: a padding token that sees nothing must not become NaN.
    logits = jnp.where(visible_bls[:, None, None], logits, jnp.finfo(jnp.float32).min)
    p = jax.nn.softmax(logits, axis=-1).astype(value_bgsd.dtype).reshape(B, G, H // G * L, -1)
    mixed = jnp.einsum("bgms,bgsd->bgmd", p, value_bgsd).reshape(B, G, H // G, L, d)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, L, H * d)


def causal(segment_ids_bl: jax.Array) -> jax.Array:
    """(B, L, L) bool: a token sees itself and earlier tokens of its own packed segment."""
    same = segment_ids_bl[:, :, None] == segment_ids_bl[:, None, :]
    return same & jnp.tril(jnp.ones(same.shape[1:], bool))


def within(
    window: jax.Array | int, visible_bls: jax.Array, query_bl: jax.Array, key_bs: jax.Array
) -> jax.Array:
    """`visible` narrowed to keys less than `window` positions back; 0 narrows nothing."""
    if isinstance(window, int) and window == 0:
        return visible_bls
    near = query_bl[:, :, None] - key_bs[:, None, :] < window
    return visible_bls & (near | (jnp.asarray(window) == 0))
