"""Where the rows of a large calibration come from: memory, a stream, or the devices of a mesh.

Each source adds up integer sums over all its rows; the sums do not depend on how rows are cut into
blocks. Everything here is internal to `risk.calibrate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from arbitrage.errors import DataError, UsageError
from arbitrage.loss_curves import as_rows, check_shapes
from arbitrage.losses import Loss
from arbitrage.rows import Rows

BLOCK_ROWS = 1 << 18
SMALL_BLOCK_ROWS = 1 << 16  # for less than four large blocks, where padding would cost most
ALIGNMENT = 64  # bytes; XLA reads a NumPy array in place when it starts on such a boundary


class HostRows:
    """Rows in NumPy arrays."""

    def __init__(self, rows: Rows):
        self.rows = rows
        large = len(rows.primary) >= 4 * BLOCK_ROWS
        self.block_rows = BLOCK_ROWS if large else min(BLOCK_ROWS, SMALL_BLOCK_ROWS)

    def __len__(self) -> int:
        return len(self.rows.primary)

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """Views of at most `block_rows` rows, each with its first row's number."""
        first = _rows_to_boundary(self.rows)
        edges = [*range(first, len(self), self.block_rows), len(self)]
        for start, stop in itertools.pairwise([0, *edges] if first else edges):
            if stop > start:
                yield start, take(self.rows, slice(start, stop))


class StreamRows:
    """Rows that come in chunks, again and again from the start.

    `chunks` is an iterable of `Rows`, or a function that starts a new reading. Raises UsageError
    for an iterator, which can be read only once.
    """

    def __init__(self, chunks: Iterable[Rows] | Callable[[], Iterable[Rows]], loss: Loss):
        if isinstance(chunks, Iterator):
            raise UsageError(
                "chunks can be read only once, and up to three readings are needed: pass a list, a "
                "ScoreStream, or the function that makes the iterator"
            )
        self.chunks = chunks
        self.loss = loss
        self.block_rows = BLOCK_ROWS

    def _reading(self) -> Iterator[Rows]:
        for chunk in self.chunks() if callable(self.chunks) else self.chunks:
            if len(chunk[0]):
                yield as_rows(*chunk, loss=self.loss)

    def first_chunk(self) -> Rows:
        """The rows at the start of the stream. Raises DataError without any."""
        for rows in self._reading():
            return rows
        raise DataError("no rows: calibration needs at least one example")

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """The chunks cut into at most `block_rows` rows, each with its first row's number."""
        start = 0
        for rows in self._reading():
            for offset in range(0, len(rows.primary), self.block_rows):
                block = take(rows, slice(offset, offset + self.block_rows))
                yield start, block
                start += len(block.primary)
        if not start:
            raise DataError("no rows: calibration needs at least one example")


def take(rows: Rows, index) -> Rows:
    """The given rows of every array."""
    return Rows(*(None if array is None else array[index] for array in rows))


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several blocks; where K or the use of a mask differs, shorter rows are masked."""
    widths = {part.primary.shape[1] for part in parts}
    if len(widths) > 1 or len({part.mask is None for part in parts}) > 1:
        parts = [_widened(part, max(widths)) for part in parts]
    fields = zip(*parts, strict=True)
    return Rows(*(None if field[0] is None else np.concatenate(field) for field in fields))


def _widened(rows: Rows, width: int) -> Rows:
    more = ((0, 0), (0, width - rows.primary.shape[1]))
    mask = np.ones(rows.primary.shape, dtype=bool) if rows.mask is None else rows.mask
    primary, guardian = np.pad(rows.primary, more), np.pad(rows.guardian, more)
    return Rows(primary, guardian, np.pad(mask, more), rows.label)


def padded(rows: Rows, size: int) -> Rows:
    """The rows followed by zeros up to `size`, so that one compiled program serves all blocks."""
    n = len(rows.primary)
    if n == size:
        return rows
    return Rows(
        *(
            None if a is None else np.concatenate([a, np.zeros((size - n, *a.shape[1:]), a.dtype)])
            for a in rows
        )
    )


def _rows_to_boundary(rows: Rows) -> int:
    """How many rows to take first, so that later blocks start on a boundary in both arrays."""
    arrays = (rows.primary, rows.guardian)
    for skip in range(min(ALIGNMENT, len(rows.primary))):
        if all((a.ctypes.data + skip * a.strides[0]) % ALIGNMENT == 0 for a in arrays):
            return skip
    return 0


def check_device_rows(rows: Rows, loss: Loss) -> Rows:
    """JAX arrays as float32 `Rows` laid out alike. Raises UsageError where shapes do not fit."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    label = rows.label if loss.needs_label else None
    kinds = (jnp.float32, jnp.float32, bool, jnp.int32)
    arrays = zip((rows.primary, rows.guardian, rows.mask, label), kinds, strict=True)
    found = Rows(*(None if a is None else jnp.asarray(a, kind) for a, kind in arrays))
    check_shapes(found, loss)
    sharding = found.primary.sharding
    if sharding.num_devices == 1:
        return found
    axes = sharding.spec[0] if isinstance(sharding, NamedSharding) and sharding.spec else None
    if axes is None:
        raise UsageError(
            "scores on several devices must be split by rows: a NamedSharding with "
            f"PartitionSpec(axis, ...), not {sharding}"
        )
    by_row = NamedSharding(sharding.mesh, PartitionSpec(axes))
    return Rows(*(None if a is None else jax.device_put(a, by_row) for a in found))
