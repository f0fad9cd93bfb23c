"""Sequences laid out as batches of few fixed shapes, for few compilations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def bucket(length: int, longest: int | None = None) -> int:
    """The padded length: the next of 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, ... (at most a
    quarter of it is padding from 64 on), and at most `longest`."""
    power = 1 << max((length - 1).bit_length(), 4)
    step = power // (8 if power > 64 else 4)
    size = 16 if length <= 16 else -(-length // step) * step
    return size if longest is None else min(size, longest)


def padded_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, longest: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of `batch_size` sequences of similar length, each of at most `longest` ids; all but
    the last are full.

    Yields the sequences' indices (n,), n <= batch_size, their tokens (B, L) int32, padded on the
    right, and where these are real (B, L) bool; rows from n on are padding.
    """
    sizes = np.array([bucket(len(ids), longest) for ids in sequences])
    order = np.argsort(sizes, kind="stable")
    for first in range(0, len(order), batch_size):
        index = order[first : first + batch_size]
        shape = (batch_size, sizes[index].max())
        tokens, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, i in enumerate(index):
            n = len(sequences[i])
            tokens[row, :n], real[row, :n] = sequences[i], True
        yield index, tokens, real
