"""`arbitrage certify` and `arbitrage online`: the functions they call, from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from problems import make_table

from arbitrage import OnlineControl, calibrate, learn_then_test, route
from arbitrage.cli import main
from arbitrage.online_command import online_files


def test_certify_says_what_learn_then_test_says(tmp_path, capsys):
    rng = np.random.default_rng(0)
    losses = (rng.random((400, 5)) < [0.01, 0.03, 0.05, 0.2, 0.02]).astype(np.float32)
    np.save(tmp_path / "losses.npy", losses)
    arguments = ["certify", str(tmp_path / "losses.npy"), "--alpha", "0.1", "--p-value", "binomial"]
    assert main([*arguments, "--output", str(tmp_path / "out.json")]) == 0
    want = learn_then_test(losses, alpha="0.1", p_value="binomial")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["certified"] == want.certified.tolist() == [True, True, True, False, False]
    assert found["p_values"][4] is None
    printed = capsys.readouterr().out
    assert want.guarantee in printed and printed.count("yes") == 3
    assert main([*arguments, "--output", str(tmp_path / "out.json")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    make_table().write(tmp_path / "ragged.parquet")
    assert main(["certify", str(tmp_path / "none.npy"), "--alpha", "0.1"]) == 1


def test_online_replays_the_rows_in_order(tmp_path, capsys):
    primary, guardian = make_table(300, seed=1), make_table(300, seed=2, label=None)
    primary.write(tmp_path / "p.parquet")
    guardian.write(tmp_path / "g.parquet")
    paths = [str(tmp_path / "p.parquet"), str(tmp_path / "g.parquet")]
    output = tmp_path / "online.csv"
    assert main(["online", *paths, "--alpha", "0.1", "--eta", "0.5", "--output", str(output)]) == 0
    assert "For any sequence of rows" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 301

    control = OnlineControl(0.1, 0.5, 1.0)
    state, limits, losses = online_files(paths[0], paths[1], control)
    lam = 0.0
    for row in range(300):
        assert limits[row] == pytest.approx(np.inf if lam >= 1 else lam, abs=1e-12)
        kept = route(primary.scores[row], limits[row]).candidates
        g = guardian.scores[row].astype(float)
        assert losses[row] == pytest.approx(g.max() - g[kept].max(), abs=2e-9)
        lam = max(0.0, lam + 0.5 * (losses[row] - 0.1))
    assert state.threshold == pytest.approx(lam)
    assert losses.mean() - 0.1 <= control.regret_bound(300)
    # Far along it hovers around the threshold of all rows together.
    whole = calibrate(primary.scores, guardian.scores, alpha="0.1", bound=1)
    assert abs(np.median(limits[100:]) - whole.threshold) < 0.3
