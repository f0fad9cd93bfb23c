"""Random splits, their thresholds against `calibrate` on each half, clusters, and the benchmark."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from problems import ROOT, make_table, problems, run_python

from arbitrage import calibrate, splits
from arbitrage.clusters import cluster_codes, cluster_curves, take_units
from arbitrage.errors import DataError, UsageError
from arbitrage.loss_curves import LossCurves, loss_curves
from arbitrage.losses import AbsoluteShortfall, GuardianCorrect
from arbitrage.splits import calibration_size, map_splits, random_splits, split_thresholds

ALPHAS = ["0.05", "0.125", "0.3", "0.6"]


def curves_of(p, g, mask, **more) -> LossCurves:
    return loss_curves(p, g, bound=Fraction(1), mask=mask, **more)


def subset_calibration(p, g, mask, half, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(p[half], g[half], alpha=ALPHAS, bound=1, mask=mask[half], **more)


def check_against_calibrate(p, g, mask, halves, *, label=None, **more):
    curves = curves_of(p, g, mask, label=label, **more)
    found = split_thresholds(curves, halves, ALPHAS, 1)
    for s, half in enumerate(halves):
        part = None if label is None else label[half]
        want = subset_calibration(p, g, mask, half, label=part, **more)
        np.testing.assert_array_equal(found.threshold[s], want.threshold)
        np.testing.assert_array_equal(found.feasible[s], want.feasible)
        risk = found.total[s] * curves.quantum / found.n[s]
        np.testing.assert_array_equal(risk, want.empirical_risk)
        assert found.n[s] == want.n == half.sum()


@settings(max_examples=40, deadline=None)
@given(problems(max_rows=12))
def test_thresholds_are_those_of_calibrate_on_each_half(problem):
    p, g, mask = problem
    rng = np.random.default_rng(len(p))
    halves = rng.random((4, len(p))) < 0.6
    halves[:, 0] = True  # any non-empty subset will do, of any size
    check_against_calibrate(p, g, mask, halves)
    check_against_calibrate(p, g, mask, halves, loss=AbsoluteShortfall(0.75))
    label = rng.integers(0, mask.sum(axis=1))
    check_against_calibrate(p, g, mask, halves, loss=GuardianCorrect(), label=label)


@pytest.mark.parametrize("levels", [7, 10**6])
def test_many_stretches_chunks_and_tied_runs(levels, monkeypatch):
    monkeypatch.setattr(splits, "CHUNK_EVENTS", 2 * splits.STRETCH)
    rng = np.random.default_rng(1)
    p = rng.integers(0, levels, (900, 4)).astype(np.float32) / levels
    g = rng.integers(0, 9, (900, 4)).astype(np.float32) / 8
    halves = random_splits(900, 11, fraction="0.4", seed=3)
    check_against_calibrate(p, g, np.ones(p.shape, dtype=bool), halves)


def test_without_any_event():
    p = np.ones((5, 3), dtype=np.float32)  # all tied: every row has loss 0 at lambda = 0
    found = split_thresholds(curves_of(p, p, None), random_splits(5, 3, size=3), ["0.2", "0.5"], 1)
    assert found.threshold.tolist() == [[np.inf, 0.0]] * 3
    assert found.total.tolist() == [[0, 0]] * 3


def test_splits_have_their_size_and_do_not_depend_on_how_many_are_drawn():
    many = random_splits(1001, 30, fraction="0.3", seed=5)
    assert many.dtype == bool and many.shape == (30, 1001)
    assert (many.sum(axis=1) == 300).all()
    np.testing.assert_array_equal(random_splits(1001, 4, fraction="0.3", seed=5), many[:4])
    np.testing.assert_array_equal(random_splits(1001, range(7, 9), fraction=0.3, seed=5), many[7:9])
    assert (random_splits(1001, 30, fraction="0.3", seed=6) != many).any(axis=1).all()
    assert len({row.tobytes() for row in many}) == 30
    for size in (1, 2, 500, 999, 1000):
        assert (random_splits(1001, 3, size=size).sum(axis=1) == size).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_subset_is_equally_likely(size):
    drawn = random_splits(6, 6000, size=size, seed=1)
    codes = drawn @ (1 << np.arange(6))
    subsets = [sum(1 << at for at in members) for members in itertools.combinations(range(6), size)]
    counts = np.bincount(codes, minlength=64)[subsets]
    assert counts.sum() == 6000
    expected = 6000 / len(subsets)
    # Chi-square with up to 19 degrees of freedom: 50 is passed by chance once in 8,000 draws.
    assert ((counts - expected) ** 2 / expected).sum() < 50


def test_clusters_stay_together():
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3))
    halves = random_splits(120, 9, size=15, seed=2, cluster=codes)
    for half in halves:
        assert len(set(codes[half])) == 15 and half.sum() == 45
    np.testing.assert_array_equal(halves, random_splits(40, 9, size=15, seed=2)[:, codes])


def test_bad_sizes_are_named():
    bad: list[dict[str, Any]] = [{"size": 0}, {"size": 10}, {"fraction": 1}, {"fraction": "0.01"}]
    for options in bad:
        with pytest.raises(UsageError, match="empty half"):
            random_splits(10, 1, **options)
    with pytest.raises(UsageError, match="at least one"):
        random_splits(10, 0)
    assert calibration_size(10, fraction="0.3") == 3  # not 0.3 as a binary float, times 10


@settings(max_examples=40, deadline=None)
@given(problems(max_rows=12))
def test_cluster_curves_are_rounded_up_means(problem):
    p, g, mask = problem
    raw = np.random.default_rng(len(p)).integers(0, 4, len(p))
    codes = np.unique(raw, return_inverse=True)[1]
    curves = curves_of(p, g, mask)
    means = cluster_curves(curves, codes)
    unit = Fraction(means.quantum)
    assert means.n == codes.max() + 1 and (means.drop > 0).all()
    for lam in oracle.breakpoints(p, mask):
        done = means.gap <= lam
        units = means.base - np.bincount(means.row[done], means.drop[done], means.n)
        for code in range(means.n):
            rows = np.flatnonzero(codes == code)
            losses = [oracle.row_loss(p[i], g[i], mask[i], lam, curves.quantum) for i in rows]
            mean = sum(losses, Fraction(0)) / len(rows)
            assert 0 <= int(units[code]) * unit - mean < unit


def test_one_row_clusters_change_nothing():
    rng = np.random.default_rng(0)
    p, g = rng.dirichlet(np.ones(4), (2, 50)).astype(np.float32)
    curves = curves_of(p, g, None)
    order = rng.permutation(50)
    halves = random_splits(50, 5)
    want = split_thresholds(curves, halves, ALPHAS, 1)
    moved = np.empty_like(halves)
    moved[:, order] = halves
    found = split_thresholds(cluster_curves(curves, order), moved, ALPHAS, 1)
    np.testing.assert_array_equal(found.threshold, want.threshold)
    np.testing.assert_array_equal(found.total, want.total)
    kept = halves[0]
    part = split_thresholds(take_units(curves, kept), np.ones((1, 25), dtype=bool), ALPHAS, 1)
    np.testing.assert_array_equal(part.threshold[0], want.threshold[0])


def test_cluster_columns():
    ids = np.array(["7", "1000007", "12", "2000012", "13"])
    table = make_table(5, question_id=ids, group=np.array(list("abbaa")),
                       extra={"half": np.array([0.5, 1.0, 0.5, 1.0, np.nan])})  # fmt: skip
    assert cluster_codes(table, "question_id%1000000").tolist() == [0, 0, 1, 1, 2]
    assert cluster_codes(table, "group").tolist() == [0, 1, 1, 0, 0]
    assert len(set(cluster_codes(table, "question_id"))) == 5
    for spec, error, words in [
        ("nothing", UsageError, "has question_id, group, half"),
        ("question_id%0", UsageError, "COLUMN%M"),
        ("question_id%x", UsageError, "COLUMN%M"),
        ("group%3", DataError, r"row 0 \(question_id '7'\): group is 'a'"),
        ("half", DataError, "row 4: the cluster column 'half' is missing"),
    ]:
        with pytest.raises(error, match=words):
            cluster_codes(table, spec)
    curves = curves_of(table.scores, table.scores, None)
    for codes in (np.zeros(4, int), np.zeros(5), np.array([0, 0, 0, 0, 2]), -np.ones(5, int)):
        with pytest.raises(UsageError, match="cluster"):
            cluster_curves(curves, codes)


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_come_back_in_order_and_are_told(threads):
    told = []
    found = map_splits(list, 10, block=4, threads=threads, progress=told.append)
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and told == [4, 4, 2]


def test_mean_realised_risk_is_within_alpha_on_synthetic_scores():
    rng = np.random.default_rng(4)
    p, g = rng.dirichlet(np.ones(4), (2, 400)).astype(np.float32)
    curves = curves_of(p, g, None)
    halves = random_splits(400, 300, size=200)
    found = split_thresholds(curves, halves, ["0.1", "0.2"], 1)
    risks = np.empty(found.threshold.shape)
    for s, half in enumerate(halves):
        rows = ~half[curves.row]
        for a, lam in enumerate(found.threshold[s]):
            gone = curves.drop[rows & (curves.gap <= lam)].sum()
            risks[s, a] = (curves.base[~half].sum() - gone) * curves.quantum / 200
    error = risks.std(axis=0, ddof=1) / np.sqrt(len(halves))
    # Random halves of fixed data are exchangeable: only the drawing error counts.
    assert (risks.mean(axis=0) <= np.array([0.1, 0.2]) + 3 * error).all()
    assert (risks.mean(axis=0) >= np.array([0.1, 0.2]) - 2 / 201 - 3 * error).all()


def test_benchmark_script_runs():
    script = ROOT / "scripts" / "benchmarks" / "bench_splits.py"
    done = run_python(str(script), "--rows", "300", "--splits", "4", "--levels", "3",
                      "--loop-splits", "2", "--repeats", "1")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[-1] == "ratio" and len(lines) == 5
    assert "N = 300, K = 4" in lines[4] and "numpy" in lines[4]
