"""Complete expert FFNs over a mesh: experts on its `expert` axis, F on `tensor`, tokens elsewhere.

The mesh is the one of `jax.set_mesh`; without one, or with a single device, nothing is split. A
number of experts that the axis does not divide is padded, here alone, with null experts that no
token is sent to: stored parameters never depend on the mesh. Letters as in models/grouped.py.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from trinityx_jax.models import grouped
from trinityx_jax.models.grouped import Activation, Weights
from trinityx_jax.sharding import MESH_AXES, sharding, ways

Dispatch = Literal["psum", "all_to_all"]


def mix_all(act: Activation, w: Weights, x_td: jax.Array, weight_te: jax.Array) -> jax.Array:
    """sum_e weight_e E_e(x) over all experts, each on all tokens: (T, D)."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _split(mesh):
        return grouped.all_experts(act, w, x_td, weight_te)
    T, more = len(x_td), _null_experts(w, mesh)
    weight_te = jnp.pad(weight_te, ((0, 0), (0, more)))
    x_td, weight_te = (_pad_tokens(x, ways(mesh, "batch"), 0) for x in (x_td, weight_te))

    def body(w: Weights, x_td: jax.Array, weight_te: jax.Array) -> jax.Array:
        y_td = grouped.all_experts(act, _own(w, more), x_td, weight_te)
        return jax.lax.psum(y_td, _axes("expert", "ffn"))

    rows = _spec(mesh, "batch", None)
    specs = (_weight_specs(mesh, more), rows, _spec(mesh, "batch", "expert"))
    return jax.shard_map(body, in_specs=specs, out_specs=rows)(w, x_td, weight_te)[:T]


def mix_chosen(
    act: Activation,
    w: Weights,
    x_td: jax.Array,
    index_tk: jax.Array,
    weight_tk: jax.Array,
    *,
    dispatch: Dispatch,
    capacity_factor: float,
) -> jax.Array:
    """sum_k weight_k E_index_k(x) over each token's k experts: (T, D).

    `psum`: a device runs its experts on all tokens of its row of the mesh, without a limit.
    `all_to_all`: tokens are split over the expert axis, too, and travel to their experts; an expert
    takes at most `capacity` of each device, the rest add nothing (`dropped` counts them). Where the
    mesh does not split experts, no token travels and none is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _split(mesh):
        return grouped.dropless(act, w, x_td, index_tk, weight_tk)
    travel = dispatch == "all_to_all" and ways(mesh, "expert") > 1
    tokens = "dispatched" if travel else "batch"
    T, E, more = len(x_td), len(w.gate), _null_experts(w, mesh)
    index_tk = _pad_tokens(index_tk, ways(mesh, tokens), E + more)  # padding has no expert
    x_td, weight_tk = (_pad_tokens(x, ways(mesh, tokens), 0) for x in (x_td, weight_tk))

    def psum(w: Weights, x_td: jax.Array, index_tk: jax.Array, weight_tk: jax.Array) -> jax.Array:
        w = _own(w, more)
        first = jax.lax.axis_index("expert") * len(w.gate)
        y_td = grouped.dropless(act, w, x_td, index_tk - first, weight_tk)
        return jax.lax.psum(y_td, _axes("expert", "ffn"))

    def all_to_all(w: Weights, x_td: jax.Array, index_tk: jax.Array, weight_tk: jax.Array):
        T, k = index_tk.shape
        most = capacity(T, k, E, capacity_factor)
        y_td = grouped.fixed_capacity(act, _own(w, more), x_td, index_tk, weight_tk, most, "expert")
        return jax.lax.psum(y_td, _axes("ffn"))

    rows = _spec(mesh, tokens, None)
    body = jax.shard_map(
        all_to_all if travel else psum,
        in_specs=(_weight_specs(mesh, more), rows, rows, rows),
        out_specs=rows,
    )
    return body(w, x_td, index_tk, weight_tk)[:T]


def capacity(T: int, k: int, E: int, factor: float) -> int:
    """Tokens that an expert takes of a device with T: `factor` times its even share, at most T."""
    return min(T, math.ceil(factor * T * k / E))


def dropped(index_tk: jax.Array, E: int, mesh: AbstractMesh, capacity_factor: float) -> jax.Array:
    """How many of the T k choices an all-to-all leaves out on this mesh, a scalar int32."""
    if ways(mesh, "expert") == 1:
        return jnp.zeros((), jnp.int32)
    index_tk = _pad_tokens(index_tk, ways(mesh, "dispatched"), E)
    index_ptk = index_tk.reshape(ways(mesh, "dispatched"), -1, index_tk.shape[1])
    _, T, k = index_ptk.shape
    most = capacity(T, k, E, capacity_factor)
    left_out = jax.vmap(lambda index_tk: grouped.slots(index_tk, E, most) == E * most)(index_ptk)
    return (left_out & (index_ptk < E)).sum(dtype=jnp.int32)


def _split(mesh: AbstractMesh) -> bool:
    return not mesh.empty and mesh.size > 1


def _spec(mesh: AbstractMesh, *logical: str | None) -> P:
    return sharding(mesh, *logical).spec


def _axes(*logical: str) -> tuple[str, ...]:
    """Their mesh axes, over which the parts of a sum lie."""
    return tuple(str(MESH_AXES[name]) for name in logical)


def _null_experts(w: Weights, mesh: AbstractMesh) -> int:
    """How many experts are missing to a multiple of the expert axis."""
    return -len(w.gate) % ways(mesh, "expert")


def _weight_specs(mesh: AbstractMesh, more: int) -> Any:
    """Whole experts, F apart; where their number does not divide, a part of each expert's D.

    What fsdp splits is gathered at the door.
    """
    E, D = (None, "expert") if more else ("expert", None)
    wide: Any = _spec(mesh, E, D, "ffn")
    down: Any = _spec(mesh, E, "ffn", D)
    return Weights(wide, wide, down)


def _own(w: Weights, more: int) -> Weights:
    """This device's experts, whole, after `more` null ones have made their number divide."""
    if not more:
        return w

    def own(x: jax.Array, D_axis: int) -> jax.Array:
        x = jnp.pad(x, ((0, more), (0, 0), (0, 0)))
        return jax.lax.all_to_all(x, "expert", split_axis=0, concat_axis=D_axis, tiled=True)

    return Weights(own(w.gate, 1), own(w.up, 1), own(w.down, 2))


def _pad_tokens(x: jax.Array, multiple: int, value: int) -> jax.Array:
    return jnp.pad(x, ((0, -len(x) % multiple), (0, 0)), constant_values=value)
