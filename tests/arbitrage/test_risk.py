"""`calibrate`: its result, its words, its guarantee, and its transfer to the deployed action."""

from __future__ import annotations

import warnings
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from problems import f32, problems

from arbitrage import InfeasibleWarning, UsageError, calibrate, choose, route
from arbitrage.errors import DataError


def scores(n: int, k: int = 4, seed: int = 0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), (2, n)).astype(np.float32)


def test_one_alpha_gives_scalars_and_several_give_arrays():
    p, g = scores(200)
    one = calibrate(p, g, alpha="0.1", bound=1)
    assert np.ndim(one.threshold) == 0 and one.threshold.dtype == np.float32
    assert one.feasible is True and one.n == 200 and one.bound == 1.0 and one.alpha == 0.1
    many = calibrate(p, g, alpha=["0.05", 0.1, Fraction(1, 5)], bound=1)
    assert many.threshold.shape == many.feasible.shape == many.empirical_risk.shape == (3,)
    assert many.threshold[1] == one.threshold
    assert many.empirical_risk[1] == one.empirical_risk
    assert many.alpha.tolist() == [0.05, 0.1, 0.2]
    for alpha in ([0.1], np.array([0.1]), (0.1,)):
        assert calibrate(p, g, alpha=alpha, bound=1).threshold.shape == (1,)
    assert np.ndim(calibrate(p, g, alpha=np.array(0.1), bound=1).threshold) == 0


def test_jax_arrays_and_other_types_give_the_same():
    p, g = scores(50)
    want = calibrate(p, g, alpha=0.1, bound=1)
    mask = jnp.ones(p.shape, dtype=bool)
    got = calibrate(jnp.asarray(p), jnp.asarray(g), alpha=jnp.float32(0.1), bound=1, mask=mask)
    assert got.threshold == want.threshold
    assert calibrate(p.tolist(), g.tolist(), alpha=0.1, bound="1").threshold == want.threshold


def test_empirical_risk_is_the_mean_shortfall_at_the_threshold():
    p, g = scores(300)
    found = calibrate(p, g, alpha=[0.05, 0.2], bound=1)
    for threshold, risk in zip(found.threshold, found.empirical_risk, strict=True):
        action = choose(p, g, threshold)
        shortfall = g.max(axis=1).astype(float) - g[np.arange(300), action]
        assert 0 <= risk - shortfall.mean() <= found.quantum


@settings(max_examples=80, deadline=None)
@given(problems())
def test_the_deployed_action_pays_exactly_the_loss(problem):
    """In both branches: one candidate, or a Guardian among several."""
    p, g, mask = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfeasibleWarning)
        found = calibrate(p, g, alpha=["0.05", "0.3", "0.7"], bound=1, mask=mask)
    for lam in [*found.threshold.tolist(), 0.0, 0.25]:
        candidates, defer = route(p, lam, mask)
        actions = choose(p, g, lam, mask)
        for row, action in enumerate(actions.tolist()):
            gap = oracle.row_gaps(p[row], mask[row])
            members = [a for a in gap if gap[a] <= lam]
            assert np.nonzero(candidates[row])[0].tolist() == members
            assert bool(defer[row]) == (len(members) > 1)
            assert action == oracle.deployed(p[row], g[row], mask[row], lam)
            best = max(Fraction(float(g[row, a])) for a in gap)
            shortfall = best - Fraction(float(g[row, action]))
            assert shortfall == oracle.row_loss(p[row], g[row], mask[row], lam)


def test_infeasible_alphas_warn_one_by_one_and_say_what_would_do():
    p, g = scores(50)
    with pytest.warns(InfeasibleWarning, match=r"alpha = 0.01 .*n = 50 .*needs n >= 99") as caught:
        found = calibrate(p, g, alpha=[0.01, 0.5], bound=1)
    assert len(caught) == 1
    assert found.feasible.tolist() == [False, True]
    assert found.threshold[0] == np.inf and found.empirical_risk[0] == 0
    text = found.guarantee
    assert "alpha = 0.01: it needs n >= 99" in text and "alpha = 0.5 (losses within [0, 1])" in text
    with pytest.warns(InfeasibleWarning):
        single = calibrate(p, g, alpha=0.01, bound=1)
    assert single.feasible is False and single.threshold == np.inf


def test_guarantee_says_marginal_whose_score_and_how_many():
    p, g = scores(60)
    text = calibrate(p, g, alpha=0.1, bound=1).guarantee
    for part in ("60 calibration rows", "alpha = 0.1", "Guardian's own score", "marginal"):
        assert part in text
    assert "\n" not in text and "nfeasible" not in text


def test_bad_arguments_and_rows():
    p, g = scores(30)
    with pytest.raises(UsageError, match="alpha"):
        calibrate(p, g, alpha=1, bound=1)
    with pytest.raises(UsageError, match="bound"):
        calibrate(p, g, alpha=0.1, bound=-1)
    with pytest.raises(UsageError, match="shape"):
        calibrate(p[:, :3], g, alpha=0.1, bound=1)
    p[7, 2] = np.nan
    with pytest.raises(DataError, match="row 7: Primary score of option 2 is nan"):
        calibrate(p, g, alpha=0.1, bound=1)


def mean_true_risk(n: int, alpha: float, trials: int) -> float:
    """Mean over calibration draws of the true risk, known in closed form.

    Two options, the Guardian wants the second, whose gap is uniform in [0, 1]: L = 1{gap > lam}
    and the true risk at lam is 1 - lam.
    """
    rng = np.random.default_rng(0)
    g = np.tile(f32([0, 1]), (n, 1))
    total = 0.0
    for _ in range(trials):
        p = np.stack([np.ones(n), 1 - rng.random(n)], axis=1)
        total += 1 - float(calibrate(p, g, alpha=alpha, bound=1).threshold)
    return total / trials


def test_guarantee_holds_on_average_and_is_not_loose(monkeypatch):
    # CRC theory for n = 8, alpha = 1/4: one loss is allowed, so the mean risk is 2 / 9. The
    # standard deviation of the risk is 0.13; 1000 draws give a standard error of 0.0041, and the
    # limits below are more than 6 of them away: a false alarm has probability below 1e-8.
    risk = mean_true_risk(8, 0.25, 1000)
    assert abs(risk - 2 / 9) < 0.0245
    assert risk <= 0.25
    # Without the "+ 1" for the new row two losses are allowed: 3 / 9.
    monkeypatch.setattr(
        "arbitrage.bounds.loss_budget",
        lambda alpha, bound, n, quantum: int(alpha * n / Fraction(quantum)),
    )
    assert mean_true_risk(8, 0.25, 1000) > 0.25 + 0.05
