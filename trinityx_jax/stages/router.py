"""Stage `train-router`: experts frozen, the router trained on the mixture it will serve."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trinityx_jax.alignment import losses
from trinityx_jax.config import MoCaEConfig, RouterLossConfig
from trinityx_jax.models.expert_parallel import dropped
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Mixture, RouterWeight
from trinityx_jax.run import Run
from trinityx_jax.stages.context import open_context
from trinityx_jax.stages.experts import objective_batches
from trinityx_jax.stages.fit import fit
from trinityx_jax.training.flops import training_flops
from trinityx_jax.training.step import Loss


def train_router(run: Run) -> dict[str, Any]:
    """Trains R of every layer; the backbone and the task vectors stay as they are."""
    context = open_context(run)
    arch, config, length = context.mocae, run.config.router, run.config.data.max_length
    objectives = run.config.mocae.objectives
    return fit(
        "train-router",
        context,
        arch,
        context.with_experts(),
        RouterWeight,
        config=config,
        loss=router_loss(arch, run.config.router_loss, context.mixture),
        batches=objective_batches(context, config, objectives),
        objectives=objectives,
        flops=training_flops(arch.config, arch.mocae, "router", length),
    )


def router_loss(arch: Architecture, c: RouterLossConfig, mixture: Mixture) -> Loss:
    """L = CE + c_gate CE(objective | router) + c_balance balance + c_z z + c_entropy H + c_kl KL.

    CE counts response tokens; the gate's terms count every token that is no padding, since the
    router must choose on the prompt too. KL is to the uniform distribution. Metrics: every term
    without its coefficient, `gate_accuracy`, CE per objective, and by layer and objective what
    `gate_metrics` returns; `dropped_choices` where experts have a capacity.
    """
    mocae = arch.mocae
    assert mocae is not None
    objectives = mocae.objectives
    E = len(objectives)

    def weigh(batch):
        real, mask = (batch["segment_ids"] > 0).astype(jnp.float32), batch["loss_mask"]
        return batch | {
            "weight": losses.token_weights(mask),
            "own_weight": losses.objective_weights(mask, batch["objective"], E),
            "gate_weight": losses.token_weights(real),
            "own_gate_weight": losses.objective_weights(real, batch["objective"], E),
        }

    def part(trainable, frozen, batch):
        out = arch.merge(trainable, frozen)(
            batch["tokens"],
            mixture,
            positions_bl=batch["positions"],
            segment_ids_bl=batch["segment_ids"],
        )
        z, objective, weight = out.gate_logits, batch["objective"], batch["gate_weight"]
        cross_entropy = losses.token_cross_entropy(out.logits, batch["targets"])
        own_e = losses.objective_sums(cross_entropy, batch["own_weight"], objective, E)
        terms = {
            "cross_entropy": losses.weighted_sum(cross_entropy, batch["weight"]),
            "gate": losses.gate_cross_entropy(z, objective, weight),
            "balance": losses.load_balance(z, weight),
            "z": losses.router_z(z, weight),
            "entropy": losses.gate_entropy(z, weight),
            "kl": losses.gate_kl(z, jnp.full(E, 1 / E), weight),
        }
        total = (
            terms["cross_entropy"]
            + c.gate * terms["gate"]
            + c.balance * terms["balance"]
            + c.z * terms["z"]
            + c.entropy * terms["entropy"]
            + c.kl * terms["kl"]
        )
        own = {f"loss/{name}": own_e[e] for e, name in enumerate(objectives)}
        metrics = terms | own | gate_metrics(z, batch)
        if mixture.top_k and (mocae.expert, mocae.dispatch) == ("ffn", "all_to_all"):
            metrics["dropped_choices"] = dropped_choices(z, mocae, mixture.top_k)
        return total, metrics

    return Loss(weigh, part)


def dropped_choices(z_nble: jax.Array, mocae: MoCaEConfig, k: int) -> jax.Array:
    """How many (token, expert) choices of all layers found no place with their expert, float32."""
    _, index_nblk = jax.lax.top_k(z_nble, k)
    index_ntk = index_nblk.reshape(len(z_nble), -1, k)
    mesh = jax.sharding.get_abstract_mesh()
    of_layer = [dropped(i, z_nble.shape[-1], mesh, mocae.capacity_factor) for i in index_ntk]
    return jnp.stack(of_layer).sum().astype(jnp.float32)


def gate_metrics(z_nble: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`gate_accuracy` of all tokens, and by layer (n, E): `load`, the mean weight alpha_e of every
    expert; `own_entropy` and `own_accuracy`, of every objective's own tokens."""
    objective, weight, own = batch["objective"], batch["gate_weight"], batch["own_gate_weight"]
    E = z_nble.shape[-1]
    right = losses.gate_right(z_nble, objective)
    alpha = jax.nn.softmax(z_nble, axis=-1)
    return {
        "gate_accuracy": losses.weighted_sum(right, weight),
        "load": (alpha * weight[..., None]).sum(axis=(1, 2)),
        "own_entropy": losses.objective_sums(losses.token_entropy(z_nble), own, objective, E),
        "own_accuracy": losses.objective_sums(right, own, objective, E),
    }
