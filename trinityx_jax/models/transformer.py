"""Decoder-only transformer with Hugging Face's names and shapes, dense or with MoCaE layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import OBJECTIVES, MoCaEConfig, ModelConfig
from trinityx_jax.models.attention import Attention, KeyValue, causal, within
from trinityx_jax.models.ffn import FFN, Linear
from trinityx_jax.models.mocae import MoCaE
from trinityx_jax.models.norm import RMSNorm
from trinityx_jax.models.router import Routing


class Output(NamedTuple):
    """`logits` (B, L, V) and `gate_logits` (layers, B, L, E), float32; E is 0 when dense."""

    logits: jax.Array
    gate_logits: jax.Array


class Hidden(NamedTuple):
    """What the layers make of the tokens: states before the head, gate logits, keys and values."""

    states: jax.Array  # (B, L, D)
    gate_logits: list[jax.Array]  # (B, L, E) of each layer
    cache: list[KeyValue]


class View(NamedTuple):
    """Who sees whom: positions of L queries and S keys, and `visible` (B, L, S) bool."""

    query_bl: jax.Array
    key_bs: jax.Array
    visible_bls: jax.Array

    def tile(self, ways: int) -> View:
        """The same view for `ways` copies of the rows."""
        return View(*(jnp.tile(x, (ways,) + (1,) * (x.ndim - 1)) for x in self))


class Layer(nnx.Module):
    """Pre-norm block: x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, mlp: FFN, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config)
        self.mlp = mlp

    def __call__(self, x_bld, query_bl, visible_bls, routing, cache, at):
        mixed, cache = self.self_attn(self.input_layernorm(x_bld), query_bl, visible_bls, cache, at)
        x_bld = x_bld + mixed
        y_bld, gate_logits = self.mlp(self.post_attention_layernorm(x_bld), routing)
        return _like(x_bld, y_bld) + y_bld, gate_logits, cache


class SandwichLayer(Layer):
    """Norms before and behind: x + norm(attention(norm(x))), x + norm(ffn(norm(x))) (Gemma 2)."""

    def __init__(self, config: ModelConfig, mlp: FFN, rngs: nnx.Rngs):
        super().__init__(config, mlp, rngs)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config)

    def __call__(self, x_bld, query_bl, visible_bls, routing, cache, at):
        mixed, cache = self.self_attn(self.input_layernorm(x_bld), query_bl, visible_bls, cache, at)
        x_bld = x_bld + self.post_attention_layernorm(mixed)
        y_bld, gate_logits = self.mlp(self.pre_feedforward_layernorm(x_bld), routing)
        y_bld = self.post_feedforward_layernorm(y_bld)
        return _like(x_bld, y_bld) + y_bld, gate_logits, cache


class Transformer(nnx.Module):
    """The backbone; with `mocae` every FFN becomes a mixture of calibrated experts."""

    def __init__(self, config: ModelConfig, mocae: MoCaEConfig | None = None, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        block = SandwichLayer if config.post_norms else Layer
        self.layers = nnx.List(
            block(
                config,
                FFN(config, rngs) if mocae is None else MoCaE(config, mocae, len(OBJECTIVES), rngs),
                rngs,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, config, rngs)

    def __call__(
        self,
        tokens_bl: jax.Array,
        routing: Routing | None = None,
        *,
        positions_bl: jax.Array | None = None,
        segment_ids_bl: jax.Array | None = None,
    ) -> Output:
        """Next-token logits for (B, L) int32 tokens.

        `segment_ids_bl` separates packed examples (default: one segment a row) and `positions_bl`
        restarts with each (default: 0, 1, ...). `routing` is needed by MoCaE layers, ignored by
        dense ones. Padding at a row's end needs no mask: causal attention never looks ahead.
        """
        if positions_bl is None:
            positions_bl = jnp.broadcast_to(jnp.arange(tokens_bl.shape[1]), tokens_bl.shape)
        if segment_ids_bl is None:
            segment_ids_bl = jnp.ones_like(tokens_bl)
        view = View(positions_bl, positions_bl, causal(segment_ids_bl))
        hidden = self.hidden(tokens_bl, routing, view)
        return Output(self.logits(hidden.states), jnp.stack(hidden.gate_logits))

    def hidden(
        self,
        tokens_bl: jax.Array,
        routing: Routing | None,
        view: View,
        cache: Sequence[KeyValue] | None = None,
        at: jax.Array | int = 0,
    ) -> Hidden:
        """States (B, L, D) before the head, the gate logits and the keys and values of each layer.

        With a `cache`, the tokens' keys and values are written to it from position `at` on, and
        `view` speaks of its S positions. A `Forced` routing of several experts for each row gives
        as many copies of the rows, one behind the other: what does not depend on the expert (the
        first layer's attention and base products) is computed once.
        """
        x = self.embed_tokens(tokens_bl)
        if self.config.scale_embeddings:
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        gate_logits, filled = [], []
        for i, layer in enumerate(self.layers):
            rows = view.tile(len(x) // len(view.query_bl))
            visible = within(self.config.window(i), rows.visible_bls, rows.query_bl, rows.key_bs)
            old = None if cache is None else cache[i]
            x, z, kv = layer(x, rows.query_bl, visible, routing, old, at)
            gate_logits.append(z)
            filled.append(kv)
        return Hidden(x, gate_logits, filled)

    def logits(self, states: jax.Array) -> jax.Array:
        """The head: states (..., D) to next-token logits (..., V) float32."""
        x = self.norm(states)
        tied = self.config.tie_word_embeddings
        logits = (self.embed_tokens.attend(x) if tied else self.lm_head(x)).astype(jnp.float32)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits


def _like(x_bld: jax.Array, y_bld: jax.Array) -> jax.Array:
    """x once for every copy of its rows in y."""
    return jnp.tile(x_bld, (len(y_bld) // len(x_bld), 1, 1))
