"""A backbone as a Hugging Face checkpoint, which transformers and servers read."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from trinityx_jax.config import ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import new_folder, write_json
from trinityx_jax.io.hf_load import INDEX, SINGLE, few
from trinityx_jax.io.tensors import save_tensors
from trinityx_jax.models.families import hf_config, tensors
from trinityx_jax.models.parameters import architecture

GENERATION = "generation_config.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Piece(NamedTuple):
    """A tensor to write: its name, an array or struct of its size and dtype, and its values."""

    name: str
    like: jax.Array | jax.ShapeDtypeStruct
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return self.like.size * self.like.dtype.itemsize


def save_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    *,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, bytes | Path] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes config.json and the weights in safetensors, whole or not at all.

    Every process of a mesh calls it; arrays are gathered one by one, and process 0 writes. It
    holds one file's tensors in memory at a time. Files above `max_shard_bytes` are split, with an
    index; a tensor above it has a file of its own.

    Args:
      parameters: every parameter of the backbone by our names, layer by layer, in the
        type `config.param_dtype`.
      extra_files: name -> contents or a file to copy: tokenizer files, generation_config.json,
        whose token ids config.json repeats for older readers.
      overwrite: replace a folder that holds nothing but files of these names.

    Raises UsageError for missing, unknown or misshapen parameters, for options that the family
    cannot express, and when the folder may not be replaced; DataError when it cannot be written.
    """
    contents = hf_config(config)
    _check(config, parameters)
    pieces = [
        Piece(hf_name, parameters[ours], partial(stored, parameters[ours], transposed))
        for ours, (hf_name, transposed) in tensors(config).items()
    ]
    return save_pieces(
        folder,
        contents,
        pieces,
        max_shard_bytes=max_shard_bytes,
        extra_files=extra_files,
        overwrite=overwrite,
    )


def save_pieces(
    folder: str | Path,
    contents: Mapping[str, Any],
    pieces: Sequence[Piece],
    *,
    max_shard_bytes: int,
    extra_files: Mapping[str, bytes | Path] | None,
    overwrite: bool,
) -> Path:
    """`save_checkpoint` of any tensors, with `contents` in config.json."""
    shards = _plan(pieces, max_shard_bytes)
    extra = dict(extra_files or {})
    contents = {**contents, **_token_ids(extra)}
    made = ["config.json", INDEX, *shards]
    _check_extra(extra, made)
    with contextlib.ExitStack() as stack:
        writer = jax.process_index() == 0
        place = Path(folder)
        if writer:
            old = [p.name for p in place.iterdir()] if place.is_dir() else []
            entries = {*made, SINGLE, *extra, *filter(_SHARD.fullmatch, old)}
            place = stack.enter_context(new_folder(folder, entries, overwrite=overwrite))
        silent = None if writer else True
        bar = tqdm(total=len(pieces), desc="weights", unit="tensor", disable=silent)
        stack.enter_context(bar)
        for file, inside in shards.items():
            ready = {}
            for piece in inside:
                values = piece.values()  # on every process
                if writer:
                    ready[piece.name] = np.ascontiguousarray(values)
                bar.update()
            if writer:
                save_tensors(place / file, ready)
        if writer:
            write_json(place / "config.json", contents)
            if len(shards) > 1:
                write_json(place / INDEX, _index(shards))
            for name, value in extra.items():
                _write_extra(place / name, value)
    return Path(folder)


def _check(config: ModelConfig, parameters: Mapping[str, jax.Array]) -> None:
    shapes = architecture(config).unrolled().shapes
    faults = {
        "missing": shapes.keys() - parameters.keys(),
        "unknown": parameters.keys() - shapes.keys(),
        "misshapen": {
            f"{name} {parameters[name].shape}"
            for name in shapes.keys() & parameters.keys()
            if parameters[name].shape != shapes[name].shape
        },
        f"not {config.param_dtype}": {
            f"{name} {parameters[name].dtype}"
            for name in shapes.keys() & parameters.keys()
            if parameters[name].dtype.name != config.param_dtype
        },
    }
    for fault, names in faults.items():
        if names:
            raise UsageError(f"checkpoint: {fault} parameters: {few(names)}; give the backbone's")


def _plan(pieces: Sequence[Piece], limit: int) -> dict[str, list[Piece]]:
    """File -> the pieces in it, filled in order up to `limit` bytes."""
    if limit <= 0:
        raise UsageError(f"max_shard_bytes={limit}: must be positive")
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{i:05}-of-{len(groups):05}.safetensors": group
        for i, group in enumerate(groups, start=1)
    }


def _index(shards: Mapping[str, list[Piece]]) -> dict[str, Any]:
    pieces = [piece for inside in shards.values() for piece in inside]
    return {
        "metadata": {
            "total_parameters": sum(piece.like.size for piece in pieces),
            "total_size": sum(piece.nbytes for piece in pieces),
        },
        "weight_map": {piece.name: file for file, inside in shards.items() for piece in inside},
    }


def whole(array: jax.Array) -> np.ndarray:
    """All of a sharded array on the host; every process calls it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def stored(array: jax.Array, transposed: bool) -> np.ndarray:
    """`whole` in a checkpoint's orientation."""
    return whole(array).T if transposed else whole(array)


def _token_ids(extra: Mapping[str, bytes | Path]) -> dict[str, Any]:
    if GENERATION not in extra:
        return {}
    try:
        value = extra[GENERATION]
        tree = json.loads(value if isinstance(value, bytes) else value.read_bytes())
        return {key: tree[key] for key in TOKEN_IDS if key in tree}
    except (OSError, ValueError, TypeError) as e:
        raise DataError(f"{GENERATION}: not a readable JSON object ({e})") from e


def _check_extra(extra: Mapping[str, bytes | Path], made: list[str]) -> None:
    for name in extra:
        if name in (*made, SINGLE, "", ".", "..") or Path(name).name != name:
            raise UsageError(f"extra file {name!r}: give a plain file name that is not taken")


def _write_extra(path: Path, value: bytes | Path) -> None:
    if isinstance(value, bytes):
        path.write_bytes(value)
        return
    try:
        shutil.copyfile(value, path)
    except OSError as e:
        raise DataError(f"extra file {value}: cannot be copied ({e.strerror or e})") from e
