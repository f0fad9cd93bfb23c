"""Real option scores: two vision-language models on MMBench, and the script that splits them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from problems import ROOT, run_python

from arbitrage import (
    ScoreTable,
    calibrate,
    calibrate_files,
    choose,
    evaluate_files,
    join,
    route,
    softmax,
)
from arbitrage.clusters import cluster_codes

PAIR = ("MobileVLM-1.7B", "llava-v1.6-34b")


@pytest.fixture(scope="module")
def folder(data_pack) -> Path:
    folder = data_pack / "scores" / "mmbench"
    if not all((folder / f"{model}.parquet").is_file() for model in PAIR):
        pytest.skip(f"no MMBench score tables in {folder}; set TRINITYX_DATA_DIR")
    return folder


def tables(folder: Path) -> tuple[ScoreTable, ScoreTable]:
    """One row per base question: rotations of one question are not independent."""
    read = [ScoreTable.read(folder / f"{model}.parquet") for model in PAIR]
    first = [table.take(table.question_id.astype(int) < 1_000_000) for table in read]
    return join(softmax(first[0]), softmax(first[1]))


def test_published_accuracies_come_out(folder):
    for model, accuracy in zip(PAIR, (0.6102, 0.8392), strict=True):
        table = ScoreTable.read(folder / f"{model}.parquet")
        assert len(table) == 4377 and table.scores.shape == (4377, 6)
        assert np.bincount(table.n_options).tolist() == [0, 0, 0, 0, 3, 14, 4360]
        assert table.metadata["model"] == model
        found = (table.scores.argmax(axis=1) == table.label).mean()
        assert found == pytest.approx(accuracy, abs=5e-5)


def test_risk_over_random_splits_of_base_questions(folder):
    primary, guardian = tables(folder)
    assert len(primary) == 1176
    p, g, mask = primary.scores, guardian.scores, primary.mask
    best = g.max(axis=1).astype(np.float64)
    rng, alphas, splits = np.random.default_rng(0), [0.05, 0.1, 0.2], 200
    risks = np.empty((splits, len(alphas)))
    for split in range(splits):
        order = rng.permutation(len(p))
        cal, test = order[:588], order[588:]
        found = calibrate(p[cal], g[cal], alpha=alphas, bound=1, mask=mask[cal])
        for at, threshold in enumerate(found.threshold):
            action = choose(p[test], g[test], threshold, mask[test])
            risks[split, at] = (best[test] - g[test, action]).mean()
    # Splits share their questions: per split the risk has a standard deviation of about 0.02, so
    # the mean of 200 is good to 0.0014; CRC is at most 2 B / (n + 1) = 0.0034 below alpha.
    assert (risks.mean(axis=0) <= np.array(alphas) + 0.005).all()
    assert (risks.mean(axis=0) >= np.array(alphas) - 0.0034 - 0.005).all()


def test_routing_of_real_tied_and_ragged_rows(folder):
    primary, _ = tables(folder)
    candidates, defer = route(primary.scores, np.float32(0.2), primary.mask)
    valid = np.where(primary.mask, primary.scores, -np.inf)
    want = primary.mask & (valid.max(axis=1, keepdims=True) - valid <= np.float32(0.2))
    np.testing.assert_array_equal(candidates, want)
    np.testing.assert_array_equal(defer, want.sum(axis=1) > 1)


def test_every_pair_script_at_a_small_size(folder, tmp_path):
    """Three pairs, 40 splits: the counts and the example are printed, the CSV is whole."""
    output = tmp_path / "pairs.csv"
    script = str(ROOT / "scripts" / "arbitrage_real_scores.py")
    done = run_python(script, str(folder), "--pairs", "3", "--splits", "40", "--processes", "2",
                      "--output", str(output))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 of 6 in" in done.stderr and done.stdout.count("| alpha | pairs | kept") == 4
    assert "Primary" in done.stdout and "```text" in done.stdout
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert len(rows) == 3 * 2 * 2 * 5  # pairs, losses, menus, alphas
    for row in rows:
        # Questions of one data set are exchangeable over its random splits.
        assert float(row["risk"]) <= float(row["alpha"]) + 3 * float(row["risk_mc_error"])
    again = run_python(script, str(folder), "--output", str(output))
    assert again.returncode == 2 and "--overwrite" in again.stderr


def test_answers_only_leaves_out_the_two_that_abstain(folder):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from prepare_mmbench import read_model  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    whole = read_model(folder, PAIR[0], all_rotations=True)
    table = read_model(folder, PAIR[0], all_rotations=True, answers_only=True)
    np.testing.assert_array_equal(table.n_options, whole.n_options - 2)
    assert len(table) == 4377 and table.scores.shape[1] == 4
    codes = cluster_codes(table, "question_id%1000000")
    assert np.bincount(np.bincount(codes)).tolist() == [0, 0, 89, 149, 938]
    assert table.label is not None
    found = (table.scores.argmax(axis=1) == table.label).mean()
    assert found == pytest.approx(0.6111, abs=5e-5)


def test_script_and_commands_end_to_end(folder, tmp_path):
    script = [str(ROOT / "scripts" / "prepare_mmbench.py"), str(folder)]
    arguments = [*script, "--primary", PAIR[0], "--guardian", PAIR[1], "--output", str(tmp_path)]

    def run(*more: str):
        return run_python(*arguments, *more)

    done = run("--seed", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "calibration: 588 questions, test: 588 questions\n"
    done = run("--seed", "3")
    assert done.returncode == 2 and "--overwrite" in done.stderr
    paths = {
        (role, part): tmp_path / f"{role}-{part}.parquet"
        for role in ("primary", "guardian")
        for part in ("calibration", "test")
    }
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())
    parts = {key: ScoreTable.read(path) for key, path in paths.items()}
    ids = [set(parts["primary", part].question_id) for part in ("calibration", "test")]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 1176
    assert all(int(name) < 1_000_000 for name in ids[0] | ids[1])
    policy = calibrate_files(
        paths["primary", "calibration"],
        paths["guardian", "calibration"],
        alpha=["0.05", "0.1", "0.2"],
        bound=1,
        softmax=True,
        output=tmp_path / "policy.json",
    )
    assert policy.metadata["guardian"]["model"] == PAIR[1]
    result = evaluate_files(
        tmp_path / "policy.json", paths["primary", "test"], paths["guardian", "test"]
    )
    assert result["held_out"] and len(result["groups"]) == 20
    for found in result["overall"]["policies"]:
        # Conditional on one split the risk may exceed alpha; five standard errors may not.
        assert found["risk"] <= found["alpha"] + 5 * found["risk_stderr"]
    for more, message in [
        (("--guardian", "nobody"), "models there: "),
        (("--seed", "x"), "--seed"),
    ]:
        bad = run("--overwrite", *more)
        assert bad.returncode == 2 and message in bad.stderr and bad.stderr.count("\n") == 1
