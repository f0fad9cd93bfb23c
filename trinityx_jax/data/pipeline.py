"""Training batches: tokenised and packed once, then shuffled, sliced and batched by grain."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.codec import Codec
from trinityx_jax.data.examples import Example
from trinityx_jax.errors import DataError, UsageError

Batch = dict[str, np.ndarray]
_FIELDS = ("tokens", "targets", "loss_mask")
_OPEN_ROWS = 64  # rows that first-fit fills at a time: more waste less padding and take longer

# Packed rows a stream is good for. As good as endless; grain 0.2.18 overflows when a really
# infinite dataset is batched by 1, and zips only streams of one length.
_STREAM_ROWS = 1 << 40


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Every example of one objective exactly once, several to a row of L positions.

    `fields`: tokens, targets, segment_ids, positions (R, L) int32 and loss_mask (R, L) float32.
    `shortened`: examples that did not fit into L positions (see `Codec.shorten`).
    """

    fields: Mapping[str, np.ndarray]
    shortened: int

    def __len__(self) -> int:
        return len(self.fields["tokens"])

    def __getitem__(self, index: int) -> Batch:
        return {name: array[index] for name, array in self.fields.items()}


class BatchIterator(Iterator[Batch]):
    """Endless batches; `get_state` / `set_state` resume at exactly the next one.

    `packed` maps each objective to its packed rows.
    """

    def __init__(self, dataset: grain.MapDataset[Batch], packed: Mapping[str, PackedRows]):
        self.packed = packed
        # The rows are in memory: reader threads would only cost time.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Position in the stream, of JSON types; the same on every process."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, on an iterator made with the same arguments."""
        self._iterator.set_state(state)


def training_batches(
    rows_by_objective: Mapping[str, Sequence[Example]],
    codec: Codec,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    loss_on_prompt: bool = False,
) -> BatchIterator:
    """Endless batches of `batch_size` packed rows per objective, in equal blocks in mapping order.

    With O objectives, B = O * batch_size / process_count and L = max_length, a batch holds

        tokens, targets   (B, L) int32    targets[i] is the token after tokens[i]
        loss_mask         (B, L) float32  1 where the target is of the response or its end
                                          (`loss_on_prompt`: of the prompt, too)
        segment_ids       (B, L) int32    0 padding, 1.. the examples of a row
        positions         (B, L) int32    from 0 in every segment
        objective         (B,)   int32    index into config.OBJECTIVES (0 for the corpus)

    A row holds examples of one objective. Each objective is an own stream, seeded by (seed, its
    name) alone: it shows the same rows in a joint job and in a job of its own. Examples are packed
    once, in shuffled order, and the packed rows are shuffled anew every epoch. Process p gets rows
    p::process_count of every objective's block, so all processes together see what one would.

    Token ids of all rows are kept in memory (20 bytes a position). Raises UsageError for sizes
    that do not fit and DataError for an objective without rows or a response without tokens.
    """
    _check(rows_by_objective, max_length, batch_size, process_index, process_count)
    packed: dict[str, PackedRows] = {}
    streams = []
    for objective, rows in rows_by_objective.items():
        stream_seed = zlib.crc32(f"{seed} {objective}".encode())
        packed[objective] = pack_rows(
            rows,
            codec,
            max_length=max_length,
            seed=stream_seed,
            loss_on_prompt=loss_on_prompt,
        )
        if packed[objective].shortened:
            logging.getLogger(__name__).warning(
                "%s: %d of %d rows are longer than data.max_length=%d and were shortened",
                objective, packed[objective].shortened, len(rows), max_length,
            )  # fmt: skip
        stream = grain.MapDataset.source(packed[objective]).seed(stream_seed).shuffle()
        stream = stream.repeat()[:_STREAM_ROWS][process_index::process_count]
        stream = stream.batch(batch_size // process_count)
        index = OBJECTIVES.index(objective) if objective in OBJECTIVES else 0
        streams.append(stream.map(_Label(index)))
    joint = grain.experimental.ZipMapDataset(streams).map(_join)
    return BatchIterator(joint, packed)


def pack_rows(
    rows: Sequence[Example],
    codec: Codec,
    *,
    max_length: int,
    seed: int,
    loss_on_prompt: bool = False,
) -> PackedRows:
    """All examples of `rows`, shuffled by `seed`, tokenised and packed first-fit by grain."""
    rows = list(rows)  # one bulk read
    shortened = 0

    def arrays(row: Example) -> dict[str, np.ndarray]:
        nonlocal shortened
        # n + 1 ids make n positions: the last id is only a target.
        full = codec.encode(row.prompt, row.response, example_id=row.example_id)
        prompt, response = codec.shorten(*full, max_length + 1)
        shortened += (prompt, response) != full
        ids = np.array(prompt + response, np.int32)
        mask = np.ones(len(ids) - 1, np.float32)
        if not loss_on_prompt:
            mask[: len(prompt) - 1] = 0
        return {"tokens": ids[:-1], "targets": ids[1:], "loss_mask": mask}

    shuffled = grain.MapDataset.source(rows).seed(seed).shuffle().map(arrays)
    packer = grain.experimental.FirstFitPackIterDataset(
        shuffled.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct=dict.fromkeys(_FIELDS, max_length),
        num_packing_bins=min(_OPEN_ROWS, len(rows)),
        shuffle_bins=False,
    )
    done = list(packer)
    fields = {name: np.stack([row[name] for row in done]) for name in _FIELDS}
    fields["segment_ids"] = np.stack([row["tokens_segment_ids"] for row in done])
    fields["positions"] = np.stack([row["tokens_positions"] for row in done])
    return PackedRows(fields, shortened)


class _Label:
    """Adds the objective's index to a batch of its rows."""

    def __init__(self, index: int):
        self.index = index

    def __call__(self, batch: Batch) -> Batch:
        return batch | {"objective": np.full(len(batch["tokens"]), self.index, np.int32)}


def _join(batches: tuple[Batch, ...]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _check(
    rows_by_objective: Mapping[str, Sequence[Example]],
    max_length: int,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> None:
    if not rows_by_objective:
        raise UsageError("training batches need at least one objective")
    for objective, rows in rows_by_objective.items():
        if not len(rows):
            raise DataError(f"objective {objective!r} has no training rows; check data.data_dir")
    if max_length < 2:
        raise UsageError(f"data.max_length={max_length}: a row needs 2 tokens at least")
    if not 0 <= process_index < process_count:
        raise UsageError(f"process_index={process_index} must be in 0..{process_count - 1}")
    if batch_size <= 0 or batch_size % process_count:
        raise UsageError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
