"""Other objectives than the three by configuration alone, from files, and learnt preferences."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from arbitrage import Policy, ScoreTable
from trinityx_jax import config as cfg
from trinityx_jax.commands import generate as generate_command
from trinityx_jax.commands.opening import ModelOptions, check_routings
from trinityx_jax.errors import UsageError
from trinityx_jax.io.export import read_export
from trinityx_jax.quickstart import quickstart
from trinityx_jax.run import Run
from trinityx_jax.stages.context import open_context
from trinityx_jax.stages.experts import objective_batches, train_experts
from trinityx_jax.stages.pretrain import pretrain
from trinityx_jax.stages.score import guardian_table
from trinityx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow
NAMES = ("kind", "brief", "polite", "v1.true")


def write_files(folder):
    """Pairs and questions with options; every objective speaks in its own word."""
    for name in NAMES:
        rows = []
        for i in range(60):
            row = {"prompt": f"say {i} {name if i % 2 else 'it'}"}
            if name == "brief":
                row |= {"options": ["other", name], "label": 1, "id": i}
            else:
                row |= {"chosen": name, "rejected": "other"}
            rows.append(row)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def four(tiny_config, tmp_path_factory) -> Run:
    """The whole chain for four objectives."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    few: dict[str, Any] = {"steps": 2, "batch_size": 4, "checkpoint_every": 2, "warmup_steps": 1}
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, num_hidden_layers=1),
        mocae=cfg.MoCaEConfig(objectives=NAMES, rank=2, top_k=2),
        data=cfg.DataConfig(source="files", data_dir=str(folder), vocab_size=500, max_length=24),
        pretrain=cfg.TrainConfig(**few),
        experts=cfg.ExpertTrainConfig(**few, mix=(2, 1, 4, 1)),
        router=cfg.TrainConfig(**few),
        score=cfg.ScoreConfig(batch_size=32, verify_rows=0),
    )
    run = Run(tmp_path_factory.mktemp("runs") / "four", config)
    quickstart(run, heading=lambda text: None)
    return run


def test_every_result_speaks_of_the_configured_objectives(four):
    shares = [(f"{name}-{split}") for name in NAMES for split in ("calibration", "test")]
    assert {path.stem for path in (four.directory / "scores").iterdir()} >= set(shares)
    score = four.result("score")
    assert score["objectives"] == list(NAMES)
    assert score["routings"] == ["mixture", "uniform", *NAMES]
    assert np.shape(score["option_accuracy"]) == (4, 6)
    weights = four.result("calibrate-router")["routing"]["weights"]
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-5)
    assert np.shape(weights) == (4, 4)
    last = read_metrics(four.metrics, "train-experts")[-1]
    assert all(last[f"loss/{name}"] > 0 for name in NAMES)
    adapters, gating = read_export(four.directory / "export")
    assert tuple(adapters) == gating.expert_names == NAMES
    assert all(name in (four.directory / "report.html").read_text() for name in NAMES)


def test_the_guardian_is_each_row_s_own_expert_but_never_the_primary(four):
    tables = {n: ScoreTable.read(four.scores(n, "test")) for n in (*NAMES, "guardian")}
    guardian = tables["guardian"]
    assert guardian.metadata["routing"] == (
        "guardian: polite on polite rows, v1.true on v1.true rows, brief elsewhere"
    )
    speakers = {"kind": "brief", "brief": "brief", "polite": "polite", "v1.true": "v1.true"}
    for objective, speaker in speakers.items():
        mine = guardian.group == objective
        assert mine.any()
        np.testing.assert_array_equal(guardian.scores[mine], tables[speaker].scores[mine])
    policy = Policy.read(four.directory / "policy.json")
    assert policy.n == len(ScoreTable.read(four.scores("kind", "calibration")))


def test_the_mix_is_what_a_batch_holds(four):
    context = open_context(four)
    batch = next(objective_batches(context, four.config.experts, NAMES))
    np.testing.assert_array_equal(np.bincount(batch["objective"]), [4, 2, 8, 2])


def test_commands_know_a_run_s_own_routings(four, capfd):
    options = ModelOptions(model=str(four.directory))
    check_routings(options, ["negated-brief", "v1.true"])
    with pytest.raises(UsageError, match=r"'helpful': allowed are mixture, .*negated-v1.true"):
        check_routings(options, ["helpful"])
    generate_command.run(
        generate_command.Options(
            model=str(four.directory), prompt=("say 1",), routing="v1.true", max_new_tokens=2
        )
    )
    assert capfd.readouterr().out.startswith("> say 1\n")


def test_with_one_objective_the_guardian_is_the_primary_itself(four):
    kind = ScoreTable.read(four.scores("kind", "test"))
    guardian = guardian_table({"kind": kind}, ["kind"], {"split": "test"})
    np.testing.assert_array_equal(kind.scores, guardian.scores)
    assert guardian.metadata == {"routing": "guardian: kind on all rows", "split": "test"}


def test_an_expert_learns_to_prefer_the_chosen_responses(tiny_run, tmp_path):
    """From ln 2 and no pair told apart, on the microworld."""
    dpo = cfg.ExpertTrainConfig(
        loss="dpo", steps=30, batch_size=16, learning_rate=1e-2, warmup_steps=2,
        checkpoint_every=30,
    )  # fmt: skip
    backbone = str(tiny_run.checkpoints("pretrain"))
    run = Run(
        tmp_path / "dpo", dataclasses.replace(tiny_run.config, backbone=backbone, experts=dpo)
    )
    run.do("pretrain", pretrain)
    result = run.do("train-experts", lambda run: train_experts(run, ["honest"]))
    assert result["objectives"] == ["honest"]
    rows = read_metrics(run.metrics, "train-experts")
    accuracy = [row["reward_accuracy/honest"] for row in rows]
    assert accuracy[0] == 0 and np.mean(accuracy[-5:]) > 0.75
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-6) and rows[-1]["loss"] < 0.6
    assert rows[-1]["margin/honest"] > 0.1


def test_preferences_need_pairs(four, tmp_path):
    dpo = dataclasses.replace(four.config.experts, loss="dpo")
    run = Run(
        tmp_path / "none",
        dataclasses.replace(four.config, experts=dpo, backbone=str(four.checkpoints("pretrain"))),
    )
    run.do("pretrain", pretrain)
    with pytest.raises(UsageError, match=r"'brief' has no preference pairs.*experts.loss: sft"):
        run.do("train-experts", train_experts)
