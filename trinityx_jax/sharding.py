"""One table from parameter name to logical axes, one from logical axis to mesh axis.

Letters: V vocabulary, D model width, H heads * head size, F FFN width, E experts, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trinityx_jax.config import MeshConfig
from trinityx_jax.errors import UsageError

# Name ends with -> logical axis of each dimension. The first row that fits decides.
PARAMETERS: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.embedding": ("vocab", "embed"),  # (V, D)
    "lm_head.kernel": ("embed", "vocab"),  # (D, V)
    "q_proj.kernel": ("embed", "heads"),  # (D, H)
    "k_proj.kernel": ("embed", "heads"),
    "v_proj.kernel": ("embed", "heads"),
    "q_proj.bias": ("heads",),  # (H,)
    "k_proj.bias": ("heads",),
    "v_proj.bias": ("heads",),
    "o_proj.kernel": ("heads", "embed"),  # (H, D)
    "o_proj.bias": (None,),  # (D,)
    "experts.gate_proj.kernel": ("expert", "embed", "ffn"),  # (E, D, F)
    "experts.up_proj.kernel": ("expert", "embed", "ffn"),
    "experts.down_proj.kernel": ("expert", "ffn", "embed"),  # (E, F, D)
    "gate_proj.kernel": ("embed", "ffn"),  # (D, F)
    "up_proj.kernel": ("embed", "ffn"),
    "down_proj.kernel": ("ffn", "embed"),  # (F, D)
    "task_vectors.gate.A": (None, "embed", None),  # (E, D, r)
    "task_vectors.gate.B": (None, None, "ffn"),  # (E, r, F)
    "task_vectors.up.A": (None, "embed", None),
    "task_vectors.up.B": (None, None, "ffn"),
    "task_vectors.down.A": (None, "ffn", None),  # (E, F, r)
    "task_vectors.down.B": (None, None, "embed"),  # (E, r, D)
    "router.kernel": (None, None),  # (D, E): a few kilobytes, read by every token
    "router.temperature": (None,),
    "router.gamma": (None,),
    "norm.scale": (None,),  # (D,), each of the three norms
}

# Logical axis -> mesh axis. Low-rank experts stay whole: they shard inside, over embed and ffn.
MESH_AXES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    # Tokens that an all-to-all sends to their experts; rows of attention, which has no experts.
    "dispatched": ("data", "fsdp", "expert"),
    "expert": "expert",
    "embed": "fsdp",
    "embed_expert": ("expert", "fsdp"),  # D of experts whose number the expert axis does not divide
    "heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes of MeshConfig; a size of -1 takes all devices that are left."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    slices = sizes.pop("slices")
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if np.prod(list(sizes.values())) != len(devices):
        raise UsageError(
            f"config mesh {dataclasses.asdict(config)} does not use all {len(devices)} devices; "
            "set one axis to -1"
        )
    axis_types = (AxisType.Auto,) * len(sizes)
    if slices == 1:
        return jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=axis_types, devices=devices
        )
    return Mesh(_over_slices(sizes, slices, devices), tuple(sizes), axis_types=axis_types)


def _over_slices(sizes: dict[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Devices in a grid of `sizes` whose `data` axis alone crosses the slow network: every
    `data / slices` of it lie in one slice."""
    if sizes["data"] % slices:
        raise UsageError(
            f"config mesh.slices={slices} must divide mesh.data={sizes['data']}: only batches are "
            "split over slices"
        )
    per_slice = (sizes["data"] // slices, *list(sizes.values())[1:])
    across = (slices, *[1] * (len(sizes) - 1))
    # Devices that know no slices (CPUs, one GPU cluster each process) go by their process.
    by_process = getattr(devices[0], "slice_index", None) is None
    try:
        return mesh_utils.create_hybrid_device_mesh(
            per_slice, across, devices, process_is_granule=by_process
        )
    except ValueError as e:
        raise UsageError(
            f"config mesh.slices={slices}: the devices do not come in {slices} slices of "
            f"{int(np.prod(per_slice))}; set it to the number of slices"
        ) from e


def sharding(mesh: Mesh | AbstractMesh, *logical: str | None) -> NamedSharding:
    """Sharding of an array whose dimensions carry these logical axes."""
    return NamedSharding(mesh, P(*map(mesh_axes, logical)))


def state_shardings(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """NamedSharding of every leaf of a parameter tree (an nnx.State, or a pytree shaped like it).

    Leaves that mirror parameters (optimiser moments) match by the same name; scalars replicate.
    Raises UsageError for a name the table does not know or a dimension its mesh axis does not
    divide: XLA would only complain from inside the compiled step, or not at all.
    """

    def of(path: Any, leaf: Any) -> NamedSharding:
        return sharding(mesh, *_axes(leaf_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(of, state)


def leaf_name(path: Any) -> str:
    """Dotted name of a leaf: `layers.0.mlp.gate_proj.kernel`."""
    parts = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return ".".join(str(part) for part in parts if part != "value")


def mesh_axes(logical: str | None) -> str | tuple[str, ...] | None:
    """Mesh axes of a logical axis."""
    return None if logical is None else MESH_AXES[logical]


def ways_here(logical: str) -> int:
    """Over how many devices a logical axis is split on the mesh of `jax.set_mesh`; 1 without."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else ways(mesh, logical)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """x laid out by these logical axes on the mesh of `jax.set_mesh`; as it is without a mesh, and
    where an axis does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    if any(axis and size % ways(mesh, axis) for axis, size in zip(logical, x.shape, strict=True)):
        return x
    return jax.lax.with_sharding_constraint(x, P(*map(mesh_axes, logical)))


def per_device(local: Callable, arguments: Sequence[tuple], results: Any) -> Callable:
    """`local` on every device's own part: XLA does not partition a kernel by itself.

    The logical axes of each argument's dimensions, and of each result's (of the one: a tuple).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local

    def specs(group: Sequence[tuple]) -> tuple[P, ...]:
        return tuple(P(*map(mesh_axes, axes)) for axes in group)

    one = not isinstance(results[0], tuple)
    out_specs = specs((results,))[0] if one else specs(results)
    # A kernel's results carry no record of the axes over which they vary.
    return jax.shard_map(local, in_specs=specs(arguments), out_specs=out_specs, check_vma=False)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the batch axes."""
    rows = len(next(iter(batch.values()))) * jax.process_count()
    over = _batch_sharding(rows, mesh)
    return {
        key: jax.make_array_from_process_local_data(over, value) for key, value in batch.items()
    }


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of a batch that every process holds whole, split over the batch axes."""
    return jax.device_put(batch, _batch_sharding(len(next(iter(batch.values()))), mesh))


def _batch_sharding(rows: int, mesh: Mesh) -> NamedSharding:
    parts = ways(mesh, "batch")
    if rows % parts:
        raise UsageError(
            f"a batch of {rows} rows cannot be split over {parts} devices (mesh axes data x fsdp); "
            f"use a multiple of {parts} or a smaller mesh"
        )
    return sharding(mesh, "batch")


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array on this host, wherever its parts are; all processes call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _axes(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> tuple[str | None, ...]:
    if not shape:
        return ()
    stacked = (None,) if "stacks." in name else ()  # the layers of a stack
    for suffix, axes in PARAMETERS.items():
        axes = (*stacked, *axes)
        if name.endswith(suffix) and len(axes) == len(shape):
            break
    else:
        raise UsageError(f"no row of trinityx_jax.sharding.PARAMETERS fits {name} {shape}")
    if "expert" in axes and shape[axes.index("expert")] % ways(mesh, "expert"):
        whole: dict[str | None, str | None] = {"expert": None, "embed": "embed_expert"}
        axes = tuple(whole.get(axis, axis) for axis in axes)  # the layer pads E, storage does not
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and size % ways(mesh, axis):
            raise UsageError(
                f"{name} {shape}: dimension {size} ({axis}) cannot be split over "
                f"{ways(mesh, axis)} devices; change the mesh or the model's size"
            )
    return axes


def ways(mesh: Mesh | AbstractMesh, logical: str) -> int:
    """Over how many devices a logical axis is split."""
    axes = MESH_AXES[logical]
    return int(np.prod([mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes)]))
