"""The `frontier` command: its tables, files and figures, and what it says to mistakes."""

from __future__ import annotations

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
from test_split_evaluation import two_tables

from arbitrage.cli import main
from arbitrage.loss_curves import loss_curves
from arbitrage.split_figures import split_figures
from arbitrage.splits import random_splits, split_thresholds


@pytest.fixture
def files(tmp_path):
    for name, table in zip(("p", "g"), two_tables(150), strict=True):
        table.write(tmp_path / f"{name}.parquet")
    return tmp_path


def arguments(files, *more: str) -> list[str]:
    tables = [str(files / "p.parquet"), str(files / "g.parquet")]
    return ["frontier", *tables, "--alpha", "0.1", "0.2", "--splits", "10", *more]


def test_command_writes_everything(files, capsys):
    pytest.importorskip("matplotlib")
    outputs = ["--output", str(files / "r.json"), "--csv", str(files / "r.csv"),
               "--figures", str(files / "figures")]  # fmt: skip
    prices = ["--cost-primary", "0.4/1.6", "--cost-guardian", "2/8"]
    assert main(arguments(files, *outputs, *prices, "--cluster", "pair")) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == "" and lines[0].split() == [
        "policy", "accuracy", "$/1000", "lambda", "Delta", "G%", "risk"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:7]] == [
        "Primary", *["restricted"] * 2, *["full"] * 2, "Guardian"
    ]  # fmt: skip
    assert "unit: mean over a cluster" in captured.out and "75 units" not in captured.err
    result = json.loads((files / "r.json").read_text())
    assert result["units"] == 75 and result["cluster"] == "pair"
    assert result["cost_unit"] == "dollars per row" and set(result["groups"]) == set()
    rows = list(csv.DictReader((files / "r.csv").read_text().splitlines()))
    wanted = [r for r in rows if (r["policy"], r["alpha"]) == ("conformal", "0.1")]
    risk = next(r for r in wanted if r["menu"] == "full" and r["measure"] == "risk")
    assert float(risk["mean"]) == result["policies"][2]["risk"]["mean"]
    assert {r["policy"] for r in rows} == {
        "primary", "guardian", "conformal", "hindsight", "random_router", "shuffled",
        "max_probability", "oracle",
    }  # fmt: skip
    drawn = sorted(path.name for path in (files / "figures").iterdir())
    assert drawn == sorted(f"{n}.{s}" for n in split_figures(result) for s in ("png", "svg"))
    assert main(arguments(files, *outputs)) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_groups_get_a_threshold_each(files, capsys):
    pytest.importorskip("matplotlib")
    assert main(arguments(files, "--output", str(files / "r.json"), "--seed", "3")) == 0
    capsys.readouterr()
    result = json.loads((files / "r.json").read_text())
    primary, guardian = two_tables(150)
    assert set(result["groups"]) == {"even", "odd"}
    even = np.arange(150) % 2 == 0
    curves = loss_curves(primary.scores[even], guardian.scores[even], bound=Fraction(1),
                         mask=primary.mask[even])  # fmt: skip
    halves = random_splits(150, 10, seed=3)[:, even]
    want = split_thresholds(curves, halves, ["0.1", "0.2"], 1).threshold
    means = [found["mean"] for found in result["groups"]["even"]["thresholds"]]
    assert means == pytest.approx(want.astype(np.float64).mean(axis=0))
    texts = [t.get_text() for t in split_figures(result)["group_thresholds"](result).axes[0]
             .get_yticklabels()]  # fmt: skip
    assert texts == ["even (75)", "odd (75)"]


def test_mistakes_are_one_line(files, capsys):
    for more, status, words in [
        (("--cluster", "nothing"), 2, "no such column"),
        (("--cost-guardian", "nothing"), 2, "no column of numbers 'nothing'"),
        (("--cost-primary", "1/x"), 2, "--cost-primary 1/x"),
        (("--fraction", "1.5"), 2, "empty half"),
        (("--splits", "0"), 2, "at least 1"),
        (("--loss", "other"), 2, "--loss"),
        (("--bound", "0.3"), 1, "question_id 'q"),
        (("--fraction", "0.5", "--size", "3"), 2, "not allowed with"),
    ]:
        assert main(arguments(files, *more)) == status, more
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err
    for wanted in (["--cluster-rows", "--cluster", "pair"], ["--softmax"]):
        assert main(arguments(files, *wanted)) == 0
    assert "No guarantee is claimed" in capsys.readouterr().out
