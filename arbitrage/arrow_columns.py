"""From an Arrow table to a score table, column by column and chunk by chunk.

Nothing here makes a Python object for each row, so that 200 million rows cost their bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from arbitrage.errors import DataError, UsageError, first_row, one_line
from arbitrage.scores import COLUMNS, ScoreTable

REQUIRED = ("question_id", "scores")
TEXT_ROWS = 65_536
TEXT_CELLS = 1 << 24

# Says where a row is, for messages.
Where = Callable[[int], str]


def column_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Name in the file by field of the score table. Raises UsageError for an unknown field."""
    for name in columns or {}:
        if name not in COLUMNS:
            raise UsageError(f"--columns {name}=...: {name!r} is not one of {', '.join(COLUMNS)}")
    return {name: (columns or {}).get(name, name) for name in COLUMNS}


def check_present(
    found: list[str],
    names: Mapping[str, str],
    asked: Mapping[str, str] | None,
    required: tuple[str, ...] = REQUIRED,
) -> None:
    """Raises UsageError for a needed column that is missing, DataError for a repeated one."""
    repeated = next((name for name in found if found.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"column {repeated!r} occurs {found.count(repeated)} times")
    for name, column in names.items():
        if column not in found and (name in required or name in (asked or {})):
            raise UsageError(
                f"no column {column!r}; the file has {', '.join(found)}. "
                f"Name the right one with --columns {name}=NAME"
            )


def build_table(
    table: pa.Table,
    names: Mapping[str, str],
    metadata: Mapping[str, str],
    matrix: tuple[np.ndarray, np.ndarray] | None = None,
) -> ScoreTable:
    """The score table in an Arrow table.

    `matrix` gives the scores (N, K) float32 and the number of them in each row (N,), where they
    are not a list column. Raises UsageError for a wrong type, DataError naming the first bad row.
    """
    if not table.num_rows:
        raise DataError("the table has no rows")
    present = table.column_names
    ids = text(table.column(names["question_id"]), names["question_id"])
    where = naming_rows(ids)
    if matrix is None:
        matrix = score_matrix(table.column(names["scores"]), names["scores"], where)
    scores, lengths = matrix
    counts = None
    if names["n_options"] in present:
        counts = integers(table.column(names["n_options"]), names["n_options"], where)
        check_counts(counts, lengths, where)
    has_label, has_group = names["label"] in present, names["group"] in present
    others = [name for name in present if name not in names.values()]
    extra = {name: extra_column(table.column(name), name) for name in others}
    return ScoreTable(
        question_id=ids,
        scores=scores,
        mask=option_mask(lengths if counts is None else counts, scores.shape[1]),
        label=integers(table.column(names["label"]), names["label"], where) if has_label else None,
        group=text(table.column(names["group"]), names["group"]) if has_group else None,
        extra={name: value for name, value in extra.items() if value is not None},
        metadata=metadata,
    )


def option_mask(counts: np.ndarray, width: int) -> np.ndarray:
    """(N, K) bool, true at the first `counts` options of each row; takes no memory when full."""
    if len(counts) and counts.min() == width:
        return np.broadcast_to(np.True_, (len(counts), width))
    return np.arange(width, dtype=np.int32) < counts[:, None]


def naming_rows(ids: Any, start: int = 0) -> Where:
    """Names row i by its number `start + i` and its question id; `ids` None leaves the id out."""

    def where(row: int) -> str:
        return f"row {start + row}" + (
            "" if ids is None else f" (question_id {shown_id(ids[row])})"
        )

    return where


def shown_id(value: Any) -> str:
    """A question id, a NumPy or Arrow scalar, for a message: it may be no valid text."""
    try:
        return repr(str(value))
    except UnicodeDecodeError:
        return "that is not UTF-8"


def check_counts(counts: np.ndarray, lengths: np.ndarray, where: Where) -> None:
    """Raises DataError for the first row whose n_options is not 1 to its number of scores."""
    row = first_row((counts < 1) | (counts > lengths))
    if row is not None:
        raise DataError(
            f"{where(row)}: n_options is {counts[row]}, but it has {lengths[row]} score(s)",
            row,
        )


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is text, plain or dictionary-encoded."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list of numbers, of fixed or variable size."""
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and _is_number(kind.value_type)


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a field or an extra column of a score table."""
    return _is_number(kind) or types.is_boolean(kind) or is_text(kind) or is_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind)


def check_type(ok: bool, column: str, found: pa.DataType, wanted: str, name: str) -> None:
    """Raises the UsageError of a column with the wrong type unless `ok`."""
    if not ok:
        raise UsageError(
            f"column {column!r} has type {one_line(str(found))}, not {wanted}: "
            f"name the right one with --columns {name}=NAME"
        )


def check_nulls(column: pa.ChunkedArray, name: str, where: Where) -> None:
    """Raises DataError for the first missing value."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise DataError(f"{where(row)}: {name} is missing (null)", row)


def text(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """(N,) str of a column of text or integers."""
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    check_type(is_text(kind) or types.is_integer(kind), name, column.type, "string", "question_id")
    check_nulls(column, name, naming_rows(None))
    if not is_text(column.type) or types.is_dictionary(column.type):
        column = column.cast(kind).cast(pa.string())
    widths = (pc.call_function("utf8_length", [chunk]) for chunk in column.chunks if len(chunk))
    width = max([1, *(int(pc.call_function("max", [found]).as_py()) for found in widths)])
    out = np.zeros(len(column), f"U{width}")
    codes = out.view(np.uint32).reshape(len(column), width)
    for start, piece in _pieces(column, max(1, min(TEXT_ROWS, TEXT_CELLS // width))):
        try:
            flat, lengths = _code_points(piece)
        except UnicodeDecodeError as error:
            row = start + _first_undecodable(piece)
            raise DataError(f"row {row}: {name} is not valid UTF-8", row) from error
        block = codes[start : start + len(piece)]
        if lengths.min() == width:
            block[:] = flat.reshape(block.shape)
        else:
            block[np.arange(width) < lengths[:, None]] = flat
    return out


def _pieces(column: pa.ChunkedArray, size: int) -> Iterator[tuple[int, pa.Array]]:
    start = 0
    for chunk in column.chunks:
        for at in range(0, len(chunk), size):
            piece = chunk.slice(at, size)
            yield start, piece
            start += len(piece)


def _code_points(piece: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The code points of all strings, one after another, and the number in each string."""
    piece = piece.cast(pa.large_string())
    _, offsets, data = piece.buffers()
    at = np.frombuffer(offsets, np.int64)[piece.offset : piece.offset + len(piece) + 1]
    found = np.frombuffer(b"" if data is None else data, np.uint8)[at[0] : at[-1]]
    if not len(found) or found.max() < 128:
        return found, np.diff(at)
    utf32 = found.tobytes().decode("utf-8").encode("utf-32-le")
    return np.frombuffer(utf32, np.uint32), pc.call_function("utf8_length", [piece]).to_numpy()


def _first_undecodable(piece: pa.Array) -> int:
    for row, value in enumerate(piece):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    return 0


def integers(column: pa.ChunkedArray, name: str, where: Where) -> np.ndarray:
    """(N,) integers, of the column's own type."""
    check_type(types.is_integer(column.type), name, column.type, "integers", name)
    check_nulls(column, name, where)
    return column.to_numpy()


def score_matrix(column: pa.ChunkedArray, name: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) float32, padded with -inf, and the length of each list (N,).

    One full chunk of float32 is not copied. K is the length of the longest list.
    """
    check_type(is_list(column.type), name, column.type, "list<float32>", "scores")
    check_nulls(column, name, where)
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    sizes = [pc.call_function("list_value_length", [chunk]).to_numpy() for chunk in chunks]
    lengths = sizes[0] if len(sizes) == 1 else np.concatenate(sizes)
    width = int(lengths.max())
    full = lengths.min() == width
    if full and len(chunks) == 1:
        return _flat(chunks[0]).reshape(len(lengths), width), lengths
    scores = np.empty((len(lengths), width), dtype=np.float32)
    start = 0
    for chunk, size in zip(chunks, sizes, strict=True):
        block = scores[start : start + len(chunk)]
        start += len(chunk)
        if size.min() == width:
            block[:] = _flat(chunk).reshape(block.shape)
        else:
            block.fill(-np.inf)
            block[np.arange(width) < size[:, None]] = _flat(chunk)
    return scores, lengths


def _flat(chunk: Any) -> np.ndarray:
    values = chunk.flatten()
    with np.errstate(over="ignore"):  # an overflow becomes inf and is reported with its row
        return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def extra_column(column: pa.ChunkedArray, name: str) -> np.ndarray | None:
    """The column as an array of N rows, or None for a type that has no plain array form."""
    kind = column.type
    if _is_number(kind) or types.is_boolean(kind):
        return column.to_numpy()
    if column.null_count:
        return None
    if is_text(kind):
        return text(column, name)
    if types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return np.concatenate(flat).reshape(len(column), kind.list_size)
    return None
