"""A model from Python: against transformers, through a folder and back, and from a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest

from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io import experts as expert_files
from trinityx_jax.io.export import read_export
from trinityx_jax.language_model import LanguageModel, from_pretrained, from_run
from trinityx_jax.models.parameters import architecture

PROMPTS = ["Is the sky blue?", "The answer is no. The user"]
TOKENS = np.array([[5, 9, 2, 7, 30, 4], [3, 8, 8, 1, 6, 40]], np.int32)


@pytest.fixture(scope="module")
def llama(pretrained) -> LanguageModel:
    return from_pretrained(pretrained("llama"))


@pytest.fixture(scope="module")
def run_model(tiny_run) -> LanguageModel:
    return from_run(tiny_run.directory)


@pytest.fixture(scope="module")
def saved(run_model, tmp_path_factory):
    """The run's mixture as a folder; read it, do not change it."""
    return run_model.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


def torch_model(folder) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(model, tokens, mask=None):
    """Logits (B, L, V) with positions counted from each row's first real token."""
    import torch

    with torch.no_grad():
        ids = torch.tensor(tokens).long()
        if mask is None:
            return model(ids).logits.numpy()
        real = torch.tensor(mask).long()
        positions = (real.cumsum(1) - 1).clamp(min=0)
        return model(ids, attention_mask=real, position_ids=positions).logits.numpy()


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_a_call_gives_the_logits_of_transformers(llama, pretrained, side):
    mask = np.ones_like(TOKENS)
    if side != "none":
        mask[1, :3] = 0
        mask = mask if side == "left" else mask[:, ::-1].copy()
    given = None if side == "none" else mask
    want = torch_logits(torch_model(pretrained("llama")), TOKENS, given)
    got = np.asarray(llama(TOKENS, attention_mask_bl=given))
    np.testing.assert_allclose(got[mask == 1], want[mask == 1], rtol=2e-4, atol=2e-4)


def test_answers_are_those_of_transformers(llama, pretrained):
    from transformers import AutoTokenizer

    folder = pretrained("llama")
    model, tokenizer = torch_model(folder), AutoTokenizer.from_pretrained(folder)
    got = llama.generate(PROMPTS, max_new_tokens=8)
    for text, answer in zip(PROMPTS, got, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)[0]
        new = tokenizer.decode(out[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == new.removeprefix(" ")


def test_streamed_text_is_the_answer(llama):
    pieces: dict[int, str] = {0: "", 1: ""}

    def collect(row: int, text: str) -> None:
        pieces[row] += text

    answers = llama.generate(PROMPTS, max_new_tokens=8, on_text=collect)
    unfinished = "\N{REPLACEMENT CHARACTER}"  # of a character cut in the middle
    assert [pieces[i] for i in range(2)] == [answer.rstrip(unfinished) for answer in answers]
    assert all(pieces.values())


def test_a_saved_mixture_comes_back(run_model, saved):
    again = from_pretrained(saved)
    for routing in ("mixture", "harmless"):
        got, want = (np.asarray(m(TOKENS, routing=routing)) for m in (again, run_model))
        np.testing.assert_array_equal(got, want)
    assert again.calibration == run_model.calibration
    with pytest.raises(UsageError, match="has experts already"):
        again.with_experts(saved / "experts")


def test_transformers_reads_a_saved_mixtures_backbone_and_tokenizer(run_model, saved):
    from transformers import AutoTokenizer

    want = torch_logits(torch_model(saved), TOKENS)
    got = np.asarray(run_model(TOKENS, routing="backbone"))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)
    text = "how to clean the odor"
    ids = run_model.setup.codec.prompt(text)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert [tokenizer.bos_token_id, *tokenizer(f"{text} =").input_ids] == ids
    assert from_pretrained(saved, template="{prompt} =").setup.codec.prompt(text) == ids


def test_a_saved_expert_is_that_of_the_mixture(run_model, saved):
    """Each adapter alone, added to transformers' weights by PEFT's formula."""
    import torch

    model = torch_model(saved)
    adapters, _ = read_export(saved / "experts")
    with torch.no_grad():
        for (layer, projection), (A, B) in adapters["harmless"].items():
            getattr(model.model.layers[layer].mlp, projection).weight += torch.tensor((A @ B).T)
    got = np.asarray(run_model(TOKENS, routing="harmless"))
    np.testing.assert_allclose(got, torch_logits(model, TOKENS), rtol=2e-4, atol=2e-4)
    assert np.abs(got - np.asarray(run_model(TOKENS, routing="backbone"))).max() > 1e-3


def test_experts_of_an_export_go_onto_the_backbone(run_model, tiny_run, saved, tmp_path):
    folder = tmp_path / "backbone"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("experts"))
    backbone = from_pretrained(folder)
    assert backbone.default_routing == "backbone"
    model = backbone.with_experts(tiny_run.directory / "export")
    assert model.default_routing == "mixture"
    np.testing.assert_allclose(
        np.asarray(model(TOKENS)), np.asarray(run_model(TOKENS)), rtol=1e-5, atol=1e-5
    )


def test_a_saved_folder_is_replaced_only_when_asked(llama, tmp_path):
    folder = llama.save_pretrained(tmp_path / "m", max_shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    with pytest.raises(UsageError, match="already exists"):
        llama.save_pretrained(folder)
    llama.save_pretrained(folder, overwrite=True)
    again = from_pretrained(folder, template="chat")
    for name, value in llama.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "generation_config.json"}


def test_experts_of_another_backbone_are_refused(llama, tiny_run):
    adapters, gates = read_export(tiny_run.directory / "export")
    config, mesh = llama.config, llama.setup.mesh
    for change in ({"hidden_size": 64}, {"num_hidden_layers": 3}):
        other = architecture(dataclasses.replace(config, **change))
        with pytest.raises(DataError, match="made for another backbone"):
            expert_files.attach(other, adapters, gates, mesh)


def test_an_unfinished_run_names_the_stage(tiny_run, tmp_path):
    folder = tmp_path / "run"
    (folder / "stages").mkdir(parents=True)
    shutil.copy(tiny_run.directory / "config.yaml", folder)
    with pytest.raises(DataError, match="run `trinityx calibrate-router`"):
        from_run(folder)
    assert not (folder / "data").exists()


def test_questions_name_the_row(llama):
    with pytest.raises(DataError, match="row 1: option 1 has no tokens"):
        llama.questions([("a", ["b"]), ("a", ["b", ""])])
    with pytest.raises(DataError, match=r"row 0: prompt and longest option .* the context holds"):
        llama.questions([("word " * 300, ["b"])])


def test_mistakes_are_one_line(llama, pretrained, tmp_path):
    folder = pretrained("llama")
    with pytest.raises(UsageError, match=r"hold \{prompt\} once"):
        from_pretrained(folder, template="Answer:")
    with pytest.raises(UsageError, match="batch_size=0"):
        from_pretrained(folder, batch_size=0)
    with pytest.raises(DataError, match="give the folder of a model"):
        from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a list of texts"):
        llama.generate("Is the sky blue?")
    with pytest.raises(UsageError, match="only its backbone"):
        llama.score(llama.questions([("a", ["b"])]), ["backbone", "harmless"])


def test_a_folder_without_a_tokenizer_works_on_token_ids(llama, pretrained, tmp_path):
    """As transformers writes one: config.json, which alone knows the special ids, and weights."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(pretrained("llama") / name, bare / name)
    config = json.loads((bare / "config.json").read_text())
    stop = llama.answers([[5, 9]], max_new_tokens=4)[0].ids[2]
    (bare / "config.json").write_text(json.dumps(config | {"eos_token_id": [stop]}))
    model = from_pretrained(bare)
    np.testing.assert_array_equal(model(TOKENS), llama(TOKENS))
    assert model.answers([[5, 9]], max_new_tokens=4)[0].finished
    for use in (lambda: model.generate(["text"]), lambda: model.question("a", ["b"], name="q")):
        with pytest.raises(UsageError, match=r"bare has no tokenizer: add tokenizer\.json"):
            use()
    saved = model.save_pretrained(tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["eos_token_id"] == [stop]
    np.testing.assert_array_equal(from_pretrained(saved)(TOKENS), llama(TOKENS))
