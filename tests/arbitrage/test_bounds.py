"""p-values against exact rational arithmetic, their validity by enumeration, and the budgets."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbitrage.bounds import (
    Control,
    ExactBinomial,
    ExpectedRisk,
    HoeffdingBentkus,
    allowed_sum,
    binomial_p,
    hoeffding_bentkus_p,
    wsr_log_capital,
    wsr_p,
    wsr_passes,
)
from arbitrage.errors import DataError, UsageError

LEVELS = [Fraction(text) for text in ("0.01", "0.05", "0.1", "0.25", "0.5", "0.9")]
CONTROLS = [ExpectedRisk(), HoeffdingBentkus(0.1), ExactBinomial(0.1), HoeffdingBentkus(0.01)]

# Allowed number of losses of size B: Hoeffding-Bentkus, exact binomial, expected risk.
SIZES = [100, 400, 1_600, 10**4, 10**5, 10**6]
ALLOWED = {
    ("0.10", 0.10): [
        *[(4, 5, 9), (29, 31, 39), (138, 144, 159)],
        *[(946, 961, 999), (9830, 9878, 9999), (99463, 99615, 99999)],
    ],
    ("0.10", 0.05): [
        *[(3, 4, 9), (27, 29, 39), (134, 139, 159)],
        *[(937, 950, 999), (9801, 9843, 9999), (99373, 99506, 99999)],
    ],
    ("0.05", 0.10): [
        *[(1, 1, 4), (12, 14, 19), (64, 68, 79)],
        *[(460, 471, 499), (4876, 4911, 4999), (49609, 49720, 49999)],
    ],
}


def exact_binomial_cdf(count: int, n: int, alpha: Fraction) -> Fraction:
    terms = (math.comb(n, k) * alpha**k * (1 - alpha) ** (n - k) for k in range(count + 1))
    return sum(terms, Fraction(0))


def slow_hoeffding_bentkus(total: Fraction, n: int, alpha: Fraction) -> float:
    """From the formulas, with exact sums and logarithms of exact ratios."""
    mean = min(total / n, alpha)
    h = 0.0
    if mean > 0:
        h += float(mean) * math.log(mean / alpha)
    h += float(1 - mean) * math.log((1 - mean) / (1 - alpha))
    bentkus = math.e * float(exact_binomial_cdf(math.ceil(total), n, alpha))
    return min(math.exp(-n * h), bentkus, 1.0)


@settings(deadline=None)
@given(st.integers(1, 60), st.sampled_from(LEVELS), st.fractions(0, 1, max_denominator=50))
def test_hoeffding_bentkus_equals_the_formula(n, alpha, mean):
    got = hoeffding_bentkus_p(float(mean), n, float(alpha))
    assert got == pytest.approx(slow_hoeffding_bentkus(mean * n, n, alpha), rel=1e-9)


@settings(deadline=None)
@given(st.integers(1, 300), st.sampled_from(LEVELS), st.data())
def test_binomial_equals_exact_sums(n, alpha, data):
    count = data.draw(st.integers(0, n))
    want = float(exact_binomial_cdf(count, n, alpha))
    assert binomial_p(count, n, float(alpha)) == pytest.approx(want, rel=1e-11)


def test_binomial_of_a_million_rows_equals_a_sum_of_logarithms():
    n, alpha, count = 10**6, 0.05, 49_720
    counts = range(count - 8_000, count + 1)  # the rest is below 1e-100
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(alpha)
        + (n - k) * math.log1p(-alpha)
        for k in counts
    ]
    want = math.fsum(math.exp(value) for value in logs)
    assert binomial_p(count, n, alpha) == pytest.approx(want, rel=1e-7)


def test_no_loss_has_the_probability_of_no_loss_and_much_loss_has_one():
    for n, alpha in itertools.product([1, 7, 100, 10**6], [1e-6, 0.1, 0.5, 0.99]):
        want = math.exp(n * math.log1p(-alpha))
        assert hoeffding_bentkus_p(0.0, n, alpha) == pytest.approx(want, rel=1e-9, abs=1e-300)
        assert binomial_p(0, n, alpha) == pytest.approx(want, rel=1e-9, abs=1e-300)
        assert hoeffding_bentkus_p(alpha, n, alpha) == 1.0
        assert hoeffding_bentkus_p(1.0, n, alpha) == binomial_p(n, n, alpha) == 1.0


def test_a_mean_of_whole_losses_is_not_counted_one_too_many():
    """n * (k / n) is above k in floats for some n and k; ceil must not take it to k + 1."""
    n = np.arange(1, 400)[:, None]
    count = np.minimum(np.arange(40), n)
    assert (n * (count / n) > count).any()
    bentkus = np.minimum(1, math.e * binomial_p(count, n, 0.3))
    assert (hoeffding_bentkus_p(count / n, n, 0.3) <= bentkus * (1 + 1e-9)).all()
    sharp = hoeffding_bentkus_p(count / n, n, 0.3) >= bentkus * (1 - 1e-9)
    assert sharp.sum() > 100  # Bentkus decides in many of these


def test_p_values_broadcast_and_do_not_fall_with_the_loss():
    means = np.linspace(0, 1, 201)
    p = hoeffding_bentkus_p(means[:, None, None], [[20], [300]], [0.1, 0.5])
    assert p.shape == (201, 2, 2) and p.dtype == np.float64
    assert p[37, 1, 0] == hoeffding_bentkus_p(means[37], 300, 0.1)
    assert (np.diff(p, axis=0) >= -1e-12).all()
    assert (np.diff(binomial_p(np.arange(301), 300, 0.1)) >= 0).all()
    assert binomial_p(np.arange(3), 2, 0.5).tolist() == pytest.approx([0.25, 0.75, 1.0])


@pytest.mark.parametrize("n", [1, 5, 30, 100])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5])
def test_rejecting_at_delta_errs_with_probability_at_most_delta(n, alpha):
    """Every 0/1 outcome at the edge of the hypothesis, risk = alpha, added up."""
    counts = np.arange(n + 1)
    chance = np.diff(binomial_p(counts, n, alpha), prepend=0)
    for p in (hoeffding_bentkus_p(counts / n, n, alpha), binomial_p(counts, n, alpha)):
        for level in np.unique(p):
            assert chance[p <= level].sum() <= level + 1e-12


@pytest.mark.parametrize("alpha, delta", ALLOWED)
def test_allowed_total_loss(alpha, delta):
    controls = (HoeffdingBentkus(delta), ExactBinomial(delta), ExpectedRisk())
    for n, want in zip(SIZES, ALLOWED[alpha, delta], strict=True):
        found = tuple(control.budget(Fraction(alpha), Fraction(1), n, 1.0) for control in controls)
        assert found == want


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(LEVELS),
    st.sampled_from([0.011, 0.097, 0.493, 0.897]),  # no p-value is exactly one of these
    st.sampled_from([Fraction(1), Fraction(8), Fraction(5, 2), Fraction(3, 4)]),
)
def test_allowed_sum_is_the_largest_that_passes(n, alpha, delta, units):
    def p_value(total, n, alpha):
        return float(slow_hoeffding_bentkus(total, n, alpha))

    found = allowed_sum(p_value, n, alpha, delta, units)
    passing = [s for s in range(math.floor(n * units) + 1) if p_value(s / units, n, alpha) <= delta]
    assert found == max(passing, default=-1)
    budget = HoeffdingBentkus(delta).budget(alpha * units, units, n, 1.0)
    assert budget == found


def test_a_p_value_that_rounding_could_move_across_delta_is_refused():
    """(1 - 1/2)^1 = 1/2 = delta exactly: the smaller sum is taken, here none."""
    assert ExactBinomial(0.5).budget(Fraction(1, 2), Fraction(1), 1, 1.0) == -1
    assert ExactBinomial(0.5).rows_needed(Fraction(1, 2), Fraction(1)) == 2
    assert HoeffdingBentkus(0.501).budget(Fraction(1, 2), Fraction(1), 1, 1.0) == 0


@settings(deadline=None)
@given(st.sampled_from(LEVELS), st.sampled_from(["1", "3", "0.7"]), st.integers(1, 400))
def test_budgets_in_small_quanta(alpha, bound, n):
    limit, quantum = Fraction(bound), 2.0**-30
    alpha = alpha * limit
    count = ExactBinomial(0.1).budget(alpha, limit, n, quantum)
    whole = ExactBinomial(0.1).budget(alpha / limit, Fraction(1), n, 1.0)
    assert count == (whole * math.ceil(limit / Fraction(quantum)) if whole >= 0 else -1)
    crc = ExpectedRisk().budget(alpha, limit, n, quantum)
    exact = alpha * (n + 1) - limit
    assert crc * Fraction(quantum) <= exact < (crc + 1) * Fraction(quantum)
    # Expected risk allows more than a bound with probability: it promises less.
    assert HoeffdingBentkus(0.1).budget(alpha, limit, n, quantum) <= max(crc, -1)
    losses = HoeffdingBentkus(0.1).budget(alpha, limit, n, quantum) * Fraction(quantum) / limit
    if losses >= 0:
        assert slow_hoeffding_bentkus(losses, n, alpha / limit) <= 0.1


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_rows_needed_is_where_the_budget_stops_being_negative(control: Control):
    for alpha, bound in itertools.product(LEVELS[1:], (Fraction(1), Fraction(3), Fraction(1, 3))):
        needed = control.rows_needed(alpha * bound, bound)
        assert control.budget(alpha * bound, bound, needed, 2.0**-30) >= 0
        assert needed == 1 or control.budget(alpha * bound, bound, needed - 1, 2.0**-30) < 0


def test_words_say_how_sure_for_whom_and_in_whose_score():
    text = ExpectedRisk().words("0.1", 60, 1.0)
    for part in ("60 calibration rows", "alpha = 0.1", "Guardian's own score", "marginal"):
        assert part in text
    text = HoeffdingBentkus(0.05).words("0.1, 0.2", 60, 3.0)
    for part in ("probability at least 0.95", "60 calibration rows", "alpha = 0.1, 0.2", "[0, 3]"):
        assert part in text
    assert "on its own" in text and "independent and identically" in text
    assert "on its own" not in ExactBinomial(0.05).words("0.1", 60, 1.0)
    assert "the share is on average" in ExactBinomial(0.05).words("0.1", 60, 1.0, "the share")


@pytest.mark.parametrize("delta", [0, 1, -0.1, 2.0, float("nan"), "0.1", True])
@pytest.mark.parametrize("kind", [HoeffdingBentkus, ExactBinomial])
def test_delta_outside_its_range(kind, delta):
    with pytest.raises(UsageError, match="delta must lie strictly between 0 and 1"):
        kind(delta)


def slow_wsr_capital(losses, alpha: float, delta: float) -> list[float]:
    """The formulas, one row at a time; K itself rather than its logarithm."""
    n, capital, out = len(losses), 1.0, []
    total, squares, spread = 0.0, 0.0, 0.25
    for i, loss in enumerate(losses, start=1):
        bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (n * spread)))
        capital *= 1 - bet * (loss - alpha)
        total += loss
        mean = (0.5 + total) / (i + 1)
        squares += (loss - mean) ** 2
        spread = (0.25 + squares) / (i + 1)
        out.append(capital)
    return out


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30),
    st.floats(0.01, 0.99),
    st.sampled_from([0.01, 0.1, 0.5]),
)
def test_betting_capital_equals_the_loop(losses, alpha, delta):
    got = wsr_log_capital(losses, alpha, delta)
    want = slow_wsr_capital(losses, alpha, delta)
    np.testing.assert_allclose(got, np.log(want), rtol=1e-9, atol=1e-9)
    assert wsr_p(losses, alpha, delta) == pytest.approx(min(1, 1 / max(want)), rel=1e-9)
    table = np.stack([losses, losses[::-1]], axis=1)[:, :, None]
    assert wsr_log_capital(table, alpha, delta).shape == (len(losses), 2, 1)
    np.testing.assert_array_equal(wsr_log_capital(table, alpha, delta)[:, 0, 0], got)
    assert wsr_passes(table, alpha, delta).shape == (2, 1)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_betting_errs_with_probability_at_most_delta(alpha, delta):
    """Every sequence of 12 losses of 0 or 1 at the edge of the hypothesis, added up."""
    losses = np.array(list(itertools.product([0, 1], repeat=12))).T
    ones = losses.sum(axis=0)
    chance = alpha**ones * (1 - alpha) ** (12 - ones)
    p = wsr_p(losses, alpha, delta)
    for level in (0.01, 0.05, 0.3, 0.5, *np.quantile(p, [0.1, 0.5, 0.9])):
        assert chance[p <= level].sum() <= level + 1e-12
    assert chance[wsr_passes(losses, alpha, delta)].sum() <= delta


def test_betting_beats_hoeffding_bentkus_where_losses_vary_little():
    losses = np.tile([0.08, 0.1], 200)
    assert wsr_passes(losses, 0.115, 0.1)
    assert hoeffding_bentkus_p(losses.mean(), 400, 0.115) > 0.1
    assert not wsr_passes(np.full(400, 0.12), 0.12, 0.1)


def test_betting_refuses_bad_losses_and_levels():
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(DataError, match="row 2: a loss lies outside") as caught:
            wsr_passes([[0.0], [1.0], [bad]], 0.1, 0.1)
        assert caught.value.row == 2
    with pytest.raises(UsageError, match="alpha"):
        wsr_p([0.1], 1.0, 0.1)
    with pytest.raises(UsageError, match="delta"):
        wsr_p([0.1], 0.1, 0.0)
