"""Questions laid out so that the options of each share one copy of its prompt.

A row of the batch is one question: its prompt, then every option without its last token (which is
only predicted, never read). Options are separate segments at the same positions behind the prompt,
and a token sees the prompt and the earlier tokens of its own segment: each option is scored exactly
as if it stood alone behind the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trinityx_jax.errors import DataError
from trinityx_jax.inference.batches import bucket

PROMPT = 1  # segment ids: 0 padding, 1 prompt, 2.. options


class Question(NamedTuple):
    """Token ids of a prompt and of each of its options, none of them empty."""

    prompt: Sequence[int]
    options: Sequence[Sequence[int]]

    @property
    def read(self) -> int:
        """Tokens the model reads."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)

    @property
    def predicted(self) -> int:
        """Tokens the model is asked for."""
        return sum(map(len, self.options))

    def check(self, context: int, name: str) -> None:
        """Raises DataError where the prompt with its longest option does not fit the context."""
        longest = max(map(len, self.options), default=0)
        if len(self.prompt) + longest - 1 > context:
            raise DataError(
                f"{name}: prompt and longest option have {len(self.prompt)} + {longest} tokens, "
                f"the context holds {context}; shorten them"
            )


def packed_batches(
    questions: Sequence[Question], batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of `batch_size` questions of similar size, and which questions they hold.

    All but the last are full; so there are at most as many shapes, each a compilation, as batches,
    and of many questions no more than the few that `bucket` and a power of two leave.

    Yields (index (n,), batch) with n <= batch_size; rows from n on are padding. In a batch of L
    positions and M predictions, all int32:

        tokens, positions, segments  (B, L)  segments: 0 padding, 1 prompt, 2.. options
        place, target, option        (B, M)  token `target` of option `option` is predicted at
                                             position `place`; option -1 is padding
    """
    sizes = np.array([(bucket(q.read), q.predicted) for q in questions]).reshape(-1, 2)
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    for first in range(0, len(order), batch_size):
        index = order[first : first + batch_size]
        L, predicted = map(int, sizes[index].max(axis=0))
        M = max(1 << (predicted - 1).bit_length(), 16)
        yield index, _layout([questions[i] for i in index], batch_size, L, M)


def _layout(questions: list[Question], rows: int, L: int, M: int) -> dict[str, np.ndarray]:
    tokens, positions, segments = np.zeros((3, rows, L), np.int32)
    place, target, option = np.zeros((3, rows, M), np.int32)
    option -= 1
    for i, question in enumerate(questions):
        P = len(question.prompt)
        tokens[i, :P], positions[i, :P], segments[i, :P] = question.prompt, np.arange(P), PROMPT
        at, m = P, 0
        for k, ids in enumerate(question.options):
            n = len(ids) - 1
            tokens[i, at : at + n] = ids[:-1]
            positions[i, at : at + n] = P + np.arange(n)
            segments[i, at : at + n] = PROMPT + 1 + k
            place[i, m : m + n + 1] = [P - 1, *range(at, at + n)]
            target[i, m : m + n + 1], option[i, m : m + n + 1] = ids, k
            at, m = at + n, m + n + 1
    return {
        "tokens": tokens, "positions": positions, "segments": segments,
        "place": place, "target": target, "option": option,
    }  # fmt: skip
