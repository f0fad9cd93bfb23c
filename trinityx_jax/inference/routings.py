"""Routings by name, as the command line and score tables call them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from trinityx_jax.config import NEGATED, OBJECTIVES
from trinityx_jax.errors import UsageError
from trinityx_jax.models.router import Backbone, Forced, Mixture, Routing, Uniform


def routing_names(objectives: Sequence[str] = OBJECTIVES) -> tuple[str, ...]:
    """Every routing of a model whose experts are for `objectives`."""
    reversed_ones = (NEGATED + name for name in objectives)
    return ("mixture", "top1", "uniform", "backbone", *objectives, *reversed_ones)


def compared(objectives: Sequence[str] = OBJECTIVES) -> tuple[str, ...]:
    """The routings that a run scores, verifies and reports."""
    return ("mixture", "uniform", *objectives)


def routing_by_name(
    name: str, rows: int, mixture: Mixture, objectives: Sequence[str] = OBJECTIVES
) -> Routing:
    """mixture: the calibrated one. top1: its best expert a token. uniform: all alike. backbone: no
    expert. An objective: its expert in all `rows` rows; `negated-`: with the task vector reversed.

    Raises UsageError for another name.
    """
    check_name(name, objectives)
    if is_forced(name, objectives):
        return forced([name], rows, objectives)
    return {
        "mixture": mixture,
        "top1": Mixture(1, mixture.gamma),
        "uniform": Uniform(),
        "backbone": Backbone(),
    }[name]


def check_name(name: str, objectives: Sequence[str] = OBJECTIVES) -> None:
    """Raises UsageError for a routing that a model with these experts does not have."""
    names = routing_names(objectives)
    if name not in names:
        raise UsageError(f"routing {name!r}: allowed are {', '.join(names)}")


def is_forced(name: str, objectives: Sequence[str] = OBJECTIVES) -> bool:
    """Whether the routing sends every token to one expert."""
    return name.removeprefix(NEGATED) in objectives


def forced(names: Sequence[str], rows: int, objectives: Sequence[str] = OBJECTIVES) -> Forced:
    """One routing for several forced ones: `rows` rows of the first expert, then of the second."""
    expert = [objectives.index(name.removeprefix(NEGATED)) for name in names]
    sign = [-1.0 if name.startswith(NEGATED) else 1.0 for name in names]
    signs = jnp.repeat(jnp.array(sign), rows) if -1.0 in sign else None  # complete FFNs have none
    return Forced(jnp.repeat(jnp.array(expert), rows), signs)
