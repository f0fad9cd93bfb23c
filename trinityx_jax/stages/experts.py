"""Stage `train-experts`: all objectives in one job, equal to separate jobs up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from trinityx_jax.alignment.losses import objective_means, token_cross_entropy
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.pipeline import training_batches
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Forced
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context
from trinityx_jax.stages.fit import fit
from trinityx_jax.training.step import Loss, clip_by_expert_norm


def train_experts(run: Run, objectives: Sequence[str] = OBJECTIVES) -> dict[str, Any]:
    """Supervised fine-tuning of one task vector per objective on its own rows."""
    context = open_context(run)
    config = run.config.experts
    fitted = fit(
        "train-experts",
        context,
        context.mocae,
        context.fresh(),
        TaskVector,
        config=config,
        loss=expert_loss(context.mocae, objectives),
        batches=objective_batches(context, config.batch_size, objectives),
        clip=clip_by_expert_norm(config.clip_norm),
    )
    return fitted | {"objectives": list(objectives)}


def objective_batches(context: Context, batch_size: int, objectives: Sequence[str] = OBJECTIVES):
    """Packed training rows, `batch_size` of each objective; only responses are learnt."""
    return training_batches(
        {objective: context.data.rows(objective, "train") for objective in objectives},
        context.codec,
        max_length=context.run.config.data.max_length,
        batch_size=batch_size,
        seed=context.run.config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def expert_loss(arch: Architecture, objectives: Sequence[str] = OBJECTIVES) -> Loss:
    """Sum over objectives of the mean response cross-entropy under that objective's own expert."""

    def loss(trainable, frozen, batch):
        out = arch.merge(trainable, frozen)(
            batch["tokens"],
            Forced(batch["objective"]),
            positions_bl=batch["positions"],
            segment_ids_bl=batch["segment_ids"],
        )
        cross_entropy = token_cross_entropy(out.logits, batch["targets"])
        means_e = objective_means(
            cross_entropy, batch["loss_mask"], batch["objective"], len(OBJECTIVES)
        )
        return means_e.sum(), {f"loss/{o}": means_e[OBJECTIVES.index(o)] for o in objectives}

    return loss
