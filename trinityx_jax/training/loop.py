"""The training loop: resumes where it was stopped, logs every step, checkpoints on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from trinityx_jax.config import TrainConfig
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.sharding import shard_batch, state_shardings
from trinityx_jax.training.checkpoint import Checkpoints, Snapshot
from trinityx_jax.training.preemption import Preemption, Stopped
from trinityx_jax.training.profile import Profile
from trinityx_jax.training.progress import StepLog
from trinityx_jax.training.step import Loss, make_step


class Batches(Protocol):
    """An endless, restartable stream of batches (see trinityx_jax.data.pipeline)."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...
    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def train(
    *,
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    trainable: Parameters,
    frozen: Parameters,
    batches: Batches,
    config: TrainConfig,
    mesh: Mesh,
    directory: Path,
    open_log: Callable[[int], StepLog],
    profile: Path | None = None,
) -> Parameters:
    """Trained parameters after `config.steps` steps, from the newest checkpoint in `directory`.

    A run that was killed or stopped and started again logs the same losses as one that was not:
    the checkpoint holds the parameters, the optimiser's state and the data's position. `open_log`
    gets the step it goes on from; `profile` is a folder for a trace. Raises Stopped, with exit
    status 0, after SIGTERM or Ctrl-C, and DataError when too many steps in a row were not finite.
    """
    opt_state = jax.jit(
        optimizer.init,
        out_shardings=state_shardings(jax.eval_shape(optimizer.init, trainable), mesh),
    )(trainable)
    step_fn = make_step(loss, optimizer, (trainable, opt_state), mesh, config.accumulate)
    with Preemption() as preemption, Checkpoints(directory) as checkpoints:
        start = 0
        if (snapshot := checkpoints.restore(trainable, opt_state)) is not None:
            start, trainable, opt_state, position = snapshot
            batches.set_state(json.loads(position))
        with open_log(start) as log, Profile(profile, start) as profiler, jax.set_mesh(mesh):
            for step in range(start + 1, config.steps + 1):
                profiler.before(step)
                batch = next(batches)
                trainable, opt_state, metrics = step_fn(
                    trainable, opt_state, frozen, shard_batch(batch, mesh)
                )
                profiler.after(step, metrics["loss"])
                log.add(step, metrics, batch)
                stop = preemption.agreed()
                if stop or step % config.checkpoint_every == 0 or step == config.steps:
                    log.flush()  # what is logged must not fall behind what is saved
                    position = json.dumps(batches.get_state())
                    checkpoints.save(Snapshot(step, trainable, opt_state, position))
                if stop:
                    checkpoints.wait()
                    _say(f"stopped: {directory} holds step {step} of {config.steps}; "
                         "run the same command again to go on from there")  # fmt: skip
                    raise Stopped
    return trainable


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
