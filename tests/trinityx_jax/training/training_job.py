"""A training job of a second or two, for the tests of the loop and the processes they start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trinityx_jax.config import (
    OBJECTIVES,
    LoggingConfig,
    MeshConfig,
    MoCaEConfig,
    ModelConfig,
    TrainConfig,
)
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture, Parameters, architecture
from trinityx_jax.sharding import make_mesh
from trinityx_jax.stages.experts import expert_loss
from trinityx_jax.training.loop import train
from trinityx_jax.training.metrics import read_metrics
from trinityx_jax.training.progress import Described, StepLog
from trinityx_jax.training.sinks import open_sinks
from trinityx_jax.training.step import clip_by_expert_norm, make_optimizer

MODEL = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, head_dim=8,
)  # fmt: skip
ARCH = architecture(MODEL, MoCaEConfig(rank=2))
STAGE = "train-experts"
ROWS, LENGTH = 4, 6  # of each objective


def batch(seed: int, rows: int = ROWS, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Random rows in equal blocks of every objective, with prompts, two segments and padding."""
    rng = np.random.default_rng(seed)
    B = rows * len(OBJECTIVES)
    segments = np.sort(rng.integers(1, 3, (B, length)), axis=1)
    segments[:, -1] *= rng.random(B) < 0.5  # some rows end in padding
    return {
        "tokens": rng.integers(0, 32, (B, length)).astype(np.int32),
        "targets": rng.integers(0, 32, (B, length)).astype(np.int32),
        "loss_mask": ((rng.random((B, length)) < 0.6) & (segments > 0)).astype(np.float32),
        "segment_ids": segments.astype(np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (B, length)).copy(),
        "objective": np.repeat(np.arange(len(OBJECTIVES), dtype=np.int32), rows),
        "index": np.tile(np.arange(rows, dtype=np.int32) + 10 * seed, len(OBJECTIVES)),
    }


def parameters(arch: Architecture, mesh: Mesh) -> Parameters:
    """Random values without a random generator to compile; task vectors that move something."""
    return {
        name: jax.device_put(
            np.random.default_rng(i).normal(size=x.shape, scale=0.3).astype(x.dtype), x.sharding
        )
        for i, (name, x) in enumerate(arch.abstract(mesh).items())
    }


class Stream:
    """The same batches for any number of processes; those of `bad` steps give a loss of NaN."""

    def __init__(self, bad: tuple[int, ...] = (), at_step=lambda step: None):
        self.step, self.bad, self.at_step = 0, bad, at_step

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self.step += 1
        self.at_step(self.step)
        made = batch(self.step)
        if self.step in self.bad:
            made["loss_mask"] = made["loss_mask"] * np.float32(np.nan)
        process, count = jax.process_index(), jax.process_count()
        return {name: x[process::count] for name, x in made.items()}

    def get_state(self) -> dict[str, Any]:
        return {"step": self.step}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def job(
    folder: Path, *, stream=None, mesh=None, logging=None, profile=None, **options
) -> Parameters:
    """Expert training in `folder`, as the stage does it: resumes, logs, checkpoints."""
    config = TrainConfig(**{"steps": 6, "warmup_steps": 0, "checkpoint_every": 2, **options})
    mesh = make_mesh(mesh or MeshConfig())
    drawn = parameters(ARCH, mesh)
    trainable = ARCH.only(drawn, TaskVector)
    described = Described(
        stage=STAGE,
        steps=config.steps,
        max_bad_steps=config.max_bad_steps,
        objectives=OBJECTIVES,
        layers=(0, 1),
        flops=1.0,
    )
    return train(
        loss=expert_loss(ARCH),
        optimizer=make_optimizer(config, clip_by_expert_norm(config.clip_norm)),
        trainable=trainable,
        frozen={name: x for name, x in drawn.items() if name not in trainable},
        batches=stream or Stream(),
        config=config,
        mesh=mesh,
        directory=folder / "checkpoints",
        open_log=lambda start: StepLog(
            described, open_sinks(STAGE, start, folder, logging or LoggingConfig()), start
        ),
        profile=profile,
    )


def losses(folder: Path) -> list[float]:
    """The loss of every step that was logged."""
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl", STAGE)]


def saved_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def save_losses(path: Path, folder: Path) -> None:
    """For a process that only tells what it logged."""
    path.write_text(json.dumps(losses(folder)))
