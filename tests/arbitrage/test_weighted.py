"""Weighted thresholds against rational arithmetic, their rounding, and the shift they correct."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import problems

from arbitrage.bounds import ExpectedRisk
from arbitrage.errors import DataError, UsageError
from arbitrage.loss_curves import LossCurves, loss_curves
from arbitrage.selection import risk_steps, select
from arbitrage.weighted import (
    _whole_weights,
    covariate_shift_words,
    non_exchangeable_thresholds,
    non_exchangeable_words,
    weighted_thresholds,
)

ALPHAS = [Fraction(text) for text in ("0.01", "0.05", "0.1", "0.25", "0.3", "0.5", "0.7", "0.9")]
ONE = Fraction(1)


def slow_threshold(p, g, mask, up, down, test_up, test_down, alpha) -> float:
    """inf{lam : sum up_i L_i + test_up B <= alpha (sum down_i + test_down)}; +inf without one."""
    for lam in oracle.breakpoints(p, mask):
        losses = [oracle.row_loss(*row, lam) for row in zip(p, g, mask, strict=True)]
        total = sum((w * loss for w, loss in zip(up, losses, strict=True)), Fraction(0))
        if total + test_up <= alpha * (sum(down) + test_down):
            return lam
    return math.inf


def unweighted(curves: LossCurves, alphas, bound=ONE):
    budgets = [ExpectedRisk().budget(alpha, bound, curves.n, curves.quantum) for alpha in alphas]
    return select(risk_steps(curves), budgets)


@settings(max_examples=80, deadline=None)
@given(problems(max_rows=10), st.data())
def test_whole_weights_equal_brute_force(problem, data):
    """Quarters of the largest weight are exact, and so is the threshold."""
    p, g, mask = problem
    weights = data.draw(st.lists(st.integers(0, 4), min_size=len(p), max_size=len(p)))
    weights[0] = 4
    tests = [0, 1, 2, 4, 9]
    curves = loss_curves(p, g, bound=ONE, mask=mask)
    unit = data.draw(st.sampled_from([1.0, 0.3, 1e-300, 1e300]))
    found = weighted_thresholds(
        curves, np.array(weights) * unit, np.array(tests) * unit, ALPHAS, ONE
    )
    assert found.threshold.shape == found.feasible.shape == (len(ALPHAS), len(tests))
    if unit != 1.0:
        whole = weighted_thresholds(curves, np.array(weights), np.array(tests), ALPHAS, ONE)
        # 3 * 0.3 is rounded, so the weights differ in the last place: on the safe side.
        assert (found.threshold >= whole.threshold).all()
        return
    for row, alpha in enumerate(ALPHAS):
        for column, test in enumerate(tests):
            want = slow_threshold(p, g, mask, weights, weights, test, test, alpha)
            assert float(found.threshold[row, column]) == want
            feasible = Fraction(test) * (1 - alpha) <= alpha * sum(weights)
            assert bool(found.feasible[row, column]) == feasible == math.isfinite(want)


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=10), st.integers(0, 2**32 - 1))
def test_any_weights_equal_brute_force_on_rounded_weights(problem, seed):
    """At levels where a sum just meets its budget, and at the same levels less 2^-100."""
    p, g, mask = problem
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=len(p)) * rng.choice([1.0, 1e-12], len(p), p=[0.9, 0.1])
    test = float(rng.exponential())
    unit = Fraction(weights.max()) / 2**30
    exact, true = [Fraction(w) for w in weights], Fraction(test)
    up, down = ([round_(w / unit) * unit for w in exact] for round_ in (math.ceil, math.floor))
    test_up, test_down = (round_(true / unit) * unit for round_ in (math.ceil, math.floor))
    edges = list(ALPHAS)
    for lam in oracle.breakpoints(p, mask):
        losses = [oracle.row_loss(*row, lam) for row in zip(p, g, mask, strict=True)]
        total = sum((w * loss for w, loss in zip(up, losses, strict=True)), test_up)
        edge = total / (sum(down) + test_down)
        edges += [edge, edge - Fraction(1, 2**100)] if edge < 1 else []
    curves = loss_curves(p, g, bound=ONE, mask=mask)
    found = weighted_thresholds(curves, weights, test, edges, ONE)
    assert found.threshold.shape == (len(edges),)
    for row, alpha in enumerate(edges):
        want = slow_threshold(p, g, mask, up, down, test_up, test_down, alpha)
        assert float(found.threshold[row]) == want
        # Rounding is on the safe side of the exact weights.
        assert want >= slow_threshold(p, g, mask, exact, exact, true, true, alpha)


def test_weights_next_to_whole_numbers_are_rounded_exactly():
    """The float division alone gets some of these wrong."""
    rng, digits = np.random.default_rng(0), 30
    wrong = 0
    for largest in (1.0, 0.7, 3.0, 1e-3, 7e8):
        whole = rng.integers(0, 2**digits, 500) / 2**digits * largest
        values = np.concatenate([whole, np.nextafter(whole, largest), np.nextafter(whole, 0)])
        values = np.append(values, [0.0, largest, 5e-324])
        down, up = _whole_weights(values, largest, digits)
        exact = [Fraction(value) / Fraction(largest) * 2**digits for value in values.tolist()]
        assert down.tolist() == [math.floor(share) for share in exact]
        assert up.tolist() == [math.ceil(share) for share in exact]
        wrong += (np.ceil(values / largest * 2.0**digits) != up).sum()
    assert wrong > 0


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=12), st.sampled_from([1.0, 0.3, 7e11, 1e-310]))
def test_equal_weights_are_no_weights(problem, weight):
    p, g, mask = problem
    curves = loss_curves(p, g, bound=ONE, mask=mask)
    found = weighted_thresholds(curves, np.full(len(p), weight), weight, ALPHAS, ONE)
    want = unweighted(curves, ALPHAS)
    np.testing.assert_array_equal(found.threshold, want.threshold)
    np.testing.assert_array_equal(found.feasible, want.feasible)
    same = non_exchangeable_thresholds(curves, np.ones(len(p)), ALPHAS, ONE)
    np.testing.assert_array_equal(same.threshold, want.threshold)


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=12), st.randoms(use_true_random=False))
def test_weights_of_zero_and_one_select_rows(problem, random):
    p, g, mask = problem
    kept = np.array([random.random() < 0.6 for _ in range(len(p))])
    kept[0] = True
    curves = loss_curves(p, g, bound=ONE, mask=mask)
    found = non_exchangeable_thresholds(curves, kept.astype(float), ALPHAS, ONE)
    part = loss_curves(p[kept], g[kept], bound=ONE, mask=mask[kept])
    np.testing.assert_array_equal(found.threshold, unweighted(part, ALPHAS).threshold)


def test_row_order_changes_nothing_and_thresholds_rise_with_the_test_weight():
    rng = np.random.default_rng(0)
    p, g = rng.dirichlet(np.ones(4), (2, 3000)).astype(np.float32)
    weights, tests = rng.exponential(size=3000), np.sort(rng.exponential(size=200)) * 100
    found = weighted_thresholds(loss_curves(p, g, bound=ONE), weights, tests, ALPHAS, ONE)
    order = rng.permutation(3000)
    again = weighted_thresholds(
        loss_curves(p[order], g[order], bound=ONE), weights[order], tests, ALPHAS, ONE
    )
    np.testing.assert_array_equal(found.threshold, again.threshold)
    assert (found.threshold[:, 1:] >= found.threshold[:, :-1]).all()
    limit = [float(alpha) * weights.sum() / float(1 - alpha) for alpha in ALPHAS]
    np.testing.assert_array_equal(found.feasible, tests <= np.array(limit)[:, None])


def test_sums_beyond_64_bits_are_exact():
    """Two million full losses of the largest weight: 2^30 * 2^31 * 2^21 needs 82 bits."""
    n, bound = 1 << 21, Fraction(3)
    quanta = 3 << 29
    curves = LossCurves(
        base=np.full(n, quanta, dtype=np.int64),
        gap=np.arange(1, n + 1, dtype=np.float32),
        drop=np.full(n, quanta, dtype=np.int64),
        row=np.arange(n),
        quantum=2.0**-29,
    )
    found = weighted_thresholds(curves, np.full(n, 0.7), [0.7], [Fraction(3, 10)], bound)
    # n - j rows still lose 3 at lambda = j; allowed: 0.3 (n + 1) / 3 - 1 of them.
    assert found.threshold[0, 0] == n - math.floor(Fraction(n + 1, 10) - 1)


def test_losses_on_the_full_menu_may_be_too_large_for_any_lambda():
    curves = LossCurves(
        base=np.array([1 << 30]),
        gap=np.array([0.5], dtype=np.float32),
        drop=np.array([1 << 29]),
        row=np.array([0]),
        quantum=2.0**-30,
    )
    found = weighted_thresholds(curves, [1.0], 0.01, [Fraction(4, 10), Fraction(6, 10)], ONE)
    assert found.threshold.tolist() == [math.inf, 0.5]
    assert found.feasible.tolist() == [False, True]
    assert not weighted_thresholds(curves, [1.0], math.inf, [Fraction(9, 10)], ONE).feasible.any()


def test_bad_weights_name_the_row():
    p, g = np.random.default_rng(0).dirichlet(np.ones(3), (2, 20)).astype(np.float32)
    curves = loss_curves(p, g, bound=ONE)
    for bad in (-1.0, math.nan, math.inf):
        weights = np.ones(20)
        weights[[4, 7]] = bad
        with pytest.raises(DataError, match="row 4: weight") as caught:
            weighted_thresholds(curves, weights, 1.0, ALPHAS, ONE)
        assert caught.value.row == 4
    with pytest.raises(DataError, match="all weights are 0"):
        weighted_thresholds(curves, np.zeros(20), 1.0, ALPHAS, ONE)
    with pytest.raises(DataError, match=r"row 2: weight 1\.5 is above 1"):
        weights = np.where(np.arange(20) == 2, 1.5, 1.0)
        non_exchangeable_thresholds(curves, weights, ALPHAS, ONE)
    with pytest.raises(UsageError, match=r"shape \(20,\)"):
        weighted_thresholds(curves, np.ones(19), 1.0, ALPHAS, ONE)
    for bad in (-0.1, math.nan, np.ones((1, 1))):
        with pytest.raises(UsageError, match="test_weight"):
            weighted_thresholds(curves, np.ones(20), bad, ALPHAS, ONE)


def test_words():
    text = covariate_shift_words("0.1", 50, 1.0)
    assert "alpha = 0.1" in text and "estimated weights" in text and "marginal" in text
    assert "total variation" in non_exchangeable_words("0.1", 50, 1.0)


def test_weights_correct_a_known_shift():
    """Two kinds of question, x = 1 ten times as frequent later: the loss is 1{gap > lam}.

    The gap is uniform on [0, 1] for x = 1 and on [0, 0.2] for x = 0, so the risk of new rows is
    w (1 - lam) + (1 - w) (1 - 5 lam)_+ with w = P(x = 1) = 10/19 later, 1/10 before.
    """
    rng, n, runs, alpha = np.random.default_rng(0), 60, 1500, Fraction(1, 10)
    later = 10 / 19
    ratio = np.array([(1 - later) / 0.9, later / 0.1])
    guardian = np.tile([0.0, 1.0], (n, 1))
    shifted, plain = np.zeros(runs), np.zeros(runs)
    for run in range(runs):
        kind = (rng.random(n) < 0.1).astype(int)
        gap = rng.random(n) * np.where(kind == 1, 1.0, 0.2)
        curves = loss_curves(np.stack([np.ones(n), 1 - gap], axis=1), guardian, bound=ONE)
        new = int(rng.random() < later)
        lam = weighted_thresholds(curves, ratio[kind], ratio[new], [alpha], ONE).threshold[0]
        shifted[run] = max(0.0, 1 - lam) if new else max(0.0, 1 - 5 * lam)
        lam = unweighted(curves, [alpha]).threshold[0]
        plain[run] = later * max(0, 1 - lam) + (1 - later) * max(0.0, 1 - 5 * lam)
    assert shifted.mean() <= 0.1 + 4 * shifted.std() / math.sqrt(runs)
    assert shifted.mean() > 0.02
    assert plain.mean() > 0.3
