"""The choice of a token: filters as transformers applies them, and the right frequencies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trinityx_jax.errors import UsageError
from trinityx_jax.inference.sampling import Greedy, Sample, chooser

DRAWS = 3000


def draws(chooser, logits_v: np.ndarray) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits_v), (DRAWS, len(logits_v)))
    return np.asarray(jax.jit(lambda c: c.choose(rows, keys))(chooser))


def warped(logits_v, temperature, top_k, top_p) -> np.ndarray:
    """Probabilities after transformers' own filters."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.tensor(logits_v)[None]
    steps = [process.TemperatureLogitsWarper(temperature)]
    steps += [process.TopKLogitsWarper(top_k)] if top_k else []
    steps += [process.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for step in steps:
        scores = step(None, scores)
    return scores.softmax(-1)[0].numpy()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.4, 1.0, 2.0]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.1, 0.7, 1.0]),
)
def test_draws_what_transformers_would(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(0, 2, 9).astype(np.float32)
    want = warped(logits, temperature, top_k, top_p)
    got = np.bincount(draws(chooser(temperature, top_k, top_p), logits), minlength=9) / DRAWS
    assert not got[want == 0].any()
    np.testing.assert_allclose(got, want, atol=5 * np.sqrt(0.25 / DRAWS))


def test_greedy_takes_the_first_of_ties():
    logits = jnp.array([[0.0, 2.0, 2.0], [5.0, 5.0, -1.0]])
    assert Greedy().choose(logits, jax.random.split(jax.random.key(0), 2)).tolist() == [1, 0]


def test_kinds():
    assert chooser() == Greedy()
    assert chooser(0.5, 3, 1.0) == Sample(0.5, None, 3)
    assert chooser(0.5, 0, 0.9) == Sample(0.5, 0.9, 0)


def test_jit_can_tell_greedy_from_another_chooser_without_numbers():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Last:
        def choose(self, logits_bv: jax.Array, key_b: jax.Array) -> jax.Array:
            raise NotImplementedError

    assert jax.tree.structure(Last()) != jax.tree.structure(Greedy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(UsageError, match=message):
        chooser(**arguments)
