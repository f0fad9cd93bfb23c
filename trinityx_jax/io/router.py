"""The router as a file of its own, with a NumPy reference that says how to use it.

The mixture is class T2: a per-token gate over low-rank experts. No common checkpoint format holds
that, so this folder is ours: a server needs custom code that follows `gating_weights`.

    router.safetensors    model.layers.{i}.mlp.gate.weight [E, D], .temperature [E], float32
    router_config.json    names, top_k, importance weights, base model, how it was calibrated
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import new_folder, read_json, write_json
from trinityx_jax.io.tensors import check_equal, load_tensors, require_float32, save_tensors

SCHEMA_VERSION = 1
FILES = ("router.safetensors", "router_config.json")
CALIBRATION_KEYS = ("method", "dataset", "n", "date", "nll_before", "nll_after")

GammaMode = Literal["none", "output", "logit"]

_KEY = re.compile(r"model\.layers\.(\d+)\.mlp\.gate\.(weight|temperature)")
_NORMALISATION = "softmax of z / temperature in float32; top-k kept and renormalised"


@dataclass(frozen=True)
class Gating:
    """Everything a server needs to turn hidden states into mixing weights.

    gates: layer -> R (D, E) float32, our orientation `z = x R`.
    temperatures: layer -> tau (E,) float32, positive.
    expert_names: E names, in the order of the columns of R.
    base_model: the backbone the gates were trained on.
    calibration: how tau was fitted: method, dataset, n, date, nll_before, nll_after.
    top_k: experts kept per token; 0 keeps all.
    gamma: (E,) float32 importance weights; None stands for ones.
    gamma_mode: where gamma enters; see `gating_weights`.
    num_hidden_layers: of the base model, where only some layers have experts; None: all have.
    """

    gates: Mapping[int, np.ndarray]
    temperatures: Mapping[int, np.ndarray]
    expert_names: tuple[str, ...]
    base_model: str
    calibration: Mapping[str, Any]
    top_k: int = 0
    gamma: np.ndarray | None = None
    gamma_mode: GammaMode = "none"
    num_hidden_layers: int | None = None

    @property
    def layers(self) -> list[int]:
        """The layers that must have a gate."""
        if self.num_hidden_layers is None:
            return list(range(max((*self.gates, *self.temperatures)) + 1))
        return sorted({*self.gates, *self.temperatures})


def gating_weights(
    hidden: np.ndarray,
    gate: np.ndarray,
    temperature: np.ndarray,
    top_k: int = 0,
    *,
    gamma: np.ndarray | None = None,
    gamma_mode: GammaMode = "none",
) -> np.ndarray:
    """Mixing weights w (T, E) float32 of one layer: the reference for anyone who serves the file.

        z = x G^T                            x = hidden (T, D), G = gate (E, D), as stored
        a = softmax_e(z / tau)               tau = temperature (E,); gamma_mode none and output
        a = softmax_e(z / tau + log gamma)   gamma_mode logit
        a_e <- a_e / sum_{kept} a            the top_k largest a of each token, ties to the lowest
                                             index; the rest become 0; top_k 0 keeps all
        w = a                                gamma_mode none and logit: rows sum to 1
        w_e = gamma_e a_e                    gamma_mode output: rows need not sum to 1

    `hidden` is the input of the feed-forward block, after its RMS norm: what gate_proj reads.
    Everything is float32, hidden too: bfloat16 rounding flips near-ties between experts.
    """
    x, g, tau = (np.asarray(value, np.float32) for value in (hidden, gate, temperature))
    importance = np.ones(len(g), np.float32) if gamma is None else np.asarray(gamma, np.float32)
    z = x @ g.T / tau
    if gamma_mode == "logit":
        z = z + np.log(importance)
    a = np.exp(z - z.max(axis=-1, keepdims=True))
    a = a / a.sum(axis=-1, keepdims=True)
    if top_k:
        order = np.argsort(-a, axis=-1, kind="stable")  # stable: ties go to the lowest index
        np.put_along_axis(a, order[:, top_k:], 0, axis=-1)
        a = a / a.sum(axis=-1, keepdims=True)
    return a * importance if gamma_mode == "output" else a


def write_router(directory: str | Path, gating: Gating, *, overwrite: bool = False) -> Path:
    """Writes router.safetensors and router_config.json; checks that they read back bit for bit.

    Raises DataError naming a missing or misshapen part, UsageError for a wrong option or when the
    directory exists.
    """
    _check(gating)
    tensors = {}
    for layer in sorted(gating.gates):
        tensors[_name(layer, "weight")] = gating.gates[layer].T
        tensors[_name(layer, "temperature")] = gating.temperatures[layer]
    with new_folder(directory, FILES, overwrite=overwrite) as folder:
        save_tensors(folder / "router.safetensors", tensors)
        write_json(folder / "router_config.json", _config(gating))
        _check_same(gating, read_router(folder))
    return Path(directory)


def read_router(directory: str | Path) -> Gating:
    """Inverse of `write_router`. Raises DataError naming the file and what is wrong with it."""
    folder = Path(directory)
    config = read_json(folder / "router_config.json", "export the run again")
    if config.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{folder}: router schema_version {config.get('schema_version')!r}, this version "
            f"reads {SCHEMA_VERSION}"
        )
    parts: dict[str, dict[int, np.ndarray]] = {"weight": {}, "temperature": {}}
    for name, tensor in load_tensors(folder / "router.safetensors").items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise DataError(f"{folder}: tensor {name!r} is not part of a router")
        parts[match[2]][int(match[1])] = tensor
    try:
        gating = Gating(
            gates={i: np.ascontiguousarray(gate.T) for i, gate in parts["weight"].items()},
            temperatures=parts["temperature"],
            expert_names=tuple(config["expert_names"]),
            base_model=config["base_model"],
            calibration=config["calibration"],
            top_k=config["top_k"],
            gamma=np.asarray(config["gamma"], np.float32),
            gamma_mode=config["gamma_mode"],
            num_hidden_layers=config.get("num_hidden_layers"),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{folder}: router_config.json has no valid {e}; export again") from e
    try:
        _check(gating)
    except UsageError as e:
        raise DataError(f"{folder}: {e}") from e
    if config.get("layers", gating.layers) != gating.layers:
        raise DataError(f"{folder}: router_config.json names other layers than there are gates")
    return gating


def _name(layer: int, part: str) -> str:
    return f"model.layers.{layer}.mlp.gate.{part}"


def _gamma(gating: Gating) -> np.ndarray:
    if gating.gamma is None:
        return np.ones(len(gating.expert_names), np.float32)
    return gating.gamma


def _check(gating: Gating) -> None:
    experts = len(gating.expert_names)
    if not gating.gates or not experts:
        raise DataError("router: no layers or no experts to export; train the router first")
    if len(set(gating.expert_names)) != experts:
        raise UsageError(f"router: expert names {gating.expert_names} must differ")
    if not 0 <= gating.top_k <= experts:
        raise UsageError(f"router: top_k={gating.top_k} must be 0 (all) to {experts} experts")
    if gating.gamma_mode not in get_args(GammaMode):
        raise UsageError(
            f"router: gamma_mode {gating.gamma_mode!r}; allowed are {get_args(GammaMode)}"
        )
    for layer in gating.layers:
        for kind, have in (("gate", gating.gates), ("temperature", gating.temperatures)):
            if layer not in have:
                raise DataError(f"router: layer {layer} has no {kind}")
    width = np.asarray(gating.gates[gating.layers[0]]).shape[0]
    for layer, gate in gating.gates.items():
        require_float32(f"router layer {layer} gate", gate, (width, experts))
        tau = require_float32(
            f"router layer {layer} temperature", gating.temperatures[layer], (experts,)
        )
        if (tau <= 0).any():
            raise DataError(f"router: layer {layer} temperature must be positive; calibrate again")
    if (require_float32("router gamma", _gamma(gating), (experts,)) <= 0).any():
        raise DataError("router: gamma must be positive; use another reference, or gamma: none")
    missing = [key for key in CALIBRATION_KEYS if key not in gating.calibration]
    if missing:
        raise UsageError(f"router: calibration record has no {missing[0]!r}")


def _check_same(want: Gating, got: Gating) -> None:
    check_equal("router.safetensors", _named(want), _named(got))
    for field in ("expert_names", "base_model", "top_k", "gamma_mode", "num_hidden_layers"):
        if getattr(want, field) != getattr(got, field):
            raise DataError(f"router_config.json: {field} reads back different")
    if dict(want.calibration) != dict(got.calibration):
        raise DataError("router_config.json: calibration reads back different")


def _named(gating: Gating) -> dict[str, np.ndarray]:
    gates = {_name(layer, "weight"): gate for layer, gate in gating.gates.items()}
    taus = {_name(layer, "temperature"): tau for layer, tau in gating.temperatures.items()}
    return {**gates, **taus, "gamma": _gamma(gating)}


def _config(gating: Gating) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "semantic_class": "T2",
        "num_experts": len(gating.expert_names),
        "expert_names": list(gating.expert_names),
        "top_k": gating.top_k,
        "normalisation": _NORMALISATION,
        "gamma": [float(value) for value in _gamma(gating)],
        "gamma_mode": gating.gamma_mode,
        "base_model": gating.base_model,
        "layers": gating.layers,
        "num_hidden_layers": gating.num_hidden_layers,
        "calibration": dict(gating.calibration),
    }
