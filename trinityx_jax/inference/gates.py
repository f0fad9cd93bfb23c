"""Gate logits of held-out tokens: what the router's calibration and the heat map are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.examples import Example
from trinityx_jax.inference.batches import Tokens, padded_batches
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Architecture, Parameters
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import shard_batch


class Gates(NamedTuple):
    """`logits` (layers, T, E) float32 before the temperature; `objective` (T,) of their rows."""

    logits: np.ndarray
    objective: np.ndarray


@partial(jax.jit, static_argnums=0)
def _gate_logits(arch: Architecture, parameters: Parameters, tokens, mixture: Mixture) -> jax.Array:
    return arch.merge(parameters)(tokens, mixture).gate_logits


def collect_gates(setup: Setup, parameters: Parameters, rows: Sequence[Example]) -> Gates:
    """Gate logits of every token of prompt and right response; padding never counts."""
    sequences = [
        Tokens(
            *setup.codec.encode(
                row.prompt,
                row.response,
                max_length=setup.max_length + 1,
                example_id=row.example_id,
            )
        )
        for row in rows
    ]
    objective = np.array([OBJECTIVES.index(row.objective) for row in rows])
    logits, labels = [], []
    for index, batch in padded_batches(sequences, setup.batch_size, setup.max_length):
        tokens = shard_batch({"tokens": batch["tokens"]}, setup.mesh)["tokens"]
        z_nble = _gate_logits(setup.arch, parameters, tokens, setup.mixture)
        real = batch["token_mask"][: len(index)].astype(bool)
        logits.append(np.asarray(z_nble)[:, : len(index)][:, real])
        labels.append(np.repeat(objective[index], real.sum(axis=1)))
    return Gates(np.concatenate(logits, axis=1), np.concatenate(labels))
