"""Log-likelihood of every answer option under any routing of one resident model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from trinityx_jax.alignment.losses import token_cross_entropy
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.examples import Example
from trinityx_jax.inference.packing import PROMPT, Question, packed_batches
from trinityx_jax.inference.programs import note
from trinityx_jax.inference.routings import forced, is_forced
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Architecture, Parameters
from trinityx_jax.models.router import Routing
from trinityx_jax.models.transformer import View
from trinityx_jax.sharding import fetch, place


class OptionScores(NamedTuple):
    """(N, K) arrays, one column an option; -inf and False where a question has fewer."""

    log_likelihood: np.ndarray  # float32, summed over the option's tokens, in nats
    greedy: np.ndarray  # bool: every token is the most likely one


def score_options(
    setup: Setup, parameters: Parameters, questions: Sequence[Question], routings: Sequence[str]
) -> dict[str, OptionScores]:
    """Log-likelihood of every option of every question, for each routing by name.

    A question's prompt is read once for all its options. All experts asked for by name share one
    pass, in which what comes before the first layer's task vectors is computed once.

    Raises UsageError, before any work, for a routing that the model does not have.
    """
    rows = setup.batch_size
    alone = {name: setup.routing(name, rows) for name in routings}
    shape = (len(questions), max((len(q.options) for q in questions), default=0))
    found = {
        name: OptionScores(np.full(shape, -np.inf, np.float32), np.zeros(shape, bool))
        for name in routings
    }
    work = [
        (names, forced(names, rows, setup.objectives) if len(names) > 1 else alone[names[0]])
        for names in passes(routings, setup.objectives)
    ]
    room = 1 << (shape[1] - 1).bit_length()  # splits that differ little in K share their programs
    batches = list(packed_batches(questions, rows))
    for index, batch in tqdm(batches, desc="questions", unit="batch", disable=None):
        device_batch = place(batch, setup.mesh)
        for names, routing in work:
            with jax.set_mesh(setup.mesh):
                scores = _score(setup.arch, parameters, device_batch, routing, room)
            for j, name in enumerate(names):
                for mine, all_rows in zip(found[name], scores, strict=True):
                    mine[index] = fetch(all_rows)[j * rows :][: len(index), : shape[1]]
    return found


def passes(routings: Sequence[str], objectives: Sequence[str] = OBJECTIVES) -> list[list[str]]:
    """The routings by pass over the backbone: all forced ones together, the others alone."""
    together = [name for name in routings if is_forced(name, objectives)]
    alone = [[name] for name in routings if name not in together]
    return [*alone, together] if together else alone


def option_scores(
    setup: Setup,
    parameters: Parameters,
    rows: Sequence[Example],
    routings: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Mean log-likelihood per token of every option, {routing: (N, K) float32}.

    `routings`: by name; () for those that a run compares.
    -inf where a row has fewer than K options. Normalised by tokens, an end marker included, so that
    long options are not at a disadvantage. Raises DataError for an option without tokens.
    """
    questions = [
        Question(
            *setup.codec.encode_options(
                row.prompt,
                row.options,
                max_length=setup.max_length + 1,
                example_id=row.example_id,
            )
        )
        for row in rows
    ]
    tokens = option_lengths(questions)
    return {
        name: scores.log_likelihood / np.maximum(tokens, 1)
        for name, scores in score_options(
            setup, parameters, questions, routings or setup.routings
        ).items()
    }


def option_lengths(questions: Sequence[Question]) -> np.ndarray:
    """Number of tokens of every option, (N, K) int32; 0 where a question has fewer."""
    lengths = np.zeros((len(questions), max(len(q.options) for q in questions)), np.int32)
    for i, question in enumerate(questions):
        lengths[i, : len(question.options)] = [len(ids) for ids in question.options]
    return lengths


@partial(jax.jit, static_argnums=(0, 4))
def _score(
    arch: Architecture, parameters: Parameters, batch, routing: Routing | None, K: int
) -> tuple[jax.Array, jax.Array]:
    """Summed log-likelihood (R B, K) and whether it is the greedy answer, R copies of B rows."""
    B, L = batch["tokens"].shape
    note(f"score: {B} rows, {L} tokens, {batch['place'].shape[1]} predictions")
    model = arch.merge(parameters)
    view = View(batch["positions"], batch["positions"], shared_prompt(batch["segments"]))
    states = model.hidden(batch["tokens"], routing, view).states
    copies = (len(states) // B, 1)
    place, target, option = (jnp.tile(batch[k], copies) for k in ("place", "target", "option"))
    # Only predictions reach the head: its V columns are the widest product of all.
    logits = model.logits(jnp.take_along_axis(states, place[..., None], axis=1))
    log_p = -token_cross_entropy(logits, target)
    wrong = logits.argmax(axis=-1) != target
    mine = jax.nn.one_hot(option, K, dtype=log_p.dtype)  # padding, -1, is of no option
    total = jnp.einsum("bm,bmk->bk", log_p, mine)
    greedy = jnp.einsum("bm,bmk->bk", wrong.astype(log_p.dtype), mine) == 0
    exists = mine.any(axis=1)
    return jnp.where(exists, total, -jnp.inf), greedy & exists


def shared_prompt(segments_bl: jax.Array) -> jax.Array:
    """(B, L, L) bool: a token sees the prompt and the earlier tokens of its own segment."""
    query, key = segments_bl[:, :, None], segments_bl[:, None, :]
    earlier = jnp.tril(jnp.ones((segments_bl.shape[1],) * 2, bool))
    return ((key == query) | (key == PROMPT)) & earlier
