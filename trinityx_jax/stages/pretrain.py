"""Stage `pretrain`: a small backbone from scratch, by next-token prediction on the whole corpus."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from trinityx_jax.alignment.losses import token_cross_entropy, token_weights, weighted_sum
from trinityx_jax.data.pipeline import training_batches
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context
from trinityx_jax.stages.fit import fit
from trinityx_jax.training.flops import training_flops
from trinityx_jax.training.step import Loss


def pretrain(run: Run) -> dict[str, Any]:
    """Trains the backbone, or checks the one that the configuration names."""
    context = open_context(run)
    arch = context.backbone
    described = {"data": context.data.describe(), "codec": context.codec.describe()}
    if run.config.backbone:
        context.read_backbone()
        return {"skipped": f"backbone {run.config.backbone}"} | described
    fitted = fit(
        "pretrain",
        context,
        arch,
        arch.init(context.key("backbone"), context.mesh),
        nnx.Param,
        config=run.config.pretrain,
        loss=language_model_loss(arch),
        batches=corpus_batches(context),
        objectives=("pretrain",),
        flops=training_flops(arch.config, None, "backbone", run.config.data.max_length),
    )
    return fitted | described


def corpus_batches(context: Context):
    """Packed rows of the pretraining corpus; every token is learnt, prompts too."""
    config = context.run.config
    return training_batches(
        {"pretrain": context.data.pretrain("train")},
        context.codec,
        max_length=config.data.max_length,
        batch_size=config.pretrain.batch_size,
        accumulate=config.pretrain.accumulate,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        loss_on_prompt=True,
    )


def language_model_loss(arch: Architecture) -> Loss:
    """Mean cross-entropy of the next token, in nats."""

    def weigh(batch):
        return batch | {"weight": token_weights(batch["loss_mask"])}

    def part(trainable, frozen, batch):
        out = arch.merge(trainable, frozen)(
            batch["tokens"],
            positions_bl=batch["positions"],
            segment_ids_bl=batch["segment_ids"],
        )
        cross_entropy = token_cross_entropy(out.logits, batch["targets"])
        return weighted_sum(cross_entropy, batch["weight"]), {}

    return Loss(weigh, part)
