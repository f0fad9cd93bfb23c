"""One table from parameter name to logical axes, one from logical axis to mesh axis.

Letters: V vocabulary, D model width, H heads * head size, F FFN width, E experts, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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
    "embed": "fsdp",
    "heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes of MeshConfig; a size of -1 takes all devices that are left."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if np.prod(list(sizes.values())) != len(devices):
        raise UsageError(
            f"config mesh {dataclasses.asdict(config)} does not use all {len(devices)} devices; "
            "set one axis to -1"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices
    )


def sharding(mesh: Mesh | AbstractMesh, *logical: str | None) -> NamedSharding:
    """Sharding of an array whose dimensions carry these logical axes."""
    return NamedSharding(mesh, P(*(None if axis is None else MESH_AXES[axis] for axis in logical)))


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


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the batch axes."""
    batch_sharding = sharding(mesh, "batch")
    parts = ways(mesh, "batch")
    rows = len(next(iter(batch.values()))) * jax.process_count()
    if rows % parts:
        raise UsageError(
            f"a batch of {rows} rows cannot be split over {parts} devices (mesh axes data x fsdp); "
            f"use a multiple of {parts} or a smaller mesh"
        )
    return {
        key: jax.make_array_from_process_local_data(batch_sharding, value)
        for key, value in batch.items()
    }


def _axes(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> tuple[str | None, ...]:
    if not shape:
        return ()
    for suffix, axes in PARAMETERS.items():
        if name.endswith(suffix) and len(axes) == len(shape):
            break
    else:
        raise UsageError(f"no row of trinityx_jax.sharding.PARAMETERS fits {name} {shape}")
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
