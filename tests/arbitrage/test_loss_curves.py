"""Gaps, quantised losses and the events of the step functions."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import f32, problems

from arbitrage.candidates import TINY, gaps
from arbitrage.errors import DataError, UsageError
from arbitrage.loss_curves import (
    CHUNK_ROWS,
    MAX_ROWS,
    TOO_LARGE,
    as_rows,
    ceil_units,
    chunks,
    loss_curves,
    loss_limit,
    loss_quantum,
)

ONE = Fraction(1)


def value_at(curves, row: int, lam: float) -> Fraction:
    mine = (curves.row == row) & (curves.gap <= lam)
    return int(curves.base[row] - curves.drop[mine].sum()) * Fraction(curves.quantum)


@settings(max_examples=80, deadline=None)
@given(problems())
def test_step_functions_equal_the_definition_everywhere(problem):
    p, g, mask = problem
    curves = loss_curves(p, g, bound=ONE, mask=mask)
    points = oracle.breakpoints(p, mask)
    for lam in [*points, *[lam * 1.5 + 1e-4 for lam in points], math.inf]:
        for row in range(len(p)):
            assert value_at(curves, row, lam) == oracle.row_loss(p[row], g[row], mask[row], lam)
    assert (curves.drop > 0).all()
    assert (curves.gap > 0).all()


def test_chunks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    p, g = rng.random((2, 101, 5), dtype=np.float32)
    whole = loss_curves(p, g, bound=ONE)
    monkeypatch.setattr("arbitrage.loss_curves.CHUNK_ROWS", 7)
    parts = loss_curves(p, g, bound=ONE)
    assert len(list(chunks(as_rows(p, g)))) == 15  # the small chunks were really used
    np.testing.assert_array_equal(whole.base, parts.base)
    # The order of the events is free.
    for name in ("gap", "drop", "row"):
        one, other = (
            getattr(curves, name)[np.lexsort((curves.gap, curves.row))] for curves in (whole, parts)
        )
        np.testing.assert_array_equal(one, other)
    assert CHUNK_ROWS > 101


# Tiny, huge and mixed sizes: no rounding on the way may show in the result.
pairs = st.tuples(*[st.floats(0, 1, width=32) | st.floats(-1, 2.0**-100, width=32)] * 2)
far = st.tuples(*[st.floats(-(2.0**40), 2.0**40, width=32)] * 2)


def exact_units(high, low, quantum: float) -> int:
    """The ceiling by rational arithmetic; what does not fit 32 bits is TOO_LARGE."""
    units = math.ceil((Fraction(float(high)) - Fraction(float(low))) / Fraction(quantum))
    return units if units < 3 * 2**30 else int(TOO_LARGE)


@settings(max_examples=150, deadline=None)
@given(st.lists(pairs | far, min_size=20, max_size=20), st.sampled_from([0, 10, 30, 90]))
def test_quantised_losses_are_the_exact_ceiling(values, digits):
    quantum = 2.0**-digits
    high, low = (f32([pick(pair) for pair in values]) for pick in (max, min))
    # XLA takes subnormal numbers for zero, so `prepared` has removed them.
    high, low = (np.where(np.abs(x) < TINY, np.float32(0), x) for x in (high, low))
    want = [exact_units(*pair, quantum) for pair in zip(high, low, strict=True)]
    assert ceil_units(high, low, 1 / quantum).tolist() == want
    assert np.asarray(CEIL_UNITS(high, low, 1 / quantum)).tolist() == want


CEIL_UNITS = jax.jit(ceil_units, static_argnums=2)


def test_a_difference_that_floats_round_down_is_rounded_up():
    one, tiny = f32([1.0]), f32([-1e-30])
    assert np.float64(one[0]) - np.float64(tiny[0]) == 1.0
    assert ceil_units(one, tiny, 2.0**30).tolist() == [2**30 + 1]
    assert ceil_units(tiny, one, 2.0**30).tolist() == [0]


@pytest.mark.parametrize(
    ("bound", "digits"),
    [("1", 30), ("3", 29), ("4", 28), ("0.1", 34), ("0.99999999999999999999", 31), (2**30, 0)],
)
def test_quantum_is_at_most_a_billionth_of_the_bound(bound, digits):
    limit = Fraction(bound)
    quantum = loss_quantum(limit)
    assert quantum == 2.0**-digits
    assert limit / 2**31 < Fraction(quantum) <= limit / 2**30
    assert loss_limit(limit, quantum) < TOO_LARGE
    assert MAX_ROWS * int(loss_limit(limit, quantum)) < 2**62


def test_bounds_out_of_range():
    for bound in (Fraction(0), Fraction(-1), Fraction(1, 2**61), Fraction(2**30 + 1)):
        with pytest.raises(UsageError, match="bound must be a number from 2\\^-60 to 2\\^30"):
            loss_quantum(bound)


SPECIAL = [0.0, -0.0, 1e-45, 1e-40, 1.2e-38, -1e-39, 0.1, 0.3, 1.0, -3e38, 3e38]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL) | st.floats(-2, 2, width=32), min_size=4, max_size=4))
def test_gaps_are_equal_to_the_bit_in_numpy_and_jax(values):
    p = np.array([values], dtype=np.float32)
    mask = np.array([[True, True, True, False]])
    ours = gaps(p, mask)
    theirs = np.asarray(gaps(jnp.asarray(p), jnp.asarray(mask)))
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.view(np.uint32).tolist() == theirs.view(np.uint32).tolist()
    assert not np.signbit(ours).any()


def test_numbers_below_the_smallest_normal_float_are_zero_in_both():
    # XLA rounds them to zero where NumPy keeps them: first a difference, then a score.
    p = f32([[1.3e-38, 1.2e-38], [2e-38, 1e-39]])
    want = f32([[0, 0], [0, 2e-38]])
    for got in (gaps(p), jax.jit(gaps)(p)):
        np.testing.assert_array_equal(np.asarray(got).view(np.uint32), want.view(np.uint32))


def test_gaps_under_jit_and_vmap():
    p = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    mask = np.arange(5) < np.array([5, 1, 3, 2, 5, 4])[:, None]
    want = gaps(p, mask)
    np.testing.assert_array_equal(jax.jit(gaps)(p, mask), want)
    np.testing.assert_array_equal(jax.vmap(gaps)(jnp.asarray(p), jnp.asarray(mask)), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_row_keeps_its_full_menu(bad):
    p = np.array([[0.5, bad, 0.1], [0.5, 0.2, bad]], dtype=np.float32)
    mask = np.array([[True, True, False], [True, True, False]])
    got = gaps(p, mask)
    assert got[0].tolist() == [0, 0, np.inf]
    # A broken score at a masked option does not matter.
    assert got[1].tolist() == [0, np.float32(0.5) - np.float32(0.2), np.inf]


def test_errors_name_the_row_and_the_remedy():
    p, g = np.full((3, 2), 0.5), np.full((3, 2), 0.5)
    with pytest.raises(UsageError, match=r"\(3, 2\) and \(2, 2\)"):
        loss_curves(p, g[:2], bound=ONE)
    with pytest.raises(UsageError, match="mask"):
        loss_curves(p, g, bound=ONE, mask=np.ones(3))
    with pytest.raises(DataError, match="no rows"):
        loss_curves(p[:0], g[:0], bound=ONE)
    with pytest.raises(DataError, match="row 1 has no valid option"):
        loss_curves(p, g, bound=ONE, mask=[[1, 0], [0, 0], [1, 1]])
    for bad in (np.nan, np.inf, 1e39):
        broken = g.copy()
        broken[2, 1] = bad
        with pytest.raises(DataError, match="row 2: Guardian score of option 1 is"):
            loss_curves(p, broken, bound=ONE)
        loss_curves(p, broken, bound=ONE, mask=[[1, 1], [1, 1], [1, 0]])
    with pytest.raises(DataError, match="row 0: the Primary's scores lie too far apart"):
        loss_curves([[3e38, -3e38]], [[0, 0]], bound=ONE)
    with pytest.raises(DataError, match=r"row 1: .* costs 1.5 .* bound of 1.5 .*--bound"):
        loss_curves([[1, 0], [1, 0]], [[0, 1], [0, 1.5]], bound=ONE)


def test_only_losses_are_bounded_not_scores():
    # The Guardian's spread is 5, but the Primary's choice never costs more than 1.
    loss_curves([[1, 0.5, 0]], [[4, 5, 0]], bound=ONE)
    with pytest.raises(DataError, match="row 0"):
        loss_curves([[1, 0.5, 0]], [[0, 5, 0]], bound=ONE)
