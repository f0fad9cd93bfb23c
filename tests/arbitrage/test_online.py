"""The online threshold: its rule, its bound for any sequence, and the same under compiled code."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbitrage.errors import UsageError
from arbitrage.online import OnlineControl

RULES = st.builds(
    OnlineControl,
    alpha=st.floats(0.01, 0.9),
    eta=st.sampled_from([1e-7, 0.01, 0.1, 1.0, 30.0]),
    lambda_max=st.sampled_from([0.05, 1.0, 12.0]),
    bound=st.just(1.0),
)


def run(rule: OnlineControl, losses, start: float = 0.0) -> tuple[float, list[float]]:
    """Mean loss and thresholds when the adversary's losses meet the rule; 0 on the full menu."""
    state, total, path = rule.init(start), 0.0, []
    for wish in losses:
        lam = rule.threshold(state)
        path.append(float(lam))
        loss = 0.0 if math.isinf(lam) else wish
        total += loss
        state = rule.update(state, loss)
    assert state.steps == len(losses)
    assert float(state.mean_loss) == pytest.approx(total / len(losses), abs=1e-12)
    return total / len(losses), path


@settings(deadline=None, max_examples=200)
@given(
    RULES,
    st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=150),
    st.floats(0, 20),
)
def test_the_bound_holds_for_any_sequence(rule, losses, start):
    for length in {1, len(losses) // 2 + 1, len(losses)}:
        mean, _ = run(rule, losses[:length], start)
        assert mean - rule.alpha <= rule.regret_bound(length, start) + 1e-9


@pytest.mark.parametrize("eta", [0.02, 1.0])
@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_the_bound_is_met_by_the_worst_sequence(eta, bound):
    """The largest loss wherever the Primary may act: the bound is nearly reached, so not loose."""
    rule = OnlineControl(alpha=0.1 * bound, eta=eta, lambda_max=1.0, bound=bound)
    best = -math.inf
    for length in range(1, 120):
        mean, _ = run(rule, [bound] * length)
        left = rule.regret_bound(length) - (mean - rule.alpha)
        assert left >= -1e-12
        best = max(best, -left * eta * length)
    assert -best <= eta * bound  # at best one step short of it


def test_the_rule_is_the_formula_and_stops_at_zero():
    rule = OnlineControl(alpha=0.2, eta=0.5, lambda_max=1.0)
    losses = [0.0, 1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.3, 0.0]
    _, path = run(rule, losses, start=0.05)
    lam, want = 0.05, []
    for wish in losses:
        want.append(lam if lam < 1 else math.inf)
        loss = wish if lam < 1 else 0.0
        lam = max(0.0, lam + 0.5 * (loss - 0.2))
    assert path == pytest.approx(want)
    assert min(path) == 0.0 and math.inf in path


def test_an_infinite_start_is_the_full_menu():
    rule = OnlineControl(alpha=0.1, eta=0.5, lambda_max=2.0)
    state = rule.init(math.inf)
    assert rule.threshold(state) == math.inf
    assert rule.threshold(rule.update(state, 0.0)) == pytest.approx(1.95)
    assert rule.regret_bound(10, math.inf) == pytest.approx(0.9 / 10)


def test_scan_under_jit_equals_the_loop():
    # Odd numbers, so that no threshold is next to lambda_max, where float32 would decide.
    rule = OnlineControl(alpha=0.0937, eta=0.0513, lambda_max=1.0)
    wishes = (np.random.default_rng(0).random(500) < 0.3).astype(np.float32)

    def step(state, wish):
        lam = rule.threshold(state)
        return rule.update(state, jnp.where(jnp.isinf(lam), 0.0, wish)), lam

    start = jax.tree.map(jnp.asarray, rule.init(0.3))
    state, path = jax.jit(lambda start, all: jax.lax.scan(step, start, all))(start, wishes)
    mean, want = run(rule, wishes.tolist(), 0.3)
    np.testing.assert_allclose(path, want, rtol=0, atol=1e-5)
    assert float(state.mean_loss) == pytest.approx(mean, abs=1e-6)
    assert int(state.steps) == 500


def test_vmap_runs_many_streams():
    rule = OnlineControl(alpha=0.1, eta=0.05, lambda_max=1.0)
    starts = jax.vmap(lambda lam: rule.init()._replace(threshold=lam))(jnp.linspace(0, 1, 5))
    after = jax.vmap(rule.update)(starts, jnp.ones(5))
    np.testing.assert_allclose(after.threshold, np.linspace(0, 1, 5) + 0.045, rtol=1e-6)


def test_steps_below_the_float32_resolution_are_not_lost():
    """A step of 1e-9 at a threshold of 0.5, whose neighbours in float32 are 6e-8 away."""
    rule = OnlineControl(alpha=0.5, eta=2e-9, lambda_max=1.0)

    def step(state, _):
        return rule.update(state, jnp.float32(1)), None

    start = jax.tree.map(jnp.asarray, rule.init(0.5))
    assert start.threshold.dtype == jnp.float32
    end = jax.jit(lambda start: jax.lax.scan(step, start, length=100_000)[0])(start)
    assert float(end.threshold) - 0.5 == pytest.approx(1e-4, rel=1e-3)
    assert float(end.loss_sum) == 100_000


def test_audits_keep_the_bound_in_expectation():
    """All losses are 1 until the full menu; 200 streams of 200 rows, audited one time in four."""
    rule = OnlineControl(alpha=0.2, eta=0.05, lambda_max=1.0, audit_probability=0.25)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(200):
        state, total = rule.init(), 0.0
        for audited in rng.random(200) < 0.25:
            loss = 0.0 if math.isinf(rule.threshold(state)) else 1.0
            total += loss
            state = rule.update(state, loss if audited else math.nan, audited)
        means.append(total / 200)
    error = np.std(means) / math.sqrt(200)
    assert np.mean(means) - 0.2 <= rule.regret_bound(200) + 4 * error
    assert np.mean(means) > 0.1
    # Without the division by the probability the feedback is four times too weak.
    assert rule.regret_bound(200) == pytest.approx((1 + 0.05 * (4 - 0.2)) / (0.05 * 200))


def test_words_and_bad_values():
    rule = OnlineControl(alpha=0.1, eta=0.5, lambda_max=1.0)
    text = rule.words(1000)
    for part in ("any sequence", "first 1000 rows", "at most 0.1029", "nothing about one row"):
        assert part in text
    audited = OnlineControl(alpha=0.1, eta=0.5, lambda_max=1.0, audit_probability=0.5)
    assert "expected mean loss" in audited.words(10)
    good = {"alpha": 0.1, "eta": 0.5, "lambda_max": 1.0}
    for change in ("alpha", "eta", "lambda_max", "bound", "audit_probability"):
        for value in (0, -1.0, math.inf, math.nan):
            with pytest.raises(UsageError, match=change):
                OnlineControl(**(good | {change: value}))
    with pytest.raises(UsageError, match="alpha must lie strictly"):
        OnlineControl(**(good | {"alpha": 1.0}))
    with pytest.raises(UsageError, match="audit_probability must be at most 1"):
        OnlineControl(**good, audit_probability=1.5)
    for threshold in (-0.1, math.nan):
        with pytest.raises(UsageError, match="threshold"):
            rule.init(threshold)
    with pytest.raises(UsageError, match="steps"):
        rule.regret_bound(0)
