"""How the next token is chosen from its logits: `Greedy`, or `Sample` with the usual filters."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from trinityx_jax.errors import UsageError


class Chooser(Protocol):
    """A pytree with one method, so that jit sees its kind statically and its numbers as data."""

    def choose(self, logits_bv: jax.Array, key_b: jax.Array) -> jax.Array:
        """Token ids (B,) int32 from logits (B, V) float32 and one random key a row."""
        ...


@jax.tree_util.register_static  # not as a dataclass: see models/router.py
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token; of several, the lowest id."""

    def choose(self, logits_bv: jax.Array, key_b: jax.Array) -> jax.Array:
        del key_b
        return logits_bv.argmax(axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """softmax(logits / temperature), cut to the `top_k` most likely tokens (0: all), then to the
    fewest that together hold `top_p` of what is left (None: all), as transformers cuts it.
    """

    temperature: jax.Array | float = 1.0
    top_p: jax.Array | float | None = None
    top_k: int = dataclasses.field(default=0, metadata={"static": True})

    def choose(self, logits_bv: jax.Array, key_b: jax.Array) -> jax.Array:
        z = logits_bv / self.temperature
        if not self.top_k and self.top_p is None:
            return jax.vmap(jax.random.categorical)(key_b, z).astype(jnp.int32)
        size = z.shape[-1]
        z, token = jax.lax.top_k(z, min(self.top_k or size, size))
        if self.top_p is not None:
            p = jax.nn.softmax(z)
            z = jnp.where(p.cumsum(axis=-1) - p < self.top_p, z, -jnp.inf)
        pick = jax.vmap(jax.random.categorical)(key_b, z)
        return jnp.take_along_axis(token, pick[:, None], axis=-1)[:, 0].astype(jnp.int32)


def chooser(temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> Chooser:
    """`Greedy` for temperature 0, else `Sample`. Raises UsageError for a value out of range."""
    if not (temperature >= 0 and temperature != float("inf")):
        raise UsageError(f"temperature={temperature}: a finite number, 0 (greedy) or more")
    if top_k < 0:
        raise UsageError(f"top_k={top_k}: a number of tokens, or 0 for all")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p}: a share in (0, 1]")
    if temperature == 0:
        return Greedy()
    return Sample(temperature, None if top_p == 1 else top_p, top_k)
