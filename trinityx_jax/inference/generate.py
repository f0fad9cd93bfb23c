"""Answers to prompts of any length under any routing: bucketed batches, compiled loops, streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from trinityx_jax.data.codec import check_length
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.inference.batches import bucket
from trinityx_jax.inference.decode import Decoding, decode, prefill
from trinityx_jax.inference.sampling import Chooser, Greedy
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.sharding import fetch, place, ways

# (prompt's index, its newest token ids) -> whether the answer is complete
Watch = Callable[[int, list[int]], bool | None]


class Answer(NamedTuple):
    """Token ids of an answer; `finished` by a stop token or its watcher, not by length."""

    ids: list[int]
    finished: bool


def generate(
    setup: Setup,
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    routing: str,
    *,
    max_new_tokens: int,
    chooser: Chooser | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    watch_every: int = 1,
) -> list[Answer]:
    """The answer to each prompt (token ids), in the prompts' order.

    Batches hold prompts of similar length; prompt length, answer length and number of rows are
    rounded up to few sizes, so that few programs are compiled (`programs.compiled` lists them). A
    batch ends when all its rows have: at a token of `setup.codec.stop_ids`, which is not part of
    the answer, or when `watch` says so. `watch` is called with each prompt's new tokens every
    `watch_every` steps. The random draws of a prompt depend on `seed` and its index alone.

    Raises DataError for an empty prompt and one that does not fit the model's context together
    with its answer, UsageError for `max_new_tokens` below 1.
    """
    context = setup.arch.config.max_position_embeddings
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: at least 1")
    if max_new_tokens >= context:
        raise UsageError(f"max_new_tokens={max_new_tokens}: the model's context is {context}")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"prompt {i} has no tokens; give it text")
        check_length(prompt, context - max_new_tokens, f"prompt {i}, before its answer,")
    keys = jax.random.split(jax.random.key(seed), max(len(prompts), 1))
    answers: list[Answer] = [Answer([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    starts = range(0, len(order), setup.batch_size)
    for first in tqdm(starts, desc="answers", unit="batch", disable=None if not watch else True):
        index = order[first : first + setup.batch_size]
        batch = _Batch(setup, [prompts[i] for i in index], max_new_tokens, keys[np.array(index)])
        for i, answer in zip(
            index,
            batch.run(
                parameters, routing, chooser or Greedy(), _renamed(watch, index), watch_every
            ),
            strict=True,
        ):
            answers[i] = answer
    return answers


class _Batch:
    """One batch of prompts, padded on the left, on the mesh."""

    def __init__(self, setup: Setup, prompts: list[Sequence[int]], steps: int, key_n: jax.Array):
        self.setup, self.n, self.steps = setup, len(prompts), steps
        context = setup.arch.config.max_position_embeddings
        devices = ways(setup.mesh, "batch")
        self.rows = math.ceil((1 << (self.n - 1).bit_length()) / devices) * devices
        self.room = bucket(steps, context)
        length = bucket(max(map(len, prompts)), context)
        tokens = np.full((self.rows, length), setup.codec.pad_id, np.int32)
        start = np.full(self.rows, length - 1, np.int32)
        for i, prompt in enumerate(prompts):
            start[i] = length - len(prompt)
            tokens[i, start[i] :] = prompt
        self.arrays = place(
            {"tokens_bp": tokens, "start_b": start, "idle_b": np.arange(self.rows) >= self.n},
            setup.mesh,
        )
        self.key_b = key_n[np.minimum(np.arange(self.rows), self.n - 1)]

    def run(
        self,
        parameters: Parameters,
        routing: str,
        chooser: Chooser,
        watch: Watch | None,
        watch_every: int,
    ) -> Iterator[Answer]:
        """The rows' answers."""
        arch, stops = self.setup.arch, jnp.array(self.setup.codec.stop_ids, jnp.int32)
        how = self.setup.routing(routing, self.rows)
        with jax.set_mesh(self.setup.mesh):
            state = prefill(
                arch, parameters, **self.arrays, key_b=self.key_b, routing=how, chooser=chooser,
                stop_ids=stops, room=self.room,
            )  # fmt: skip
        ended = np.full(self.n, self.steps)  # tokens of each row that count
        seen = 0
        while True:
            if watch:
                state, seen = self._show(state, watch, seen, ended)
            count, done = int(state.count), bool(fetch(state.done_b).all())
            if done or count >= self.steps:
                break
            limit = min(count + watch_every, self.steps) if watch else self.steps
            with jax.set_mesh(self.setup.mesh):
                state = decode(arch, parameters, state, how, chooser, stops, jnp.int32(limit))
        tokens = fetch(state.tokens_bn)[: self.n, : int(state.count)]
        for row, end in zip(tokens, ended, strict=True):
            ids = self._until_stop(row)
            finished = len(ids) < len(row) or bool(end < self.steps)
            yield Answer(ids[:end], finished)

    def _show(
        self, state: Decoding, watch: Watch, seen: int, ended: np.ndarray
    ) -> tuple[Decoding, int]:
        """Hands each row's new tokens to `watch`; rows it calls complete are done."""
        count = int(state.count)
        tokens = fetch(state.tokens_bn)
        for i in range(self.n):
            ids = self._until_stop(tokens[i, :count])
            new = ids[seen : ended[i]]
            if new and watch(i, new):
                ended[i] = len(ids)
        complete = np.zeros(self.rows, bool)
        complete[: self.n] = ended < self.steps
        done = state.done_b | place({"done": complete}, self.setup.mesh)["done"]
        return state.replace(done_b=done), count

    def _until_stop(self, ids: np.ndarray) -> list[int]:
        stop = np.flatnonzero(np.isin(ids, self.setup.codec.stop_ids))
        return ids[: stop[0] if len(stop) else len(ids)].tolist()


def _renamed(watch: Watch | None, index: list[int]) -> Watch | None:
    """`watch` with the prompts' own indices for a batch's rows."""
    return None if watch is None else lambda row, ids: watch(index[row], ids)
