"""Training batches: tokenised and packed once, then shuffled, sliced and batched by grain."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import grain
import numpy as np

from trinityx_jax.data.codec import Codec
from trinityx_jax.data.examples import Example
from trinityx_jax.data.mixing import check_shares, rows_per_objective
from trinityx_jax.errors import DataError, UsageError

Batch = dict[str, np.ndarray]
_FIELDS = ("tokens", "targets", "loss_mask")
_OPEN_ROWS = 64  # rows that first-fit fills at a time: more waste less padding and take longer

# Batches that a stream is good for. As good as endless; grain 0.2.18 overflows when a really
# infinite dataset is batched by 1, and zips only streams of one length.
_STREAM_BATCHES = 1 << 30


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The examples of one objective as arrays of R rows, several examples to a row or one.

    `pack_rows` gives every example exactly once, in the `fields` tokens, targets, segment_ids,
    positions (R, L) int32 and loss_mask (R, L) float32. `shortened`: examples that did not fit into
    L positions (see `Codec.shorten`).
    """

    fields: Mapping[str, np.ndarray]
    shortened: int

    def __len__(self) -> int:
        return len(self.fields["tokens"])

    def __getitem__(self, index: int) -> Batch:
        row = {name: array[index] for name, array in self.fields.items()}
        return row | {"index": np.asarray(index, np.int32)}


class Pack(Protocol):
    """Makes arrays of an objective's rows; the seed decides their order."""

    def __call__(self, rows: Sequence[Example], *, seed: int) -> PackedRows: ...


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
    objectives: Sequence[str] = (),
    mix: Sequence[float] = (),
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    loss_on_prompt: bool = False,
) -> BatchIterator:
    """Endless batches of packed rows: a block for each objective, in mapping order.

    `objectives` are all names that the model knows, in its order (default: those of the rows). A
    block has `batch_size` rows, or with `mix` the objective's share (`rows_per_objective`); each of
    `process_count` processes gets an equal part, which `accumulate` divides. With B rows for this
    process in all and L = max_length, a batch holds

        tokens, targets   (B, L) int32    targets[i] is the token after tokens[i]
        loss_mask         (B, L) float32  1 where the target is of the response or its end
                                          (`loss_on_prompt`: of the prompt, too)
        segment_ids       (B, L) int32    0 padding, 1.. the examples of a row
        positions         (B, L) int32    from 0 in every segment
        objective         (B,)   int32    index into `objectives`
        index             (B,)   int32    number of the packed row inside its objective

    A row holds examples of one objective. Each objective is an own stream, seeded by (seed, its
    name) alone: it shows the same rows in a joint job and in a job of its own. Examples are packed
    once, in shuffled order, and the packed rows are shuffled anew every epoch. Process p gets rows
    p::process_count of every objective's block, so all processes together see what one would.

    Token ids of all rows are kept in memory (20 bytes a position). Raises UsageError for sizes
    that do not fit and DataError for an objective without rows or a response without tokens.
    """
    return endless_batches(
        rows_by_objective,
        partial(pack_rows, codec=codec, max_length=max_length, loss_on_prompt=loss_on_prompt),
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
        objectives=objectives,
        mix=mix,
        accumulate=accumulate,
        process_index=process_index,
        process_count=process_count,
    )


def endless_batches(
    rows_by_objective: Mapping[str, Sequence[Example]],
    pack: Pack,
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
    """The streams of `training_batches` over whatever arrays `pack` makes of the rows."""
    objectives = tuple(objectives or rows_by_objective)
    _check(rows_by_objective, max_length, batch_size, process_index, process_count)
    check_shares(objectives, batch_size, mix, parts=process_count * accumulate)
    count = rows_per_objective(objectives, batch_size, mix)
    packed: dict[str, PackedRows] = {}
    streams = []
    for objective, rows in rows_by_objective.items():
        stream_seed = zlib.crc32(f"{seed} {objective}".encode())
        packed[objective] = pack(rows, seed=stream_seed)
        if packed[objective].shortened:
            logging.getLogger(__name__).warning(
                "%s: %d of %d rows are longer than data.max_length=%d and were shortened",
                objective, packed[objective].shortened, len(rows), max_length,
            )  # fmt: skip
        stream = grain.MapDataset.source(packed[objective]).seed(stream_seed).shuffle()
        stream = stream.repeat()[: _STREAM_BATCHES * count[objective]]
        stream = stream[process_index::process_count].batch(count[objective] // process_count)
        streams.append(stream.map(_Label(objectives.index(objective))))
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
    if batch_size <= 0:
        raise UsageError(f"batch_size={batch_size}: must be positive")
