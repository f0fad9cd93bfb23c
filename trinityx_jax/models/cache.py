"""Keys and values of earlier tokens: a layer's own, or a stack's, of which a layer has a slice."""

from __future__ import annotations

from typing import NamedTuple

import jax


class KeyValue(NamedTuple):
    """Keys (rotated) and values, (B, G, S, d) each, or (n, B, G, S, d) of n layers.

    B rows, G heads, S slots, d head size.
    """

    key: jax.Array
    value: jax.Array

    def read(self, layer: jax.Array | None) -> KeyValue:
        """The arrays of one layer; None where there is only one."""
        if layer is None:
            return self
        return KeyValue(*(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in self))

    def write(self, fresh: KeyValue, at: jax.Array | int, layer: jax.Array | None) -> KeyValue:
        """With `fresh` (B, G, L, d) in the slots from `at` on; touches nothing else, so that XLA
        updates a carried cache in place."""
        start = (0, 0, at, 0)
        if layer is not None:
            fresh, start = KeyValue(*(x[None] for x in fresh)), (layer, *start)
        return KeyValue(*(
            jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)
            for old, new in zip(self, fresh, strict=True)
        ))  # fmt: skip


class Slot(NamedTuple):
    """Where a layer writes its new keys and values."""

    cache: KeyValue
    at: jax.Array | int
    layer: jax.Array | None = None
