"""The compiled halves of generation: `prefill` reads the prompts, `decode` writes answers.

Prompts are padded on the LEFT, so that all rows write the same cache position in a step: slot s of
a row whose prompt begins at `start` holds its token number s - start.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from trinityx_jax.inference.programs import note
from trinityx_jax.inference.sampling import Chooser
from trinityx_jax.models.attention import causal
from trinityx_jax.models.cache import KeyValue
from trinityx_jax.models.parameters import Architecture, Parameters
from trinityx_jax.models.router import Routing
from trinityx_jax.models.transformer import View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """Answers in the making: B rows with room for N tokens each."""

    cache: list[KeyValue]  # of P + N slots
    tokens_bn: jax.Array  # int32; the first `count` columns are written
    done_b: jax.Array  # bool: the row has written a stop token
    count: jax.Array  # () int32
    start_b: jax.Array  # first slot of each row's prompt
    key_b: jax.Array  # the row's random key

    def replace(self, **fields: Any) -> Decoding:
        """A copy with these fields."""
        return dataclasses.replace(self, **fields)


@partial(jax.jit, static_argnames=("arch", "room"))
def prefill(
    arch: Architecture,
    parameters: Parameters,
    tokens_bp: jax.Array,
    start_b: jax.Array,
    idle_b: jax.Array,
    key_b: jax.Array,
    routing: Routing,
    chooser: Chooser,
    stop_ids: jax.Array,
    *,
    room: int,
) -> Decoding:
    """Fills the cache with (B, P) left-padded prompts and chooses every row's first token.

    `idle_b` marks rows that only fill up the batch; they are done from the start.
    """
    B, P = tokens_bp.shape
    note(f"prefill: {B} rows, {P} prompt tokens, room for {room} more")
    model = arch.merge(parameters)
    positions = jnp.arange(P) - start_b[:, None]
    segments = (positions >= 0).astype(jnp.int32)  # padding sees padding, and nobody else sees it
    view = View(positions, positions, causal(segments), segments)
    hidden = model.hidden(tokens_bp, routing, view, model.new_cache(B, P + room))
    first = chooser.choose(model.logits(hidden.states[:, -1]), _step_keys(key_b, 0))
    tokens = jnp.zeros((B, room), jnp.int32).at[:, 0].set(first)
    done = idle_b | jnp.isin(first, stop_ids)
    return Decoding(hidden.cache, tokens, done, jnp.int32(1), start_b, key_b)


@partial(jax.jit, static_argnames="arch", donate_argnames="state")
def decode(
    arch: Architecture,
    parameters: Parameters,
    state: Decoding,
    routing: Routing,
    chooser: Chooser,
    stop_ids: jax.Array,
    limit: jax.Array,
) -> Decoding:
    """Goes on until `limit` tokens are written or every row is done; one pass a token."""
    B, room = state.tokens_bn.shape
    capacity = state.cache[0].key.shape[-2]
    note(f"decode: {B} rows, {capacity} cache slots")
    model = arch.merge(parameters)
    slots = jnp.arange(capacity)
    positions_bs = slots - state.start_b[:, None]

    def unfinished(state: Decoding) -> jax.Array:
        return (state.count < limit) & ~state.done_b.all()

    def extend(state: Decoding) -> Decoding:
        slot = capacity - room + state.count - 1  # of the newest token, which is not cached yet
        newest = jax.lax.dynamic_slice_in_dim(state.tokens_bn, state.count - 1, 1, axis=1)
        visible = (positions_bs >= 0) & (slots <= slot)
        view = View((slot - state.start_b)[:, None], positions_bs, visible[:, None])
        hidden = model.hidden(newest, routing, view, state.cache, slot)
        logits = model.logits(hidden.states[:, 0])
        chosen = chooser.choose(logits, _step_keys(state.key_b, state.count))
        return state.replace(
            cache=hidden.cache,
            tokens_bn=jax.lax.dynamic_update_slice_in_dim(
                state.tokens_bn, chosen[:, None], state.count, axis=1
            ),
            done_b=state.done_b | jnp.isin(chosen, stop_ids),
            count=state.count + 1,
        )

    return jax.lax.while_loop(unfinished, extend, state)


def _step_keys(key_b: jax.Array, step: jax.Array | int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(key_b, step)
