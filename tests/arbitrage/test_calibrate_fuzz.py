"""Strange numbers into `calibrate`: the oracle's answer, or one line that names the row."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import f32

from arbitrage import (
    DataError,
    InfeasibleWarning,
    Rows,
    UsageError,
    calibrate,
    calibrate_groups,
    calibrate_stream,
)

TINY = float(np.finfo(np.float32).tiny)
ORDINARY = [0.0, -0.0, 0.125, 0.25, 0.5, 1.0, 0.3, -0.3, 1e-40, -1e-45, 1e-30]
STRANGE = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1.5, -7.0]
LEVELS = ["1e-9", "0.01", "0.125", "0.5", "0.999999999"]


def scores(values):
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 4))
    element = st.sampled_from(values).map(np.float32)
    return shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=element)] * 2)
    )


def answer(function, *arguments, **options) -> Any:
    """The result, or the one-line error that a user sees; warnings aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", InfeasibleWarning)
        try:
            return function(*arguments, **options)
        except (DataError, UsageError) as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            return error


def flushed(array: np.ndarray) -> np.ndarray:
    return np.where(np.abs(array) < TINY, np.float32(0), array)


@settings(max_examples=150, deadline=None)
@given(scores(ORDINARY), st.sampled_from(LEVELS))
def test_ordinary_and_tiny_numbers_equal_the_oracle(pair, alpha):
    p, g = pair
    found = answer(calibrate, p, g, alpha=alpha, bound=2)
    assert not isinstance(found, Exception)
    mask = np.ones(p.shape, bool)
    want = oracle.threshold(flushed(p), flushed(g), mask, alpha, "2", found.quantum)
    assert float(found.threshold) == want
    assert found.feasible == math.isfinite(want)
    streamed = answer(calibrate_stream, [Rows(p, g)], alpha=alpha, bound=2)
    assert streamed.threshold == found.threshold


@settings(max_examples=150, deadline=None)
@given(scores(ORDINARY + STRANGE), st.sampled_from(LEVELS), st.booleans())
def test_strange_numbers_are_refused_by_row_or_do_not_matter(pair, alpha, in_jax):
    p, g = pair
    given_arrays = (jnp.asarray(p), jnp.asarray(g)) if in_jax else (p, g)
    found = answer(calibrate, *given_arrays, alpha=alpha, bound=1)
    mask = np.ones(p.shape, bool)
    finite = np.isfinite(p).all(axis=1) & np.isfinite(g).all(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        close = np.isfinite(p.max(axis=1) - p.min(axis=1, initial=np.inf))
    good = finite & close
    for row in np.flatnonzero(good):
        good[row] = oracle.row_loss(flushed(p[row]), flushed(g[row]), mask[row], 0.0) <= 1
    if good.all():
        want = oracle.threshold(flushed(p), flushed(g), mask, alpha, "1", found.quantum)
        assert float(found.threshold) == want
    else:
        assert isinstance(found, DataError)
        assert found.row == int(np.argmin(good))


ALPHAS = [0, -1, 1, 1.0, 2, math.nan, math.inf, "", "x", None, [], [0.1, "y"], True, {}, "1e-400"]


@pytest.mark.parametrize("alpha", ALPHAS, ids=repr)
def test_levels_that_are_none(alpha):
    p = np.zeros((3, 2), np.float32)
    assert isinstance(answer(calibrate, p, p, alpha=alpha, bound=1), UsageError)


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf, "x", None, 1e-30, 1e30], ids=repr)
def test_bounds_that_are_none(bound):
    p = np.zeros((3, 2), np.float32)
    assert isinstance(answer(calibrate, p, p, alpha="0.1", bound=bound), UsageError)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([(0, 2), (3, 0), (3,), (), (2, 2, 2), (3, 2)]),
    st.sampled_from([(0, 2), (3, 0), (3,), (), (3, 2), (2, 3)]),
    st.sampled_from([None, (3, 2), (2,), (3, 3)]),
)
@example((3, 0), (3, 0), None)
def test_shapes_that_do_not_fit(first, second, mask):
    arrays = np.zeros(first, np.float32), np.zeros(second, np.float32)
    shown = None if mask is None else np.ones(mask, bool)
    found = answer(calibrate, *arrays, alpha="0.5", bound=1, mask=shown)
    fits = first == second == (3, 2) and mask in (None, (3, 2))
    assert isinstance(found, Exception) is not fits


def test_one_row_one_option_and_equal_rows():
    one = f32([[0.3]])
    assert calibrate(one, one, alpha="0.5", bound=1).threshold == 0
    p, g = f32([[1, 0]]), f32([[0, 1]])
    assert calibrate(p, g, alpha="0.5", bound=1).threshold == 1
    many = calibrate(np.tile(p, (99, 1)), np.tile(g, (99, 1)), alpha=["0.01", "0.02"], bound=1)
    assert many.threshold.tolist() == [1, 1]


def test_groups_that_are_empty_or_too_small():
    p, g = np.random.default_rng(0).random((2, 40, 3), dtype=np.float32)
    names = np.array(["a"] * 39 + ["b"])
    found = answer(calibrate_groups, p, g, groups=names, alpha="0.1", bound=1)
    assert found.n.tolist() == [39, 1]
    assert np.isfinite(found.threshold[0]) and found.threshold[1] == np.inf
    membership = np.zeros((40, 2), bool)
    membership[:, 0] = True
    error = answer(calibrate_groups, p, g, groups=membership, alpha="0.1", bound=1)
    assert isinstance(error, DataError) and "group 1 has no rows" in str(error)
    for groups in (names[:3], np.zeros((40, 2)), np.zeros(40), [[["a"]]]):
        error = answer(calibrate_groups, p, g, groups=groups, alpha="0.1", bound=1)
        assert isinstance(error, UsageError), groups
