"""Multiple testing against its definitions, and its error rates by enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbitrage.bounds import hoeffding_bentkus_p, wsr_p
from arbitrage.errors import DataError, UsageError
from arbitrage.learn_then_test import PROCEDURES, certify, learn_then_test, selective_risk_p

P_VALUES = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.1, math.nan])),
    min_size=1,
    max_size=8,
)


def slow_certify(p: list[float], delta: float, procedure: str, order: list[int]) -> list[bool]:
    rejected = [False] * len(p)
    if procedure == "bonferroni":
        return [value <= delta / len(p) for value in p]
    if procedure == "fixed_sequence":
        for j in order:
            if not p[j] <= delta:
                break
            rejected[j] = True
        return rejected
    left = set(range(len(p)))
    while left:
        smallest = min(left, key=lambda j: math.inf if math.isnan(p[j]) else p[j])
        if not p[smallest] <= delta / len(left):
            break
        rejected[smallest] = True
        left.remove(smallest)
    return rejected


@settings(deadline=None)
@given(P_VALUES, st.sampled_from([0.05, 0.1]), st.sampled_from(PROCEDURES), st.data())
def test_procedures_equal_their_definitions(p, delta, procedure, data):
    order = None
    if procedure == "fixed_sequence":
        order = data.draw(st.permutations(range(len(p))))
        order = order[: data.draw(st.integers(1, len(p)))]
    got = certify(p, delta=delta, procedure=procedure, order=order)
    assert got.tolist() == slow_certify(p, delta, procedure, order or [])


def test_holm_certifies_all_that_bonferroni_does_in_any_shape():
    p = np.random.default_rng(0).random((4, 5, 6)) ** 4
    holm = certify(p, delta=0.1, procedure="holm")
    bonferroni = certify(p, delta=0.1, procedure="bonferroni")
    assert holm.shape == p.shape and (holm >= bonferroni).all() and holm.sum() > bonferroni.sum()


def table(n: int = 200, seed: int = 0) -> np.ndarray:
    """(n, 3, 4): 0/1 losses whose risk grows along both axes."""
    risk = np.array([0.01, 0.05, 0.3])[:, None] + np.array([0, 0.01, 0.02, 0.4])
    return (np.random.default_rng(seed).random((n, 3, 4)) < risk).astype(float)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_losses_of_a_grid(procedure):
    losses = table()
    found = learn_then_test(losses, alpha=0.15, procedure=procedure)
    want = hoeffding_bentkus_p(losses.mean(axis=0), 200, 0.15)
    tested = ~np.isnan(found.p_values)
    np.testing.assert_allclose(found.p_values[tested], want[tested])
    assert found.certified.shape == (3, 4)
    if procedure == "fixed_sequence":
        # 0, 1, 2 pass in C order, then the fourth configuration of the first row fails.
        assert found.certified.sum() == 3 and tested.sum() == 4
        path = [0, 4, 5, 1, 9]
        found = learn_then_test(losses, alpha=0.15, order=path)
        assert np.flatnonzero(found.certified).tolist() == [0, 1, 4, 5]
    else:
        assert tested.all()
        np.testing.assert_array_equal(
            found.certified, certify(want, delta=0.1, procedure=procedure)
        )


def test_several_risks_take_the_largest_p_value():
    losses = np.stack([table(seed=1), 3 * table(seed=2)], axis=-1)
    found = learn_then_test(losses, alpha=[0.2, 0.9], bound=3, procedure="holm")
    want = np.maximum(
        hoeffding_bentkus_p(losses[..., 0].mean(axis=0) / 3, 200, 0.2 / 3),
        hoeffding_bentkus_p(losses[..., 1].mean(axis=0) / 3, 200, 0.3),
    )
    np.testing.assert_allclose(found.p_values, want)
    assert found.alphas == (0.2, 0.9) and "each of its risks" in found.guarantee


def test_an_iterator_is_read_up_to_the_first_failure_only():
    drawn = []

    def configurations():
        for j in range(12):
            drawn.append(j)
            yield table().reshape(200, 12)[:, j]

    found = learn_then_test(configurations(), alpha=0.15)
    assert drawn == [0, 1, 2, 3]
    assert found.certified.tolist() == [True, True, True, False]
    found = learn_then_test(configurations(), alpha=0.15, procedure="holm")
    whole = learn_then_test(table().reshape(200, 12), alpha=0.15, procedure="holm")
    np.testing.assert_array_equal(found.certified, whole.certified)
    np.testing.assert_array_equal(found.p_values, whole.p_values)
    pairs = (np.stack([column, column], axis=1) for column in table()[:, 0].T)
    assert learn_then_test(pairs, alpha=[0.15, 0.2]).certified.tolist() == [True] * 3 + [False]


def test_betting_and_binomial_p_values():
    losses = table()
    exact = learn_then_test(losses, alpha=0.15, procedure="holm", p_value="binomial")
    rough = learn_then_test(losses, alpha=0.15, procedure="holm")
    assert (exact.p_values <= rough.p_values).all()
    calm = np.full((200, 2), [0.1, 0.3])
    bets = learn_then_test(calm, alpha=0.15, procedure="holm", p_value="betting")
    assert bets.certified.tolist() == [True, False]
    assert bets.p_values[0] == wsr_p(calm[:, 0], 0.15, 0.1)
    assert not learn_then_test(calm, alpha=0.15, procedure="holm").certified.any()


def test_words():
    found = learn_then_test(table(), alpha=0.15, delta=0.05)
    for part in ("at least 0.95", "200 calibration rows", "EVERY one of the", "alpha = 0.15"):
        assert part in found.guarantee
    none = learn_then_test(np.ones((50, 3)), alpha=0.15)
    assert "None of the 3 configurations" in none.guarantee


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_family_wise_error_is_at_most_delta(procedure):
    """Eight configurations at the edge of their hypotheses: any certificate is an error.

    Configuration j loses in row i if j's own coin says so, n = 60, alpha = 0.2, 20,000 tables. The
    standard error of a share of 0.1 is 0.0021.
    """
    rng = np.random.default_rng(0)
    counts = rng.binomial(60, 0.2, (20_000, 8))
    p = hoeffding_bentkus_p(counts / 60, 60, 0.2)
    wrong = np.mean([certify(each, delta=0.1, procedure=procedure).any() for each in p])
    assert wrong <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 20_000)
    # Without any correction the same p-values err more often.
    assert np.mean((hoeffding_bentkus_p(counts / 60, 60, 0.2) <= 0.1).any(axis=1)) > 0.12


@pytest.mark.parametrize("rows", ["acted", "all"])
@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_selective_p_value_is_valid(rows, share):
    """All counts of (not acted, no loss, loss) of 12 rows, P(loss | acted) = alpha, added up."""
    n, alpha = 12, 0.3
    chance, p = [], []
    for kept in range(n + 1):
        for lost in range(n + 1 - kept):
            out = n - kept - lost
            ways = math.comb(n, kept) * math.comb(n - kept, lost)
            one = (share * (1 - alpha)) ** kept * (share * alpha) ** lost
            chance.append(ways * one * (1 - share) ** out)
            loss = np.repeat([np.nan, 0.0, 1.0], [out, kept, lost])
            p.append(selective_risk_p(loss, np.arange(n) >= out, alpha, rows=rows))
    chance, p = np.array(chance), np.array(p)
    assert chance.sum() == pytest.approx(1)
    for level in (0.01, 0.05, 0.1, 0.2, 0.5, 0.9):
        assert chance[p <= level].sum() <= level + 1e-12


def test_selective_p_value_equals_its_formula():
    rng = np.random.default_rng(0)
    loss, acted = 3 * rng.random(80) ** 6, rng.random(80) < 0.6
    small = hoeffding_bentkus_p(loss[acted].mean() / 3, acted.sum(), 0.2)
    assert selective_risk_p(loss, acted, 0.6, bound=3) == pytest.approx(small)
    # (L - alpha) 1{acted} in [-alpha, B - alpha], moved and scaled into [0, 1].
    z = ((loss - 0.6) * acted + 0.6) / 3
    whole = hoeffding_bentkus_p(z.mean(), 80, 0.2)
    assert selective_risk_p(loss, acted, 0.6, bound=3, rows="all") == pytest.approx(whole)
    assert small < whole < 1
    bets = selective_risk_p(loss, acted, 0.6, bound=3, rows="all", p_value="betting")
    assert bets == pytest.approx(float(wsr_p(z, 0.2, 0.1)))
    assert selective_risk_p(loss, acted & False, 0.6, bound=3) == 1.0


def test_bad_arguments():
    losses = table()
    for options, words in [
        ({"procedure": "best"}, "procedure must be one of fixed_sequence, bonferroni, holm"),
        ({"p_value": "t"}, "p_value must be one of"),
        ({"delta": 0}, "delta"),
        ({"alpha": 2}, "alpha"),
        ({"alpha": [0.1, 0.2]}, r"shape \(n, ..., 2\)"),
        ({"order": [0, 0]}, "order must hold different"),
        ({"order": [12]}, "0 to 11"),
        ({"order": [0], "procedure": "holm"}, "order is for a fixed sequence"),
    ]:
        with pytest.raises(UsageError, match=words):
            learn_then_test(losses, **({"alpha": 0.1} | options))
    with pytest.raises(UsageError, match="at least one configuration"):
        learn_then_test(iter([]), alpha=0.1)
    with pytest.raises(UsageError, match="each configuration's losses"):
        learn_then_test(iter([losses]), alpha=0.1)
    with pytest.raises(UsageError, match="order has no meaning"):
        certify([0.1], delta=0.1, procedure="holm", order=[0])
    with pytest.raises(DataError, match="row 3: losses must lie"):
        learn_then_test(np.where(np.arange(200)[:, None] == 3, 2.0, losses[:, 0]), alpha=0.1)
    with pytest.raises(DataError, match="no rows"):
        learn_then_test(losses[:0], alpha=0.1)
    with pytest.raises(DataError, match="row 0: the binomial p-value"):
        learn_then_test(np.full((5, 2), 0.5), alpha=0.1, p_value="binomial")
    with pytest.raises(UsageError, match="rows must be"):
        selective_risk_p([0.1], [True], 0.2, rows="some")
    with pytest.raises(UsageError, match="shape"):
        selective_risk_p([0.1, 0.2], [True], 0.2)


def test_every_subset_of_a_small_path():
    """The certified set is the longest passing beginning of the path."""
    for passes in itertools.product([True, False], repeat=5):
        p = np.where(passes, 0.01, 0.5)
        count = [*passes, False].index(False)
        assert certify(p, delta=0.1).tolist() == [j < count for j in range(5)]
