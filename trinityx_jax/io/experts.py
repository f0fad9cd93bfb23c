"""The experts of a model as an export holds them, and back: adapters, gates, temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from trinityx_jax.alignment.task_vectors import low_rank_pairs
from trinityx_jax.config import MoCaEConfig
from trinityx_jax.errors import DataError
from trinityx_jax.io.peft import Pairs
from trinityx_jax.io.router import Gating
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture, Parameters, architecture, layer_of
from trinityx_jax.models.router import Importance, RouterWeight, Temperature
from trinityx_jax.sharding import fetch


def adapters(arch: Architecture, parameters: Parameters) -> dict[str, Pairs]:
    """{objective: {(layer, projection): (A (in, r), B (r, out))}} as NumPy arrays."""
    assert arch.mocae is not None
    result: dict[str, dict] = {objective: {} for objective in arch.mocae.objectives}
    for name, (A, B) in low_rank_pairs(_apart(arch, parameters, TaskVector)).items():
        key = (layer_of(name), f"{name.rsplit('.', 1)[1]}_proj")
        for e, objective in enumerate(arch.mocae.objectives):
            result[objective][key] = (A[e], B[e])
    return {**result}


def gating(
    arch: Architecture, parameters: Parameters, base_model: str, calibration: Mapping[str, Any]
) -> Gating:
    """Router weights, temperatures and importances, as `io.router` writes them."""
    assert arch.mocae is not None

    def by_layer(kind: type) -> dict[int, np.ndarray]:
        return {layer_of(name): x for name, x in _apart(arch, parameters, kind).items()}

    return Gating(
        gates=by_layer(RouterWeight),
        temperatures=by_layer(Temperature),
        expert_names=arch.mocae.objectives,
        base_model=base_model,
        calibration=calibration,
        top_k=arch.mocae.top_k,
        gamma=by_layer(Importance)[arch.expert_layers[0]],
        gamma_mode=arch.mocae.gamma,
        num_hidden_layers=arch.config.num_hidden_layers if arch.mocae.layers else None,
    )


def attach(
    backbone: Architecture, pairs_by_expert: Mapping[str, Pairs], gates: Gating, mesh: Mesh
) -> tuple[Architecture, Parameters]:
    """The backbone's structure with experts in the layers that have some, and their parameters.

    Raises DataError for shapes that do not fit.
    """
    objectives = tuple(gates.expert_names)
    rank = next(iter(pairs_by_expert[objectives[0]].values()))[0].shape[1]
    some = gates.num_hidden_layers is not None
    if gates.num_hidden_layers not in (None, backbone.config.num_hidden_layers):
        raise DataError(
            f"experts: made for another backbone ({gates.base_model}), of "
            f"{gates.num_hidden_layers} layers; this one has {backbone.config.num_hidden_layers}"
        )
    mocae = MoCaEConfig(
        objectives=objectives,
        layers=tuple(gates.layers) if some else (),
        rank=rank,
        lora_alpha=float(rank),  # the files hold s = lora_alpha / r folded into B
        top_k=gates.top_k,
        gamma=gates.gamma_mode,
    )
    arch = architecture(backbone.config, mocae)
    found: dict[str, np.ndarray] = {}
    for layer, gate_de in gates.gates.items():
        where = f"layers.{layer}.mlp"
        gamma = np.ones(len(objectives), np.float32) if gates.gamma is None else gates.gamma
        found[f"{where}.router.kernel"] = gate_de
        found[f"{where}.router.temperature"] = gates.temperatures[layer]
        found[f"{where}.router.gamma"] = np.asarray(gamma)
        for projection in ("gate", "up", "down"):
            for half, letter in enumerate("AB"):
                found[f"{where}.task_vectors.{projection}.{letter}"] = np.stack([
                    pairs_by_expert[objective][layer, f"{projection}_proj"][half]
                    for objective in objectives
                ])  # fmt: skip
    unrolled = arch.unrolled()
    wanted = unrolled.only(unrolled.shapes, TaskVector, RouterWeight, Temperature, Importance)
    for name in sorted(wanted.keys() | found.keys()):
        want = wanted[name].shape if name in wanted else None
        have = found[name].shape if name in found else None
        if want != have:
            raise DataError(
                f"experts: {name} has shape {have}, the backbone wants {want}; they were made for "
                f"another backbone ({gates.base_model})"
            )
    return arch, arch.stack({name: found[name].astype(np.float32) for name in wanted}, mesh)


def _apart(arch: Architecture, parameters: Parameters, kind: type) -> dict[str, np.ndarray]:
    """The parameters of one kind, layer by layer, on this host."""
    return arch.unstack({name: fetch(x) for name, x in arch.only(parameters, kind).items()})
