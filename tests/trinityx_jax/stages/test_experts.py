"""One joint job trains what separate jobs train, and the objectives really conflict."""

import dataclasses

import numpy as np
import pytest

from trinityx_jax import config as cfg
from trinityx_jax.alignment.task_vectors import importances
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.errors import UsageError
from trinityx_jax.inference.score import option_scores
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Importance
from trinityx_jax.run import Run
from trinityx_jax.stages.context import open_context
from trinityx_jax.stages.experts import expert_loss, train_experts
from trinityx_jax.stages.fit import fit, trainable_line
from trinityx_jax.stages.pretrain import pretrain
from trinityx_jax.training.checkpoint import load_parameters
from trinityx_jax.training.metrics import read_metrics


def task_vectors(run):
    context = open_context(run)
    like = context.mocae.abstract(context.mesh, TaskVector)
    return load_parameters(run.checkpoints("train-experts"), like)


def own(x, e):
    """Expert e of a factor (E, in, r), or (layers, E, in, r) of stacked layers."""
    return np.asarray(x)[..., e, :, :]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_job_equals_separate_jobs(tiny_run, tmp_path, objective):
    """Same backbone, same seed: the joint job's expert is the separate job's, to rounding."""
    backbone = str(tiny_run.checkpoints("pretrain"))
    alone = Run(tmp_path / objective, dataclasses.replace(tiny_run.config, backbone=backbone))
    alone.do("pretrain", pretrain)
    alone.do("train-experts", lambda run: train_experts(run, [objective]))
    joint, separate = task_vectors(tiny_run), task_vectors(alone)
    e = OBJECTIVES.index(objective)
    start = open_context(tiny_run).fresh()
    moved = 0.0
    for name, x in joint.items():
        got, want = own(separate[name], e), own(x, e)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=name)
        moved = max(moved, float(np.abs(want - own(start[name], e)).max()))
        for other in range(len(OBJECTIVES)):
            if other != e:  # nobody else's expert moves in a separate job
                np.testing.assert_array_equal(own(separate[name], other), own(start[name], other))
    assert moved > 1e-3


def test_a_given_backbone_is_used_and_not_trained(tiny_run, tmp_path):
    backbone = str(tiny_run.checkpoints("pretrain"))
    run = Run(tmp_path / "given", dataclasses.replace(tiny_run.config, backbone=backbone))
    assert "skipped" in run.do("pretrain", pretrain)
    assert not run.checkpoints("pretrain").exists()
    got, want = open_context(run).fresh(), open_context(tiny_run).fresh()
    np.testing.assert_array_equal(got["lm_head.kernel"], want["lm_head.kernel"])


def test_only_the_task_vectors_are_trained(tiny_run):
    result = tiny_run.result("train-experts")
    c = tiny_run.config
    D, F, r = c.model.hidden_size, c.model.intermediate_size, c.mocae.rank
    per_layer = 3 * 3 * (D * r + r * F)  # experts x projections x (A and B)
    assert result["trainable_parameters"] == per_layer * c.model.num_hidden_layers
    assert result["trainable_parameters"] < result["total_parameters"]


def test_the_router_logs_every_term_and_the_gate_by_layer_and_objective(tiny_run):
    c = tiny_run.config.router_loss
    rows = read_metrics(tiny_run.metrics, "train-router")
    assert len(rows) == tiny_run.config.router.steps
    for row in rows:
        terms = row["cross_entropy"] + sum(
            getattr(c, name) * row[name] for name in ("gate", "balance", "z", "entropy", "kl")
        )
        assert row["loss"] == pytest.approx(terms, rel=1e-5)
        by_layer = [
            {key: row[f"{key}/{o}/{layer}"] for o in OBJECTIVES for key in KEYS}
            for layer in range(tiny_run.config.model.num_hidden_layers)
        ]
        assert all(0 <= x["own_accuracy"] <= 1 and x["own_entropy"] > 0 for x in by_layer)
        loads = [sum(row[f"load/{o}/{layer}"] for o in OBJECTIVES) for layer in range(2)]
        assert loads == pytest.approx([1, 1], rel=1e-5)


KEYS = ("load", "own_entropy", "own_accuracy")


def test_a_stage_without_anything_to_train_is_one_line(tiny_run, tmp_path):
    """Complete FFNs have no task vectors."""
    mocae = dataclasses.replace(tiny_run.config.mocae, expert="ffn")
    context = open_context(tiny_run)
    arch = architecture(context.model_config, mocae)
    with pytest.raises(UsageError, match="no parameters of type TaskVector to train"):
        fit(
            "train-experts",
            context,
            arch,
            {},
            TaskVector,
            config=tiny_run.config.experts,
            loss=expert_loss(arch),
            batches=iter(()),  # type: ignore[arg-type]
            objectives=OBJECTIVES,
            flops=0.0,
        )


def test_the_share_that_is_trained_is_told():
    assert trainable_line("train-router", 192, 38572) == (
        "train-router: trainable 192 of 38,572 parameters (0.498%)"
    )


CONFLICT = [
    "model.hidden_size=64",
    "model.intermediate_size=160",
    "model.num_hidden_layers=2",
    "model.head_dim=16",
    "data.train_rows=1000",
    "data.held_out_rows=100",
    "data.pretrain_rows=10000",
    "pretrain.steps=700",
    "pretrain.batch_size=8",
    "pretrain.learning_rate=5e-3",
    "pretrain.weight_decay=0.01",
    "pretrain.checkpoint_every=700",
    "experts.steps=150",
    "experts.batch_size=4",
    "experts.learning_rate=5e-3",
    "experts.checkpoint_every=150",
]


@pytest.mark.slow
def test_an_expert_trained_on_one_objective_does_worse_on_the_others(tmp_path):
    """On each objective's held-out rows its own expert picks the right option most often.

    The margin of 0.05 is about one standard error of a share of 100 rows."""
    run = Run(tmp_path / "conflict", cfg.load(None, CONFLICT))
    run.do("pretrain", pretrain)
    run.do("train-experts", train_experts)
    context = open_context(run)
    rows = context.held_out("test")
    scores = option_scores(context.inference, context.with_experts(), rows, OBJECTIVES)
    labels = np.array([row.label for row in rows])
    objective = np.array([row.objective for row in rows])
    for own in OBJECTIVES:
        mine = objective == own
        share = {e: (scores[e].argmax(axis=1) == labels)[mine].mean() for e in OBJECTIVES}
        for other in OBJECTIVES:
            if other != own:
                assert share[own] > share[other] + 0.05, (own, share)


def test_gamma_comes_from_the_trained_task_vectors(tiny_run):
    mocae = dataclasses.replace(tiny_run.config.mocae, gamma="output")
    run = Run(tiny_run.directory, dataclasses.replace(tiny_run.config, mocae=mocae))
    context = open_context(run)
    parameters = context.with_experts()
    gamma = [np.asarray(x) for x in context.mocae.only(parameters, Importance).values()]
    gamma = np.concatenate([x.reshape(-1, len(OBJECTIVES)) for x in gamma])
    assert len(gamma) == tiny_run.config.model.num_hidden_layers
    np.testing.assert_allclose(gamma[0].mean(), 1, rtol=1e-6)
    np.testing.assert_array_equal(gamma[0], gamma[1])
    want = importances(context.mocae.only(parameters, TaskVector), OBJECTIVES)
    np.testing.assert_allclose(gamma[0], want, rtol=1e-6)
    assert np.ptp(gamma[0]) > 0
