"""Routings by name, as the command line and score tables call them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from trinityx_jax.config import OBJECTIVES
from trinityx_jax.errors import UsageError
from trinityx_jax.models.router import Backbone, Forced, Mixture, Routing, Uniform

NEGATED = "negated-"
NAMES = ("mixture", "top1", "uniform", "backbone", *OBJECTIVES, *(NEGATED + o for o in OBJECTIVES))


def routing_by_name(name: str, rows: int, mixture: Mixture) -> Routing:
    """mixture: the calibrated one. top1: its best expert a token. uniform: all alike. backbone: no
    expert. An objective: its expert in all `rows` rows; `negated-`: with the task vector reversed.

    Raises UsageError for another name.
    """
    if is_forced(name):
        return forced([name], rows)
    known = {
        "mixture": mixture,
        "top1": Mixture(1, mixture.gamma),
        "uniform": Uniform(),
        "backbone": Backbone(),
    }
    if name not in known:
        raise UsageError(f"routing {name!r}: allowed are {', '.join(NAMES)}")
    return known[name]


def is_forced(name: str) -> bool:
    """Whether the routing sends every token to one expert."""
    return name.removeprefix(NEGATED) in OBJECTIVES


def forced(names: Sequence[str], rows: int) -> Forced:
    """One routing for several forced ones: `rows` rows of the first expert, then of the second."""
    expert = [OBJECTIVES.index(name.removeprefix(NEGATED)) for name in names]
    sign = [-1.0 if name.startswith(NEGATED) else 1.0 for name in names]
    return Forced(jnp.repeat(jnp.array(expert), rows), jnp.repeat(jnp.array(sign), rows))
