"""Evaluation over splits against slow loops, and the `frontier` command."""

from __future__ import annotations

import json
import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
from problems import make_table

from arbitrage import UsageError, calibrate
from arbitrage.baselines import COIN_PURPOSE
from arbitrage.costs import Costs, TokenPrice
from arbitrage.losses import FullMenuShortfall, GuardianCorrect, GuardianShortfall
from arbitrage.split_evaluation import evaluate_splits
from arbitrage.split_problem import problem, right_answers
from arbitrage.split_runs import run_splits
from arbitrage.split_statistics import area_over_line, summary, unit_error
from arbitrage.split_tables import baseline_table, split_table
from arbitrage.splits import random_splits, split_stream

ALPHAS = ["0.02", "0.1", "0.25"]
N, SPLITS, SEED = 60, 3, 9
PRICES = Costs(TokenPrice(0.4, 1.6), TokenPrice(2, 8))


def two_tables(n: int = N, *, tied: bool = False, **changes):
    """Joined tables with ragged menus, token counts, and, if wanted, many ties."""
    rng = np.random.default_rng(3)
    mask = np.arange(4) < rng.integers(1, 5, n)[:, None]
    tables = []
    for seed in (0, 1):
        scores = rng.dirichlet(np.ones(4), n)
        if tied:
            scores = np.round(scores * 4) / 4
        extra = {
            "input_tokens": rng.integers(20, 300, n),
            "output_tokens": rng.integers(1, 30, n),
            "pair": np.arange(n) // 2,
        }
        label = np.minimum(rng.integers(0, 4, n), mask.sum(axis=1) - 1)
        values = {"scores": scores, "mask": mask, "extra": extra, "label": label} | changes
        if seed:
            values["label"] = None
        tables.append(make_table(n, seed=seed, **values))
    return tables


class Slow:
    """Every number of one split by a loop over rows; weights are 1 / size of the row's cluster."""

    def __init__(self, primary, guardian, loss: str, codes=None):
        self.p, self.g, self.mask = primary.scores, guardian.scores, primary.mask
        self.label, self.n = primary.label, len(primary)
        self.value = self.g
        if loss == GuardianCorrect.name:
            self.value = right_answers(self.g, self.mask, self.label)
        self.codes = np.arange(self.n) if codes is None else codes
        self.weight = 1 / np.bincount(self.codes)[self.codes]
        self.rows_primary, self.rows_guardian = primary.extra, guardian.extra
        self.full = np.where(self.mask, self.g, -np.inf).argmax(axis=1)

    def row(self, i: int, lam: float, menu: str) -> dict[str, float]:
        gap = oracle.row_gaps(self.p[i], self.mask[i])
        size = sum(value <= lam for value in gap.values())
        # A negative lambda stands for the Primary alone, ties included.
        action = min(gap, key=lambda a: (gap[a], a))
        if lam >= 0:
            action = oracle.deployed(self.p[i], self.g[i], self.mask[i], lam)
        size = max(size, 1)
        if menu == "full" and size > 1:
            action, size = int(self.full[i]), len(gap)
        best = max(float(self.value[i, a]) for a in gap)
        own = self.primary_cost(i)
        return {
            "risk": best - float(self.value[i, action]),
            "guardian_rate": float(size > 1),
            "mean_set_size": float(size),
            "primary_drop": gap[action],
            "cost": own + (self.guardian_cost(i, size) if size > 1 else 0.0),
            "accuracy": float(action == self.label[i]),
        }

    def primary_cost(self, i: int) -> float:
        extra = self.rows_primary
        return (0.4 * extra["input_tokens"][i] + 1.6 * extra["output_tokens"][i]) / 1e6

    def guardian_cost(self, i: int, size: int) -> float:
        extra, options = self.rows_guardian, int(self.mask[i].sum())
        read = math.floor(extra["input_tokens"][i] * (0.5 + 0.5 * size / options))
        return (2 * read + 8 * extra["output_tokens"][i]) / 1e6

    def mean(self, rows, values) -> float:
        weight = self.weight[rows]
        return float(np.sum(weight * np.array(values)) / weight.sum())

    def at(self, rows, lam: float, menu: str) -> dict[str, float]:
        found = [self.row(i, lam, menu) for i in rows]
        return {name: self.mean(rows, [one[name] for one in found]) for name in found[0]}

    def primary_accuracy(self, i: int) -> float:
        return float(np.argmax(np.where(self.mask[i], self.p[i], -np.inf)) == self.label[i])

    def guardian_accuracy(self, i: int) -> float:
        return float(self.full[i] == self.label[i])


def thresholds(slow: Slow, menu: str, units):
    """CRC on the calibration units by `calibrate`, where a unit is a row."""
    loss = FullMenuShortfall() if menu == "full" else GuardianShortfall()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(slow.p[units], slow.value[units], alpha=ALPHAS, bound=1,
                         mask=slow.mask[units], loss=loss).threshold  # fmt: skip


def hindsight(slow: Slow, menu: str, rows, alpha: float) -> float:
    """Smallest breakpoint whose test risk is at most alpha."""
    for lam in oracle.breakpoints(slow.p, slow.mask):
        if slow.at(rows, lam, menu)["risk"] <= alpha + 1e-9:
            return lam
    raise AssertionError


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", ["guardian_shortfall", "guardian_correct"])
def test_every_number_equals_the_slow_loop(loss, tied):
    primary, guardian = two_tables(tied=tied)
    data = problem(primary, guardian, alpha=ALPHAS, loss=loss, costs=PRICES)
    found = run_splits(data, SPLITS, fraction="0.4", seed=SEED)
    slow, names = Slow(primary, guardian, loss), data.alone.names
    for s, half in enumerate(random_splits(N, SPLITS, fraction="0.4", seed=SEED)):
        test: Any = np.flatnonzero(~half)
        calibration = np.flatnonzero(half)
        own = slow.at(test, -1.0, "restricted")
        assert found.alone[s, 0] == pytest.approx([own[name] for name in names], abs=1e-12)
        accuracy = slow.mean(test, [slow.guardian_accuracy(i) for i in test])
        assert found.alone[s, 1, names.index("accuracy")] == pytest.approx(accuracy)
        full_cost = slow.mean(test, [slow.guardian_cost(i, slow.mask[i].sum()) for i in test])
        assert found.alone[s, 1, names.index("cost")] == pytest.approx(full_cost)
        for menu in ("restricted", "full"):
            lams = thresholds(slow, menu, calibration)
            np.testing.assert_array_equal(found.threshold[menu][s], lams)
            for a, lam in enumerate(lams):
                want = slow.at(test, lam, menu)
                got = dict(zip(names, found.policy[menu][s, a], strict=True))
                assert got == pytest.approx(want, abs=1e-12)
                best = hindsight(slow, menu, test, float(ALPHAS[a]))
                assert found.hindsight_threshold[menu][s, a] == np.float32(best)
                check_baselines(slow, found.baselines[menu], (s, a), names, want, own,
                                (accuracy, full_cost), (calibration, test, lam, menu))  # fmt: skip


def check_baselines(slow, found, at, names, policy, own, guard, where):
    calibration, test, lam, menu = where

    def got(baseline: str, name: str) -> float:
        return found[baseline][at][names.index(name)]

    # The same seeded keys: a coin for the router, an order for the shuffled calls.
    keys = split_stream(SEED, at[0], COIN_PURPOSE).random_raw(len(test)) / 2.0**64
    rho = np.clip((policy["cost"] - own["cost"]) / (guard[1] - own["cost"]), 0, 1)
    coin = [slow.guardian_accuracy(i) if key < rho else slow.primary_accuracy(i)
            for i, key in zip(test, keys, strict=True)]  # fmt: skip
    assert got("random_router", "accuracy") == pytest.approx(np.mean(coin))
    assert got("random_router", "guardian_rate") == pytest.approx(np.mean(keys < rho))
    count = round(policy["guardian_rate"] * len(test))
    chosen = set(test[np.argsort(keys)[:count]].tolist())
    cost = [slow.primary_cost(i) + (slow.guardian_cost(i, slow.mask[i].sum()) if i in chosen else 0)
            for i in test]  # fmt: skip
    assert got("shuffled", "cost") == pytest.approx(np.mean(cost))
    assert got("shuffled", "guardian_rate") == pytest.approx(policy["guardian_rate"])
    # The largest confidence level whose calibration rate is at most the policy's.
    shown = np.where(slow.mask, slow.p, -np.inf).astype(np.float64)
    top = 1 / np.exp(shown - shown.max(axis=1, keepdims=True)).sum(axis=1)
    asked = slow.mask.sum(axis=1) > 1
    rate = slow.at(calibration, lam, menu)["guardian_rate"]
    top = top.astype(np.float32)
    levels = [-1.0, *sorted(set(top[asked].tolist()))]
    level = max(t for t in levels if np.mean(asked[calibration] & (top[calibration] <= t)) <= rate)
    deferred = asked & (top <= level)
    right = [slow.guardian_accuracy(i) if deferred[i] else slow.primary_accuracy(i) for i in test]
    assert got("max_probability", "accuracy") == pytest.approx(np.mean(right))
    assert got("max_probability", "guardian_rate") == pytest.approx(deferred[test].mean())
    useful = sum(slow.guardian_accuracy(i) > slow.primary_accuracy(i) for i in test)
    best = own["accuracy"] + min(useful, count) / len(test)
    assert got("oracle", "accuracy") == pytest.approx(best)
    assert math.isnan(got("oracle", "risk"))


def test_clusters_are_halved_whole_and_averaged():
    primary, guardian = two_tables()
    codes = np.random.default_rng(1).permutation(np.arange(N) // 3)
    slow = Slow(primary, guardian, "guardian_shortfall", codes)
    data = problem(primary, guardian, alpha=ALPHAS, cluster=codes, costs=PRICES)
    found = run_splits(data, 3, size=12, seed=SEED)
    rows = problem(primary, guardian, alpha=ALPHAS, cluster=codes, cluster_mean=False)
    by_row = run_splits(rows, 3, size=12, seed=SEED)
    unit = Fraction(data.menus["full"].curves.quantum)
    for s, half in enumerate(random_splits(N, 3, size=12, seed=SEED, cluster=codes)):
        test = np.flatnonzero(~half)
        assert found.n[s] == 12 and by_row.n[s] == half.sum()
        for a, alpha in enumerate(ALPHAS):
            lam = smallest(slow, codes, half, Fraction(alpha), unit)
            assert found.threshold["restricted"][s, a] == np.float32(lam)
            want = slow.at(test, lam, "restricted")
            got = dict(zip(data.alone.names, found.policy["restricted"][s, a], strict=True))
            assert got == pytest.approx(want, abs=1e-12)
        plain = thresholds(slow, "restricted", half)
        np.testing.assert_array_equal(by_row.threshold["restricted"][s], plain)


def smallest(slow: Slow, codes, half, alpha: Fraction, unit: Fraction) -> float:
    """Smallest lambda where the clusters' rounded-up mean losses, plus 1, are <= alpha (n + 1)."""
    inside = sorted(set(codes[half].tolist()))
    for lam in oracle.breakpoints(slow.p, slow.mask):
        total = Fraction(0)
        for code in inside:
            rows = np.flatnonzero(codes == code)
            losses = [oracle.row_loss(slow.p[i], slow.g[i], slow.mask[i], lam, float(unit))
                      for i in rows]  # fmt: skip
            total += math.ceil(sum(losses, Fraction(0)) / len(rows) / unit) * unit
        if total + 1 <= alpha * (len(inside) + 1):
            return lam
    return math.inf


def test_delta_areas_and_errors():
    primary, guardian = two_tables(200)
    result = evaluate_splits(primary, guardian, alpha=ALPHAS, n_splits=25, costs=PRICES, threads=2)
    data = problem(primary, guardian, alpha=ALPHAS, costs=PRICES)
    values = run_splits(data, 25)
    names = data.alone.names
    cost, right = names.index("cost"), names.index("accuracy")
    for entry in result["policies"]:
        a = ALPHAS.index(str(entry["alpha"]))
        points = values.policy[entry["menu"]][:, a]
        own, best = values.alone[:, 0], values.alone[:, 1]
        rho = np.clip((points[:, cost] - own[:, cost]) / (best[:, cost] - own[:, cost]), 0, 1)
        line = own[:, right] + rho * (best[:, right] - own[:, right])
        delta = points[:, right] - line
        assert entry["delta"]["mean"] == pytest.approx(delta.mean())
        assert entry["delta"]["sd"] == pytest.approx(delta.std(ddof=1))
        assert entry["delta"]["mc_error"] == pytest.approx(delta.std(ddof=1) / 5)
        assert entry["risk"]["stderr"] > 0 and entry["delta"]["stderr"] >= 0
    assert set(result["areas"]) == {"restricted", "full"}
    area, height = area_over_line(np.array([3.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0]))
    assert (area, height) == (1.0, 0.5)
    assert summary(np.array([1.0, np.nan])) is None
    assert result["unit"] == "row" and result["calibration_units"] == 100
    json.dumps(result, allow_nan=False)


def test_standard_error_of_clusters_and_of_delta():
    rng = np.random.default_rng(0)
    values = rng.random(90)
    plain = unit_error(values, np.full(90, 1 / 90), None)
    assert plain == pytest.approx(values.std(ddof=1) / math.sqrt(90))
    # Thrice the same row in a cluster is one row: the error is that of 30 values.
    codes = np.repeat(np.arange(30), 3)
    error = unit_error(np.repeat(values[:30], 3), np.full(90, 1 / 90), codes)
    assert error == pytest.approx(values[:30].std(ddof=1) / math.sqrt(30))
    assert unit_error(np.ones(1), np.ones(1), None) is None
    deltas, told = [], []
    for seed in range(60):
        primary, guardian = (make_table(120, seed=seed + 1000 * k, group=None) for k in (0, 1))
        guardian = make_table(120, scores=guardian.scores, label=primary.label, group=None)
        result = evaluate_splits(primary, guardian, alpha="0.2", n_splits=8, curves=False,
                                 baselines=())  # fmt: skip
        entry = result["policies"][0]["delta"]
        deltas.append(entry["mean"])
        told.append(entry["stderr"])
    # Over fresh data the spread of the mean over splits is what `stderr` says, within a third.
    assert np.std(deltas) == pytest.approx(np.mean(told), rel=0.33)


def test_mean_realised_risk_is_within_alpha():
    primary, guardian = two_tables(300)
    for loss in ("guardian_shortfall", "guardian_correct"):
        result = evaluate_splits(primary, guardian, alpha=["0.05", "0.1", "0.2"], n_splits=150,
                                 loss=loss, baselines=(), curves=False)  # fmt: skip
        for entry in result["policies"]:
            assert entry["risk"]["mean"] <= entry["alpha"] + 3 * entry["risk"]["mc_error"]


def test_without_labels_and_with_infeasible_levels():
    primary, guardian = two_tables(60, label=None, group=None)
    result = evaluate_splits(primary, guardian, alpha=["0.01", "0.2"], n_splits=6)
    first, second = result["policies"][:2]
    assert first["threshold"] == "inf" and first["feasible"] == 0 and first["risk"]["mean"] == 0
    assert second["accuracy"] is None and second["delta"] is None
    assert result["areas"]["full"] is None and result["groups"] == {}
    assert "needs n >= 99" in result["guarantee"]
    assert "oracle" not in first["baselines"]
    assert str(baseline_table(result)).split()[:4] == ["risk", "policy", "random", "router"]
    line = split_table(result).splitlines()[2]
    assert line.split()[:2] == ["restricted", "0.01"] and " inf " in line
    assert split_table(result).split()[:3] == ["policy", "p", "lost"]
    with pytest.raises(UsageError, match="label"):
        evaluate_splits(primary, guardian, alpha="0.2", loss="guardian_correct", n_splits=2)
    with pytest.raises(UsageError, match="one of guardian_shortfall, guardian_correct"):
        evaluate_splits(primary, guardian, alpha="0.2", loss="full_menu", n_splits=2)
    with pytest.raises(UsageError, match="at least 1"):
        evaluate_splits(primary, guardian, alpha="0.2", n_splits=0)


def test_equal_costs_leave_no_line():
    primary, guardian = two_tables(60)
    result = evaluate_splits(primary, guardian, alpha="0.2", n_splits=4, costs=Costs(1.0, 1.0))
    entry = result["policies"][0]
    assert entry["delta"] is None and entry["baselines"]["random_router"]["accuracy"] is None
