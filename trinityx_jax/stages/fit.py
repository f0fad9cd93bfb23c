"""One training stage of a run: which parameters move, which stay, and where it all is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

from trinityx_jax.config import TrainConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.models.parameters import Architecture, Parameters, count
from trinityx_jax.stages.context import Context
from trinityx_jax.training.loop import Batches, train
from trinityx_jax.training.masters import masters, narrowed
from trinityx_jax.training.progress import Described, StepLog
from trinityx_jax.training.sinks import open_sinks
from trinityx_jax.training.step import Loss, make_optimizer


def fit(
    stage: str,
    context: Context,
    arch: Architecture,
    parameters: Parameters,
    kind: type,
    *,
    config: TrainConfig,
    loss: Loss,
    batches: Batches,
    objectives: Sequence[str],
    flops: float,
    clip: optax.GradientTransformation | None = None,
) -> dict[str, Any]:
    """Trains the parameters of variable type `kind` into the stage's checkpoints, in float32.

    Only they have gradients and optimiser state. `objectives` name the batch's `objective`
    indices; `flops` are the model's for each position. Returns steps and parameter counts. Raises
    UsageError where the model has no parameter of that type.
    """
    run = context.run
    trainable = arch.only(parameters, kind)
    counts = {
        "trainable_parameters": count(arch.only(arch.shapes, kind)),
        "total_parameters": count(arch.shapes),
    }
    if not trainable:
        raise UsageError(
            f"{stage}: the model has no parameters of type {kind.__name__} to train; "
            "check the mocae section of the configuration"
        )
    if jax.process_index() == 0:
        print(trainable_line(stage, *counts.values()), flush=True)
    described = Described(
        stage=stage,
        steps=config.steps,
        max_bad_steps=config.max_bad_steps,
        objectives=objectives,
        layers=arch.expert_layers,
        flops=flops,
    )
    train(
        loss=narrowed(loss, trainable),
        optimizer=make_optimizer(config, clip),
        trainable=masters(trainable),
        frozen={name: x for name, x in parameters.items() if name not in trainable},
        batches=batches,
        config=config,
        mesh=context.mesh,
        directory=run.checkpoints(stage),
        open_log=lambda start: StepLog(
            described, open_sinks(stage, start, run.directory, run.config.logging), start
        ),
        profile=run.directory / "profile" / stage if run.profile else None,
    )
    return {"steps": config.steps} | counts


def trainable_line(stage: str, trainable: int, total: int) -> str:
    """What the user is told before the first step."""
    return (
        f"{stage}: trainable {trainable:,} of {total:,} parameters ({100 * trainable / total:.3g}%)"
    )
