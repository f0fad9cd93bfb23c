"""Prompts and responses laid out as batches of few fixed shapes, for few compilations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """One sequence: `prompt` and `response` token ids."""

    prompt: list[int]
    response: list[int]


def bucket(length: int, longest: int | None = None) -> int:
    """The padded length: the next of 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, ... (at most a
    quarter of it is padding from 64 on), and at most `longest`."""
    power = 1 << max((length - 1).bit_length(), 4)
    step = power // (8 if power > 64 else 4)
    size = 16 if length <= 16 else -(-length // step) * step
    return size if longest is None else min(size, longest)


def padded_batches(
    sequences: Sequence[Tokens], batch_size: int, max_length: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of `batch_size` sequences of similar length, and which sequences they hold.

    Sequences have at most `max_length` + 1 ids.

    Yields (index (n,), batch) with n <= batch_size; batch rows from n on are padding. In a batch,
    `tokens` and `targets` (B, L) int32 are the sequence and its successor, `loss_mask` marks
    targets of the response, `token_mask` tokens that are no padding (both float32).
    """
    sizes = np.array([bucket(len(s.prompt) + len(s.response) - 1, max_length) for s in sequences])
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        for first in range(0, len(members), batch_size):
            index = members[first : first + batch_size]
            yield index, _layout([sequences[i] for i in index], batch_size, int(size))


def _layout(sequences: list[Tokens], rows: int, length: int) -> dict[str, np.ndarray]:
    tokens, targets = np.zeros((2, rows, length), np.int32)
    loss_mask, token_mask = np.zeros((2, rows, length), np.float32)
    for i, (prompt, response) in enumerate(sequences):
        ids = [*prompt, *response]
        n = len(ids) - 1
        tokens[i, :n], targets[i, :n] = ids[:-1], ids[1:]
        token_mask[i, :n] = 1
        loss_mask[i, len(prompt) - 1 : n] = 1
    return {"tokens": tokens, "targets": targets, "loss_mask": loss_mask, "token_mask": token_mask}
