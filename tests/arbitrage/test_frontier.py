"""Evaluation against a row-by-row reference, and the curves against the routing code."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from problems import make_table, problems
from test_policy import make_policy

from arbitrage import choose, evaluate, frontier_curve, risk_curve, route, softmax
from arbitrage.errors import DataError, UsageError


def reference(p, g, mask, label, lam):
    """Means over rows, one row at a time."""
    rows = []
    for p_row, g_row, mask_row, gold in zip(p, g, mask, label, strict=True):
        gap = oracle.row_gaps(p_row, mask_row)
        action = oracle.deployed(p_row, g_row, mask_row, lam)
        size = sum(value <= lam for value in gap.values())
        best = max(float(g_row[a]) for a in gap)
        rows.append(
            [best - float(g_row[action]), size > 1, size, gap[action], float(action == gold)]
        )
    names = ("risk", "guardian_rate", "mean_set_size", "primary_drop", "accuracy")
    return dict(zip(names, np.mean(rows, axis=0), strict=True))


def three_alphas(transform: str = "none"):
    return make_policy(
        alphas=(0.01, 0.1, 0.3),
        thresholds=(math.inf, float(np.float32(0.3)), 0.0),
        feasible=(False, True, True),
        empirical_risk=(0.0, 0.1, 0.2),
        guardian_rate=(1.0, 0.5, 0.0),
        transform=transform,
    )


@pytest.mark.parametrize("transform", ["none", "softmax"])
def test_every_number_equals_the_row_by_row_reference(transform):
    primary, guardian = make_table(60, seed=0), make_table(60, seed=1, label=None)
    result = evaluate(three_alphas(transform), primary, guardian.take(np.arange(60)[::-1]))
    if transform == "softmax":
        primary, guardian = softmax(primary), softmax(guardian)
    p, g, mask, label = primary.scores, guardian.scores, primary.mask, primary.label
    assert label is not None
    scopes = {"even": slice(0, None, 2), "odd": slice(1, None, 2)}
    for name, rows in [("overall", slice(None)), *scopes.items()]:
        scope = result["overall"] if name == "overall" else result["groups"][name]
        part = (p[rows], g[rows], mask[rows], label[rows])
        assert scope["n"] == len(part[0])
        for found, lam in zip(scope["policies"], (math.inf, np.float32(0.3), 0.0), strict=True):
            for key, value in reference(*part, lam).items():
                assert found[key] == pytest.approx(value, abs=1e-12), key
            rate, accuracy = found["guardian_rate"], found["accuracy"]
            line = (1 - rate) * scope["primary"]["accuracy"] + rate * scope["guardian"]["accuracy"]
            assert found["random_accuracy"] == pytest.approx(line)
            assert found["delta"] == pytest.approx(accuracy - line)
        own, best = part[0].argmax(axis=1), part[1].argmax(axis=1)
        assert scope["primary"]["accuracy"] == pytest.approx((own == part[3]).mean())
        assert scope["guardian"]["accuracy"] == pytest.approx((best == part[3]).mean())
        assert scope["guardian"]["risk"] == 0 and scope["primary"]["guardian_rate"] == 0
    json.dumps(result, allow_nan=False)
    assert [p["threshold"] for p in result["overall"]["policies"]] == [
        "inf",
        float(np.float32(0.3)),
        0.0,
    ]


def test_standard_errors():
    primary, guardian = make_table(50, seed=0), make_table(50, seed=1, label=None)
    found = evaluate(three_alphas(), primary, guardian)["overall"]["policies"][1]
    action = choose(primary.scores, guardian.scores, np.float32(0.3))
    shortfall = guardian.scores.max(axis=1).astype(float) - guardian.scores[np.arange(50), action]
    assert found["risk_stderr"] == pytest.approx(shortfall.std(ddof=1) / math.sqrt(50))
    assert primary.label is not None
    correct = (action == primary.label).astype(float)
    assert found["accuracy_stderr"] == pytest.approx(correct.std(ddof=1) / math.sqrt(50))


@pytest.mark.parametrize(
    "name", ["full_menu", "guardian_correct", "absolute_shortfall(0.6)", "exceeds(full_menu, 0.2)"]
)
def test_other_losses_are_measured_with_their_own_policy(name):
    primary, guardian = make_table(60, seed=0), make_table(60, seed=1, label=None)
    p, g, label = primary.scores, guardian.scores, primary.label
    assert label is not None
    policy = make_policy(alphas=(0.1,), thresholds=(float(np.float32(0.3)),), feasible=(True,),
                         empirical_risk=(0.1,), guardian_rate=(0.5,), loss=name,
                         transform="none")  # fmt: skip
    overall = evaluate(policy, primary, guardian)["overall"]
    losses, correct = [], []
    for i in range(60):
        action = oracle.deployed(p[i], g[i], primary.mask[i], float(np.float32(0.3)))
        gap = oracle.row_gaps(p[i], primary.mask[i])
        if policy.full_menu and sum(value <= np.float32(0.3) for value in gap.values()) > 1:
            action = int(g[i].argmax())
        shortfall = float(g[i].max()) - float(g[i, action])
        if name.startswith("exceeds"):
            # Its loss looks at the whole menu of a deferred row, as `full_menu` does.
            asked = sum(value <= np.float32(0.3) for value in gap.values()) > 1
            losses.append(0.0 if asked and policy.full_menu else float(shortfall > 0.2))
        elif name == "guardian_correct":
            losses.append(float(g[i].argmax() == label[i] and action != label[i]))
        elif name.startswith("absolute"):
            losses.append(max(0.0, 0.6 - float(g[i, action])))
        else:
            losses.append(shortfall)
        correct.append(float(action == label[i]))
    found = overall["policies"][0]
    assert found["risk"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(correct))


def test_a_loss_that_needs_labels_says_so():
    primary, guardian = (make_table(9, seed=s, label=None) for s in (0, 1))
    policy = make_policy(loss="guardian_correct", transform="none")
    with pytest.raises(UsageError, match="guardian_correct needs a label column"):
        evaluate(policy, primary, guardian)


def test_group_thresholds_are_those_that_serve():
    primary, guardian = make_table(60, seed=0), make_table(60, seed=1, label=None)
    limits = {"even": (0.2, 0.1, 0.0), "odd": (math.inf, 0.5, 0.3)}
    policy = dataclasses.replace(three_alphas(), group_thresholds=limits)
    result = evaluate(policy, primary, guardian)
    scopes = {"even": slice(0, None, 2), "odd": slice(1, None, 2)}
    for name, rows in scopes.items():
        for at, found in enumerate(result["groups"][name]["policies"]):
            lam = limits[name][at]
            assert found["threshold"] == ("inf" if math.isinf(lam) else lam)
            rate = route(primary.scores[rows], np.float32(lam)).defer.mean()
            assert found["guardian_rate"] == rate


def test_no_labels_no_groups_and_one_row():
    primary, guardian = (make_table(1, seed=s, label=None, group=None) for s in (0, 1))
    result = evaluate(three_alphas(), primary, guardian)
    found = result["overall"]["policies"][1]
    assert found["accuracy"] is found["delta"] is found["risk_stderr"] is None
    assert result["groups"] == {} and result["curves"]["frontier"]["accuracy"] is None


def test_a_loss_above_the_bound_is_an_error():
    primary, guardian = make_table(9, seed=0), make_table(9, seed=1, label=None)
    scores = guardian.scores * 50
    with pytest.raises(DataError, match="more than the bound 1"):
        evaluate(three_alphas(), primary, make_table(9, scores=scores, label=None))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_curves_equal_routing_at_every_lambda(problem):
    p, g, mask = problem
    label = np.zeros(len(p), dtype=int)
    curve = frontier_curve(p, g, label=label, mask=mask)
    lambdas = curve["lambda"]
    assert lambdas is not None and lambdas[0] == 0
    assert set(lambdas) <= set(oracle.breakpoints(p, mask)) and lambdas == sorted(set(lambdas))
    for at, lam in enumerate(lambdas):
        for name, value in reference(p, g, mask, label, lam).items():
            column = curve[name]
            assert column is not None and column[at] == pytest.approx(value, abs=1e-12), name
        assert curve["guardian_rate"][at] == route(p, lam, mask).defer.mean()  # type: ignore
    steps, risk = risk_curve(p, g, bound=1, mask=mask)
    for lam, value in zip(steps, risk, strict=True):
        assert value == float(oracle.loss_sum(p, g, mask, lam)) / len(p)


def test_the_full_menu_curve_equals_routing():
    primary, guardian = make_table(40, seed=0), make_table(40, seed=1)
    p, g, label = primary.scores, guardian.scores, primary.label
    curve = frontier_curve(p, g, label=label, full_menu=True)
    lambdas, accuracy = curve["lambda"], curve["accuracy"]
    assert lambdas is not None and accuracy is not None
    for lam, value in zip(lambdas, accuracy, strict=True):
        action = choose(p, g, np.float32(lam), full_menu=True)
        assert value == pytest.approx((action == label).mean())


def test_thinned_curves_keep_their_ends():
    p, g = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3000))
    whole = frontier_curve(p, g, max_points=10**6)
    thin = frontier_curve(p, g)
    for name in ("lambda", "guardian_rate", "risk"):
        few, all_ = thin[name], whole[name]
        assert few is not None and all_ is not None
        assert 400 < len(few) <= 512 < len(all_)
        assert few[0] == all_[0] and few[-1] == all_[-1]
    assert thin["guardian_rate"][-1] == 1.0  # type: ignore[index]
    steps, risk = risk_curve(p, g, bound=1)
    assert len(steps) <= 512 and steps[0] == 0 and risk[-1] == 0
    assert (np.diff(steps) > 0).all() and (np.diff(risk) < 0).all()
