"""Each loss against a loop over tokens in float64, with masks, ties and empty masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from trinityx_jax.alignment import losses

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 4, 5, 3)) * 3
MASK = (RNG.random((4, 5)) < 0.7).astype(np.float32)
OBJECTIVE = np.array([0, 2, 1, 1])
z, mask, objective = jnp.asarray(Z, jnp.float32), jnp.asarray(MASK), jnp.asarray(OBJECTIVE)
WEIGHT = losses.token_weights(mask)


def mean_over_tokens(value):
    """Mean of value(layer, row, position) over all layers and counting tokens."""
    terms = [value(n, b, t) for n in range(2) for b in range(4) for t in range(5) if MASK[b, t]]
    return np.mean(terms)


def entropy(logits):
    log_p = log_softmax(logits)
    return -(np.exp(log_p) * log_p).sum()


REFERENCE = np.array([0.2, 0.3, 0.5])
CASES = {
    "gate": (
        lambda: losses.gate_cross_entropy(z, objective, WEIGHT),
        lambda n, b, t: -log_softmax(Z[n, b, t])[OBJECTIVE[b]],
    ),
    "z": (
        lambda: losses.router_z(z, WEIGHT),
        lambda n, b, t: np.log(np.exp(Z[n, b, t]).sum()) ** 2,
    ),
    "entropy": (lambda: losses.gate_entropy(z, WEIGHT), lambda n, b, t: entropy(Z[n, b, t])),
    "kl": (
        lambda: losses.gate_kl(z, jnp.asarray(REFERENCE, jnp.float32), WEIGHT),
        lambda n, b, t: (
            -entropy(Z[n, b, t]) - (np.exp(log_softmax(Z[n, b, t])) * np.log(REFERENCE)).sum()
        ),
    ),
    "accuracy": (
        lambda: losses.weighted_sum(losses.gate_right(z, objective), WEIGHT),
        lambda n, b, t: float(Z[n, b, t].argmax() == OBJECTIVE[b]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gate_terms(name):
    got, reference = CASES[name]
    np.testing.assert_allclose(got(), mean_over_tokens(reference), rtol=1e-5)


def test_load_balance_is_one_when_uniform_and_counts_no_padding():
    got = losses.load_balance(z, WEIGHT)
    want = []
    for n in range(2):
        p = [np.exp(log_softmax(Z[n, b, t])) for b in range(4) for t in range(5) if MASK[b, t]]
        f = np.bincount([q.argmax() for q in p], minlength=3) / len(p)
        want.append(3 * (f * np.mean(p, axis=0)).sum())
    np.testing.assert_allclose(got, np.mean(want), rtol=1e-5)
    collapsed = jnp.zeros((1, 4, 5, 3)).at[..., 1].set(50.0)
    np.testing.assert_allclose(losses.load_balance(collapsed, WEIGHT), 3, rtol=1e-6)


def test_padding_has_no_influence():
    shifted = jnp.where(mask[None, ..., None] == 1, z, 1e3)
    np.testing.assert_allclose(
        losses.gate_cross_entropy(shifted, objective, WEIGHT),
        losses.gate_cross_entropy(z, objective, WEIGHT),
    )
    np.testing.assert_allclose(losses.load_balance(shifted, WEIGHT), losses.load_balance(z, WEIGHT))


def test_an_empty_mask_gives_zero_not_nan():
    empty = losses.token_weights(jnp.zeros_like(mask))
    assert losses.gate_cross_entropy(z, objective, empty) == 0
    assert losses.load_balance(z, empty) == 0
    assert (losses.objective_weights(jnp.zeros_like(mask), objective, 3) == 0).all()


def test_objective_means_normalise_each_objective_by_itself():
    values = jnp.asarray(RNG.random((4, 5)), jnp.float32)
    weight = losses.objective_weights(mask, objective, 3)
    got = losses.objective_sums(values, weight, objective, 3)
    for e in range(3):
        rows = OBJECTIVE == e
        want = (np.asarray(values) * MASK)[rows].sum() / MASK[rows].sum()
        np.testing.assert_allclose(got[e], want, rtol=1e-6)


def test_cross_entropy_survives_extreme_logits():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    np.testing.assert_allclose(losses.token_cross_entropy(logits, jnp.array([[1]])), 2e4)
    grad = jax.grad(lambda x: losses.token_cross_entropy(x, jnp.array([[1]])).sum())(logits)
    assert np.isfinite(grad).all()


PARTS = {
    "gate": lambda z, o, w: losses.gate_cross_entropy(z, o, w),
    "z": lambda z, o, w: losses.router_z(z, w),
    "entropy": lambda z, o, w: losses.gate_entropy(z, w),
    "kl": lambda z, o, w: losses.gate_kl(z, jnp.full(3, 1 / 3), w),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_sums_of_parts_add_up_to_the_batch(name):
    term = PARTS[name]
    halves = [term(z[:, i::2], objective[i::2], WEIGHT[i::2]) for i in range(2)]
    np.testing.assert_allclose(sum(halves), term(z, objective, WEIGHT), rtol=1e-5)


def test_the_balance_of_parts_is_their_mean_by_share():
    halves = [losses.load_balance(z[:, i::2], WEIGHT[i::2]) for i in range(2)]
    want = 0.0
    for i in range(2):
        own = losses.load_balance(z[:, i::2], losses.token_weights(mask[i::2]))
        want += float(own * WEIGHT[i::2].sum())
    np.testing.assert_allclose(sum(halves), want, rtol=1e-5)
