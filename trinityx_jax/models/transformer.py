"""Decoder-only transformer with Hugging Face's names and shapes, dense or with MoCaE layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.models.attention import Attention, causal, within
from trinityx_jax.models.attention_tpu import Packed
from trinityx_jax.models.cache import KeyValue, Slot
from trinityx_jax.models.expert_ffn import ExpertFFN
from trinityx_jax.models.ffn import FFN, Linear
from trinityx_jax.models.mocae import MoCaE, PlainMoCaE
from trinityx_jax.models.norm import RMSNorm
from trinityx_jax.models.remat import rematerialised
from trinityx_jax.models.router import Forced, Routing
from trinityx_jax.sharding import constrain


class Output(NamedTuple):
    """`logits` (B, L, V) and `gate_logits` (M, B, L, E) of the M layers with experts, float32."""

    logits: jax.Array
    gate_logits: jax.Array


class Hidden(NamedTuple):
    """What the layers make of the tokens: states before the head, gate logits, the cache."""

    states: jax.Array  # (B, L, D)
    gate_logits: jax.Array  # (M, B, L, E) of the layers with experts
    cache: list[KeyValue]  # of each layer or stack; empty without one


class View(NamedTuple):
    """Who sees whom: positions of L queries and S keys, and `visible` (B, L, S) bool.

    `segments` (B, L), where given, says the same of packed rows: the queries are the keys, and each
    sees what came before it in its own segment.
    """

    query_bl: jax.Array
    key_bs: jax.Array
    visible_bls: jax.Array
    segments_bl: jax.Array | None = None

    def rows_of(self, x_bld: jax.Array) -> View:
        """The same view for as many copies of the rows as x has."""
        copies = len(x_bld) // len(self.query_bl)
        return jax.tree.map(lambda x: jnp.tile(x, (copies,) + (1,) * (x.ndim - 1)), self)


class Layer(nnx.Module):
    """Pre-norm block: x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, mlp: nnx.Module, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config)
        self.mlp = mlp

    def __call__(self, x_bld, view: View, window, routing, slot: Slot | None):
        """x, the gate logits of a layer with experts, and the cache of one with a slot."""
        mixed, cache = self.attention(self.input_layernorm(x_bld), view, window, slot)
        x_bld = x_bld + mixed
        y_bld, gate_logits = self.mlp(self.post_attention_layernorm(x_bld), routing)
        return _like(x_bld, y_bld) + y_bld, gate_logits, cache

    def attention(self, x_bld, view: View, window, slot: Slot | None):
        view = view.rows_of(x_bld)
        visible_bls = within(window, view.visible_bls, view.query_bl, view.key_bs)
        packed = None if view.segments_bl is None else Packed(view.segments_bl, window)
        return self.self_attn(x_bld, view.query_bl, visible_bls, slot, packed)


class SandwichLayer(Layer):
    """Norms before and behind: x + norm(attention(norm(x))), x + norm(ffn(norm(x))) (Gemma 2)."""

    def __init__(self, config: ModelConfig, mlp: nnx.Module, rngs: nnx.Rngs):
        super().__init__(config, mlp, rngs)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config)

    def __call__(self, x_bld, view: View, window, routing, slot: Slot | None):
        mixed, cache = self.attention(self.input_layernorm(x_bld), view, window, slot)
        x_bld = x_bld + self.post_attention_layernorm(mixed)
        y_bld, gate_logits = self.mlp(self.pre_feedforward_layernorm(x_bld), routing)
        y_bld = self.post_feedforward_layernorm(y_bld)
        return _like(x_bld, y_bld) + y_bld, gate_logits, cache


class Transformer(nnx.Module):
    """The backbone; with `mocae` the FFNs of its chosen layers become mixtures of experts.

    Unrolled, `layers` holds one module a layer. Scanned, `stacks` holds one for each run of layers
    of one kind, whose arrays have the layers as their first axis: it is compiled once.
    """

    def __init__(self, config: ModelConfig, mocae: MoCaEConfig | None = None, *, rngs: nnx.Rngs):
        self.config = config
        self.runs = layer_runs(config, mocae)
        self.embed_tokens = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        keys = jax.random.split(rngs.params(), config.num_hidden_layers)
        if config.scan_layers:
            self.stacks = nnx.List(_stack(config, mocae, run, keys) for run in self.runs)
        else:
            self.layers = nnx.List(_layer(config, mocae, i, key) for i, key in enumerate(keys))
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
        restarts with each (default: 0, 1, ...). `routing` is needed by layers with experts, ignored
        by dense ones. Padding at a row's end needs no mask: causal attention never looks ahead.
        """
        if positions_bl is None:
            positions_bl = jnp.broadcast_to(jnp.arange(tokens_bl.shape[1]), tokens_bl.shape)
        if segment_ids_bl is None:
            segment_ids_bl = jnp.ones_like(tokens_bl)
        view = View(positions_bl, positions_bl, causal(segment_ids_bl), segment_ids_bl)
        hidden = self.hidden(tokens_bl, routing, view)
        return Output(self.logits(hidden.states), hidden.gate_logits)

    def hidden(
        self,
        tokens_bl: jax.Array,
        routing: Routing | None,
        view: View,
        cache: Sequence[KeyValue] = (),
        at: jax.Array | int = 0,
    ) -> Hidden:
        """States (B, L, D) before the head, the gate logits, and the cache if one is given.

        With a `cache` (see `new_cache`), the tokens' keys and values are written to it from slot
        `at` on; `view` speaks of all its slots, or, where it is new, of the L tokens. A `Forced`
        routing of several experts for each row gives as many copies of the rows, one behind the
        other: what comes before the first expert is computed once.
        """
        x = self.embed_tokens(tokens_bl)
        if self.config.scale_embeddings:
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        x = constrain(x, "batch", None, None)
        through = self._scanned if self.config.scan_layers else self._unrolled
        x, gate_logits, filled = through(x, routing, view, list(cache), at)
        E = gate_logits[0].shape[-1] if gate_logits else 0
        no_gates = jnp.zeros((0, *x.shape[:-1], E))
        # Copies of the rows begin at a layer: before it, all copies have the same gates.
        gates = [jnp.tile(z, (1, len(x) // z.shape[1], 1, 1)) for z in gate_logits]
        return Hidden(x, jnp.concatenate([no_gates, *gates]), filled)

    def _unrolled(self, x, routing, view: View, cache, at):
        gate_logits, filled = [], []
        for i, layer in enumerate(self.layers):
            slot = Slot(cache[i], at) if cache else None
            window = self.config.window(i)
            run = partial(layer, view=view, window=window, routing=routing, slot=slot)
            x, z, kv = rematerialised(run, self.config.remat, scanned=False)(x)
            gate_logits += [] if z is None else [z[None]]
            filled += [] if kv is None else [kv]
        return x, gate_logits, filled

    def _scanned(self, x, routing, view: View, cache, at):
        gate_logits, filled = [], []
        for i, (run, stack) in enumerate(zip(self.runs, self.stacks, strict=True)):
            graphdef, arrays = nnx.split(stack)
            if isinstance(routing, Forced) and type(stack.mlp) is not FFN:
                x = jnp.tile(x, (len(routing.expert_b) // len(x), 1, 1))
            windows = [self.config.window(layer) for layer in run]
            same = len(set(windows)) == 1

            def body(carry, of_layer, graphdef=graphdef, window=windows[0]):
                x, kv = carry
                layer, arrays, own_window = of_layer
                slot = None if kv is None else Slot(kv, at, layer)
                window = window if own_window is None else own_window
                x, z, kv = nnx.merge(graphdef, arrays)(x, view, window, routing, slot)
                return (constrain(x, "batch", None, None), kv), z

            (x, kv), z = jax.lax.scan(
                rematerialised(body, self.config.remat, scanned=True),
                (x, cache[i] if cache else None),
                (jnp.arange(len(run)), arrays, None if same else jnp.array(windows)),
            )
            gate_logits += [] if z is None else [z]
            filled += [] if kv is None else [kv]
        return x, gate_logits, filled

    def new_cache(self, rows: int, slots: int) -> list[KeyValue]:
        """Zeros for `rows` rows of `slots` tokens, one KeyValue a layer or stack."""
        c = self.config
        shape = (rows, c.num_key_value_heads, slots, c.head_dim)
        shapes = [(len(run), *shape) for run in self.runs]
        if not c.scan_layers:
            shapes = [shape] * c.num_hidden_layers
        return [KeyValue(*(jnp.zeros(shape, c.dtype) for _ in range(2))) for shape in shapes]

    def logits(self, states: jax.Array) -> jax.Array:
        """The head: states (..., D) to next-token logits (..., V) float32."""
        x = self.norm(states)
        tied = self.config.tie_word_embeddings
        logits = (self.embed_tokens.attend(x) if tied else self.lm_head(x)).astype(jnp.float32)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits


def feed_forward(
    config: ModelConfig, mocae: MoCaEConfig | None, layer: int, rngs: nnx.Rngs
) -> FFN | ExpertFFN:
    """The FFN of a layer: dense, or with the experts that `mocae` describes."""
    if not has_experts(mocae, layer):
        return FFN(config, rngs)
    assert mocae is not None
    if mocae.expert == "ffn":
        return ExpertFFN(config, mocae, rngs)
    return (MoCaE if mocae.fusion == "shared" else PlainMoCaE)(config, mocae, rngs)


def has_experts(mocae: MoCaEConfig | None, layer: int) -> bool:
    """Whether a layer is a mixture of experts."""
    return mocae is not None and (not mocae.layers or layer in mocae.layers)


def layer_runs(config: ModelConfig, mocae: MoCaEConfig | None) -> tuple[range, ...]:
    """The layers as runs of neighbours of one kind, with experts or without."""
    groups = itertools.groupby(
        range(config.num_hidden_layers), key=lambda layer: has_experts(mocae, layer)
    )
    runs = [list(group) for _, group in groups]
    return tuple(range(run[0], run[-1] + 1) for run in runs)


def _layer(config: ModelConfig, mocae: MoCaEConfig | None, i: int, key: jax.Array) -> Layer:
    rngs = nnx.Rngs(key)
    block = SandwichLayer if config.post_norms else Layer
    return block(config, feed_forward(config, mocae, i, rngs), rngs)


def _stack(config: ModelConfig, mocae: MoCaEConfig | None, run: range, keys: jax.Array) -> Layer:
    """One module with the arrays of a run of layers, layers first; each as `_layer` draws it."""

    def draw(key: jax.Array):
        return nnx.split(_layer(config, mocae, run[0], key))[1]

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _layer(config, mocae, run[0], keys[0])))
    return nnx.merge(graphdef, jax.vmap(draw)(keys[run[0] : run[-1] + 1]))


def _like(x_bld: jax.Array, y_bld: jax.Array) -> jax.Array:
    """x once for every copy of its rows in y."""
    return jnp.tile(x_bld, (len(y_bld) // len(x_bld), 1, 1))
