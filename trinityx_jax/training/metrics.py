"""metrics.jsonl: one JSON object a step, kept true across kills and resumes.

loss, loss/<objective>      nats; the objective's own mean
margin/<objective>, reward_accuracy/<objective>   of preference pairs (experts.loss: dpo)
grad_norm                   of all gradients together, before clipping
skipped_steps, bad_steps    steps left out as not finite: so far, and in a row
tokens_per_second           positions a second, padding included
mfu                         model FLOPs over the devices' peak (training/flops.py), or null
memory_bytes, memory_peak_bytes   in use on this process' first device, or null
gate, balance, z, entropy, kl     the router's terms, without their coefficients
gate_accuracy               share of tokens whose largest weight is their row's objective
dropped_choices             choices of an expert without a place (dispatch: all_to_all, top_k)
load/<expert>/<layer>       mean gating weight over all tokens
own_entropy/<objective>/<layer>, own_accuracy/<objective>/<layer>   of the gate, on the
                            objective's own tokens
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arbitrage.io import atomic_path


class MetricsLog:
    """Appends one stage's steps to a file that all stages share.

    Opening at `step` drops what this stage had logged after it: those steps are run again from the
    checkpoint. A line torn by a kill is dropped too.
    """

    def __init__(self, path: Path, stage: str, step: int):
        self.stage = stage
        if path.exists():
            kept = [
                line for line, row in _rows(path) if row["stage"] != stage or row["step"] <= step
            ]
            with atomic_path(path, overwrite=True) as temporary:
                Path(temporary).write_text("".join(kept))
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line, flushed, so that a kill loses at most the step in flight."""
        row = {"stage": self.stage, "step": step}
        for key, value in values.items():
            row[key] = float(value) if value is not None and math.isfinite(value) else None
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def named(metrics: Mapping[str, Any], objectives: Sequence[str], layers: Sequence[int]) -> dict:
    """Scalars by name: `key`, and `key/<objective>/<layer>` from arrays (layers, objectives)."""
    flat = {}
    for key, value in metrics.items():
        if np.ndim(value) == 0:
            flat[key] = float(value)
            continue
        for row, layer in zip(value, layers, strict=True):
            for x, objective in zip(row, objectives, strict=True):
                flat[f"{key}/{objective}/{layer}"] = float(x)
    return flat


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """The logged steps of one stage, in order."""
    return [row for _, row in _rows(path) if row["stage"] == stage]


def _rows(path: Path):
    with path.open() as lines:
        for line in lines:
            try:
                yield line, json.loads(line)
            except json.JSONDecodeError:
                continue
