"""The commands, as a user meets them: outputs, exit statuses, one line on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from problems import make_table, run_python

from arbitrage import (
    Policy,
    ScoreTable,
    calibrate_files,
    choose,
    evaluate_files,
    route,
    route_files,
    softmax,
)
from arbitrage.cli import main
from arbitrage.io import sha256_file


@pytest.fixture
def folder(tmp_path) -> Path:
    for role, seed in (("primary", 0), ("guardian", 1)):
        table = make_table(120, seed=seed, label=np.zeros(120, dtype=int))
        table.take(np.arange(60)).write(tmp_path / f"{role}.parquet")
        table.take(np.arange(60, 120)).write(tmp_path / f"{role}-test.parquet")
    return tmp_path


def calibrate_arguments(folder: Path, *more: str) -> list[str]:
    tables = [str(folder / "primary.parquet"), str(folder / "guardian.parquet")]
    return ["calibrate", *tables, "--alpha", "0.05", "0.1", "--output",
            str(folder / "policy.json"), *more]  # fmt: skip


def evaluate_arguments(folder: Path, *more: str) -> list[str]:
    tables = [str(folder / "primary-test.parquet"), str(folder / "guardian-test.parquet")]
    return ["evaluate", str(folder / "policy.json"), *tables, *more]


def test_three_commands_in_a_row_as_processes(folder):
    def run(*arguments: str) -> str:
        done = run_python("-m", "arbitrage", *arguments, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    printed = run(*calibrate_arguments(folder, "--softmax", "--bound", "1"))
    lines = printed.splitlines()
    assert lines[0].split() == "alpha n threshold empirical risk feasible Guardian rate".split()
    assert [line.split()[0] for line in lines[1:3]] == ["0.05", "0.1"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert "60 calibration rows" in lines[3] and len(lines) == 4
    printed = run(*evaluate_arguments(folder, "--output", "e.json", "--figures", "figures"))
    lines = printed.splitlines()
    assert lines[0].split()[0] == "policy" and lines[1].split()[0] == "Primary"
    assert lines[4].split()[0] == "Guardian" and lines[5].startswith("n = 60 rows;")
    assert len(list((folder / "figures").iterdir())) == 6
    printed = run("route", "policy.json", "primary-test.parquet", "--alpha", "0.10",
                  "--output", "routes.parquet")  # fmt: skip
    assert printed.startswith("60 rows: ")
    routes = pq.read_table(folder / "routes.parquet")
    names = {field.name: str(field.type) for field in routes.schema}
    assert names == {"question_id": "string", "defer": "bool",
                     "candidates": "list<element: bool>", "primary_choice": "int16"}  # fmt: skip


def test_files_agree_with_the_arrays(folder):
    policy = calibrate_files(
        folder / "primary.parquet",
        folder / "guardian.parquet",
        alpha=["0.1", 0.3],
        bound=1,
        softmax=True,
        output=folder / "p.json",
    )
    assert Policy.read(folder / "p.json") == policy
    assert policy.transform == "softmax" and policy.metadata["guardian"] == {"model": "model-1"}
    assert policy.calibration_sha256["primary"] == sha256_file(folder / "primary.parquet")
    table = softmax(ScoreTable.read(folder / "primary.parquet"))
    rate = route(table.scores, policy.thresholds[0]).defer.mean()
    assert policy.guardian_rate[0] == rate
    tables = (folder / "primary-test.parquet", folder / "guardian-test.parquet")
    result = evaluate_files(folder / "p.json", *tables, output=folder / "e.json")
    assert json.loads((folder / "e.json").read_text()) == result
    assert result["held_out"] is True
    seen = evaluate_files(
        folder / "p.json", folder / "primary.parquet", folder / "guardian.parquet"
    )
    assert seen["held_out"] is False
    done = route_files(folder / "p.json", tables[0], alpha="0.3", output=folder / "r.parquet")
    routes = pq.read_table(folder / "r.parquet").to_pydict()
    test = softmax(ScoreTable.read(tables[0]))
    candidates, defer = route(test.scores, policy.thresholds[1])
    assert routes["candidates"] == candidates.tolist() and routes["defer"] == defer.tolist()
    assert routes["primary_choice"] == test.scores.argmax(axis=1).tolist()
    assert done["deferred"] == defer.sum() and done["n"] == 60
    guardian = softmax(ScoreTable.read(tables[1]))
    accuracy = (choose(test.scores, guardian.scores, policy.thresholds[1]) == 0).mean()
    assert result["overall"]["policies"][1]["accuracy"] == pytest.approx(accuracy)


def fail(capsys, status: int, *arguments: str) -> str:
    """The one line on stderr of a command that must fail with `status`."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_bad_usage_is_status_two_and_leaves_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    good = calibrate_arguments(folder)
    assert "--alpha" in fail(capsys, 2, *good[:3], "--output", "x.json")
    assert "'nan'" in fail(capsys, 2, *good, "--alpha", "nan")
    assert "not 1.5" in fail(capsys, 2, *good, "--alpha", "1.5")
    assert "bound" in fail(capsys, 2, *good, "--bound", "zero")
    line = fail(capsys, 2, *good, "--columns", "scores=logits")
    assert "no column 'logits'" in line and "question_id, group, label, scores, n_options" in line
    assert "FIELD=NAME" in fail(capsys, 2, *good, "--columns", "scores")
    assert "COMMAND" in fail(capsys, 2)
    assert "invalid choice" in fail(capsys, 2, "frobnicate")
    assert "unrecognized" in fail(capsys, 2, *good, "--frobnicate")
    assert sorted(folder.iterdir()) == before
    assert main(good) == 0
    capsys.readouterr()
    content = (folder / "policy.json").read_bytes()
    assert "--overwrite" in fail(capsys, 2, *good)
    assert (folder / "policy.json").read_bytes() == content
    assert main([*good, "--overwrite"]) == 0
    capsys.readouterr()
    route_ = ("route", str(folder / "policy.json"), str(folder / "primary.parquet"))
    line = fail(capsys, 2, *route_, "--alpha", "0.2", "--output", str(folder / "r.parquet"))
    assert "0.2 was not calibrated; this policy holds 0.05, 0.1" in line


def test_failed_work_is_status_one_and_leaves_nothing(folder, capsys):
    good = calibrate_arguments(folder)
    (folder / "file").write_text("")
    (folder / "empty.parquet").write_text("")
    blocked = str(folder / "file" / "policy.json")
    before = sorted(folder.iterdir())
    assert "is not a folder" in fail(capsys, 1, *good[:-1], blocked)
    assert "no such file" in fail(capsys, 1, *good[:1], "missing.parquet", *good[2:])
    assert "not a readable Parquet" in fail(
        capsys, 1, *good[:1], str(folder / "empty.parquet"), *good[2:]
    )
    line = fail(capsys, 1, *good[:2], str(folder / "guardian-test.parquet"), *good[3:])
    assert "row 0 (question_id 'q0') of the Primary table is missing from the Guardian" in line
    line = fail(capsys, 1, *good, "--bound", "0.2")
    assert "question_id 'q" in line and "--bound" in line
    assert sorted(folder.iterdir()) == before
    (folder / "policy.json").write_text('{"schema_version": 7}')
    assert "schema_version 7" in fail(capsys, 1, *evaluate_arguments(folder, "--output", "e.json"))
    figures = str(folder / "file" / "figures")
    output = str(folder / "e.json")
    assert main([*good, "--overwrite"]) == 0
    capsys.readouterr()
    fail(capsys, 1, *evaluate_arguments(folder, "--output", output, "--figures", figures))
    assert not Path(output).exists()


def test_infeasible_alpha_is_a_warning_not_a_failure(folder, capsys):
    assert main([*calibrate_arguments(folder), "--alpha", "0.01", "0.1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: alpha = 0.01 is infeasible with n = 60")
    assert "needs n >= 99" in captured.out
    row = captured.out.splitlines()[1].split()
    assert row == ["0.01", "60", "inf", "0.0000", "no", "1.0000"]


def test_help_and_version(capsys):
    for arguments in (["--help"], ["calibrate", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
        assert "arbitrage" in capsys.readouterr().out
