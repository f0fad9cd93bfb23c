"""Gate logits of held-out tokens: what the router's calibration and the heat map are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from trinityx_jax.data.examples import Example
from trinityx_jax.inference.batches import padded_batches
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Architecture, Parameters
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import fetch, place


class Gates(NamedTuple):
    """`logits` (layers, T, E) float32 before the temperature; `objective` (T,) of their rows."""

    logits: np.ndarray
    objective: np.ndarray


@partial(jax.jit, static_argnums=0)
def _gate_logits(arch: Architecture, parameters: Parameters, tokens, mixture: Mixture) -> jax.Array:
    return arch.merge(parameters)(tokens, mixture).gate_logits


def collect_gates(setup: Setup, parameters: Parameters, rows: Sequence[Example]) -> Gates:
    """Gate logits of every token of prompt and right response; padding never counts."""
    sequences = []
    for row in rows:
        prompt, response = setup.codec.encode(
            row.prompt,
            row.response,
            max_length=setup.max_length + 1,
            example_id=row.example_id,
        )
        sequences.append([*prompt, *response][:-1])  # the last token is only predicted
    objective = np.array([setup.objectives.index(row.objective) for row in rows])
    logits, labels = [], []
    for index, tokens, real in padded_batches(sequences, setup.batch_size, setup.max_length):
        device_tokens = place({"tokens": tokens}, setup.mesh)["tokens"]
        with jax.set_mesh(setup.mesh):
            z_nble = _gate_logits(setup.arch, parameters, device_tokens, setup.mixture)
        real = real[: len(index)]
        logits.append(fetch(z_nble)[:, : len(index)][:, real])
        labels.append(np.repeat(objective[index], real.sum(axis=1)))
    return Gates(np.concatenate(logits, axis=1), np.concatenate(labels))
