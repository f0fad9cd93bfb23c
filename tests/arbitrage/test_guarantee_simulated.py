"""The guarantees hold for simulated data: 100,000 calibrations with the shipped code per setting.

Seeds are fixed, so nothing here is flaky; limits are four standard errors wide, so that another
seed would fail with probability 3e-5 a check.
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulation import (
    BATCH,
    RiskCurve,
    Setting,
    check_exceedance,
    check_expected_risk,
    draw,
    simulate,
    simulated_thresholds,
    strict_choose,
    thresholds,
)

from arbitrage.betting import calibrate_betting
from arbitrage.bounds import (
    ExactBinomial,
    ExpectedRisk,
    HoeffdingBentkus,
    binomial_p,
    wsr_passes,
)
from arbitrage.loss_curves import loss_curves
from arbitrage.risk import calibrate

RUNS = 100_000
SMALL, LARGE = Fraction(1, 10), Fraction(1, 5)
# Risk levels are parts of the bound. With n = 9 the smaller one is feasible with nothing to spare.
SETTINGS = [
    (Setting(9, 2, "binary", False), [SMALL, LARGE]),
    (Setting(9, 2, "dirichlet", True), [SMALL, LARGE]),
    (Setting(9, 4, "skewed", False), [SMALL, LARGE]),
    (Setting(9, 4, "severity", True), [SMALL, LARGE]),
    (Setting(20, 2, "binary", True), [SMALL, LARGE]),
    (Setting(20, 2, "skewed", False), [SMALL, LARGE]),
    (Setting(20, 4, "dirichlet", False), [SMALL, LARGE]),
    (Setting(20, 4, "skewed", True), [SMALL, LARGE]),
    (Setting(60, 2, "dirichlet", False), [SMALL]),
    (Setting(60, 4, "dirichlet", True), [LARGE]),
    (Setting(60, 4, "skewed", False), [LARGE]),
    (Setting(60, 4, "severity", False), [SMALL]),
]


def budgets_of(setting: Setting, levels: list[Fraction], control) -> list[int]:
    """At the levels times the bound, in quanta."""
    bound = setting.bound
    return [control.budget(level * bound, bound, setting.n, 1 / setting.scale) for level in levels]


def name(value) -> str | None:
    if not isinstance(value, Setting):
        return None
    return f"{value.n}-{value.options}-{value.shape}-{'tied' if value.tied else 'continuous'}"


@pytest.mark.slow
@pytest.mark.parametrize("setting, levels", SETTINGS, ids=name)
def test_expected_loss_of_fresh_rows_is_at_most_alpha(setting, levels):
    outcome = simulate(setting, budgets_of(setting, levels, ExpectedRisk()), runs=RUNS)
    assert outcome.runs >= RUNS and not outcome.infeasible.any()
    alphas = [level * setting.bound for level in levels]
    check_expected_risk(outcome, alphas, setting.bound, setting.n, jumps=setting.tied)
    if setting.shape == "binary" and not setting.tied:
        # The threshold is an order statistic of uniform gaps, so the expectation is known.
        allowed = [math.floor(level * (setting.n + 1) - 1) for level in levels]
        exact = (np.array(allowed) + 1) / (setting.n + 1)
        assert (abs(outcome.risk - exact) <= 4 * outcome.error).all()


def test_a_missing_row_in_the_correction_is_found():
    """Mutant: budget alpha n instead of alpha (n + 1) - B. The risk is 3/21 instead of 2/21."""
    setting = Setting(20, 2, "binary", False)
    budgets = [math.floor(level * setting.n * Fraction(setting.scale)) for level in (SMALL, LARGE)]
    outcome = simulate(setting, budgets, runs=RUNS)
    assert outcome.risk[0] == pytest.approx(3 / 21, abs=4 * outcome.error[0])
    with pytest.raises(AssertionError, match="above alpha"):
        check_expected_risk(outcome, [SMALL, LARGE], setting.bound, setting.n, jumps=False)


def test_a_strict_comparison_at_deployment_is_found():
    """Mutant: candidates with gap < threshold. It only shows where scores are tied."""
    for tied in (True, False):
        setting, levels = Setting(20, 2, "binary", tied), [SMALL, LARGE]
        budgets = budgets_of(setting, levels, ExpectedRisk())
        outcome = simulate(setting, budgets, runs=RUNS, deploy=strict_choose)
        if tied:
            with pytest.raises(AssertionError, match="above alpha"):
                check_expected_risk(outcome, levels, setting.bound, setting.n, jumps=True)
        else:
            check_expected_risk(outcome, levels, setting.bound, setting.n, jumps=False)


@pytest.mark.parametrize("setting", [SETTINGS[at][0] for at in (2, 4, 7)], ids=name)
def test_the_simulated_thresholds_are_those_of_calibrate(setting):
    levels, quantum = [SMALL, LARGE], 1 / setting.scale
    with jax.enable_x64(True):
        p, g = draw(jax.random.key(1, impl="rbg"), setting, BATCH, setting.n)
        budgets = jnp.asarray(budgets_of(setting, levels, ExpectedRisk()), jnp.int64)
        found = np.asarray(thresholds(p, g, budgets, setting.scale))
    for run in range(200):
        want = calibrate(p[run], g[run], alpha=levels, bound=setting.bound)
        assert want.quantum == quantum
        np.testing.assert_array_equal(found[run], want.threshold)


@pytest.mark.slow
@pytest.mark.parametrize("setting, level", [(SETTINGS[8][0], SMALL), (SETTINGS[10][0], LARGE)])
def test_hoeffding_bentkus_exceeds_alpha_with_probability_at_most_delta(setting, level):
    delta = 0.1
    p, g = draw(jax.random.key(2, impl="rbg"), setting, 1, 20_000)
    curve = RiskCurve.of(loss_curves(p[0], g[0], bound=setting.bound))
    risks = {}
    for control in (HoeffdingBentkus(delta), ExpectedRisk()):
        budgets = budgets_of(setting, [level], control)
        assert budgets[0] >= 0
        risks[control.name], _ = simulated_thresholds(setting, budgets, runs=RUNS, seed=3)
        risks[control.name] = curve.at(risks[control.name][:, 0])
    assert len(risks["crc"]) >= RUNS
    check_exceedance(risks["hoeffding_bentkus"], level, delta)
    # Expected risk promises less: it is above alpha in a large share of the runs.
    with pytest.raises(AssertionError, match="in a share"):
        check_exceedance(risks["crc"], level, delta)
    assert risks["hoeffding_bentkus"].mean() < risks["crc"].mean()


@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_the_exact_binomial_errs_as_often_as_it_says(delta):
    """The true risk is 1 - lam and the share of errors is P(Bin(n, alpha) <= allowed count)."""
    setting = Setting(20, 2, "binary", False)
    budgets = budgets_of(setting, [SMALL, LARGE], ExactBinomial(delta))
    found, _ = simulated_thresholds(setting, budgets, runs=RUNS, seed=4)
    for at, level in enumerate((SMALL, LARGE)):
        if budgets[at] < 0:
            assert np.isinf(found[:, at]).all()
            continue
        share = check_exceedance(1 - found[:, at].astype(np.float64), level, delta)
        exact = float(binomial_p(budgets[at] / setting.scale, setting.n, float(level)))
        assert share == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / len(found)))
        assert exact > delta / 3  # the check has something to see


def test_betting_exceeds_alpha_with_probability_at_most_delta():
    """2,000 whole calibrations on a grid of 21 points; the true risk is 1 - lam."""
    rng, n, delta, runs = np.random.default_rng(0), 40, 0.2, 2_000
    guardian, grid = np.tile([0, 1], (n, 1)), np.linspace(0, 1, 21)
    risk = np.empty(runs)
    for run in range(runs):
        primary = np.stack([np.ones(n), rng.random(n)], axis=1)
        found = calibrate_betting(
            primary, guardian, alpha=0.19, bound=1, delta=delta, lambdas=grid, seed=run
        )
        risk[run] = max(0.0, 1 - found.threshold)
    share = check_exceedance(risk, Fraction(19, 100), delta)
    assert share > 0.02  # the check has something to see


@pytest.mark.parametrize("kind", ["binary", "beta"])
def test_betting_certifies_a_risk_of_alpha_with_probability_at_most_delta(kind):
    """4,000 samples of 400 losses at the edge of the hypothesis: .077 and .045 are expected."""
    rng = np.random.default_rng(0)
    losses = rng.random((400, 4_000)) < 0.1 if kind == "binary" else rng.beta(1, 9, (400, 4_000))
    passes = wsr_passes(losses, 0.1, 0.1)
    check_exceedance(np.where(passes, 1.0, 0.0), Fraction(1, 2), 0.1)
    assert passes.mean() == pytest.approx({"binary": 0.077, "beta": 0.045}[kind], abs=0.02)
