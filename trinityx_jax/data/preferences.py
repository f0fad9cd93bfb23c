"""Batches of preference pairs: a prompt with a chosen and a rejected response, one pair a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from trinityx_jax.data.codec import Codec
from trinityx_jax.data.examples import Example
from trinityx_jax.data.pipeline import BatchIterator, PackedRows, endless_batches
from trinityx_jax.errors import UsageError

CHOSEN, REJECTED = 0, 1  # places on a pair's axis


def preference_batches(
    rows_by_objective: Mapping[str, Sequence[Example]],
    codec: Codec,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    objectives: Sequence[str] = (),
    mix: Sequence[float] = (),
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Endless, resumable batches of pairs; rows without a rejected response are left out.

    Arguments, blocks and streams as in `training_batches`. With B pairs for this process and
    L = max_length, a batch holds

        tokens, targets  (B, 2, L) int32    chosen, then rejected, behind the same prompt
        loss_mask        (B, 2, L) float32  1 where the target is of the response or its end
        objective        (B,)      int32    index into `objectives`
        index            (B,)      int32    number of the pair inside its objective, shuffled

    A sequence starts at position 0 and only padding follows it. Raises UsageError for an objective
    without pairs, and the errors of `training_batches`.
    """
    return endless_batches(
        {name: _pairs(name, rows) for name, rows in rows_by_objective.items()},
        partial(pair_rows, codec=codec, max_length=max_length),
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
        objectives=objectives,
        mix=mix,
        accumulate=accumulate,
        process_index=process_index,
        process_count=process_count,
    )


def pair_rows(rows: Sequence[Example], codec: Codec, *, max_length: int, seed: int) -> PackedRows:
    """Every pair as a row of two sequences, in the order of `rows`: the streams shuffle them.

    A prompt that is cut is cut alike for both, to make room for the longer response.
    """
    del seed
    shape = (len(rows), 2, max_length)
    tokens, targets = np.full(shape, codec.pad_id, np.int32), np.full(shape, codec.pad_id, np.int32)
    mask = np.zeros(shape, np.float32)
    shortened = 0
    for i, row in enumerate(rows):
        full = [
            codec.encode(row.prompt, response, example_id=row.example_id)
            for response in (row.response, row.rejected)
        ]
        longest = max((response for _, response in full), key=len)
        prompt, _ = codec.shorten(full[CHOSEN][0], longest, max_length + 1)
        shortened += len(full[CHOSEN][0]) + len(longest) > max_length + 1
        for side, (_, response) in enumerate(full):
            ids = np.array([*prompt, *response][: max_length + 1], np.int32)
            n = len(ids) - 1  # the last id is only a target
            tokens[i, side, :n], targets[i, side, :n] = ids[:-1], ids[1:]
            mask[i, side, len(prompt) - 1 : n] = 1
    return PackedRows({"tokens": tokens, "targets": targets, "loss_mask": mask}, shortened)


def _pairs(objective: str, rows: Sequence[Example]) -> list[Example]:
    pairs = [row for row in rows if row.rejected]
    if not pairs:
        raise UsageError(
            f"objective {objective!r} has no preference pairs to train on (rows with a rejected "
            "response): use experts.loss: sft, or leave it out of mocae.objectives"
        )
    return pairs
