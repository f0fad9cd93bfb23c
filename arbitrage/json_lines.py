"""Files of one JSON object a line, read with the standard library and blamed by line number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from arbitrage.errors import DataError, one_line
from arbitrage.filesystems import Place, reading


def json_lines(place: Place) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number (from 1) and the object of every line that is not blank.

    Raises DataError naming the first line that is not one JSON object in UTF-8.
    """
    for number, line in filled_lines(place):
        yield number, _parse(line, number)


def filled_lines(place: Place) -> Iterator[tuple[int, bytes]]:
    """Yields the number (from 1) and the bytes of every line that is not blank."""
    with reading("text file"), place.binary() as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.isspace():
                yield number, line


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"line {number} is not valid JSON: {one_line(str(error))}; every line must hold one "
            "object, and the last one must be whole"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"line {number} holds {kind_of(value)}, not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field occurs twice in one object")
    return found


def kind_of(value: Any) -> str:
    """The JSON name of the value's type, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def number_of(value: Any) -> float:
    """The finite or infinite number that a JSON number, or the text of one, stands for.

    Raises ValueError for anything else: booleans, digits grouped by underscores, huge integers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{kind_of(value)} is not a number")
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        raise ValueError(f"{value[:40]!r} is not a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not a number of float size") from None


def text_of(value: Any) -> str | None:
    """The text of a JSON string or integer, which can name a question or a group; else None."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


@contextmanager
def rows_on_lines(lines: np.ndarray) -> Iterator[None]:
    """Puts the line number before the message of a DataError that names a row."""
    try:
        yield
    except DataError as error:
        if error.row is None or error.row >= len(lines):
            raise
        raise DataError(f"line {lines[error.row]}: {error}", error.row) from None


def padded(rows: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) float32, padded with -inf, and the number in each row (N,)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    width = int(lengths.max()) if len(rows) else 0
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    flat = np.array([value for row in rows for value in row], dtype=np.float64)
    with np.errstate(over="ignore"):  # an overflow becomes inf and is reported with its row
        scores[np.arange(width) < lengths[:, None]] = flat
    return scores, lengths
