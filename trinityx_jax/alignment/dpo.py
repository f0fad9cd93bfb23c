"""Direct preference optimisation: experts that prefer the chosen response to the rejected one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from trinityx_jax.alignment.losses import objective_sums, token_cross_entropy
from trinityx_jax.data.preferences import CHOSEN, REJECTED
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Backbone, Forced, Routing
from trinityx_jax.models.transformer import Transformer
from trinityx_jax.training.step import Loss


def preference_loss(
    policy_chosen_b: jax.Array,
    policy_rejected_b: jax.Array,
    reference_chosen_b: jax.Array,
    reference_rejected_b: jax.Array,
    beta: float,
) -> jax.Array:
    """-log sigmoid(margin), (B,) nats (Rafailov et al. 2023, eq. 7); ln 2 where policy = reference.

    Arguments as `preference_margins`. softplus(-margin) neither overflows nor loses its gradient.
    """
    return jax.nn.softplus(
        -preference_margins(
            policy_chosen_b, policy_rejected_b, reference_chosen_b, reference_rejected_b, beta
        )
    )


def preference_margins(
    policy_chosen_b: jax.Array,
    policy_rejected_b: jax.Array,
    reference_chosen_b: jax.Array,
    reference_rejected_b: jax.Array,
    beta: float,
) -> jax.Array:
    """beta ((log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)), (B,) float32.

    From summed log-probabilities of the responses' tokens: the difference of the two implicit
    rewards (Rafailov et al. 2023, sec. 4), positive where the policy moved towards the chosen one.
    """
    policy_b = policy_chosen_b - policy_rejected_b
    return beta * (policy_b - (reference_chosen_b - reference_rejected_b))


def dpo_loss(arch: Architecture, objectives: Sequence[str] = (), *, beta: float) -> Loss:
    """Sum over objectives (default: all) of the mean preference loss of the objective's pairs.

    Batches as of `preference_batches`. The policy is the objective's own expert, the reference the
    backbone below it: one resident model is both. Metrics for each objective: its loss, the margin,
    and `reward_accuracy`, the share of pairs whose margin is positive (none at the start, where
    policy and reference are equal).
    """
    assert arch.mocae is not None
    names = arch.mocae.objectives
    trained = tuple(objectives) or names

    def weigh(batch):
        pairs_e = jnp.bincount(batch["objective"], length=len(names)).astype(jnp.float32)
        return batch | {"weight": 1 / jnp.maximum(pairs_e, 1)[batch["objective"]]}

    def part(trainable, frozen, batch):
        model, objective_b = arch.merge(trainable, frozen), batch["objective"]
        policy = log_likelihoods(model, batch, Forced(jnp.repeat(objective_b, 2)))
        reference = jax.lax.stop_gradient(log_likelihoods(model, batch, Backbone()))
        four = (
            policy[:, CHOSEN],
            policy[:, REJECTED],
            reference[:, CHOSEN],
            reference[:, REJECTED],
        )
        margin_b = preference_margins(*four, beta)
        values = {
            "loss": preference_loss(*four, beta),
            "margin": margin_b,
            "reward_accuracy": (margin_b > 0).astype(jnp.float32),
        }
        means = {
            name: objective_sums(x_b[:, None], batch["weight"][:, None], objective_b, len(names))
            for name, x_b in values.items()
        }
        metrics = {f"{k}/{o}": x_e[names.index(o)] for k, x_e in means.items() for o in trained}
        return means["loss"].sum(), metrics

    return Loss(weigh, part)


def log_likelihoods(model: Transformer, batch: dict[str, jax.Array], routing: Routing) -> jax.Array:
    """Summed log-probability of the response's tokens in both sequences of each pair, (B, 2).

    `routing` is for 2 B rows: the chosen and the rejected sequence of the first pair, and so on.
    """
    B, _, L = batch["tokens"].shape
    logits = model(batch["tokens"].reshape(2 * B, L), routing).logits
    cross_entropy = token_cross_entropy(logits, batch["targets"].reshape(2 * B, L))
    return -(cross_entropy.reshape(B, 2, L) * batch["loss_mask"]).sum(axis=-1)
