"""The experts of a model as an export holds them, and back: adapters, gates, temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trinityx_jax.alignment.task_vectors import low_rank_pairs
from trinityx_jax.config import OBJECTIVES, MoCaEConfig
from trinityx_jax.errors import DataError
from trinityx_jax.io.peft import Pairs
from trinityx_jax.io.router import Gating
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture, Parameters, architecture, layer_of
from trinityx_jax.models.router import Importance, RouterWeight, Temperature
from trinityx_jax.sharding import state_shardings


def adapters(arch: Architecture, parameters: Parameters) -> dict[str, Pairs]:
    """{objective: {(layer, projection): (A (in, r), B (r, out))}} as NumPy arrays."""
    result: dict[str, dict] = {objective: {} for objective in OBJECTIVES}
    for name, (A, B) in low_rank_pairs(arch.only(parameters, TaskVector)).items():
        key = (layer_of(name), f"{name.rsplit('.', 1)[1]}_proj")
        for e, objective in enumerate(OBJECTIVES):
            result[objective][key] = (np.asarray(A[e]), np.asarray(B[e]))
    return {**result}


def gating(
    arch: Architecture, parameters: Parameters, base_model: str, calibration: Mapping[str, Any]
) -> Gating:
    """Router weights, temperatures and importances, as `io.router` writes them."""
    assert arch.mocae is not None

    def by_layer(kind: type) -> dict[int, np.ndarray]:
        return {layer_of(n): np.asarray(x) for n, x in arch.only(parameters, kind).items()}

    return Gating(
        gates=by_layer(RouterWeight),
        temperatures=by_layer(Temperature),
        expert_names=OBJECTIVES,
        base_model=base_model,
        calibration=calibration,
        top_k=arch.mocae.top_k,
        gamma=by_layer(Importance)[0],
        gamma_mode=arch.mocae.gamma,
    )


def attach(
    backbone: Architecture, pairs_by_expert: Mapping[str, Pairs], gates: Gating, mesh: Mesh
) -> tuple[Architecture, Parameters]:
    """The backbone's structure with experts in every layer, and the experts' parameters.

    Raises DataError for other expert names than OBJECTIVES, and for shapes that do not fit.
    """
    if set(gates.expert_names) != set(OBJECTIVES):
        raise DataError(
            f"experts {', '.join(gates.expert_names)}: this version has {', '.join(OBJECTIVES)}"
        )
    rank = next(iter(pairs_by_expert[OBJECTIVES[0]].values()))[0].shape[1]
    # The files hold the scale folded into B, so s = lora_alpha / r is 1 here.
    mocae = MoCaEConfig(rank, float(rank), gates.top_k, gates.gamma_mode)
    arch = architecture(backbone.config, mocae)
    order = [gates.expert_names.index(objective) for objective in OBJECTIVES]
    found: dict[str, np.ndarray] = {}
    for layer, gate_de in gates.gates.items():
        where = f"layers.{layer}.mlp"
        gamma = np.ones(len(order), np.float32) if gates.gamma is None else gates.gamma
        found[f"{where}.router.kernel"] = gate_de[:, order]
        found[f"{where}.router.temperature"] = gates.temperatures[layer][order]
        found[f"{where}.router.gamma"] = np.asarray(gamma)[order]
        for projection in ("gate", "up", "down"):
            for half, letter in enumerate("AB"):
                found[f"{where}.task_vectors.{projection}.{letter}"] = np.stack([
                    pairs_by_expert[objective][layer, f"{projection}_proj"][half]
                    for objective in OBJECTIVES
                ])  # fmt: skip
    wanted = arch.only(arch.shapes, TaskVector, RouterWeight, Temperature, Importance)
    for name in sorted(wanted.keys() | found.keys()):
        want = wanted[name].shape if name in wanted else None
        have = found[name].shape if name in found else None
        if want != have:
            raise DataError(
                f"experts: {name} has shape {have}, the backbone wants {want}; they were made for "
                f"another backbone ({gates.base_model})"
            )
    shardings = state_shardings(wanted, mesh)
    return arch, {
        name: jax.device_put(jnp.asarray(found[name], jnp.float32), shardings[name])
        for name in wanted
    }
