"""Shuffled answer options, for data whose right answer always comes first."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from arbitrage.errors import UsageError
from arbitrage.scores import ScoreTable


def shuffle_options(table: ScoreTable, seed: int) -> ScoreTable:
    """The table with each row's valid options in another order, and the label moved along.

    Option a of question q goes by the SHA-256 of `seed`, q and a: the order depends on the seed,
    the question id and the number of options alone, so that the tables of two models get the same
    one, on any machine. The seed is kept in the metadata as `shuffle_options`.

    Raises UsageError for a seed that is no integer, and for extra columns of one value an option.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"shuffle_options={seed!r}: the seed must be an integer")
    n, width = table.scores.shape
    for name, value in table.extra.items():
        if value.ndim == 2 and value.shape[1] == width:
            raise UsageError(
                f"shuffle_options: extra column {name!r} may hold one value an option; leave it out"
            )
    order = np.tile(np.arange(width), (n, 1))
    for row, (question, count) in enumerate(zip(table.question_id, table.n_options, strict=True)):
        order[row, :count] = option_order(seed, str(question), int(count))
    return replace(
        table,
        scores=np.take_along_axis(table.scores, order, axis=1),
        label=None if table.label is None else (order == table.label[:, None]).argmax(axis=1),
        metadata={**table.metadata, "shuffle_options": str(seed)},
    )


def option_order(seed: int, question: str, count: int) -> list[int]:
    """The old indices of the options in their new order."""
    start = hashlib.sha256(f"{seed}\n{question}\n".encode())

    def key(option: int) -> bytes:
        hashed = start.copy()
        hashed.update(str(option).encode())
        return hashed.digest()

    return sorted(range(count), key=key)
