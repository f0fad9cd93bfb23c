"""Every mistake of a user is one line, an exit status, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

from trinityx_jax.cli import Options, main
from trinityx_jax.run import STAGES


@pytest.fixture
def copied_run(tiny_run, tmp_path):
    """A finished run that a test may damage."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.directory, folder)
    return folder


def complaint(capfd, arguments, status):
    assert main([str(a) for a in arguments]) == status
    captured = capfd.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "quickstart"),
        (["trainn"], "trainn"),
        (["pretrain", "--stepps", "3"], "--stepps"),
        (["pretrain", "--set", "pretrain.stepps=3"], "did you mean 'pretrain.steps'?"),
        (["pretrain", "--set", "arbitrage.alphas=[1.5]"], "inside (0, bound=1)"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["quickstart", "--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
    ],
)
def test_bad_usage_is_status_2(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capfd, arguments, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_without_the_files(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    line = complaint(capfd, ["pretrain", "--data-dir", "empty"], 2)
    assert "train_helpful.jsonl.gz" in line
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_a_stage_before_its_turn_names_the_one_to_run(tmp_path, tiny_yaml, capfd):
    arguments = ["export", "--run", tmp_path / "r", "--config", tiny_yaml]
    line = complaint(capfd, arguments, 1)
    assert "run `trinityx calibrate-router`" in line or "run `trinityx pretrain`" in line
    assert not (tmp_path / "r" / "export").exists()


def test_an_unwritable_output(tmp_path, tiny_yaml, capfd):
    (tmp_path / "file").write_text("")
    line = complaint(
        capfd, ["pretrain", "--run", tmp_path / "file" / "r", "--config", tiny_yaml], 1
    )
    assert str(tmp_path / "file") in line


def test_another_configuration_needs_overwrite(copied_run, capfd):
    before = (copied_run / "stages" / "train-experts.json").read_bytes()
    arguments = ["train-experts", "--run", copied_run, "--set", "experts.steps=11"]
    line = complaint(capfd, arguments, 2)
    assert "experts.steps" in line and "--overwrite" in line
    assert (copied_run / "stages" / "train-experts.json").read_bytes() == before


def test_a_checkpoint_of_another_shape(copied_run, tmp_path, tiny_yaml, capfd):
    backbone = copied_run / "checkpoints" / "pretrain"
    line = complaint(
        capfd,
        ["pretrain", "--run", tmp_path / "other", "--config", tiny_yaml, "--set",
         f"backbone={backbone}", "--set", "model.hidden_size=48"],
        1,
    )  # fmt: skip
    assert "is (" in line and "needs (" in line and "48" in line
    assert not (tmp_path / "other" / "stages" / "pretrain.json").exists()


def test_a_damaged_result_names_the_file(copied_run, capfd):
    (copied_run / "stages" / "score.json").write_text("{")
    assert "score.json" in complaint(capfd, ["score", "--run", copied_run], 1)


def test_redoing_a_stage_discards_what_follows(copied_run, capfd):
    assert main(["export", "--run", str(copied_run), "--overwrite"]) == 0
    names = {path.stem for path in (copied_run / "stages").glob("*.json")}
    assert "export" in names and "report" not in names
    assert "score" in names
    assert json.loads((copied_run / "summary.json").read_text())["stages"].keys() == set(STAGES) - {
        "report"
    }
    assert main(["report", "--run", str(copied_run), "--overwrite"]) == 0
    assert (copied_run / "report.html").exists()


def test_redoing_an_early_stage_leaves_a_chain_that_runs_on(copied_run, capfd):
    """Nothing of the old run is taken for the new one's, and nothing stands in its way."""
    old = (copied_run / "policy.json").read_bytes()
    arguments = ["--run", str(copied_run), "--set", "calibration.method=vector"]
    assert main(["calibrate-router", *arguments, "--overwrite"]) == 0
    for output in ("scores", "policy.json", "evaluation.json", "export", "report.html"):
        assert not (copied_run / output).exists()
    assert (copied_run / "checkpoints" / "train-router").exists()
    assert main(["quickstart", *arguments]) == 0
    assert (copied_run / "policy.json").read_bytes() != old
    assert "vector" in (copied_run / "summary.json").read_text()


def test_a_finished_stage_says_so(tiny_run, capfd):
    assert main(["score", "--run", str(tiny_run.directory)]) == 0
    output = capfd.readouterr().out
    assert "finished before" in output and "objective \\ routing" in output


def test_a_policy_of_the_users_own_is_kept(copied_run, capfd):
    """`arbitrage calibrate` by hand, then the rest of the chain with its policy."""
    from arbitrage.cli import main as arbitrage_main

    for stage in ("arbitrage-calibrate", "arbitrage-evaluate", "export", "report"):
        for path in (copied_run / "stages").glob(f"{stage}.*"):
            path.unlink()
    shutil.rmtree(copied_run / "export")
    (copied_run / "report.html").unlink()
    policy = copied_run / "policy.json"
    tables = [
        str(copied_run / "scores" / f"{n}-calibration.parquet") for n in ("helpful", "guardian")
    ]
    arguments = ["calibrate", *tables, "--alpha", "0.3", "--output", str(policy), "--overwrite"]
    assert arbitrage_main(arguments) == 0
    mine = policy.read_bytes()
    assert main(["quickstart", "--run", str(copied_run)]) == 0
    assert policy.read_bytes() == mine
    assert "alpha 0.3" in capfd.readouterr().out


def test_profile_reaches_the_run(tmp_path):
    assert Options(run=tmp_path, profile=True).open().profile
    assert not Options(run=tmp_path).open().profile


def test_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("trinityx ")


def test_presets_are_found_from_anywhere(tmp_path, monkeypatch):
    from trinityx_jax.config import preset

    monkeypatch.chdir(tmp_path)
    assert Path(preset("quickstart")).is_absolute()
