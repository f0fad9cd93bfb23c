"""One line a step: on a terminal a bar, elsewhere a line; to every sink the whole row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from trinityx_jax.chips import chip_of
from trinityx_jax.errors import DataError
from trinityx_jax.training.metrics import named
from trinityx_jax.training.sinks import Sink

_NAMED_ROWS = 20  # of each objective, in the message about bad steps


@dataclasses.dataclass(frozen=True)
class Described:
    """What the numbers of a stage's steps mean.

    `objectives` name the batch's `objective` indices, `layers` the rows of metrics by layer;
    `flops` are the model's for each position of a step.
    """

    stage: str
    steps: int
    max_bad_steps: int
    objectives: Sequence[str]
    layers: Sequence[int]
    flops: float


class StepLog:
    """Writes each step's metrics while the next one runs: reading them at once would stall the
    device. Process 0 shows and writes; every process stops at the same bad step."""

    def __init__(self, described: Described, sinks: Sequence[Sink], start: int):
        self._described = described
        self._sinks = sinks
        self._waiting: tuple[int, dict[str, Any], dict[str, np.ndarray]] | None = None
        self._bar = tqdm(
            total=described.steps,
            initial=start,
            desc=described.stage,
            unit="step",
            disable=None if jax.process_index() == 0 else True,
        )
        self._clock = time.perf_counter()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        for sink in self._sinks:
            sink.close()

    def add(self, step: int, metrics: dict[str, Any], batch: dict[str, np.ndarray]) -> None:
        """Takes a step's metrics, still being computed, and this process's rows of its batch."""
        self.flush()
        self._waiting = (step, metrics, batch)

    def flush(self) -> None:
        """Waits for the last step and writes it. DataError for too many bad ones in a row."""
        if self._waiting:
            self._write(*self._waiting)
        self._waiting = None

    def _write(self, step: int, metrics: dict[str, Any], batch: dict[str, np.ndarray]) -> None:
        d = self._described
        values: dict[str, float | None] = named(jax.device_get(metrics), d.objectives, d.layers)
        before, self._clock = self._clock, time.perf_counter()
        positions = batch["tokens"].size * jax.process_count()
        values |= speed(positions, d.flops, self._clock - before) | memory()
        for sink in self._sinks:
            sink.write(step, values)
        line = summary(values, d.objectives)
        self._bar.set_postfix_str(line, refresh=False)
        self._bar.update()
        if self._bar.disable and jax.process_index() == 0:
            print(f"{d.stage}: step {step}/{d.steps}, {line}", flush=True)
        if (values["bad_steps"] or 0) >= d.max_bad_steps:
            raise DataError(
                f"{d.stage}: loss or gradient was not finite in {d.max_bad_steps} steps in a row "
                f"(max_bad_steps), the last one step {step} ({rows(batch, d.objectives)}); lower "
                "the learning rate or look at these rows, and run again: it resumes from the last "
                "checkpoint"
            )


def speed(positions: int, flops: float, seconds: float) -> dict[str, float | None]:
    """Positions a second, and model FLOP utilisation where the devices' peak is known."""
    chip = chip_of(jax.devices()[0].device_kind)
    peak = None if chip is None else chip.peak_flops * jax.device_count()
    return {
        "tokens_per_second": positions / seconds,
        "mfu": None if peak is None else positions * flops / seconds / peak,
    }


def memory() -> dict[str, float | None]:
    """Bytes in use on this process' first device, where it counts them (a CPU does not)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "memory_bytes": stats.get("bytes_in_use"),
        "memory_peak_bytes": stats.get("peak_bytes_in_use"),
    }


def summary(values: Mapping[str, float | None], objectives: Sequence[str]) -> str:
    """Loss, loss per objective, tokens/s, utilisation and memory, as far as they are known."""
    parts = [f"loss {values['loss']:.4f}"]
    parts += [f"{o} {values[f'loss/{o}']:.4f}" for o in objectives if f"loss/{o}" in values]
    parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.1%}")
    if values["memory_peak_bytes"] is not None:
        parts.append(f"{values['memory_peak_bytes'] / 2**30:.1f} GiB")
    if values["skipped_steps"]:
        parts.append(f"{values['skipped_steps']:.0f} skipped")
    return ", ".join(parts)


def rows(batch: Mapping[str, np.ndarray], objectives: Sequence[str]) -> str:
    """The packed rows of a batch by objective: `harmless rows 12, 40; honest rows 3, 7`."""
    named_rows = []
    for o in np.unique(batch["objective"]):
        index = batch["index"][batch["objective"] == o]
        listed = ", ".join(str(i) for i in index[:_NAMED_ROWS])
        more = f" and {len(index) - _NAMED_ROWS} more" if len(index) > _NAMED_ROWS else ""
        named_rows.append(f"{objectives[o]} rows {listed}{more}")
    return "; ".join(named_rows)
