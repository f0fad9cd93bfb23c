"""One table of a stream: its blocks, decoded by a thread of its own and checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa

from arbitrage.arrow_columns import (
    Where,
    check_counts,
    check_nulls,
    check_present,
    check_type,
    integers,
    is_list,
    is_text,
    naming_rows,
    option_mask,
    score_matrix,
)
from arbitrage.errors import DataError, first_row
from arbitrage.filesystems import Place, locate, naming, naming_part, reading
from arbitrage.parquet_files import agreed, open_parquet, part_files, read_metadata

BUFFER_BYTES = 1 << 20
BLOCKS_AHEAD = 4


@dataclass
class Block:
    """One block of one table: scores (n, K) float32, counts of valid ones (n,), label, ids."""

    scores: np.ndarray
    counts: np.ndarray
    label: np.ndarray | None
    ids: Any


@dataclass(frozen=True)
class Side:
    """One table of a stream: its part files, and the fields it has with their columns."""

    place: Place
    parts: list[Place]
    rows: int
    names: dict[str, str]
    fields: set[str]
    metadata: dict[str, str]

    def blocks(self, sizes: list[int], fields: set[str], check: bool) -> Generator[Block]:
        """Blocks of exactly `sizes` rows, over and over, but for the last."""
        start = 0
        with naming(self.place.name), reading("Parquet file"):
            for table in _rebatch(self._batches(sizes[0], fields), cycle(sizes)):
                try:
                    yield self._block(table, fields, start, check)
                except DataError as error:
                    at = None if error.row is None else start + error.row
                    raise DataError(str(error), at) from None
                start += table.num_rows
            if start != self.rows:
                raise DataError(f"it holds {start} rows, its footer says {self.rows}")

    def _batches(self, size: int, fields: set[str]) -> Iterator[pa.RecordBatch]:
        columns = [self.names[field] for field in sorted(fields)]
        for part in self.parts:
            # Neither mapped nor buffered ahead: both would keep what was read in memory.
            with naming_part(part, self.place):
                with open_parquet(part, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
                    yield from file.iter_batches(size, columns=columns, use_threads=False)

    def _block(self, table: pa.Table, fields: set[str], start: int, check: bool) -> Block:
        found = {field: table.column(self.names[field]) for field in fields}
        ids = label = None
        if "question_id" in fields:
            check_nulls(found["question_id"], "question_id", naming_rows(None, start))
            ids = found["question_id"].cast(pa.string())
        where = naming_rows(ids, start)
        scores, counts = score_matrix(found["scores"], self.names["scores"], where)
        if "n_options" in fields:
            lengths = counts
            counts = integers(found["n_options"], self.names["n_options"], where)
            check_counts(counts, lengths, where)
        if "label" in fields:
            label = integers(found["label"], self.names["label"], where)
        if check:
            _check_values(scores, counts, label, where)
        return Block(scores, counts, label, ids)


def open_side(path: Any, role: str, columns: Mapping[str, str]) -> Side:
    """Reads the metadata of the files only."""
    place = locate(path)
    asked = role if role in columns else "scores"
    names = {name: columns.get(name, name) for name in ("question_id", "n_options", "label")}
    names["scores"] = columns.get(asked, "scores")
    rows, schemas, metadata = 0, [], []
    with naming(place.name):
        parts = part_files(place)
        for part in parts:
            with naming_part(part, place):
                with open_parquet(part) as file:
                    schemas.append(file.schema_arrow)
                    rows += file.metadata.num_rows
                metadata.append(read_metadata(schemas[-1]))
                if not schemas[-1].equals(schemas[0]):
                    raise DataError(f"its columns differ from those of {parts[0].base}")
        check_present(schemas[0].names, names, columns)
        fields = {field for field, column in names.items() if column in schemas[0].names}
        for field in fields:
            _check_kind(schemas[0].field(names[field]), field, asked)
    return Side(place, parts, rows, names, fields, agreed(metadata))


def _check_kind(column: pa.Field, field: str, asked: str) -> None:
    kind = column.type
    if field == "scores":
        check_type(is_list(kind), column.name, kind, "list<float32>", asked)
    elif field == "question_id":
        ok = is_text(kind) or pa.types.is_integer(kind)
        check_type(ok, column.name, kind, "string", field)
    else:
        check_type(pa.types.is_integer(kind), column.name, kind, "integers", field)


def _rebatch(batches: Iterable[pa.RecordBatch], sizes: Iterator[int]) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `sizes` rows, but for the last; nothing is copied."""
    held, missing = [], next(sizes)
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, missing)
            batch = batch.slice(part.num_rows)
            held.append(part)
            missing -= part.num_rows
            if not missing:
                yield pa.Table.from_batches(held)
                held, missing = [], next(sizes)
    if held:
        yield pa.Table.from_batches(held)


def read_ahead(blocks: Generator[Block]) -> Generator[Block]:
    """The same blocks; a thread prepares the next ones while the caller has one."""
    with closing(blocks), ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, blocks, None) for _ in range(BLOCKS_AHEAD))
        try:
            while (block := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, blocks, None))
                yield block
        finally:
            for one in waiting:
                one.cancel()


def _check_values(scores: np.ndarray, counts: np.ndarray, label: Any, where: Where) -> None:
    row = first_row(counts < 1)
    if row is not None:
        raise DataError(f"{where(row)} has no valid option", row)
    bad = ~np.isfinite(scores)
    if bad.any():
        bad &= option_mask(counts, scores.shape[1])
        row = first_row(bad)
        if row is not None:
            option = int(np.argmax(bad[row]))
            raise DataError(
                f"{where(row)}: score of option {option} is {scores[row, option]}; scores must be "
                "finite float32 numbers (options that were not shown go after n_options)",
                row,
            )
    if label is None:
        return
    row = first_row((label < 0) | (label >= counts))
    if row is not None:
        raise DataError(
            f"{where(row)}: label {label[row]} is outside its {counts[row]} valid option(s)", row
        )
