"""Score tables as NumPy files: a matrix in `.npy`, or named arrays in `.npz`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from arbitrage.arrow_columns import (
    check_counts,
    check_present,
    column_names,
    naming_rows,
    option_mask,
)
from arbitrage.errors import DataError, UsageError, one_line
from arbitrage.filesystems import Place
from arbitrage.scores import ScoreTable


def read_numpy(place: Place, *, columns: Mapping[str, str] | None = None) -> ScoreTable:
    """The score table in a NumPy file.

    `.npy`: scores (N, K), all options valid, memory-mapped when local; float32 is not copied.
    `.npz`: arrays `scores` (N, K) and, optionally, `question_id`, `n_options`, `label`, `group`
    and further ones of N rows (`extra`); `columns` gives the file's own names; scalars of text are
    metadata. Without `question_id` the row numbers are the ids, as text.

    Raises UsageError for a wrong type or name, DataError for bad content. Pickles are refused.
    """
    names = column_names(columns)
    arrays, metadata = _load(place)
    if isinstance(arrays, np.ndarray):
        if columns:
            raise UsageError("a .npy file holds one matrix: it has no columns to name")
        arrays = {names["scores"]: arrays}
    check_present(list(arrays), names, columns, required=("scores",))
    scores = arrays[names["scores"]]
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        raise UsageError(f"scores must be a matrix (N, K) of numbers, not {_what(scores)}")
    n, width = scores.shape
    if not n or not width:
        raise DataError(f"the matrix of scores has shape {scores.shape}: it holds nothing")
    fields = {name: arrays.get(names[name]) for name in ("question_id", "label", "group")}
    counts = arrays.get(names["n_options"])
    for name, value, kinds in (*((k, v, "iuUS") for k, v in fields.items() if k != "label"),
                               ("label", fields["label"], "iu"),
                               ("n_options", counts, "iu")):  # fmt: skip
        if value is not None and (value.shape != (n,) or value.dtype.kind not in kinds):
            wanted = "integers" if kinds == "iu" else "texts or integers"
            raise UsageError(f"{name} must hold {n} {wanted}, not {_what(value)}")
    ids = _row_numbers(n) if fields["question_id"] is None else _decoded(fields["question_id"])
    if counts is None:
        mask = option_mask(np.array([width]), width)
        mask = np.broadcast_to(mask, scores.shape)
    else:
        check_counts(counts, np.broadcast_to(width, n), naming_rows(ids))
        mask = option_mask(counts, width)
    return ScoreTable(
        question_id=ids,
        scores=scores,
        mask=mask,
        label=fields["label"],
        group=None if fields["group"] is None else _decoded(fields["group"]),
        extra={name: value for name, value in arrays.items() if name not in names.values()},
        metadata=metadata,
    )


def _load(place: Place) -> tuple[Any, dict[str, str]]:
    try:
        if place.filesystem is None and place.base.endswith(".npy"):
            return np.load(place.path, mmap_mode="r", allow_pickle=False), {}
        with place.open() as file:
            found = np.load(io.BytesIO(file.read()), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, {}
        arrays = {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except Exception as error:  # damaged headers make NumPy raise errors of many kinds
        raise DataError(
            f"not a readable NumPy file, or cut short: {one_line(str(error))[:300]}"
        ) from error
    metadata = {k: str(v) for k, v in arrays.items() if v.ndim == 0 and v.dtype.kind == "U"}
    return {name: value for name, value in arrays.items() if name not in metadata}, metadata


def _row_numbers(n: int) -> np.ndarray:
    # Without the width NumPy takes 21 characters for each.
    return np.arange(n).astype(f"U{len(str(n - 1))}")


def _decoded(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "S":
        return value
    try:
        return np.char.decode(value, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"a text is not valid UTF-8: {one_line(str(error))}") from error


def _what(value: np.ndarray) -> str:
    return f"{value.dtype} {value.shape}"
