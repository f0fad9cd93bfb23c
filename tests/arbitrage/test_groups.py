"""A threshold for each group, for several risks at once, and for losses the caller computed."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import f32, problems

from arbitrage import (
    DataError,
    GuardianCorrect,
    InfeasibleWarning,
    UsageError,
    calibrate,
    calibrate_groups,
    calibrate_steps,
    calibrate_weighted,
    strictest,
)

LEVELS = ["0.1", "0.3", "0.7"]


def quiet(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfeasibleWarning)
        return function(*arguments, **options)


@settings(max_examples=60, deadline=None)
@given(problems(max_rows=12), st.integers(0, 2**32 - 1))
def test_each_group_is_calibrated_alone(problem, seed):
    p, g, mask = problem
    names = np.array(["x", "y", "z"])[np.random.default_rng(seed).integers(0, 3, len(p))]
    found = quiet(calibrate_groups, p, g, groups=names, alpha=LEVELS, bound=1, mask=mask)
    assert found.names.tolist() == sorted(set(names.tolist()))
    for name, limits, n in zip(found.names, found.threshold, found.n, strict=True):
        rows = names == name
        assert n == rows.sum()
        for alpha, limit in zip(LEVELS, limits, strict=True):
            assert float(limit) == oracle.threshold(p[rows], g[rows], mask[rows], alpha, "1")
    options = {"alpha": LEVELS, "bound": 1, "mask": mask}
    one = quiet(calibrate_groups, p, g, groups=np.zeros(len(p), int), **options)
    whole = quiet(calibrate, p, g, **options)
    np.testing.assert_array_equal(one.threshold[0], whole.threshold)


def test_rows_in_several_groups_take_the_largest_threshold():
    rng = np.random.default_rng(0)
    p, g = rng.random((2, 200, 4), dtype=np.float32)
    members = rng.random((200, 3)) < 0.6
    found = calibrate_groups(p, g, groups=members, alpha=["0.1", "0.2"], bound=1)
    for at in range(3):
        alone = calibrate(p[members[:, at]], g[members[:, at]], alpha=["0.1", "0.2"], bound=1)
        np.testing.assert_array_equal(found.threshold[at], alone.threshold)
    new = np.array([[True, False, True], [False, True, False], [False, False, False]])
    limits = found.thresholds_for(new)
    np.testing.assert_array_equal(limits[0], np.maximum(found.threshold[0], found.threshold[2]))
    np.testing.assert_array_equal(limits[1], found.threshold[1])
    assert (limits[2] == np.inf).all()
    assert found.guarantee.count("Group '") == 3


def test_new_rows_look_up_their_group_and_unknown_ones_are_deferred():
    p, g = np.random.default_rng(1).random((2, 90, 3), dtype=np.float32)
    names = np.array(["b", "a", "c"] * 30)
    found = calibrate_groups(p, g, groups=names, alpha="0.2", bound=1)
    limits = found.thresholds_for(np.array(["c", "zz", "a", ""]))
    assert limits.tolist() == [found.threshold[2], np.inf, found.threshold[0], np.inf]
    with pytest.warns(InfeasibleWarning, match="alpha = 0.01 is infeasible") as caught:
        calibrate_groups(p, g, groups=names, alpha="0.01", bound=1)
    assert [str(w.message)[:9] for w in caught] == ["group 'a'", "group 'b'", "group 'c'"]


def test_several_risks_take_the_largest_threshold():
    rng = np.random.default_rng(2)
    p, g, h = rng.random((3, 300, 4), dtype=np.float32)
    label = rng.integers(0, 4, 300)
    harm = calibrate(p, g, alpha=["0.1", "0.3"], bound=1)
    wrong = calibrate(p, h, alpha=["0.05", "0.1"], bound=1, label=label, loss=GuardianCorrect())
    both = strictest(harm, wrong)
    np.testing.assert_array_equal(both.threshold, np.maximum(harm.threshold, wrong.threshold))
    assert both.feasible.all()
    assert harm.guarantee in both.guarantee and wrong.guarantee in both.guarantee
    with pytest.raises(UsageError, match="equally many alphas"):
        strictest(harm, calibrate(p, g, alpha="0.1", bound=1))
    with pytest.raises(UsageError, match="at least one"):
        strictest()


def step_oracle(points, losses, alpha: str, quantum: float) -> float:
    """The definition on the running suprema, at every point."""

    def loss(row: int, lam: float) -> Fraction:
        at = sum(float(t) <= lam for t in points[row])
        unit = Fraction(quantum)
        return -(-Fraction(float(max(losses[row][at:]))) // unit) * unit

    candidates = sorted({0.0, *(float(t) for t in np.ravel(points) if np.isfinite(t))})
    for lam in candidates:
        total = sum(loss(row, lam) for row in range(len(points)))
        if total + 1 <= Fraction(alpha) * (len(points) + 1):
            return lam
    return np.inf


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8), st.integers(0, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_losses_given_as_steps(n, j, monotone, seed):
    rng = np.random.default_rng(seed)
    points = np.sort(rng.integers(0, 6, (n, j)) / 4, axis=1).astype(np.float32)
    points[rng.random((n, j)) < 0.1] = np.inf
    points = np.sort(points, axis=1)
    losses = rng.random((n, j + 1))
    losses = np.sort(losses, axis=1)[:, ::-1] if monotone else losses
    # A step at +inf never happens: the loss before it is the last.
    last = np.isfinite(points).sum(axis=1)
    losses = np.take_along_axis(losses, np.minimum(np.arange(j + 1), last[:, None]), axis=1)
    found = quiet(calibrate_steps, points, losses, alpha=LEVELS, bound=1)
    for alpha, limit in zip(LEVELS, found.threshold, strict=True):
        assert float(limit) == step_oracle(points, losses, alpha, found.quantum)
    rises = (np.diff(losses, axis=1) > 0).any()
    assert ("running supremum" in found.guarantee) == rises


def test_steps_that_are_none():
    good, losses = f32([[0.1, 0.2]]), np.array([[1, 0.5, 0.0]])
    calibrate_steps(good, losses, alpha="0.5", bound=1)
    with pytest.raises(UsageError, match="J"):
        calibrate_steps(good, losses[:, :2], alpha="0.5", bound=1)
    for points in ([[0.2, 0.1]], [[-0.1, 0.2]], [[np.nan, 0.2]]):
        with pytest.raises(DataError, match="row 0: points"):
            calibrate_steps(f32(points), losses, alpha="0.5", bound=1)
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(DataError, match="row 0: losses must lie in"):
            calibrate_steps(good, np.array([[1, bad, 0.0]]), alpha="0.5", bound=1)


def test_weights_that_are_equal_change_nothing_and_heavy_new_rows_are_more_careful():
    rng = np.random.default_rng(3)
    p, g = rng.random((2, 300, 4), dtype=np.float32)
    plain = calibrate(p, g, alpha=["0.1", "0.3"], bound=1)
    equal = calibrate_weighted(
        p, g, weights=np.full(300, 2.5), test_weight=2.5, alpha=["0.1", "0.3"], bound=1
    )
    np.testing.assert_array_equal(equal.threshold, plain.threshold)
    np.testing.assert_allclose(equal.empirical_risk, plain.empirical_risk)
    weights = rng.random(300)
    limits = [
        calibrate_weighted(p, g, weights=weights, test_weight=w, alpha="0.1", bound=1).threshold
        for w in (0.0, 1.0, 5.0)
    ]
    assert limits == sorted(limits)
    with pytest.warns(InfeasibleWarning, match="weight 1e\\+06"):
        found = calibrate_weighted(p, g, weights=weights, test_weight=1e6, alpha="0.1", bound=1)
    assert found.threshold == np.inf and not found.feasible
