"""Stage `train-experts`: all objectives in one job, equal to separate jobs up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from trinityx_jax.alignment.dpo import dpo_loss
from trinityx_jax.alignment.losses import objective_sums, objective_weights, token_cross_entropy
from trinityx_jax.config import TrainConfig
from trinityx_jax.data.pipeline import BatchIterator, training_batches
from trinityx_jax.data.preferences import preference_batches
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Forced
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context
from trinityx_jax.stages.fit import fit
from trinityx_jax.training.flops import forward_flops, training_flops
from trinityx_jax.training.step import Loss, clip_by_expert_norm


def train_experts(run: Run, objectives: Sequence[str] = ()) -> dict[str, Any]:
    """Trains one expert per objective (default: all) on its own rows: on their responses, or
    with `experts.loss: dpo` on their preference pairs, against the backbone as reference."""
    context = open_context(run)
    arch, config, length = context.mocae, run.config.experts, run.config.data.max_length
    objectives = tuple(objectives) or run.config.mocae.objectives
    flops = training_flops(arch.config, arch.mocae, "experts", length)
    if config.loss == "dpo":
        loss, batches = dpo_loss(arch, objectives, beta=config.beta), preference_batches
        flops += forward_flops(arch.config, None, length)  # the reference's
    else:
        loss, batches = expert_loss(arch, objectives), training_batches
    fitted = fit(
        "train-experts",
        context,
        arch,
        context.fresh(),
        arch.expert_kind,
        config=config,
        loss=loss,
        batches=objective_batches(context, config, objectives, batches),
        objectives=run.config.mocae.objectives,
        flops=flops,
        clip=clip_by_expert_norm(config.clip_norm),
    )
    return fitted | {"objectives": list(objectives)}


def objective_batches(
    context: Context,
    config: TrainConfig,
    objectives: Sequence[str],
    batches: Callable[..., BatchIterator] = training_batches,
) -> BatchIterator:
    """Training rows of `objectives`: `batches` packs them, or pairs them; only responses count."""
    return batches(
        {objective: context.data.rows(objective, "train") for objective in objectives},
        context.codec,
        max_length=context.run.config.data.max_length,
        batch_size=config.batch_size,
        seed=context.run.config.seed,
        objectives=context.run.config.mocae.objectives,
        mix=config.mix,
        accumulate=config.accumulate,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def expert_loss(arch: Architecture, objectives: Sequence[str] = ()) -> Loss:
    """Sum over objectives (default: all) of the mean response cross-entropy of the objective's rows
    under its own expert."""
    assert arch.mocae is not None
    names = arch.mocae.objectives
    trained = tuple(objectives) or names

    def weigh(batch):
        weight = objective_weights(batch["loss_mask"], batch["objective"], len(names))
        return batch | {"weight": weight}

    def part(trainable, frozen, batch):
        out = arch.merge(trainable, frozen)(
            batch["tokens"],
            Forced(batch["objective"]),
            positions_bl=batch["positions"],
            segment_ids_bl=batch["segment_ids"],
        )
        cross_entropy = token_cross_entropy(out.logits, batch["targets"])
        means_e = objective_sums(cross_entropy, batch["weight"], batch["objective"], len(names))
        return means_e.sum(), {f"loss/{o}": means_e[names.index(o)] for o in trained}

    return Loss(weigh, part)
