"""Score tables as JSON lines: one object for each question, with its scores as a list."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from arbitrage.arrow_columns import build_table, check_present, column_names
from arbitrage.errors import DataError
from arbitrage.filesystems import Place
from arbitrage.json_lines import (
    filled_lines,
    json_lines,
    kind_of,
    number_of,
    rows_on_lines,
    text_of,
)
from arbitrage.scores import ScoreTable

BLOCK_BYTES = 1 << 23
CHUNK_LINES = 65_536
NUMBERS = pa.list_(pa.float64())


def read_jsonl(place: Place, *, columns: Mapping[str, str] | None = None) -> ScoreTable:
    """The score table in a file of JSON lines, plain or `.gz`.

    Each line is an object with `question_id` (text or an integer), `scores` (a list of numbers)
    and, optionally, `n_options`, `label`, `group` and further fields; `columns` gives the file's
    own names. Further numbers, booleans and texts go to `extra`. Numbers are read as float64 and
    rounded to float32.

    Raises UsageError where the fields do not fit, DataError naming the first bad line.
    """
    names = column_names(columns)
    first = next(json_lines(place), None)
    if first is None:
        raise DataError("the file is empty")
    check_present(list(first[1]), names, columns)
    try:
        with place.stream() as stream:
            table = pyarrow.json.read_json(
                stream,
                read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=_schema(first[1], names)),
            )
        check_present(table.column_names, names, columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        # Slow, but it names the faulty line, and it accepts what is valid and mixed in type.
        table = _read_slowly(place, names)
    try:
        return build_table(table, names, {})
    except DataError as error:
        if error.row is None:
            raise
        lines = np.array([number for number, _ in filled_lines(place)])
        if len(lines) != table.num_rows:
            raise
        with rows_on_lines(lines):
            raise


def _schema(first: Mapping[str, Any], names: Mapping[str, str]) -> pa.Schema:
    """Types that must not be left to a guess: text that looks like a date would become one."""
    kinds: dict[str, pa.DataType] = {}
    for name, value in first.items():
        if isinstance(value, str):
            kinds[name] = pa.string()
        elif name in names.values() and isinstance(value, int) and not isinstance(value, bool):
            kinds[name] = pa.int64()
    kinds[names["scores"]] = NUMBERS
    return pa.schema(list(kinds.items()))


def _read_slowly(place: Place, names: Mapping[str, str]) -> pa.Table:
    lines = json_lines(place)
    tables = []
    while chunk := list(islice(lines, CHUNK_LINES)):
        columns: dict[str, pa.Array] = {}
        for name, read in (("question_id", _text), ("scores", _numbers), ("group", _text),
                           ("n_options", _integer), ("label", _integer)):  # fmt: skip
            column = names[name]
            if name in ("question_id", "scores") or any(column in row for _, row in chunk):
                kind = {_text: pa.string(), _integer: pa.int64()}.get(read, NUMBERS)
                values = [read(row.get(column), column, line) for line, row in chunk]
                columns[column] = pa.array(values, kind)
        others = {name: None for _, row in chunk for name in row if name not in columns}
        for name in others:
            try:
                columns[name] = pa.array([row.get(name) for _, row in chunk])
            except (pa.ArrowException, OverflowError):  # of mixed type: left in the file
                continue
        tables.append(pa.table(columns))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        known = [table.select([c for c in table.column_names if c in names.values()])
                 for table in tables]  # fmt: skip
        return pa.concat_tables(known, promote_options="permissive")


def _text(value: Any, name: str, line: int) -> str | None:
    found = text_of(value)
    if found is None and value is not None:
        raise DataError(f"line {line}: {name} must be text or an integer, not {kind_of(value)}")
    try:
        if found is not None:
            found.encode()
    except UnicodeEncodeError:
        raise DataError(f"line {line}: {name} holds half of a surrogate pair") from None
    return found


def _integer(value: Any, name: str, line: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"line {line}: {name} must be an integer, not {str(value)[:40]}")
    return value


def _numbers(value: Any, name: str, line: int) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"line {line}: {name} must be a list of numbers, not {kind_of(value)}")
    found = []
    for at, one in enumerate(value):
        if isinstance(one, str):
            raise DataError(f"line {line}: {name}[{at}] is text, not a number")
        try:
            found.append(float("nan") if one is None else number_of(one))
        except ValueError as error:
            raise DataError(f"line {line}: {name}[{at}]: {error}") from None
    return found
