"""Thresholds by betting: against a scan with slow losses, and what the grid may and may not be."""

from __future__ import annotations

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import f32, problems

from arbitrage import betting
from arbitrage.betting import calibrate_betting
from arbitrage.bounds import wsr_passes
from arbitrage.errors import DataError, UsageError
from arbitrage.losses import AbsoluteShortfall, GuardianCorrect

GRID = f32([0, 0.125, 0.25, 0.5, 0.75, 1])


def scores(n: int, k: int = 4, seed: int = 0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), (2, n)).astype(np.float32)


def slow_threshold(p, g, mask, alpha: str, delta: float, seed: int, grid=GRID):
    """(threshold, feasible): the full menu first, then down the grid up to the first failure."""
    found, feasible = math.inf, False
    order = np.random.default_rng(seed).permutation(len(p))
    for lam in [math.inf, *grid[::-1].tolist()]:
        losses = [float(oracle.row_loss(p[i], g[i], mask[i], lam)) for i in order]
        if not wsr_passes(losses, float(Fraction(alpha)), delta):
            break
        found, feasible = lam, True
    return found, feasible


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=40), st.integers(0, 3), st.sampled_from([0.1, 0.4]))
def test_threshold_equals_a_slow_scan(problem, seed, delta):
    p, g, mask = problem
    levels = ["0.1", "0.3", "0.7"]
    found = calibrate_betting(
        p, g, alpha=levels, bound=1, delta=delta, lambdas=GRID, seed=seed, mask=mask
    )
    for at, alpha in enumerate(levels):
        want = slow_threshold(p, g, mask, alpha, delta, seed)
        assert (float(found.threshold[at]), bool(found.feasible[at])) == want


def test_one_alpha_gives_scalars_and_the_chunk_size_changes_nothing(monkeypatch):
    p, g = scores(300)
    many = calibrate_betting(p, g, alpha=[0.05, 0.1, 0.2], bound=1)
    assert many.threshold.dtype == np.float32 and many.feasible.all()
    assert (np.diff(many.threshold) < 0).all()
    one = calibrate_betting(jnp.asarray(p), g.tolist(), alpha="0.1", bound=1)
    assert one.threshold == many.threshold[1] and one.feasible is True
    assert one.empirical_risk == many.empirical_risk[1] < 0.1
    monkeypatch.setattr(betting, "CHUNK_CELLS", 700)
    again = calibrate_betting(p, g, alpha=[0.05, 0.1, 0.2], bound=1)
    np.testing.assert_array_equal(again.threshold, many.threshold)
    np.testing.assert_array_equal(again.empirical_risk, many.empirical_risk)


def test_the_scan_stops_at_the_first_failure(monkeypatch):
    """A test that passes again further down, in the same block of lambdas or in a later one."""
    p = np.stack([np.ones(100), 1 - np.arange(1, 101) / 100], axis=1)
    g = np.tile([0.0, 1.0], (100, 1))
    for low, high, want in [(0.1, 0.2, 0.9), (0.5, 0.6, 0.5), (0.0, 0.05, 1.0)]:

        def passes(losses, alpha, delta, low=low, high=high):
            mean = losses.mean(axis=0)
            return (mean <= low + 1e-6) | (mean > high)

        monkeypatch.setattr(betting, "wsr_passes", passes)
        found = calibrate_betting(p, g, alpha=[0.1, 0.2], bound=1, lambdas=np.arange(41) / 40)
        np.testing.assert_array_equal(found.threshold, f32([want, want]))


def test_empirical_risk_is_the_mean_loss_at_the_threshold():
    p, g = scores(300)
    mask = np.ones(p.shape, dtype=bool)
    found = calibrate_betting(3 * p, 3 * g, alpha=0.3, bound=3, lambdas=np.linspace(0, 3, 31))
    losses = [
        oracle.row_loss(*row, float(found.threshold))
        for row in zip(3 * p, 3 * g, mask, strict=True)
    ]
    assert found.empirical_risk == pytest.approx(float(sum(losses)) / 300, abs=1e-8)
    same = calibrate_betting(p, g, alpha=0.1, bound=1, lambdas=np.linspace(0, 1, 31))
    assert found.threshold == pytest.approx(3 * same.threshold)


def test_too_few_rows_and_a_grid_that_is_too_short_look_different():
    p, g = np.tile(f32([1, 0]), (200, 1)), np.tile(f32([0, 1]), (200, 1))
    few = calibrate_betting(p[:5], g[:5], alpha=0.1, bound=1)
    assert few.feasible is False and few.threshold == np.inf and few.empirical_risk == 0
    assert "Infeasible with n = 5" in few.guarantee and "alpha = 0.1" in few.guarantee
    short = calibrate_betting(p, g, alpha=0.1, bound=1, lambdas=[0, 0.5])
    assert short.feasible is True and short.threshold == np.inf
    long = calibrate_betting(p, g, alpha=0.1, bound=1, lambdas=[0, 0.5, 1])
    assert long.threshold == 1.0
    easy = calibrate_betting(p, p, alpha=0.1, bound=1)
    assert easy.threshold == 0.0 and "Infeasible" not in easy.guarantee


def test_a_full_menu_with_losses_may_be_infeasible_for_any_n():
    p, g = scores(500)
    found = calibrate_betting(p, g, alpha=0.1, bound=1, loss=AbsoluteShortfall(0.95))
    assert found.feasible is False and found.empirical_risk > 0.1


def test_labels_reach_the_loss():
    p, g = scores(500)
    loss = GuardianCorrect()
    wrong = calibrate_betting(p, g, alpha=0.1, bound=1, label=g.argmin(axis=1), loss=loss)
    right = calibrate_betting(p, g, alpha=0.1, bound=1, label=g.argmax(axis=1), loss=loss)
    assert wrong.threshold == 0 < right.threshold


def test_guarantee_says_how_sure():
    p, g = scores(300)
    found = calibrate_betting(p, g, alpha=[0.01, 0.2], bound=1, delta=0.05)
    text = found.guarantee
    assert "probability at least 0.95" in text and "300 calibration rows" in text
    assert "at most alpha = 0.2" in text and "every row is deferred: alpha = 0.01" in text
    assert found.delta == 0.05 and found.seed == 0


@pytest.mark.parametrize(
    "lambdas, words",
    [
        ([0.2, 0.1], "entry 1 is 0.1"),
        ([-0.1, 0.1], "entry 0 is -0.1"),
        ([0.1, 0.1], "entry 1"),
        ([0.1, float("nan")], "entry 1 is nan"),
        ([], "shape"),
        ([[0.1]], "shape"),
    ],
)
def test_bad_grids(lambdas, words):
    p, g = scores(30)
    with pytest.raises(UsageError, match=words):
        calibrate_betting(p, g, alpha=0.1, bound=1, lambdas=lambdas)


def test_bad_arguments_and_rows():
    p, g = scores(30)
    with pytest.raises(UsageError, match="delta"):
        calibrate_betting(p, g, alpha=0.1, bound=1, delta=1)
    with pytest.raises(UsageError, match="alpha"):
        calibrate_betting(p, g, alpha=1, bound=1)
    with pytest.raises(DataError, match="row 4"):
        calibrate_betting(p, np.where(np.arange(30)[:, None] == 4, 9 * g, g), alpha=0.1, bound=1)
    p[7, 2] = np.nan
    with pytest.raises(DataError, match="row 7: Primary score of option 2 is nan"):
        calibrate_betting(p, g, alpha=0.1, bound=1)
