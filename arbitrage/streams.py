"""Streams of score tables too large for memory: two Parquet files, read side by side."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing

import numpy as np
import pyarrow.compute as pc

from arbitrage.arrow_columns import naming_rows, option_mask, shown_id
from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.filesystems import Place
from arbitrage.rows import Rows
from arbitrage.stream_sides import Block, Side, open_side, read_ahead

FIELDS = ("question_id", "scores", "primary", "guardian", "n_options", "label")
PIECE_ROWS = 65_536
REMEDY = "sort both files by question_id, or calibrate in memory, which joins them"


def open_stream(
    primary: str | os.PathLike | Place,
    guardian: str | os.PathLike | Place,
    *,
    columns: Mapping[str, str] | None = None,
    rows_per_chunk: int = 1 << 20,
) -> ScoreStream:
    """A stream over two score tables with the same questions in the same order.

    Args:
      primary, guardian: Parquet files, folders of part files, or URIs of either; the same place
        twice for one table with both models' scores.
      columns: the files' own names of question_id, scores, n_options and label; `primary` and
        `guardian` name the column of one model's scores.
      rows_per_chunk: rows of each block but the last.

    Raises UsageError for a column that does not fit, DataError for an unreadable file or for
    different numbers of rows. Rows are checked by the first iteration.
    """
    if not isinstance(rows_per_chunk, int) or rows_per_chunk < 1:
        raise UsageError(f"rows_per_chunk={rows_per_chunk!r}: it must be a positive integer")
    for name in columns or {}:
        if name not in FIELDS:
            raise UsageError(f"--columns {name}=...: {name!r} is not one of {', '.join(FIELDS)}")
    left = open_side(primary, "primary", columns or {})
    right = open_side(guardian, "guardian", columns or {})
    if left.rows != right.rows:
        raise DataError(
            f"{left.place.name} has {left.rows} rows, {right.place.name} has {right.rows}: score "
            "both models on the same questions"
        )
    if not left.rows:
        raise DataError(f"{left.place.name}: the table has no rows")
    return ScoreStream(left, right, rows_per_chunk)


class ScoreStream:
    """Blocks of `Rows` from two score tables; can be iterated any number of times.

    `len(stream)` is the number of rows. Memory is that of two blocks, whatever the length: both
    tables are decoded a little ahead, each by its own thread.

    The first whole iteration also reads the question ids and checks that both tables agree on ids,
    n_options and labels, that valid scores are finite and that labels fit: DataError names the
    first row that does not. Later iterations trust it. Repeated question ids are not looked for:
    that would need memory for all of them.

    K is the largest number of options in the block, so it can differ between blocks when rows
    differ; hidden options are -inf. Labels are the Primary's, or else the Guardian's.

    Attributes:
      metadata: the notes of both files, as `{"primary": {...}, "guardian": {...}}`.
      has_label: whether the blocks have labels.
    """

    def __init__(self, primary: Side, guardian: Side, rows_per_chunk: int):
        self._primary, self._guardian = primary, guardian
        self._rows_per_chunk = rows_per_chunk
        self._checked = False
        self.metadata = {"primary": primary.metadata, "guardian": guardian.metadata}
        self.has_label = "label" in primary.fields or "label" in guardian.fields

    def __len__(self) -> int:
        return self._primary.rows

    def __iter__(self) -> Iterator[Rows]:
        check = not self._checked
        pieces = self._pieces(check)
        with closing(pieces):
            for start in range(0, len(self), self._rows_per_chunk):
                yield _filled(pieces, min(self._rows_per_chunk, len(self) - start))
        self._checked = True

    def _pieces(self, check: bool) -> Generator[Rows]:
        """Rows that fit the processor's cache, so that no block ends inside a piece."""
        whole, rest = divmod(self._rows_per_chunk - 1, PIECE_ROWS)
        sizes = [PIECE_ROWS] * whole + [rest + 1]
        left, right = (
            read_ahead(side.blocks(sizes, fields, check)) for side, fields in self._wanted(check)
        )
        start = 0
        with closing(left), closing(right):
            for one, other in zip(left, right, strict=True):
                if check:
                    self._compare(one, other, start)
                start += len(one.scores)
                yield _rows(one, other)

    def _wanted(self, check: bool) -> list[tuple[Side, set[str]]]:
        """The columns each table must give; a check compares what both have."""
        left = self._primary.fields if check else self._primary.fields - {"question_id"}
        right = self._guardian.fields if check else {"scores"}
        if "label" not in left:
            right = right | (self._guardian.fields & {"label"})
        if self._guardian.place == self._primary.place:
            right = right - {"question_id", "label"}
        return [(self._primary, left), (self._guardian, right)]

    def _compare(self, one: Block, other: Block, start: int) -> None:
        where = naming_rows(one.ids, start)
        if other.ids is not None and not one.ids.equals(other.ids):
            row = int(np.argmin(pc.call_function("equal", [one.ids, other.ids]).to_numpy()))
            self._differ(where(row), f"question_id {shown_id(other.ids[row])}", start + row, REMEDY)
        for name, mine, others in (
            ("n_options", one.counts, other.counts), ("label", one.label, other.label)
        ):  # fmt: skip
            if mine is None or others is None:
                continue
            row = first_row(mine != others)
            if row is not None:
                self._differ(f"{where(row)}: {name} {mine[row]}", f"{name} {others[row]}",
                             start + row, "both models must score the same options in the same "
                             "order")  # fmt: skip

    def _differ(self, mine: str, others: str, row: int, remedy: str) -> None:
        raise DataError(
            f"{self._primary.place.name} has {mine}, {self._guardian.place.name} has {others} "
            f"there: {remedy}",
            row,
        )


def _rows(one: Block, other: Block) -> Rows:
    width = int(one.counts.max())
    primary, guardian = one.scores[:, :width], other.scores[:, :width]
    label = one.label if one.label is not None else other.label
    if one.counts.min() == width:
        return Rows(primary, guardian, None, label)
    mask = option_mask(one.counts, width)
    hidden = np.float32(-np.inf)
    return Rows(np.where(mask, primary, hidden), np.where(mask, guardian, hidden), mask, label)


def _filled(pieces: Iterator[Rows], n: int) -> Rows:
    """The next n rows as one block, copied piece by piece, so that no piece is held for long."""
    piece = next(pieces)
    if len(piece.primary) == n:
        return piece
    width = piece.primary.shape[1]
    primary, guardian = (np.empty((n, width), np.float32) for _ in range(2))
    label = None if piece.label is None else np.empty(n, piece.label.dtype)
    mask = None
    stop = 0
    while True:
        start, stop, k = stop, stop + len(piece.primary), piece.primary.shape[1]
        if mask is None and (piece.mask is not None or k != width):
            mask = np.zeros((n, width), dtype=bool)
            mask[:start] = True
        if mask is not None:
            if k > width:
                primary, guardian = _widened(primary, k, -np.inf), _widened(guardian, k, -np.inf)
                mask, width = _widened(mask, k, False), k
            primary[start:stop, k:] = guardian[start:stop, k:] = -np.inf
            mask[start:stop, :k] = True if piece.mask is None else piece.mask
        primary[start:stop, :k], guardian[start:stop, :k] = piece.primary, piece.guardian
        if label is not None:
            label[start:stop] = piece.label
        if stop == n:
            return Rows(primary, guardian, mask, label)
        piece = next(pieces)


def _widened(array: np.ndarray, width: int, value: float) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)
