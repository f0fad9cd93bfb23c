"""Float32 masters: what is trained is kept in float32, whatever type the model holds it in.

An update of one part in a thousand is lost in bfloat16, which has eight bits of mantissa.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from trinityx_jax.models.parameters import Parameters
from trinityx_jax.training.step import Loss


def masters(trainable: Mapping) -> Parameters:
    """`trainable` in float32; arrays that are so already are taken as they are."""
    return {name: x.astype(jnp.float32) for name, x in trainable.items()}


def narrowed(loss: Loss, like: Mapping) -> Loss:
    """`loss` for masters: each is rounded to the dtype it has in `like` before the forward pass, so
    that what is trained is what will be served. Gradients come back in float32."""
    dtypes = {name: x.dtype for name, x in like.items()}

    def part(trainable, frozen, batch):
        cast = {name: x.astype(dtypes[name]) for name, x in trainable.items()}
        return loss.part(cast, frozen, batch)

    return Loss(loss.weigh, part)
