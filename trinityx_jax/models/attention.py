"""Grouped-query attention with rotary position embedding, over a sequence or over a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import ModelConfig
from trinityx_jax.models.cache import KeyValue, Slot
from trinityx_jax.models.ffn import Linear
from trinityx_jax.models.norm import RMSNorm
from trinityx_jax.models.rope import rotary


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
    ) -> tuple[jax.Array, KeyValue | None]:
        """(B, L, D) to (B, L, D), and the cache with the new keys and values, if there is one.

        `visible` (B, L, S) is True where a query may see a key. With a `slot`, the L new keys and
        values are written there; the queries see the whole cache where S is its size, and the new
        keys alone where S is L.
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
        mixed = attend(
            rotary(q, positions_bl, c),
            seen,
            visible_bls,
            scale=(c.query_scale or c.head_dim) ** -0.5,
            softcap=c.attention_softcap,
        )
        return self.o_proj(mixed), cache


def attend(
    q_blhd: jax.Array, kv: KeyValue, visible_bls: jax.Array, *, scale: float, softcap: float = 0.0
) -> jax.Array:
    """softmax(q k / sqrt(..)) v with the heads side by side: (B, L, H * d); softmax in float32.

    `softcap` c bounds the logits by c tanh(x / c) (Gemma 2), which jax.nn.dot_product_attention
    has no argument for.
    """
    B, L, H, d = q_blhd.shape
    G = kv.key.shape[1]
    q = (q_blhd * scale).reshape(B, L, G, H // G, d).transpose(0, 2, 3, 1, 4)
    # One query axis for the R heads of a group: with two, XLA reshapes the cache, by a copy a step.
    q_bgmd = q.reshape(B, G, -1, d)
    logits = jnp.einsum("bgmd,bgsd->bgms", q_bgmd, kv.key, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, G, H // G, L, -1)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    # Not -inf: a padding token that sees nothing must not become NaN.
    logits = jnp.where(visible_bls[:, None, None], logits, jnp.finfo(jnp.float32).min)
    p = jax.nn.softmax(logits, axis=-1).astype(kv.value.dtype).reshape(B, G, H // G * L, -1)
    mixed = jnp.einsum("bgms,bgsd->bgmd", p, kv.value).reshape(B, G, H // G, L, d)
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
