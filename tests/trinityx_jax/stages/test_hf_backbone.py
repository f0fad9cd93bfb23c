"""The whole chain on a Hugging Face checkpoint, with its own tokenizer and chat template."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from arbitrage import ScoreTable
from trinityx_jax import config as cfg
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.inference.score import option_scores
from trinityx_jax.io.manifest import verify_manifest
from trinityx_jax.quickstart import quickstart
from trinityx_jax.run import Run
from trinityx_jax.stages.context import open_context
from trinityx_jax.stages.pretrain import pretrain

ROWS = {"train_rows": 40, "held_out_rows": 12, "pretrain_rows": 50, "max_length": 128}
TREE = {
    "mocae": {"rank": 2},
    "data": ROWS,
    "experts": {"steps": 3, "batch_size": 2, "warmup_steps": 1},
    "router": {"steps": 3, "batch_size": 2, "warmup_steps": 1},
    "score": {"batch_size": 16, "verify_rows": 1},
    "arbitrage": {"alphas": ["0.5"]},
}


@pytest.fixture(scope="module")
def folder(pretrained):
    return pretrained("llama")


@pytest.fixture(scope="module")
def config(folder):
    return cfg.from_dict(cfg.Config, TREE | {"backbone": str(folder)})


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A finished quickstart in the checkpoint's chat template."""
    data = dataclasses.replace(config.data, template="chat")
    run = Run(tmp_path_factory.mktemp("hf") / "run", dataclasses.replace(config, data=data))
    quickstart(run, heading=lambda text: None)
    return run


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    """Context of a run in a template of the user's own, where nothing is trained yet."""
    run = Run(tmp_path_factory.mktemp("hf") / "plain", config)
    run.do("pretrain", pretrain)
    return open_context(run)


@pytest.mark.slow
def test_the_backbone_is_checked_and_not_trained(run, folder):
    result = run.result("pretrain")
    assert result["skipped"] == f"backbone {folder}"
    assert result["data"]["tokenizer"] is None and result["codec"]["template"] == "chat"
    assert not run.checkpoints("pretrain").exists()
    assert not list((run.directory / "data").rglob("tokenizer.json"))
    trained = run.result("train-experts")
    assert 0 < trained["trainable_parameters"] < trained["total_parameters"]


@pytest.mark.slow
def test_every_manifest_names_template_and_tokenizer(run, folder):
    manifest = verify_manifest(run.directory / "export")
    table = ScoreTable.read(run.scores("guardian", "test"))
    assert cfg.load(run.directory / "config.yaml").data.template == "chat"
    for about in (manifest, table.metadata, run.result("pretrain")["codec"]):
        assert about["template"] == "chat" and about["tokenizer"] == str(folder)
        assert len(about["tokenizer_sha256"]) == 64
    assert manifest["rendered"] == "[user] {prompt}\n[assistant]" and manifest["stop_ids"] == [1]
    assert "revision" in manifest and "revision" in table.metadata


def test_option_scores_are_transformers(plain, folder):
    """Without trained experts the model is the backbone: mean log-likelihood behind the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    rows = plain.held_out("test")[::20]
    got = option_scores(plain.inference, plain.fresh(), rows, ["mixture"])["mixture"]
    for i, row in enumerate(rows):
        context = f"{row.prompt} ="
        start = len(tokenizer(context).input_ids)
        for k, option in enumerate(row.options):
            ids = torch.tensor([tokenizer(f"{context} {option}").input_ids])
            with torch.no_grad():
                log_p = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
            want = log_p.gather(1, ids[0, 1:, None])[start - 1 :].mean().item()
            np.testing.assert_allclose(got[i, k], want, rtol=2e-4)


def test_parameters_keep_the_checkpoint_s_type_unless_narrowed(plain, config, tmp_path):
    assert {str(x.dtype) for x in plain.fresh().values()} == {"float32"}
    model = dataclasses.replace(config.model, dtype="bfloat16", param_dtype="bfloat16")
    run = Run(tmp_path / "narrow", dataclasses.replace(config, model=model))
    run.do("pretrain", pretrain)
    context = open_context(run)
    parameters = context.fresh()
    backbone = {name: parameters[name] for name in context.backbone.shapes}
    assert {x.dtype for x in backbone.values()} == {jnp.dtype(jnp.bfloat16)}
    added = {str(x.dtype) for name, x in parameters.items() if name not in backbone}
    assert added == {"float32"} and len(parameters) > len(backbone)


def fails(config, path, error, words):
    with pytest.raises(error, match=words) as caught:
        open_context(Run(path, config)).backbone  # noqa: B018
    assert "\n" not in str(caught.value)


def test_user_mistakes_are_one_line(config, tiny_config, tmp_path):
    replace = dataclasses.replace
    shaped = replace(config, model=replace(config.model, hidden_size=64))
    fails(shaped, tmp_path, UsageError, r"config model.hidden_size: the backbone .* leave it out")
    long = replace(config, data=replace(config.data, max_length=300))
    fails(long, tmp_path, UsageError, "data.max_length=300: .* takes at most 256 tokens")
    fails(replace(config, backbone_revision="v1"), tmp_path, UsageError, "revision 'v1'")
    fails(replace(config, backbone="no/such/place"), tmp_path, UsageError, "no such folder")
    chat = replace(config.data, template="chat")
    own = replace(tiny_config, data=chat)
    fails(own, tmp_path, UsageError, "template=chat takes a Hugging Face backbone")
    (tmp_path / "checkpoint").mkdir()
    ours = replace(own, backbone=str(tmp_path / "checkpoint"))
    fails(ours, tmp_path, UsageError, "template=chat takes a Hugging Face backbone")
    ours = replace(tiny_config, backbone=ours.backbone, backbone_revision="v1")
    fails(ours, tmp_path, UsageError, "backbone_revision is for an org/name")


def test_a_tokenizer_of_another_model_is_refused(config, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    extra = {"id": 320, "content": "<new>", "special": True, "normalized": False}
    extra |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    tokenizer["added_tokens"].append(extra)
    taken = set(tokenizer["model"]["vocab"].values())
    filler = {f"<{i}>": i for i in range(320) if i not in taken}
    tokenizer["model"]["vocab"] |= filler
    path.write_text(json.dumps(tokenizer))
    changed = dataclasses.replace(config, backbone=str(tmp_path / "model"))
    fails(changed, tmp_path / "run", DataError, "ids up to 320, the model knows 320")
