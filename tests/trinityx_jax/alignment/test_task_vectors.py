"""Task-vector algebra against full-size products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.alignment.task_vectors import add, combine, gram_matrix, importances
from trinityx_jax.errors import UsageError

OBJECTIVES = ("helpful", "harmless", "honest")
SHAPES = {"gate": (6, 9), "up": (6, 9), "down": (9, 6)}


def draw(seed, rank=2):
    keys = iter(jax.random.split(jax.random.key(seed), 12))
    return {
        f"layers.{i}.mlp.task_vectors.{m}.{half}": jax.random.normal(
            next(keys), (3, n_in, rank) if half == "A" else (3, rank, n_out)
        )
        for i in range(2)
        for m, (n_in, n_out) in SHAPES.items()
        for half in "AB"
    }


def full(task_vectors):
    """Every expert's move as one flat vector, (E, parameters)."""
    moves = []
    for i in range(2):
        for m in SHAPES:
            name = f"layers.{i}.mlp.task_vectors.{m}."
            moves.append(np.asarray(task_vectors[name + "A"] @ task_vectors[name + "B"]))
    return np.concatenate([move.reshape(3, -1) for move in moves], axis=1)


def test_gram_matrix():
    tv = draw(0)
    np.testing.assert_allclose(gram_matrix(tv), full(tv) @ full(tv).T, rtol=1e-4, atol=1e-4)


def test_importances_have_mean_one_and_follow_the_reference():
    tv = draw(1)
    gram = full(tv) @ full(tv).T
    got = importances(tv, OBJECTIVES)
    want = gram @ np.full(3, 1 / 3)
    np.testing.assert_allclose(got, want / want.mean(), rtol=1e-4)
    np.testing.assert_allclose(got.mean(), 1, rtol=1e-6)


def test_a_non_positive_importance_names_its_objective_and_the_ways_out():
    with pytest.raises(UsageError, match=r"'harmless'.*reference.*gamma: none"):
        importances(draw(1), OBJECTIVES, jnp.array([1.0, -1.0, 1.0]))


def test_negation_scaling_and_removal():
    tv = draw(2)
    got = full(combine(tv, [-1.0, 0.5, 0.0]))
    np.testing.assert_allclose(got, full(tv) * np.array([[-1], [0.5], [0]]), rtol=1e-6)


def test_addition_is_exact():
    a, b = draw(3), draw(4, rank=3)
    np.testing.assert_allclose(full(add(a, b)), full(a) + full(b), rtol=1e-4, atol=1e-5)


def stacked(task_vectors):
    """The layers of `draw` as one stack."""
    return {
        name.replace("layers.0", "stacks.0"): jnp.stack(
            [x, task_vectors[name.replace("0", "1", 1)]]
        )
        for name, x in task_vectors.items()
        if name.startswith("layers.0")
    }


def test_stacked_layers_give_the_same():
    a, b = draw(5), draw(6, rank=3)
    np.testing.assert_allclose(gram_matrix(stacked(a)), gram_matrix(a), rtol=1e-5)
    for got, want in (
        (add(stacked(a), stacked(b)), stacked(add(a, b))),
        (combine(stacked(a), [-1.0, 0.5, 0.0]), stacked(combine(a, [-1.0, 0.5, 0.0]))),
    ):
        assert got.keys() == want.keys()
        for name in got:
            np.testing.assert_array_equal(got[name], want[name])
