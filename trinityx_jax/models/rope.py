"""Rotary position embedding and its stretchings for long contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from trinityx_jax.config import ModelConfig, RopeScaling


def rotary(x_blhd: jax.Array, positions_bl: jax.Array, config: ModelConfig) -> jax.Array:
    """Rotary embedding in Hugging Face's half-split layout (Su et al. 2021, RoPE).

    Feature i of the first half turns with feature i of the second by position * frequency_i;
    angles in float32, result in x's dtype.
    """
    factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    angle = positions_bl[:, :, None, None].astype(jnp.float32) * frequencies(config)
    cos, sin = jnp.cos(angle) * factor, jnp.sin(angle) * factor
    first, second = jnp.split(x_blhd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_blhd.dtype)


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians a position, (head_dim / 2,) float32: theta^(-2i/d), stretched by `rope_scaling`."""
    d, scaling = config.head_dim, config.rope_scaling
    frequency = config.rope_theta ** (-np.arange(0, d, 2) / d)
    if scaling is not None:
        frequency = _STRETCH[scaling.kind](frequency, scaling, config)
    return frequency.astype(np.float32)


def _linear(frequency: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    return frequency / scaling.factor


def _llama3(frequency: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    """Slow frequencies divided by the factor, fast ones kept, a ramp between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def _yarn(frequency: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    """As llama3, with the ramp linear in the feature's index (Peng et al. 2023, sec. 3.2)."""
    half = len(frequency)

    def feature(turns: float) -> float:  # the one that turns so often in the original context
        context = scaling.original_max_position_embeddings / (2 * math.pi * turns)
        return half * math.log(context) / math.log(config.rope_theta)

    first = max(math.floor(feature(scaling.beta_fast)), 0)
    last = min(math.ceil(feature(scaling.beta_slow)), 2 * half - 1)
    kept = 1 - np.clip((np.arange(half) - first) / max(last - first, 0.001), 0, 1)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


_STRETCH = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
