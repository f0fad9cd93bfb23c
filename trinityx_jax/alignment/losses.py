"""The losses of every stage, in float32, each a weighted sum over tokens.

Shapes: logits (B, L, V); targets (B, L) int; mask (B, L), 1 where a token counts; weight (B, L),
what each token counts for; gate logits z (layers, B, L, E), and the sums average over the layers.
Weights are of a whole batch: they sum to 1 over it, so that a sum is a mean, and the sums over its
parts add up to the whole batch's. No sum is a matrix product: those round to bfloat16 on a TPU.
Signs are stated because the released TrinityX code adds entropy where its prose asks for balance.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def token_cross_entropy(logits_blv: jax.Array, targets_bl: jax.Array) -> jax.Array:
    """-log p(target) of every token, (B, L) nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_blv, targets_bl)


def token_weights(mask_bl: jax.Array) -> jax.Array:
    """The mask over its sum: every counting token the same, all together 1; 0 for an empty mask."""
    return mask_bl / jnp.maximum(mask_bl.sum(), 1.0)


def objective_weights(mask_bl: jax.Array, objective_b: jax.Array, E: int) -> jax.Array:
    """Every objective's own counting tokens sum to 1; an objective without any has none.

    Normalising per objective is what makes one joint job equal to E separate jobs: no objective's
    loss depends on how many tokens the others brought.
    """
    one_hot_be = jax.nn.one_hot(objective_b, E, dtype=jnp.float32)
    count_e = (one_hot_be * mask_bl.sum(axis=1, keepdims=True)).sum(axis=0)
    return mask_bl / jnp.maximum(count_e, 1.0)[objective_b][:, None]


def weighted_sum(values: jax.Array, weight_bl: jax.Array) -> jax.Array:
    """Sum of `values` (..., B, L) times their weight, averaged over leading axes."""
    return (values * weight_bl).sum(axis=(-2, -1)).mean()


def objective_sums(values_bl: jax.Array, weight_bl: jax.Array, objective_b: jax.Array, E: int):
    """The same for each objective's rows alone: (..., B, L) to (..., E)."""
    one_hot_be = jax.nn.one_hot(objective_b, E, dtype=jnp.float32)
    return ((values_bl * weight_bl).sum(axis=-1)[..., None] * one_hot_be).sum(axis=-2)


def gate_cross_entropy(logits_nble: jax.Array, objective_b: jax.Array, weight_bl: jax.Array):
    """-log alpha(objective of the row).

    Takes gate logits: H3Fusion's released code passes probabilities, a double softmax that cannot
    go below ln(1 + 2/e) for three experts.
    """
    labels = jnp.broadcast_to(objective_b[None, :, None], logits_nble.shape[:-1])
    return weighted_sum(
        optax.softmax_cross_entropy_with_integer_labels(logits_nble, labels), weight_bl
    )


def load_balance(logits_nble: jax.Array, weight_bl: jax.Array) -> jax.Array:
    """E sum_e f_e P_e, mean over layers (Fedus et al. 2021, Switch Transformer, eq. 4).

    f_e is the share of counting tokens whose largest weight is e, P_e their mean weight; 1 when
    both are uniform, and added to the loss, so minimising it spreads the load.

    A product of means is no sum over tokens: for a part of a batch it is the part's own balance
    times its share of the weight. Under gradient accumulation the parts' balances are averaged so.
    """
    alpha = jax.nn.softmax(logits_nble, axis=-1)
    E = alpha.shape[-1]
    share = weight_bl.sum()
    top = jax.nn.one_hot(alpha.argmax(axis=-1), E)
    f_ne = (top * weight_bl[..., None]).sum(axis=(1, 2))
    P_ne = (alpha * weight_bl[..., None]).sum(axis=(1, 2)) / jnp.where(share > 0, share, 1.0)
    return E * (f_ne * P_ne).sum(axis=-1).mean()


def router_z(logits_nble: jax.Array, weight_bl: jax.Array) -> jax.Array:
    """(log sum_e exp z_e)^2, which keeps gate logits small (Zoph et al. 2022, ST-MoE, eq. 5)."""
    return weighted_sum(jax.nn.logsumexp(logits_nble, axis=-1) ** 2, weight_bl)


def token_entropy(logits_nble: jax.Array) -> jax.Array:
    """H(alpha) of every token, (layers, B, L) nats."""
    log_alpha = jax.nn.log_softmax(logits_nble, axis=-1)
    return -(jnp.exp(log_alpha) * log_alpha).sum(axis=-1)


def gate_entropy(logits_nble: jax.Array, weight_bl: jax.Array) -> jax.Array:
    """H(alpha). A positive coefficient on it sharpens routing, a negative one flattens it
    (TrinityX's text wants balance, its code adds H)."""
    return weighted_sum(token_entropy(logits_nble), weight_bl)


def gate_kl(logits_nble: jax.Array, reference_e: jax.Array, weight_bl: jax.Array) -> jax.Array:
    """KL(alpha || reference) of every token; a positive coefficient pulls towards `reference`."""
    log_alpha = jax.nn.log_softmax(logits_nble, axis=-1)
    kl = (jnp.exp(log_alpha) * (log_alpha - jnp.log(reference_e))).sum(axis=-1)
    return weighted_sum(kl, weight_bl)


def gate_right(logits_nble: jax.Array, objective_b: jax.Array) -> jax.Array:
    """1 for each token whose largest weight is its row's objective, else 0: (layers, B, L)."""
    right = logits_nble.argmax(axis=-1) == objective_b[None, :, None]
    return right.astype(jnp.float32)
