"""Greedy answers of every routing, judged by exact verifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqdm import tqdm

from trinityx_jax.data.examples import Example
from trinityx_jax.inference.generate import generate
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Parameters

MAX_NEW_TOKENS = 12


def verified_shares(
    setup: Setup,
    parameters: Parameters,
    rows: Sequence[Example],
    verify: Callable[[Example, str], bool],
) -> list[list[float]]:
    """Share of rows answered rightly: objectives (rows) by `setup.routings` (columns)."""
    prompts = [setup.codec.prompt(row.prompt, example_id=row.example_id) for row in rows]
    columns = []
    for name in tqdm(setup.routings, desc="answers", unit="routing", disable=None):
        answers = generate(setup, parameters, prompts, name, max_new_tokens=MAX_NEW_TOKENS)
        right = [
            verify(row, setup.codec.decode(answer.ids))
            for row, answer in zip(rows, answers, strict=True)
        ]
        columns.append([_share(right, rows, objective) for objective in setup.objectives])
    return [list(shares) for shares in zip(*columns, strict=True)]


def _share(right: list[bool], rows: Sequence[Example], objective: str) -> float:
    mine = [ok for ok, row in zip(right, rows, strict=True) if row.objective == objective]
    return sum(mine) / len(mine)
