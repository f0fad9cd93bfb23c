"""Checkpoints in Mixtral's layout: read as complete expert FFNs, written from any mixture.

A Mixtral block (Jiang et al. 2024) is y = sum_e w_e E_e(x) with w the softmax of a gate without
bias, kept for the k largest and renormalised over them. That is `mocae.expert: ffn`, and also a
mixture of low-rank experts once every We = W + s A_e B_e is formed. What does not fold is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import read_json
from trinityx_jax.io.hf_config import NAMES, SIZE, read
from trinityx_jax.io.hf_load import Place, load_places
from trinityx_jax.io.hf_save import Piece, save_pieces, stored
from trinityx_jax.models.families import HFTensor, hf_config, model_config, tensors
from trinityx_jax.models.parameters import Architecture, Parameters, architecture
from trinityx_jax.sharding import state_shardings

MODEL_TYPE = "mixtral"
EXPERT_NAMES = "expert_names"  # our own key in config.json
_CLASS = "MixtralForCausalLM"
_BLOCK = "mistral"  # the family whose block it is, but for the FFN
_PROJECTIONS = {"gate": "w1", "up": "w3", "down": "w2"}
# What transformers takes for keys that are absent, where a Mistral has other defaults.
_DEFAULTS = {
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
}


def is_mixtral(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json is a Mixtral's."""
    return hf.get("model_type") == MODEL_TYPE


def mixtral_configs(
    hf: Mapping[str, Any], where: str, names: Sequence[str] = ()
) -> tuple[ModelConfig, MoCaEConfig]:
    """Both configurations of a config.json's contents; `where` names the file in errors.

    `names` name the experts; without, those that `save_mixtral` left, or expert0, expert1 ...
    Raises DataError for what the file gets wrong, UsageError for names that do not fit it.
    """
    if (hf.get("architectures") or [_CLASS]) != [_CLASS]:
        raise DataError(
            f"{where}: architecture {hf['architectures']} is not supported; {_CLASS} is"
        )
    E = read(hf, "num_local_experts", SIZE, where, 8)
    k = read(hf, "num_experts_per_tok", SIZE, where, 2)
    if k > E:
        raise DataError(f"{where}: num_experts_per_tok={k} of num_local_experts={E} experts")
    found = read(hf, EXPERT_NAMES, NAMES, where, [f"expert{e}" for e in range(E)])
    names = tuple(names or found)
    if len(names) != E or len(set(names)) != E:
        raise UsageError(f"{where}: {E} experts need as many different names, not {list(names)}")
    block = {**_DEFAULTS, **hf, "model_type": _BLOCK, "architectures": None}
    return model_config(block, where), MoCaEConfig(names, expert="ffn", top_k=k if k < E else 0)


def load_mixtral(
    folder: str | Path, mesh: Mesh, dtype: str | None = None, names: Sequence[str] = ()
) -> tuple[ModelConfig, MoCaEConfig, Parameters]:
    """(model, experts, parameters by our names and layer by layer) of a Mixtral's folder.

    As `hf_load.load_checkpoint`: checked before it is read, each process reads its shards only.
    The gate becomes the router's kernel in float32, temperatures and importances are 1.
    """
    path = Path(folder) / "config.json"
    hf = read_json(path, "give the folder of a model")
    config, mocae = mixtral_configs(hf, str(path), names)
    places = _places(config, len(mocae.objectives))
    config, parameters = load_places(folder, config, mocae, places, mesh, dtype)
    shapes = architecture(config, mocae).shapes
    ones = {name: shapes[name] for name in shapes if name not in places}  # temperature, gamma
    fill = jax.jit(
        lambda: {name: jnp.ones(x.shape, x.dtype) for name, x in ones.items()},
        out_shardings=state_shardings(ones, mesh),
    )
    return config, mocae, parameters | fill()


def save_mixtral(
    folder: str | Path,
    arch: Architecture,
    parameters: Mapping[str, jax.Array],
    *,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, bytes | Path] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the mixture as a Mixtral, which transformers and servers run without our code.

    Low-rank experts are formed one by one in float32 and stored in `param_dtype`; temperatures go
    into the gate (float32), importances of `gamma: output` into each expert's down projection. The
    rest as in `hf_save.save_checkpoint`, whose arguments these are.

    Raises UsageError for what a Mixtral cannot say: no experts or some layers without, `gamma:
    logit`, options of the block that a Mistral does not have.
    """
    mocae, contents = _contents(arch)
    apart = arch.unstack(parameters)
    pieces = []
    for ours, place in _places(arch.config, len(mocae.objectives)).items():
        where, _, leaf = ours.partition(".mlp.")
        for e, (name, turned) in enumerate(place.tensors):
            if leaf == "router.kernel":
                like = jax.ShapeDtypeStruct(apart[ours].shape, jnp.float32)
                values = partial(_gate, apart, f"{where}.mlp.router")
            elif place.stacked:
                projection = leaf.split(".")[1].removesuffix("_proj")
                like = _expert_shape(arch.config, projection)
                values = partial(_expert, mocae, apart, f"{where}.mlp", projection, e)
            else:
                like, values = apart[ours], partial(stored, apart[ours], turned)
            pieces.append(Piece(name, like, values))
    return save_pieces(
        folder,
        contents,
        pieces,
        max_shard_bytes=max_shard_bytes,
        extra_files=extra_files,
        overwrite=overwrite,
    )


def _places(config: ModelConfig, E: int) -> dict[str, Place]:
    """Our name -> where a Mixtral holds it, for all but temperatures and importances."""
    block = {ours: there for ours, there in tensors(config).items() if ".mlp." not in ours}
    places = {ours: Place((there,)) for ours, there in block.items()}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.mlp", f"model.layers.{i}.block_sparse_moe"
        places[f"{ours}.router.kernel"] = Place((HFTensor(f"{theirs}.gate.weight", True),))
        for projection, w in _PROJECTIONS.items():
            places[f"{ours}.experts.{projection}_proj.kernel"] = Place(
                tuple(HFTensor(f"{theirs}.experts.{e}.{w}.weight", True) for e in range(E)),
                stacked=True,
            )
    return places


def _contents(arch: Architecture) -> tuple[MoCaEConfig, dict[str, Any]]:
    """The experts' configuration and the contents of config.json, once nothing is in the way."""
    config, mocae = arch.config, arch.mocae
    if mocae is None or len(arch.expert_layers) < config.num_hidden_layers:
        raise UsageError(
            "export as Mixtral: every layer must have experts (mocae.layers: []); export adapters "
            "instead (trinityx export)"
        )
    if mocae.gamma == "logit":
        raise UsageError(
            "export as Mixtral: mocae.gamma: logit is a bias of the gate, which a Mixtral does not "
            "have; use gamma: none or output, or export adapters (trinityx export)"
        )
    try:
        contents = hf_config(dataclasses.replace(config, family=_BLOCK))
    except UsageError as e:
        raise UsageError(f"export as Mixtral: {e}") from e
    E = len(mocae.objectives)
    return mocae, contents | {
        "architectures": [_CLASS],
        "model_type": MODEL_TYPE,
        "num_local_experts": E,
        "num_experts_per_tok": mocae.top_k or E,
        "output_router_logits": False,
        EXPERT_NAMES: list(mocae.objectives),
    }


def _expert_shape(config: ModelConfig, projection: str) -> jax.ShapeDtypeStruct:
    D, F = config.hidden_size, config.intermediate_size
    shape = (D, F) if projection == "down" else (F, D)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(config.param_dtype))


def _gate(apart: Mapping[str, jax.Array], router: str) -> np.ndarray:
    """(E, D): softmax(x G^T) is softmax(x R / tau)."""
    return stored(apart[f"{router}.kernel"] / apart[f"{router}.temperature"], True)


def _expert(
    mocae: MoCaEConfig, apart: Mapping[str, jax.Array], mlp: str, projection: str, e: int
) -> np.ndarray:
    """We (out, in) of one expert, times its importance in the down projection."""
    if mocae.expert == "ffn":
        kernel = apart[f"{mlp}.experts.{projection}_proj.kernel"][e]
    else:
        A, B = (apart[f"{mlp}.task_vectors.{projection}.{half}"][e] for half in "AB")
        kernel = _moved(apart[f"{mlp}.{projection}_proj.kernel"], A, B, mocae.scale)
    if mocae.gamma == "output" and projection == "down":
        kernel = kernel * apart[f"{mlp}.router.gamma"][e].astype(kernel.dtype)
    return stored(kernel, True)


@jax.jit
def _moved(kernel: jax.Array, A: jax.Array, B: jax.Array, scale: float) -> jax.Array:
    """W + s A B, rounded once."""
    moved = kernel.astype(jnp.float32) + scale * jnp.matmul(A, B, precision="highest")
    return moved.astype(kernel.dtype)
