"""Exact numbers, the budget, and the threshold against brute force."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import f32, problems

from arbitrage.errors import UsageError
from arbitrage.loss_curves import loss_curves
from arbitrage.selection import exact_alphas, exact_number, loss_budget, risk_steps, select

LEVELS = ["0.01", "0.05", "0.1", "0.125", "0.25", "0.3", "0.5", "0.7", "0.9"]


def solve(p, g, mask, alphas, bound="1"):
    limit = Fraction(bound)
    steps = risk_steps(loss_curves(p, g, bound=limit, mask=mask))
    budgets = [loss_budget(Fraction(alpha), limit, steps.n, steps.quantum) for alpha in alphas]
    return steps, select(steps, budgets)


@settings(max_examples=120, deadline=None)
@given(problems())
def test_threshold_equals_brute_force(problem):
    p, g, mask = problem
    steps, found = solve(p, g, mask, LEVELS)
    for at, alpha in enumerate(LEVELS):
        want = oracle.threshold(p, g, mask, alpha, "1")
        assert float(found.threshold[at]) == want
        assert found.feasible[at] == (Fraction(alpha) * (len(p) + 1) >= 1)
        total = oracle.loss_sum(p, g, mask, want)
        assert int(found.total[at]) * Fraction(steps.quantum) == total


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_continuous_scores_equal_brute_force_on_rounded_up_losses(seed, n):
    p, g = np.random.default_rng(seed).dirichlet(np.ones(4), (2, n)).astype(np.float32)
    mask = np.ones(p.shape, dtype=bool)
    steps, found = solve(p, g, mask, LEVELS)
    for at, alpha in enumerate(LEVELS):
        assert float(found.threshold[at]) == oracle.threshold(p, g, mask, alpha, "1", steps.quantum)
        assert float(found.threshold[at]) >= oracle.threshold(p, g, mask, alpha, "1")


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=12), st.randoms(use_true_random=False))
def test_row_order_and_event_order_change_nothing(problem, random):
    p, g, mask = problem
    order = random.sample(range(len(p)), len(p))
    steps, found = solve(p, g, mask, LEVELS)
    again, refound = solve(p[order], g[order], mask[order], LEVELS)
    np.testing.assert_array_equal(steps.thresholds, again.thresholds)
    np.testing.assert_array_equal(steps.totals, again.totals)
    np.testing.assert_array_equal(found.threshold, refound.threshold)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_threshold_falls_as_alpha_grows_and_is_a_breakpoint(problem):
    p, g, mask = problem
    steps, found = solve(p, g, mask, LEVELS)
    assert (found.threshold[1:] <= found.threshold[:-1]).all()
    points = oracle.breakpoints(p, mask)
    assert all(float(t) in points for t in found.threshold[found.feasible])
    assert (np.diff(steps.thresholds) > 0).all()
    assert (np.diff(steps.totals) < 0).all()
    assert steps.totals[-1] == 0


@pytest.mark.parametrize("alpha", ["0.1", "0.3", "0.7"])
def test_a_sum_equal_to_the_budget_is_accepted(alpha):
    for n in [9, 19, 29, 39, 49, 99, 199, 499, 989, 999]:
        allowed = Fraction(alpha) * (n + 1) - 1
        assert allowed.denominator == 1
        # Row i loses 1 until lambda reaches i + 1, so the sum at lambda = j is n - j.
        gap = np.arange(1, n + 1, dtype=np.float32)
        p = np.stack([gap, np.zeros_like(gap)], axis=1)
        g = np.tile(f32([0, 1]), (n, 1))
        for value in (alpha, float(alpha), np.float32(alpha), Decimal(alpha)):
            _, found = solve(p, g, None, [exact_number(value, "alpha")])
            assert found.threshold[0] == n - allowed
            assert int(found.total[0]) == allowed * 2**30


def test_feasible_exactly_from_the_paper_bound_on():
    for alpha, bound, needed in [("0.1", "1", 9), ("0.05", "1", 19), ("0.3", "3", 9)]:
        for n, feasible in [(needed - 1, False), (needed, True)]:
            p, g = np.tile([1.0, 0.0], (n, 1)), np.tile([0.0, 1.0], (n, 1))
            _, found = solve(p, g, None, [alpha], bound)
            assert bool(found.feasible[0]) is feasible
            assert found.threshold[0] == (1.0 if feasible else np.inf)
            assert found.total[0] == 0


def test_all_feasible_and_none_feasible_look_different():
    p, g = np.tile([1.0, 0.0], (50, 1)), np.tile([1.0, 0.0], (50, 1))
    _, found = solve(p, g, None, ["0.01", "0.5"])
    assert found.threshold.tolist() == [np.inf, 0.0]
    assert found.feasible.tolist() == [False, True]


def test_severities_with_bound_three():
    rng = np.random.default_rng(0)
    p = rng.random((40, 3), dtype=np.float32)
    g = -rng.integers(0, 4, (40, 3)).astype(np.float32)
    mask = np.ones(p.shape, dtype=bool)
    alphas = ["0.1", "0.3", "1", "2.5"]
    _, found = solve(p, g, mask, alphas, "3")
    want = [oracle.threshold(p, g, mask, alpha, "3") for alpha in alphas]
    assert found.threshold.tolist() == want


def test_one_option_is_never_deferred_and_equal_scores_need_no_lambda():
    _, found = solve(np.ones((30, 1)), np.ones((30, 1)), None, ["0.1"])
    assert found.threshold.tolist() == [0.0]
    _, found = solve(np.ones((30, 4)), np.random.default_rng(0).random((30, 4)), None, ["0.1"])
    assert found.threshold.tolist() == [0.0]


def test_numbers_are_read_as_written():
    for value in ("0.1", 0.1, np.float64(0.1), np.float32(0.1), Decimal("0.1"), Fraction(1, 10)):
        assert exact_number(value, "alpha") == Fraction(1, 10)
    assert exact_number("1e-3", "alpha") == Fraction(1, 1000)
    for value in ("nan", "inf", "1e999999999", "x", "", None, True, [0.1], float("nan")):
        with pytest.raises(UsageError, match="alpha must be a finite number"):
            exact_number(value, "alpha")
    assert exact_number("1e-999999999", "alpha") == 0


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, "1", [0.1, 1.0]])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(UsageError, match="strictly between 0 and the bound 1, not"):
        exact_alphas(alpha, Fraction(1))


def test_bad_bound_and_no_alpha():
    for bound in (Fraction(0), Fraction(-1), Fraction(10) ** 39):
        with pytest.raises(UsageError, match="bound must be"):
            exact_alphas("0.1", bound)
    with pytest.raises(UsageError, match="at least one"):
        exact_alphas([], Fraction(1))


@given(st.sampled_from(LEVELS), st.integers(1, 10**6))
def test_budget_is_the_largest_allowed_integer(alpha, n):
    unit = Fraction(1, 2**40)
    exact = Fraction(alpha) * (n + 1) - 1
    assume(exact >= 0)
    budget = loss_budget(Fraction(alpha), Fraction(1), n, 2.0**-40)
    assert budget * unit <= exact < (budget + 1) * unit
    assert math.floor(exact) <= budget * unit
