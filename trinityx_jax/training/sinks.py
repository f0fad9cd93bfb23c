"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from trinityx_jax.config import LoggingConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.training.metrics import MetricsLog


class Sink(Protocol):
    """Takes the metrics of every step; a value of None is one that there is not."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`; opening at `step` hides what was logged after it."""

    def __init__(self, folder: Path, step: int):
        tensorboard = _optional("tensorboardX", "tensorboard", "logging.tensorboard: true")
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        for key, value in values.items():
            if value is not None:
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run per stage of a run folder; opening after step 0 continues it."""

    def __init__(self, project: str, folder: Path, stage: str, step: int):
        wandb = _optional("wandb", "wandb", f"logging.wandb: {project}")
        kept = folder / "wandb" / f"{stage}.id"
        if step == 0 or not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project,
            group=folder.name,
            name=f"{folder.name} {stage}",
            id=kept.read_text(),
            resume="allow",
            dir=str(folder),
        )

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log({k: v for k, v in values.items() if v is not None}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_sinks(stage: str, start: int, folder: Path, config: LoggingConfig) -> list[Sink]:
    """The sinks of one stage of the run in `folder`, going on after step `start`.

    Process 0 writes for all; the others have none. Raises UsageError naming the extra to install.
    """
    if jax.process_index() != 0:
        return []
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard" / stage, start))
    if config.wandb is not None:
        sinks.append(WandB(config.wandb, folder, stage, start))
    return [MetricsLog(folder / "metrics.jsonl", stage, start), *sinks]


def _optional(module: str, extra: str, option: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f'config {option} needs {module}; pip install "trinityx-jax[{extra}]"'
        ) from error
