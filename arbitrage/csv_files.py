"""Score tables as CSV: one row for each question, one column for each answer option."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from pyarrow import types

from arbitrage.arrow_columns import build_table, check_present, column_names
from arbitrage.errors import DataError, UsageError, first_row, one_line
from arbitrage.filesystems import Place, reading
from arbitrage.json_lines import rows_on_lines
from arbitrage.scores import ScoreTable

_NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)|)\s*", re.I)
_INTEGER = re.compile(r"\s*[+-]?\d+\s*|")


def read_csv(place: Place, *, columns: Mapping[str, str] | None = None) -> ScoreTable:
    """The score table in a CSV file with a header, plain or `.gz`.

    Options are in columns `scores_0` to `scores_{K-1}`; `columns={"scores": "p"}` makes them `p_0`
    or `p0` and so on. An empty cell is an option that was not shown, and only such cells may
    follow it. `question_id`, `n_options`, `label` and `group` are as in Parquet; further columns
    go to `extra`. Numbers are read as float64 and rounded to float32.

    Raises UsageError where the columns do not fit, DataError naming the first bad line.
    """
    names = column_names(columns)
    header = next(_records(place), (0, []))[1]
    if not header:
        raise DataError("the file is empty")
    options = _option_columns(header, names["scores"])
    check_present(header, {k: v for k, v in names.items() if k != "scores"}, columns)
    kinds = dict.fromkeys(options, pa.float64())
    kinds |= {names["question_id"]: pa.string(), names["group"]: pa.string()}
    kinds |= {names["n_options"]: pa.int64(), names["label"]: pa.int64()}
    table = _read_table(place, kinds, names)
    # A date is not a plain column, its text is.
    dates = {one.name: pa.string() for one in table.schema if types.is_temporal(one.type)}
    if dates:
        table = _read_table(place, kinds | dates, names)
    if not table.num_rows:
        raise DataError("the table has no rows")
    try:
        matrix = _matrix(table, options)
        return build_table(table.drop_columns(options), names, {}, matrix)
    except DataError as error:
        if error.row is None:
            raise
        with rows_on_lines(np.array([line for line, _ in _records(place)][1:])):
            raise


def _option_columns(header: list[str], prefix: str) -> list[str]:
    found: dict[int, str] = {}
    for name in header:
        match = re.fullmatch(re.escape(prefix) + r"_?([0-9]{1,6})", name)
        if match:
            option = int(match[1])
            if option in found:
                raise DataError(f"columns {found[option]!r} and {name!r} are the same option")
            found[option] = name
    if not found:
        raise UsageError(
            f"no columns {prefix}_0, {prefix}_1 ...; the file has {', '.join(header)}. "
            "Name the right ones with --columns scores=PREFIX"
        )
    for option in range(len(found)):
        if option not in found:
            raise DataError(
                f"there is no column for option {option}, but {found[max(found)]!r} exists: "
                "options count up from 0"
            )
    return [found[option] for option in range(len(found))]


def _read_table(place: Place, kinds: Mapping[str, pa.DataType], names: Mapping[str, str]) -> Any:
    try:
        with place.stream() as stream:
            return pyarrow.csv.read_csv(
                stream,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=kinds, null_values=[""], check_utf8=True
                ),
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        _find_fault(place, kinds)
        raise DataError(f"not a readable CSV file: {one_line(str(error))[:300]}") from error


def _find_fault(place: Place, kinds: Mapping[str, pa.DataType]) -> None:
    """Raises DataError naming the first line that has too many fields, too few, or no number."""
    records = _records(place)
    header = next(records)[1]
    for line, fields in records:
        if len(fields) != len(header):
            raise DataError(f"line {line} has {len(fields)} field(s), the header has {len(header)}")
        for name, field in zip(header, fields, strict=True):
            kind = kinds.get(name, pa.string())
            if types.is_floating(kind) and not _NUMBER.fullmatch(field):
                raise DataError(f"line {line}: {name} is {field[:40]!r}, not a number")
            if types.is_integer(kind) and not (
                _INTEGER.fullmatch(field) and abs(int(field[:30] or 0)) < 2**63
            ):
                raise DataError(f"line {line}: {name} is {field[:40]!r}, not an integer")


def _records(place: Place) -> Iterator[tuple[int, list[str]]]:
    """Yields the line on which each record ends (from 1) and its fields; blank lines are left out.

    Raises DataError for text that is not UTF-8 or has a quote that does not end.
    """
    with reading("CSV file"), place.binary() as file:
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
        except UnicodeDecodeError as error:
            raise DataError(f"line {reader.line_num + 1} or later is not UTF-8 text") from error
        except csv.Error as error:
            raise DataError(f"line {reader.line_num}: {error}") from error


def _matrix(table: pa.Table, options: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) float32, padded with -inf, and the number of them in each row (N,)."""
    scores = np.empty((table.num_rows, len(options)), dtype=np.float32)
    shown = np.empty(scores.shape, dtype=bool)
    for option, name in enumerate(options):
        column = table.column(name)
        shown[:, option] = column.is_valid().to_numpy()
        with np.errstate(over="ignore"):  # an overflow becomes inf and is reported with its row
            scores[:, option] = column.to_numpy()
    row = first_row(shown[:, 1:] & ~shown[:, :-1])
    if row is not None:
        raise DataError(
            f"row {row} has an empty score before a filled one: only options at the end may be "
            "left out",
            row,
        )
    scores[~shown] = -np.inf
    return scores, shown.sum(axis=1)
