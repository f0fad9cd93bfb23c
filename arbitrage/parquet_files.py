"""Score tables as Parquet: one file, or a folder of part files.

Columns: `question_id` string, `scores` list<float32> (variable or fixed size), and, optionally,
`n_options` int16 (entries from it on were not shown), `label` int16, `group` string, and others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arbitrage.arrow_columns import build_table, check_present, column_names, is_plain
from arbitrage.errors import DataError
from arbitrage.filesystems import Place, naming_part, open_output, reading
from arbitrage.scores import ScoreTable

SCHEMA_VERSION = "1"
ROW_GROUP = 131_072
WRITE_ROWS = 8 * ROW_GROUP
SUFFIXES = (".parquet", ".pq")


def read_parquet(place: Place, *, columns: Mapping[str, str] | None = None) -> ScoreTable:
    """The score table in a Parquet file, or in a folder of part files in the order of their names.

    `columns` gives the file's own column names: `{"scores": "logits"}`. Further columns of
    numbers, booleans, text or fixed-size lists of numbers go to `extra`; columns of other types
    are left in the file. Part files must have the same columns and types; of their metadata, what
    all agree on is kept. Local files are memory-mapped.

    Raises:
      UsageError: a needed column is missing or has the wrong type; the message lists the columns.
      DataError: a file is not readable, or a row is not valid; the message names the first one.
    """
    names = column_names(columns)
    parts = part_files(place)
    tables, metadata = [], []
    for part in parts:
        with naming_part(part, place):
            table, found = _read_part(part, names, columns)
            if tables and not table.schema.equals(tables[0].schema):
                raise DataError(
                    f"its columns differ from those of {parts[0].base}: the files of a folder must "
                    "have the same columns and types, in the same order"
                )
        tables.append(table)
        metadata.append(found)
    content = pa.concat_tables(tables)
    tables.clear()
    return build_table(content, names, agreed(metadata))


def part_files(place: Place) -> list[Place]:
    """The Parquet files of a place: itself, or those of the folder, sorted by name."""
    if place.kind() != "folder":
        return [place]
    children = place.children()
    files = [child for child in children if child.base.endswith(SUFFIXES)]
    folders = [child for child in children if child not in files and child.kind() == "folder"]
    if folders:
        raise DataError(f"it holds a folder, {folders[0].base}: folders in folders are not read")
    if not files:
        raise DataError("it is a folder without .parquet files")
    return files


@contextmanager
def open_parquet(place: Place, *, memory_map: bool = False, **options: Any) -> Iterator[Any]:
    """The opened `pyarrow.parquet.ParquetFile`; unreadable content is one DataError."""
    with reading("Parquet file"), place.open(memory_map=memory_map) as source:
        with pq.ParquetFile(source, **options) as file:
            yield file


def _read_part(
    part: Place, names: Mapping[str, str], asked: Mapping[str, str] | None
) -> tuple[pa.Table, dict[str, str]]:
    with open_parquet(part, memory_map=True) as file:
        schema = file.schema_arrow
        check_present(schema.names, names, asked)
        metadata = read_metadata(schema)
        wanted = [one.name for one in schema if is_plain(one.type) or one.name in names.values()]
        table = file.read(columns=wanted if len(wanted) < len(schema) else None)
    return table.replace_schema_metadata(), metadata


def read_metadata(schema: pa.Schema) -> dict[str, str]:
    """The file's own notes. Raises DataError for a schema version this library does not know."""
    found = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (schema.metadata or {}).items()
    }
    version = found.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"score table schema_version {version!r} is not known; this version reads "
            f"{SCHEMA_VERSION!r}"
        )
    # These two describe the file to other libraries, not the scores.
    return {key: value for key, value in found.items() if key not in ("ARROW:schema", "pandas")}


def agreed(metadata: list[dict[str, str]]) -> dict[str, str]:
    """The entries that all have with the same value."""
    first, *others = metadata
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def write_parquet(
    table: ScoreTable, path: str | os.PathLike | Place, *, overwrite: bool = False
) -> None:
    """Writes the table as one Parquet file (zstd), whole or not at all; memory for a part of it.

    Raises UsageError for an existing file without `overwrite`, DataError where it cannot write.
    """
    metadata = {**table.metadata, "schema_version": SCHEMA_VERSION}
    first = _arrow_table(table, slice(0, WRITE_ROWS)).replace_schema_metadata(metadata)
    with open_output(path, overwrite) as to:
        with pq.ParquetWriter(to, first.schema, compression="zstd") as writer:
            writer.write_table(first, row_group_size=ROW_GROUP)
            for start in range(WRITE_ROWS, len(table), WRITE_ROWS):
                part = _arrow_table(table, slice(start, start + WRITE_ROWS))
                writer.write_table(part.cast(first.schema), row_group_size=ROW_GROUP)


def _arrow_table(table: ScoreTable, rows: slice) -> pa.Table:
    mask = table.mask[rows]
    counts = mask.sum(axis=1)
    arrays: dict[str, Any] = {"question_id": pa.array(table.question_id[rows], pa.string())}
    if table.group is not None:
        arrays["group"] = pa.array(table.group[rows], pa.string())
    if table.label is not None:
        arrays["label"] = pa.array(table.label[rows], pa.int16())
    arrays["scores"] = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()),
        pa.array(table.scores[rows][mask], pa.float32()),
    )
    arrays["n_options"] = pa.array(counts, pa.int16())
    for name, value in table.extra.items():
        arrays[name] = _arrow(value[rows])
    return pa.table(arrays)


def _arrow(value: np.ndarray) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value)
    return pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value[0].size)
