"""RMSNorm, plain and with an offset on its scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import ModelConfig


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale) over the last axis (Zhang and Sennrich 2019).

    The offset is 1 in Gemma, whose checkpoints hold w of 1 + w; statistics are float32.
    """

    def __init__(self, size: int, config: ModelConfig):
        self.epsilon, self.offset = config.rms_norm_eps, config.norm_offset
        self.scale = nnx.Param(jnp.full(size, 1 - self.offset, config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D), in x's dtype."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.epsilon)
        return (wide * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)
