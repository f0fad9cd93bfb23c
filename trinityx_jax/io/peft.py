"""One expert as a PEFT LoRA directory, and back.

Names and orientation (read in peft 0.21; torch keeps a linear map's weight as [out, in]):

    base_model.model.model.layers.{i}.mlp.{gate,up,down}_proj.lora_A.weight   [r, in]
    base_model.model.model.layers.{i}.mlp.{gate,up,down}_proj.lora_B.weight   [out, r]

PEFT adds (lora_alpha / r) * B A to the weight. Here the scale s is folded into B and lora_alpha
is r, so the factor is 1 and servers that read only part of the config still get the right sum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import new_folder, read_json, write_json
from trinityx_jax.io.tensors import check_equal, load_tensors, require_float32, save_tensors

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")

Pairs = Mapping[tuple[int, str], tuple[np.ndarray, np.ndarray]]

_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.mlp\.(\w+_proj)\.lora_([AB])\.weight")
# Options that change what the tensors mean, with the one value this reader supports.
_FIXED: dict[str, Any] = {
    "peft_type": "LORA",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
}


def write_adapter(
    directory: str | Path,
    pairs: Pairs,
    *,
    scale: float,
    base_model: str,
    overwrite: bool = False,
) -> Path:
    """Writes one PEFT directory and checks that it reads back bit for bit.

    Args:
      pairs: (layer, projection) -> (A (in, r), B (r, out)), float32, our `x A B` orientation;
        each layer with all of gate_proj, up_proj and down_proj, one rank r throughout.
      scale: s of `W + s A B`; folded into B in float32 (one rounding unless s is a power of two).
      base_model: name or path that PEFT loads the backbone from.

    Raises DataError naming the missing or misshapen part, UsageError when the directory exists.
    """
    rank = _check(pairs, every=False)
    if not np.isfinite(scale):
        raise UsageError(f"adapter scale {scale} is not finite; set mocae.lora_alpha to a number")
    folded = {
        key: (a, require_float32(_name(key, "B"), b * np.float32(scale), b.shape))
        for key, (a, b) in pairs.items()
    }
    tensors = {}
    for key, (a, b) in folded.items():
        tensors[_name(key, "A")] = a.T
        tensors[_name(key, "B")] = b.T
    with new_folder(directory, FILES, overwrite=overwrite) as folder:
        save_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", _config(rank, base_model, _layers(folded)))
        (folder / "README.md").write_text(_card(base_model, rank), encoding="utf-8")
        _check_same(folded, read_adapter(folder))
    return Path(directory)


def read_adapter(directory: str | Path) -> dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]:
    """(layer, projection) -> (A (in, r), B (r, out)), float32, with PEFT's scale folded into B.

    Raises DataError for a missing file, an option or tensor it does not know, or a missing part.
    """
    folder = Path(directory)
    config = read_json(folder / "adapter_config.json", "export the run again")
    for option, want in _FIXED.items():
        if config.get(option, want) != want:
            raise DataError(
                f"{folder}: adapter option {option}={config[option]!r} is not supported; "
                f"only {want!r} is"
            )
    try:
        scale = np.float32(config["lora_alpha"] / config["r"])
    except (KeyError, TypeError, ZeroDivisionError) as e:
        raise DataError(f"{folder}: adapter_config.json needs numbers r and lora_alpha") from e
    halves: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for name, tensor in load_tensors(folder / "adapter_model.safetensors").items():
        match = _KEY.fullmatch(name)
        if match is None or match[2] not in PROJECTIONS:
            raise DataError(f"{folder}: tensor {name!r} is not a LoRA pair of an MLP projection")
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    pairs = {}
    for key, half in sorted(halves.items()):
        for part in "AB":
            if part not in half:
                raise DataError(f"{folder}: tensor {_name(key, part)!r} is missing")
        a, b = (np.ascontiguousarray(half[part].T) for part in "AB")
        pairs[key] = (a, b if scale == 1 else b * scale)
    if config.get("layers_to_transform") not in (None, _layers(pairs)):
        raise DataError(f"{folder}: layers_to_transform names other layers than there are tensors")
    if config["r"] != _check(pairs, every=config.get("layers_to_transform") is None):
        raise DataError(f"{folder}: adapter_config.json says r={config['r']}, tensors differ")
    return pairs


def _name(key: tuple[int, str], part: str) -> str:
    return f"base_model.model.model.layers.{key[0]}.mlp.{key[1]}.lora_{part}.weight"


def _layers(pairs: Pairs) -> list[int]:
    return sorted({layer for layer, _ in pairs})


def _check(pairs: Pairs, *, every: bool) -> int:
    """The common rank, after checking that every pair is there and fits its neighbours.

    `every`: of all layers up to the last, not only of those that have some.
    """
    if not pairs:
        raise DataError("adapter: no layers; pass one (A, B) pair per layer and projection")
    for layer, projection in pairs:
        if projection not in PROJECTIONS:
            raise DataError(
                f"adapter: layer {layer} has {projection!r}; allowed are {', '.join(PROJECTIONS)}"
            )
    layers = _layers(pairs)
    wanted = range(layers[-1] + 1) if every else layers
    missing = [(i, p) for i in wanted for p in PROJECTIONS if (i, p) not in pairs]
    if missing:
        raise DataError(f"adapter: layer {missing[0][0]} has no {missing[0][1]} pair")
    a_gate, b_gate = (np.asarray(x) for x in pairs[layers[0], "gate_proj"])
    if a_gate.ndim != 2 or b_gate.ndim != 2 or 0 in a_gate.shape + b_gate.shape:
        raise DataError(
            f"adapter: layer {layers[0]} gate_proj must be matrices A (in, r) and B (r, out)"
        )
    width, rank = a_gate.shape
    inner = b_gate.shape[1]
    for (layer, projection), (a, b) in pairs.items():
        inputs, outputs = (inner, width) if projection == "down_proj" else (width, inner)
        # One rank everywhere: servers refuse rank patterns.
        require_float32(f"adapter layer {layer} {projection} A", a, (inputs, rank))
        require_float32(f"adapter layer {layer} {projection} B", b, (rank, outputs))
    return rank


def _check_same(want: Pairs, got: Pairs) -> None:
    for half in (0, 1):
        check_equal(
            "adapter_model.safetensors",
            {_name(key, "AB"[half]): pair[half] for key, pair in want.items()},
            {_name(key, "AB"[half]): pair[half] for key, pair in got.items()},
        )


def _config(rank: int, base_model: str, layers: list[int]) -> dict[str, Any]:
    every = layers == list(range(len(layers)))  # PEFT's own way to say it is to say nothing
    return {
        **_FIXED,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(PROJECTIONS),
        "layers_to_transform": None if every else layers,
    }


def _card(base_model: str, rank: int) -> str:
    return f"""---
base_model: {json.dumps(base_model)}
library_name: peft
---

# LoRA adapter of one expert

Rank {rank}, on the gate, up and down projections of every feed-forward layer, with the scale
folded into B (`lora_alpha` = `r`). It holds one expert of a mixture. Loaded alone it gives exactly
that expert; the mixture also needs the other experts and the router file beside them.

```python
from peft import PeftModel
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
