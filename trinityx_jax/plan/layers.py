"""Costs of all layers from those of few: the compiler counts a scanned layer once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from trinityx_jax.config import Config

HOW = (
    "f(1) + (n - 1) (f(2) - f(1)), compiled with one and with two unrolled layers and without the "
    "loops that hide a gather behind its product"
)


def extrapolate(cost: Callable[[Config], np.ndarray | None], config: Config) -> np.ndarray | None:
    """cost(config) at its full depth, from unrolled models of one and of two layers.

    Layers differ in having experts and in their window; each kind is measured once, as a second
    layer. None where a measurement gives None.
    """
    kinds = [_kind(config, i) for i in range(config.model.num_hidden_layers)]
    first = next((i for i, (experts, _) in enumerate(kinds) if experts), 0)
    one = cost(_only(config, [first]))
    if one is None:
        return None
    total = one
    for kind, n in collections.Counter(kinds[:first] + kinds[first + 1 :]).items():
        two = cost(_only(config, [first, kinds.index(kind)]))
        if two is None:
            return None
        total = total + n * (two - one)
    return total


def _kind(config: Config, layer: int) -> tuple[bool, int]:
    """Whether it has experts, and its window."""
    layers = config.mocae.layers
    return not layers or layer in layers, config.model.window(layer)


def _only(config: Config, layers: Sequence[int]) -> Config:
    """The same model with only these of its layers, and no loops: neither over layers nor over
    parts of a batch."""
    kinds = [_kind(config, i) for i in layers]
    with_experts = tuple(i for i, (experts, _) in enumerate(kinds) if experts)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            num_hidden_layers=len(layers),
            windows=tuple(window for _, window in kinds) if config.model.windows else (),
            scan_layers=False,
        ),
        mocae=dataclasses.replace(
            config.mocae, layers=() if len(with_experts) == len(layers) else with_experts
        ),
        experts=dataclasses.replace(config.experts, accumulate=1),
        router=dataclasses.replace(config.router, accumulate=1),
    )
