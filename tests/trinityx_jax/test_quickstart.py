"""The chain end to end: what it leaves, that it resumes, and that devices do not matter."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from arbitrage import Policy, ScoreTable
from trinityx_jax import config as cfg
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.inference.routings import compared
from trinityx_jax.io.export import read_export
from trinityx_jax.quickstart import quickstart
from trinityx_jax.run import STAGES, Run
from trinityx_jax.stages.pretrain import pretrain
from trinityx_jax.summary import summary_text
from trinityx_jax.training.metrics import read_metrics

ROUTINGS = compared()
TRAINED = {"pretrain": 12, "train-experts": 10, "train-router": 8}


def command(run_dir, tiny_yaml, name="quickstart", **env):
    """The quickstart, or one stage, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trinityx_jax", name, "--run", run_dir,
         "--config", tiny_yaml],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def losses(directory):
    return {
        stage: [
            (row["step"], row["loss"]) for row in read_metrics(directory / "metrics.jsonl", stage)
        ]
        for stage in TRAINED
    }


def test_it_leaves_every_file(tiny_run):
    folder = tiny_run.directory
    assert cfg.load(folder / "config.yaml") == tiny_run.config
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["stages"]) == list(STAGES)
    assert all(result["seconds"] >= 0 for result in summary["stages"].values())
    for stage, steps in TRAINED.items():
        assert [step for step, _ in losses(folder)[stage]] == list(range(1, steps + 1))
        assert any((folder / "checkpoints" / stage).iterdir())
    names = {path.name for path in (folder / "scores").iterdir()}
    assert names == {
        f"{routing}-{split}.parquet"
        for routing in (*ROUTINGS, "guardian")
        for split in ("calibration", "test")
    }
    assert Policy.read(folder / "policy.json").n == 120
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_closing_tables_show_the_summary(tiny_run):
    results = tiny_run.summary()["stages"]
    text = summary_text(tiny_run.directory, results)
    assert f"{results['calibrate-router']['after']['nll']:.4f}" in text
    assert f"{results['pretrain']['trainable_parameters']:,}" in text
    assert all(stage in text for stage in STAGES)
    assert "alpha 0.1" in text


def test_temperature_lowers_the_nll_it_was_fitted_to(tiny_run):
    """On the rows of the fit this is certain; on others likely, so only the fit is tested."""
    answer = tiny_run.result("calibrate-router")["answer"]
    for routing in ROUTINGS:
        assert answer[routing]["after"]["nll"] <= answer[routing]["before"]["nll"] + 1e-6


def test_score_tables_are_probabilities_joined_by_id(tiny_run):
    tables = {
        name: ScoreTable.read(tiny_run.scores(name, "test")) for name in (*ROUTINGS, "guardian")
    }
    for table in tables.values():
        np.testing.assert_array_equal(table.question_id, tables["mixture"].question_id)
        sums = np.where(table.mask, table.scores, 0).sum(axis=1)
        np.testing.assert_allclose(sums, 1, rtol=1e-5)
    honest = tables["guardian"].group == "honest"
    for rows, source in ((honest, "honest"), (~honest, "harmless")):
        np.testing.assert_array_equal(tables["guardian"].scores[rows], tables[source].scores[rows])


def test_calibration_and_test_rows_are_disjoint(tiny_run):
    ids = [
        set(ScoreTable.read(tiny_run.scores("mixture", s)).question_id)
        for s in ("calibration", "test")
    ]
    assert not ids[0] & ids[1]


def test_the_export_holds_the_trained_arrays(tiny_run):
    from trinityx_jax.stages.context import open_context

    context = open_context(tiny_run)
    parameters = context.mocae.unstack(context.calibrated())
    adapters, gating = read_export(tiny_run.directory / "export")
    assert tuple(adapters) == OBJECTIVES == gating.expert_names
    for e, objective in enumerate(OBJECTIVES):
        A, B = adapters[objective][1, "down_proj"]
        name = "layers.1.mlp.task_vectors.down"
        want = tiny_run.config.mocae.scale * np.asarray(
            parameters[f"{name}.A"][e] @ parameters[f"{name}.B"][e]
        )
        np.testing.assert_allclose(A @ B, want, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(gating.gates[0], parameters["layers.0.mlp.router.kernel"])
    np.testing.assert_array_equal(
        gating.temperatures[1], parameters["layers.1.mlp.router.temperature"]
    )


def test_a_finished_run_is_not_run_again(tiny_run):
    headings = []
    before = (tiny_run.directory / "metrics.jsonl").read_bytes()
    quickstart(tiny_run, heading=headings.append)
    assert all("finished before" in heading for heading in headings)
    assert (tiny_run.directory / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses(tiny_run, tiny_yaml, tmp_path):
    """SIGKILL before and after a checkpoint of every training stage, and while scoring."""
    folder = tmp_path / "killed"

    def reached(stage, step):
        return (folder / "metrics.jsonl").exists() and any(
            s >= step for s, _ in losses(folder)[stage]
        )

    def scoring():
        return (folder / "stages" / "score.started.json").exists()

    moments = [
        lambda: (folder / "data").exists(),
        lambda: reached("pretrain", 6),
        lambda: reached("train-experts", 2),
        lambda: reached("train-router", 7),
        scoring,
    ]
    for moment in moments:
        process = command(folder, tiny_yaml)
        while not moment():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = command(folder, tiny_yaml)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert losses(folder) == losses(tiny_run.directory)
    for stage in ("calibrate-router", "score", "arbitrage-evaluate"):
        got, want = Run(folder, tiny_run.config).result(stage), tiny_run.result(stage)
        assert got | {"seconds": 0} == want | {"seconds": 0}


@pytest.mark.slow
def test_a_preempted_stage_exits_with_0_and_resumes_to_the_same_losses(tiny_config, tmp_path):
    """SIGTERM in the middle of `trinityx pretrain`; the reference is never interrupted."""
    train = dataclasses.replace(tiny_config.pretrain, steps=250, checkpoint_every=100)
    config = dataclasses.replace(tiny_config, pretrain=train)
    whole, stopped = (Run(tmp_path / name, config) for name in ("whole", "stopped"))
    whole.do("pretrain", pretrain)
    yaml = tmp_path / "long.yaml"
    yaml.write_text(cfg.dump(config))
    shutil.copytree(whole.directory / "data", stopped.directory / "data")
    process = command(stopped.directory, yaml, "pretrain")
    while not (stopped.metrics.exists() and len(read_metrics(stopped.metrics, "pretrain")) > 5):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    done = len(read_metrics(stopped.metrics, "pretrain"))
    assert f"holds step {done} of 250" in output and done < 250
    assert not stopped.finished("pretrain")
    stopped.do("pretrain", pretrain)
    assert losses(stopped.directory) == losses(whole.directory)


@pytest.mark.slow
def test_four_devices_give_the_same_results(tiny_run, tiny_yaml, tmp_path):
    folder = tmp_path / "four"
    process = command(folder, tiny_yaml, JAX_NUM_CPU_DEVICES="4")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    got, want = losses(folder), losses(tiny_run.directory)
    for stage in TRAINED:
        np.testing.assert_allclose(got[stage], want[stage], rtol=1e-4)
    run = Run(folder, tiny_run.config)
    for when in ("before", "after"):
        for key in ("nll", "brier"):
            assert run.result("calibrate-router")[when][key] == pytest.approx(
                tiny_run.result("calibrate-router")[when][key], rel=1e-3
            )
    for name in (*ROUTINGS, "guardian"):
        tables = [ScoreTable.read(r.scores(name, "test")) for r in (run, tiny_run)]
        np.testing.assert_allclose(tables[0].scores, tables[1].scores, atol=1e-3)
    thresholds = [Policy.read(r.directory / "policy.json").thresholds for r in (run, tiny_run)]
    np.testing.assert_allclose(thresholds[0], thresholds[1], atol=1e-2)
