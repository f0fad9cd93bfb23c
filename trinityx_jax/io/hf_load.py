"""A Hugging Face checkpoint as sharded arrays: a process reads its own slices of each tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import read_json
from trinityx_jax.models.families import HFTensor, model_config, tensors
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import state_shardings

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

# Rotary frequencies that the Llama-2 era saved; they follow from config.json.
_DERIVED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_AGAIN = "download it again"


class Place(NamedTuple):
    """Where a parameter lies: in one tensor or, `stacked`, in several along a new first axis."""

    tensors: tuple[HFTensor, ...]
    stacked: bool = False


class Stored(NamedTuple):
    """What a file's header says of a tensor; `dtype` is safetensors' name, such as BF16."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def load_checkpoint(
    folder: str | Path, mesh: Mesh, *, dtype: str | None = None
) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """(configuration, parameters by our names and layer by layer) of a Hugging Face folder.

    Reads `model.safetensors` or, where there is none, the files of its index. The headers of all
    files are checked against config.json before any data is read. Two kinds of tensors are left
    out, and no others: rotary `inv_freq` buffers, which follow from config.json, and the
    `lm_head.weight` of a tied checkpoint, which must equal the embedding bit for bit. Beyond the
    arrays themselves the host holds a few copies of this process's part of one tensor.

    Args:
      mesh: where the arrays go, by `trinityx_jax.sharding`; a process reads its shards only.
      dtype: float32, bfloat16 or float16, converted slice by slice. None takes the dtype that most
        of the checkpoint's values have, for all of them: computation and parameters.

    Raises DataError, in one line, for damaged, missing and unsuitable files; UsageError for a
    dtype that there is none of and a mesh that does not divide the shapes.
    """
    path = Path(folder) / "config.json"
    config = model_config(read_json(path, "give the folder of a model"), str(path))
    places = {name: Place((tensor,)) for name, tensor in tensors(config).items()}
    return load_places(folder, config, None, places, mesh, dtype)


def load_places(
    folder: str | Path,
    config: ModelConfig,
    mocae: MoCaEConfig | None,
    places: Mapping[str, Place],
    mesh: Mesh,
    dtype: str | None,
) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """`load_checkpoint` for the parameters of this model that `places` names.

    Every tensor of the folder must have its place, but for what `load_checkpoint` leaves out.
    """
    folder = Path(folder)
    if dtype is not None and dtype not in DTYPES.values():
        raise UsageError(f"dtype {dtype!r}: allowed are {', '.join(DTYPES.values())}")
    config = dataclasses.replace(config, scan_layers=False)
    headers = _headers(folder)
    wanted = _stored_shapes(architecture(config, mocae).shapes, places)
    _check(folder, config, wanted, headers)
    if dtype is None:
        dtype = _most_common_dtype(headers[name] for name in wanted)
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    if config.tie_word_embeddings and _HEAD in headers:
        _check_tied(folder, headers)
    shapes = architecture(config, mocae).shapes
    return config, _read({n: shapes[n] for n in shapes if n in places}, places, headers, mesh)


def _headers(folder: Path) -> dict[str, Stored]:
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise DataError(_no_weights(folder))
        return _header(folder / SINGLE)
    index = read_json(folder / INDEX, _AGAIN).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise DataError(f"{folder / INDEX}: no weight_map from tensors to files; {_AGAIN}")
    headers = {}
    for file in sorted(set(index.values())):
        if Path(file).name != file:  # never follow an index out of its folder
            raise DataError(f"{folder / INDEX}: {file!r} is not the name of a file beside it")
        if not (folder / file).exists():
            raise DataError(f"{folder / INDEX} names {file}, which is missing; {_AGAIN}")
        found = _header(folder / file)
        listed = {name for name, place in index.items() if place == file}
        if listed - set(found):
            raise DataError(
                f"{folder / file}: the index places {few(listed - set(found))} here, but the file "
                f"does not hold it; {_AGAIN}"
            )
        if set(found) - listed:
            raise DataError(
                f"{folder / file} holds {few(set(found) - listed)}, which the index does not place "
                f"here; {_AGAIN}"
            )
        headers |= found
    return headers


def _header(path: Path) -> dict[str, Stored]:
    found = {}
    try:
        with safe_open(path, "numpy") as file:
            for name in file.keys():
                part = file.get_slice(name)
                found[name] = Stored(path, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as e:
        raise DataError(
            f"{path}: not a whole safetensors file ({' '.join(str(e).split())}); {_AGAIN}"
        ) from e
    return found


def _no_weights(folder: Path) -> str:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if not pickled:
        return f"{folder}: no {SINGLE} and no {INDEX}; give the folder of a model"
    return (
        f"{folder}: only pickled weights ({few(pickled)}), which are never opened; convert them "
        "with transformers: from_pretrained(folder).save_pretrained(new_folder)"
    )


def _stored_shapes(
    shapes: Mapping[str, jax.ShapeDtypeStruct], places: Mapping[str, Place]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the checkpoint's tensors by its names."""
    return {
        theirs.name: shape[::-1] if theirs.transposed else shape
        for name, place in places.items()
        for shape in [shapes[name].shape[place.stacked :]]
        for theirs in place.tensors
    }


def _check(
    folder: Path,
    config: ModelConfig,
    wanted: Mapping[str, tuple[int, ...]],
    headers: Mapping[str, Stored],
) -> None:
    """DataError unless the headers fit the shapes that are wanted."""
    harmless = {name for name in headers if _DERIVED.fullmatch(name)}
    if config.tie_word_embeddings:
        harmless.add(_HEAD)
    used = wanted.keys() & headers.keys()
    faults = {
        "missing": sorted(wanted.keys() - headers.keys()),
        "unknown": sorted(headers.keys() - wanted.keys() - harmless),
        "other shapes than config.json says": [
            f"{name} {headers[name].shape}, not {wanted[name]}"
            for name in sorted(used)
            if headers[name].shape != wanted[name]
        ],
        f"other types than {', '.join(DTYPES)}": [
            f"{name} {headers[name].dtype}"
            for name in sorted(used)
            if headers[name].dtype not in DTYPES
        ],
    }
    told = [f"{fault}: {few(names)}" for fault, names in faults.items() if names]
    if told:
        raise DataError(
            f"{folder}: the tensors do not fit {config.family}: {'; '.join(told)}; "
            "give a complete checkpoint that is not quantised"
        )


def _most_common_dtype(stored: Iterable[Stored]) -> str:
    counts = dict.fromkeys(DTYPES, 0)
    for tensor in stored:
        counts[tensor.dtype] += math.prod(tensor.shape)
    return DTYPES[max(counts, key=lambda name: counts[name])]


def _check_tied(folder: Path, headers: Mapping[str, Stored]) -> None:
    """DataError unless the head that a tied checkpoint stores is the embedding, bit for bit."""
    embedding, head = headers[_EMBEDDING], headers[_HEAD]
    same = embedding[1:] == head[1:]
    if same:
        rows, width = embedding.shape
        block = max(1, 2**22 // max(width, 1))
        with safe_open(embedding.file, "numpy") as a, safe_open(head.file, "numpy") as b:
            one, other = a.get_slice(_EMBEDDING), b.get_slice(_HEAD)
            same = all(
                one[start:stop].tobytes() == other[start:stop].tobytes()
                for start in range(0, rows, block)
                for stop in [min(start + block, rows)]
            )
    if not same:
        raise DataError(
            f"{folder}: tie_word_embeddings is true, but {_HEAD} differs from {_EMBEDDING}; set "
            "tie_word_embeddings to false in config.json, or remove the tensor"
        )


def _read(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    places: Mapping[str, Place],
    headers: Mapping[str, Stored],
    mesh: Mesh,
) -> dict[str, jax.Array]:
    shardings = state_shardings(shapes, mesh)
    arrays = {}
    with tqdm(total=len(shapes), desc="weights", unit="tensor", disable=None) as bar:
        for name in sorted(shapes, key=lambda name: headers[places[name].tensors[0].name].file):
            stored, stacked = places[name]
            # What was read of a file stays mapped until it is closed, so open it for each tensor.
            with contextlib.ExitStack() as files:
                parts = [
                    files.enter_context(safe_open(headers[part].file, "numpy")).get_slice(part)
                    for part, _ in stored
                ]
                turned, want = stored[0].transposed, shapes[name]
                part = _Stack(parts, turned) if stacked else parts[0]
                arrays[name] = _array(
                    part, turned and not stacked, want.shape, shardings[name], want.dtype.name
                )
            bar.update()
    return {name: arrays[name] for name in shapes}


class _Stack:
    """Slices of several stored tensors as those of one array, with the tensors as first axis."""

    def __init__(self, parts: Sequence[Any], transposed: bool):
        self._parts, self._transposed = parts, transposed

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        inner = index[:0:-1] if self._transposed else index[1:]
        values = [part[inner] for part in self._parts[index[0]]]
        return np.stack([x.T for x in values] if self._transposed else values)


def _array(
    part: Any, transposed: bool, shape: tuple[int, ...], sharding: NamedSharding, dtype: str
) -> jax.Array:
    """Global array whose shards are read through `part`, the slices of a stored tensor."""
    read: dict[tuple, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        key = tuple((axis.start, axis.stop) for axis in index)
        if key not in read:  # devices that hold the same shard share one reading
            values = part[index[::-1] if transposed else index]
            values = values.T if transposed else values
            read[key] = np.ascontiguousarray(values, dtype=jnp.dtype(dtype))
        return read[key]

    array = jax.make_array_from_callback(shape, sharding, shard, dtype=jnp.dtype(dtype))
    return array.block_until_ready()  # else copies of many tensors could wait on the host


def few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
