"""Complete expert FFNs on the tokens of one device: dense, dropless grouped, fixed capacity.

Letters: T tokens, D model width, F FFN width, E experts, k experts of each token, C capacity,
N = T k copies of tokens. An index of E or more means no expert. `jax.lax.ragged_dot` costs what the
N rows cost on a TPU, E times that on CPUs, and on GPUs what its default lowering makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


class Weights(NamedTuple):
    """The kernels of E complete FFNs."""

    gate: jax.Array  # (E, D, F)
    up: jax.Array  # (E, D, F)
    down: jax.Array  # (E, F, D)


def all_experts(act: Activation, w: Weights, x_td: jax.Array, weight_te: jax.Array) -> jax.Array:
    """sum_e weight_e E_e(x) with every expert on every token: (T, D) in x's dtype."""
    y_td = jnp.zeros(x_td.shape, jnp.float32)
    for e, (gate, up, down) in enumerate(zip(*w, strict=True)):
        out_td = (act(x_td @ gate) * (x_td @ up)) @ down
        y_td = y_td + weight_te[:, e, None] * out_td
    return y_td.astype(x_td.dtype)


def dropless(
    act: Activation, w: Weights, x_td: jax.Array, index_tk: jax.Array, weight_tk: jax.Array
) -> jax.Array:
    """sum_k weight_k E_index_k(x) by grouped products over copies sorted by expert: (T, D).

    Shapes do not depend on the routing: all N copies have a row, whichever expert they go to.
    """
    E, (T, k) = len(w.gate), index_tk.shape
    expert_n = jnp.where((index_tk >= 0) & (index_tk < E), index_tk, E).reshape(-1)
    # One sort of distinct keys: shard_map takes argsort's result for equal on all devices
    # (jax 0.10.2), and would not sum gradients over them. Copies without an expert come last.
    order_n = jnp.sort(expert_n * (T * k) + jnp.arange(T * k)) % (T * k)
    back_n = jnp.zeros_like(order_n).at[order_n].set(jnp.arange(T * k), unique_indices=True)
    sizes_e = (expert_n[:, None] == jnp.arange(E)).sum(axis=0, dtype=jnp.int32)
    # Rows behind the last group hold anything on some backends, in both directions.
    routed_n1 = (jnp.arange(T * k) < sizes_e.sum())[:, None]
    x_nd = jnp.where(routed_n1, x_td[order_n // k], 0)
    gate_nf = jax.lax.ragged_dot(x_nd, w.gate, sizes_e)
    up_nf = jax.lax.ragged_dot(x_nd, w.up, sizes_e)
    out_nd = jax.lax.ragged_dot(act(gate_nf) * up_nf, w.down, sizes_e)
    out_nd = jnp.where(routed_n1, out_nd, 0)
    return _combine(out_nd[back_n].reshape(T, k, -1), weight_tk)


def fixed_capacity(
    act: Activation,
    w: Weights,
    x_td: jax.Array,
    index_tk: jax.Array,
    weight_tk: jax.Array,
    capacity: int,
    axis: str,
) -> jax.Array:
    """sum_k weight_k E_index_k(x) over a mesh axis that splits experts and tokens: (T, D).

    `w` holds this device's experts, `index_tk` counts those of all devices. Every device sends each
    expert at most `capacity` of its tokens and the rest add nothing (Lepikhin et al. 2021, GShard).
    """
    E = len(w.gate) * jax.lax.axis_size(axis)
    slot_tk = slots(index_tk, E, capacity)
    T, places = len(x_td), E * capacity
    token_p = jnp.full(places, T).at[slot_tk].set(jnp.arange(T)[:, None], mode="drop")
    sent_ecd = x_td.at[token_p].get(mode="fill", fill_value=0).reshape(E, capacity, -1)
    x_ecd = jax.lax.all_to_all(sent_ecd, axis, split_axis=0, concat_axis=1, tiled=True)
    h_ecf = act(jnp.einsum("ecd,edf->ecf", x_ecd, w.gate)) * jnp.einsum("ecd,edf->ecf", x_ecd, w.up)
    out_ecd = jnp.einsum("ecf,efd->ecd", h_ecf, w.down)
    back_ecd = jax.lax.all_to_all(out_ecd, axis, split_axis=1, concat_axis=0, tiled=True)
    out_tkd = back_ecd.reshape(places, -1).at[slot_tk].get(mode="fill", fill_value=0)
    return _combine(out_tkd, weight_tk)


def slots(index_tk: jax.Array, E: int, capacity: int) -> jax.Array:
    """Place of each copy among the E x C of a device, or E C for those left out: (T, k) int32.

    First choices go before second ones, earlier tokens before later ones.
    """
    expert_n = index_tk.T.reshape(-1)
    chosen_ne = expert_n[:, None] == jnp.arange(E)
    rank_n = (jnp.cumsum(chosen_ne, axis=0, dtype=jnp.int32) * chosen_ne).sum(axis=1) - 1
    fits_n = (rank_n >= 0) & (rank_n < capacity)
    slot_n = jnp.where(fits_n, expert_n * capacity + rank_n, E * capacity)
    return slot_n.reshape(index_tk.shape[::-1]).T


def _combine(out_tkd: jax.Array, weight_tk: jax.Array) -> jax.Array:
    """sum_k weight_k out_k, summed in float32."""
    with jax.named_scope("combine"):
        total_td = jnp.einsum(
            "tkd,tk->td",
            out_tkd,
            weight_tk.astype(out_tkd.dtype),
            preferred_element_type=jnp.float32,
        )
        return total_td.astype(out_tkd.dtype)
