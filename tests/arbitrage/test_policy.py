"""Routing in NumPy and JAX, and the policy file."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from problems import f32, problems

from arbitrage import Policy, Route, choose, route
from arbitrage.candidates import gaps
from arbitrage.errors import DataError, UsageError


def make_policy(**changes) -> Policy:
    values: dict[str, Any] = {
        "alphas": (0.01, 0.1),
        "thresholds": (math.inf, float(np.float32(0.3))),
        "feasible": (False, True),
        "empirical_risk": (0.0, 0.09),
        "guardian_rate": (1.0, 0.4),
        "bound": 1.0,
        "n": 50,
        "quantum": 2.0**-40,
        "transform": "softmax",
        "calibration_sha256": {"primary": "a" * 64, "guardian": "b" * 64},
        "metadata": {"primary": {"model": "p"}, "guardian": {}},
        "created": "2026-01-01T00:00:00+00:00",
        "software": "arbitrage 0.1.0",
        "guarantee": "Averaged over the draw.",
    }
    return Policy(**(values | changes))


def test_route_uses_the_gap_rule_and_counts_candidates():
    p = f32([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
    got = route(p, 0.25)
    assert isinstance(got, Route)
    assert got.candidates.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert got.defer.tolist() == [True, False, True]
    # lambda = 0 is not "never ask": a tie at the top still needs a Guardian.
    assert route(p, 0.0).defer.tolist() == [False, False, True]
    np.testing.assert_array_equal(got.candidates, gaps(p) <= np.float32(0.25))


def test_masked_options_are_never_candidates():
    p = f32([[0.1, 0.2, 0.9]])
    mask = np.array([[True, True, False]])
    for threshold in (0.0, 1.0, np.inf, np.nan):
        assert not route(p, threshold, mask).candidates[0, 2]
        assert choose(p, f32([[0, 0, 9]]), threshold, mask)[0] != 2
    assert route(p, np.inf, mask).defer.tolist() == [True]
    # NaN is not a threshold: ask the Guardian rather than let the Primary act alone.
    assert route(p, np.nan, mask).defer.tolist() == [True]


def test_ties_take_the_lowest_index_on_both_sides():
    p, g = f32([[0.2, 0.5, 0.5, 0.1]]), f32([[0.0, 0.3, 0.3, 0.9]])
    assert choose(p, g, 0.0).tolist() == [1]
    assert choose(p, g, 1.0).tolist() == [3]
    one = f32([[0.1, 0.9, 0.9 - 1e-3]])
    assert choose(one, np.full((1, 3), np.nan), 0.0).tolist() == [1]


def test_scores_of_one_row_and_one_option():
    got = route(f32([0.5, 0.4]), 0.2)
    assert got.candidates.shape == (2,) and bool(got.defer)
    alone = route(np.ones((3, 1), np.float32), np.inf)
    assert not alone.defer.any()


@settings(max_examples=40, deadline=None)
@given(problems())
def test_numpy_jax_jit_and_vmap_agree(problem):
    p, g, mask = (np.resize(part, (8, 5)) for part in problem)
    mask[:, 0] = True
    for threshold in (np.float32(0.0), np.float32(0.5), np.float32(np.inf)):
        want, action = route(p, threshold, mask), choose(p, g, threshold, mask)
        for got in (ROUTE(p, threshold, mask), VROUTE(p, threshold, mask)):
            np.testing.assert_array_equal(got.candidates, want.candidates)
            np.testing.assert_array_equal(got.defer, want.defer)
        np.testing.assert_array_equal(CHOOSE(p, g, threshold, mask), action)


ROUTE = jax.jit(route)
VROUTE = jax.jit(jax.vmap(route, in_axes=(0, None, 0)))
CHOOSE = jax.jit(choose)


def test_strict_promotion_and_low_precision():
    p = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    want = route(p, 0.2)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = route(jnp.asarray(p), 0.2, jnp.ones(4, dtype=bool))
        choose(jnp.asarray(p), jnp.asarray(p), 0.2)
    np.testing.assert_array_equal(got.candidates, want.candidates)
    assert isinstance(got.defer, jax.Array)
    half = jnp.asarray(p, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(route(half, 0.2).defer, route(np.asarray(half), 0.2).defer)


def test_policy_survives_its_file(tmp_path):
    policy = make_policy()
    policy.write(tmp_path / "policy.json")
    again = Policy.read(tmp_path / "policy.json")
    assert again == policy
    content = json.loads((tmp_path / "policy.json").read_text())
    assert content["thresholds"][0] == "inf"
    assert list(content)[:3] == ["schema_version", "method", "loss"]
    assert again.threshold("0.1") == np.float32(0.3)
    assert again.threshold(0.01) == np.inf
    with pytest.raises(UsageError, match=r"0\.2 was not calibrated; this policy holds 0\.01, 0\.1"):
        again.threshold(0.2)


def test_a_policy_with_groups_and_one_for_the_full_menu():
    policy = make_policy(group_thresholds={"a": (math.inf, 0.25), "b": (0.5, 0.125)})
    assert Policy.from_json(policy.to_json()) == policy
    limits = policy.row_threshold("0.1", np.array(["b", "never seen", "a"]))
    assert limits.tolist() == [0.125, math.inf, 0.25]
    assert policy.row_threshold(0.01, ["b", "a"]).tolist() == [0.5, math.inf]
    with pytest.raises(UsageError, match="give the rows' groups"):
        policy.row_threshold("0.1")
    p = f32([[0.5, 0.4, 0.1]] * 3)
    assert route(p, limits).defer.tolist() == [True, True, True]
    assert route(p, f32([0.0, 0.1, np.inf])).candidates.sum(axis=1).tolist() == [1, 2, 3]
    assert not policy.full_menu
    for loss in ("full_menu", "exceeds(full_menu, 0.1)"):
        assert make_policy(loss=loss).full_menu
    g = f32([[0, 1, 9]])
    assert choose(p[:1], g, 0.2).tolist() == [1]
    assert choose(p[:1], g, 0.2, full_menu=True).tolist() == [2]
    assert choose(p[:1], g, 0.0, full_menu=True).tolist() == [0]


@pytest.mark.parametrize("name", list(make_policy().to_json()))
def test_missing_field(name, tmp_path):
    content = make_policy().to_json()
    del content[name]
    with pytest.raises(DataError, match=name) as error:
        Policy.from_json(content, "policy.json")
    assert str(error.value).startswith("policy.json: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema_version", 1),
        ("method", "rcps"),
        ("loss", "other"),
        ("transform", "logit"),
        ("n", 0),
        ("n", 5.0),
        ("bound", "1"),
        ("alphas", []),
        ("alphas", [0.1, "0.2"]),
        ("alphas", 0.1),
        ("alphas", [0.1, 2.0]),
        ("thresholds", [0.1, 0.2]),
        ("thresholds", ["inf", "inf"]),
        ("thresholds", ["inf", -1.0]),
        ("thresholds", ["inf"]),
        ("feasible", [0, 1]),
        ("metadata", []),
        ("guardian_rate", [0.1, "x"]),
        ("created", 5),
        ("delta", 0.1),
        ("group_thresholds", []),
        ("group_thresholds", {"a": [0.1]}),
        ("group_thresholds", {"a": [0.1, None]}),
    ],
)
def test_bad_field(name, value):
    content = make_policy().to_json() | {name: value}
    with pytest.raises(DataError, match=name):
        Policy.from_json(content)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"n": NaN}', "[" * 100_000, "\ufffd\x00"])
def test_files_that_are_not_policies(text, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"policy\.json") as error:
        Policy.read(path)
    assert "\n" not in str(error.value)
