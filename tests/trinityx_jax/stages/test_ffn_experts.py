"""A run whose experts are complete FFNs: copies of the backbone's at first, a Mixtral at last."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.cli import main
from trinityx_jax.language_model import from_pretrained, from_run
from trinityx_jax.models.router import Forced
from trinityx_jax.quickstart import quickstart
from trinityx_jax.run import Run
from trinityx_jax.stages.context import open_context

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ffn_run(tiny_run, tiny_config, tmp_path_factory) -> Run:
    """The whole chain on the tiny run's backbone."""
    config = dataclasses.replace(
        tiny_config,
        backbone=str(tiny_run.checkpoints("pretrain")),
        mocae=dataclasses.replace(tiny_config.mocae, expert="ffn", top_k=2),
    )
    run = Run(tmp_path_factory.mktemp("ffn") / "run", config)
    quickstart(run, heading=lambda text: None)
    return run


def test_new_experts_are_the_backbone(ffn_run):
    context = open_context(ffn_run)
    tokens = jnp.arange(12).reshape(2, 6)
    fresh = context.mocae.merge(context.fresh())
    backbone = context.backbone.merge(context.read_backbone())
    found = jax.jit(lambda: fresh(tokens, Forced(jnp.array([2, 0]))).logits)()
    np.testing.assert_allclose(found, jax.jit(lambda: backbone(tokens).logits)(), atol=1e-5)


def test_training_moves_the_experts_alone(ffn_run):
    result = ffn_run.result("train-experts")
    model = ffn_run.config.model
    of_one = 3 * model.hidden_size * model.intermediate_size
    assert result["trainable_parameters"] == 3 * of_one * model.num_hidden_layers
    context = open_context(ffn_run)
    fresh, trained = context.fresh(), context.with_experts()
    changed = {name for name in fresh if not np.array_equal(fresh[name], trained[name])}
    assert changed == set(context.mocae.only(fresh, context.mocae.expert_kind))


def test_the_export_is_a_mixtral_with_the_same_logits(ffn_run):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    tokens = np.arange(10).reshape(2, 5)
    peer = transformers.MixtralForCausalLM.from_pretrained(ffn_run.directory / "export")
    with torch.no_grad():
        wanted = peer(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(from_run(ffn_run.directory)(tokens), wanted, atol=2e-4)


def test_save_writes_a_mixture_of_task_vectors_as_mixtral(tiny_run, tmp_path, capsys):
    output = tmp_path / "mixtral"
    arguments = ["save", "--model", str(tiny_run.directory), "--output", str(output)]
    assert main([*arguments, "--format", "mixtral"]) == 0
    assert str(output) in capsys.readouterr().out
    tokens = np.arange(10).reshape(2, 5)
    wanted = from_run(tiny_run.directory)(tokens)
    np.testing.assert_allclose(from_pretrained(output)(tokens), wanted, atol=2e-4)
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
