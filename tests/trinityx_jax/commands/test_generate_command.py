"""`trinityx generate` as a user meets it: answers, files, and one line for every mistake."""

from __future__ import annotations

import json
import shutil

import pytest

from trinityx_jax.cli import main
from trinityx_jax.language_model import from_pretrained

PROMPTS = ["Is the sky blue?", "The answer is no. The user"]
SHORT = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def folder(pretrained):
    return pretrained("llama")


@pytest.fixture(scope="module")
def answers(folder):
    return from_pretrained(folder).generate(PROMPTS, max_new_tokens=8)


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the model that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "damaged")


@pytest.fixture
def prompts(tmp_path):
    """A prompts file: one line with an id, one without."""
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": PROMPTS[0], "id": "first"}, {"prompt": PROMPTS[1], "other": 1}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def generate(*arguments) -> int:
    return main(["generate", *map(str, arguments)])


def complaint(capfd, arguments, status) -> str:
    capfd.readouterr()
    assert generate(*arguments) == status
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert captured.out == ""
    return lines[0]


def test_answers_are_printed_with_their_prompts(folder, answers, capfd):
    assert generate("--model", folder, *SHORT, "--prompt", *PROMPTS) == 0
    captured = capfd.readouterr()
    want = "".join(f"> {p}\n{a}\n\n" for p, a in zip(PROMPTS, answers, strict=True))
    assert captured.out == want
    closing = captured.err.strip().splitlines()[-1]
    assert "tokens in" in closing and "decode: 2 rows, 32 cache slots" in closing


def test_one_answer_is_streamed(folder, answers, capfd):
    arguments = ("--model", folder, *SHORT, "--prompt", PROMPTS[1], "--stream")
    assert generate(*arguments) == 0
    unfinished = "\N{REPLACEMENT CHARACTER}"  # of a character cut in the middle
    assert capfd.readouterr().out == answers[1].rstrip(unfinished) + "\n"


def test_answers_go_to_a_file_with_a_manifest(folder, answers, prompts, tmp_path, capfd):
    from arbitrage.io import sha256_file

    output = tmp_path / "new" / "answers.jsonl"
    arguments = ("--model", folder, *SHORT, "--prompts", prompts, "--output", output)
    assert generate(*arguments) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["answer"] for row in rows] == answers
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["id"] for row in rows] == ["first", "1"]
    assert all(row["routing"] == "backbone" and row["finished"] is False for row in rows)
    about = json.loads((tmp_path / "new" / "answers.jsonl.manifest.json").read_text())
    assert about["sha256"] == sha256_file(output)
    assert about["model"] == str(folder) and about["routing"] == "backbone"
    assert about["codec"]["template"] == "{prompt}" and about["codec"]["vocab_size"] == 295
    assert about["sampling"] == {
        "max_new_tokens": 8, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0,
    }  # fmt: skip
    before = output.read_bytes()
    assert "--overwrite" in complaint(capfd, arguments, 2)
    assert output.read_bytes() == before
    assert generate(*arguments, "--overwrite", "--template", "{prompt} So:") == 0
    assert output.read_bytes() != before


def test_draws_depend_on_the_seed(folder, capfd):
    def drawn(seed: int) -> str:
        sampling = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--seed", seed)
        assert generate("--model", folder, *SHORT, "--prompt", *PROMPTS, *sampling) == 0
        return capfd.readouterr().out

    assert drawn(1) == drawn(1) != drawn(2)


def test_experts_of_a_run_answer_on_a_backbone(tiny_run, folder, capfd):
    """The run's backbone and this one have the same shape, which is all that experts need."""
    experts = tiny_run.directory / "export"
    model = from_pretrained(folder).with_experts(experts)
    (want,) = model.generate(PROMPTS[:1], routing="harmless", max_new_tokens=8)
    arguments = ("--experts", experts, "--routing", "harmless", "--prompt", PROMPTS[0], *SHORT)
    assert generate("--model", folder, *arguments) == 0
    assert capfd.readouterr().out == f"> {PROMPTS[0]}\n{want}\n\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--prompt", "a"], 2, "--model"),
        ([], 2, "either --prompt TEXT or --prompts FILE"),
        (["--prompt", "a", "--prompts", "p.jsonl"], 2, "either --prompt TEXT"),
        (["--prompt", "a", " "], 2, "prompt 1 is empty"),
        (["--prompt", "word " * 300], 1, "prompt 0, before its answer, has"),
        (["--prompt", "a", "--max-new-tokens", "256"], 2, "the model's context is 256"),
        (["--prompt", "a", "--max-new-tokens", "0"], 2, "max_new_tokens=0"),
        (["--prompt", "a", "--routing", "helpfull"], 2, "routing 'helpfull': this model has no"),
        (["--prompt", "a", "--routing", "helpful"], 2, "this model has no experts"),
        (["--prompt", "a", "--temperature", "-1"], 2, "temperature=-1"),
        (["--prompt", "a", "--template", "Answer:"], 2, "hold {prompt} once"),
        (["--prompt", "a", "--batch-size", "0"], 2, "batch_size=0"),
        (["--prompt", "a", "--dtype", "int8"], 2, "int8"),
        (["--prompt", "a", "b", "--stream"], 2, "--stream takes one prompt"),
        (["--prompt", "a", "--stream", "--output", "o.jsonl"], 2, "--stream takes one prompt"),
        (["--prompts", "nowhere.jsonl"], 1, "nowhere.jsonl: no such file"),
        (["--prompt", "a", "--experts", "nowhere"], 1, "nowhere"),
        (["--prompt", "a", "--revision", "main"], 2, "a folder has no revision"),
    ],
)
def test_bad_arguments(folder, tmp_path, monkeypatch, capfd, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    model = [] if message == "--model" else ["--model", folder]
    assert message in complaint(capfd, [*model, *arguments], status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2 is not valid JSON"),
        ('["a"]', "line 2 holds a list"),
        ('{"text": "a"}', "line 2: prompt must be text, not null"),
        ('{"prompt": 3}', "line 2: prompt must be text, not a number"),
        ('{"prompt": " "}', "line 2: the prompt is empty"),
        ('{"prompt": "a", "id": []}', "line 2: id must be text"),
        (json.dumps({"prompt": "word " * 300}), "line 2, before its answer, has"),
    ],
)
def test_a_bad_line_is_named(folder, prompts, tmp_path, capfd, line, message):
    prompts.write_text(prompts.read_text().splitlines()[0] + f"\n{line}\n")
    arguments = ("--model", folder, "--prompts", prompts, "--output", tmp_path / "a.jsonl")
    told = complaint(capfd, arguments, 1)
    assert message in told and str(prompts) in told
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_file_without_lines(folder, prompts, capfd):
    prompts.write_text("\n\n")
    assert "has no lines" in complaint(capfd, ("--model", folder, "--prompts", prompts), 1)


@pytest.mark.parametrize("option", ["revision", "experts", "dtype", "template"])
def test_a_run_has_its_own(tiny_run, capfd, option):
    value = {"dtype": "bfloat16", "template": "{prompt}"}.get(option, "x")
    arguments = ("--model", tiny_run.directory, "--prompt", "a", f"--{option}", value)
    assert f"--{option}: the run" in complaint(capfd, arguments, 2)


def test_no_such_model(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    told = complaint(capfd, ("--model", "nowhere", "--prompt", "a"), 2)
    assert "no such folder, and no Hub id" in told
    told = complaint(capfd, ("--model", tmp_path, "--prompt", "a"), 1)
    assert "give the folder of a model" in told


def test_truncated_weights(damaged, capfd):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = complaint(capfd, ("--model", damaged, "--prompt", "a"), 1)
    assert "not a whole safetensors file" in told and "model.safetensors" in told


def test_an_unsupported_architecture(damaged, capfd):
    config = json.loads((damaged / "config.json").read_text())
    config |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (damaged / "config.json").write_text(json.dumps(config))
    told = complaint(capfd, ("--model", damaged, "--prompt", "a"), 1)
    assert "MambaForCausalLM" in told and "supported are LlamaForCausalLM" in told


def test_a_tokenizer_with_more_ids_than_the_model(damaged, tmp_path, capfd):
    tree = json.loads((damaged / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][-1], "id": 400, "content": "<more>"})
    tree["added_tokens"] += [
        {**tree["added_tokens"][-1], "id": i, "content": f"<{i}>"} for i in range(295, 400)
    ]
    tree["added_tokens"].sort(key=lambda token: token["id"])
    (damaged / "tokenizer.json").write_text(json.dumps(tree))
    told = complaint(capfd, ("--model", damaged, "--prompt", "a"), 1)
    assert "ids up to 400, the model knows 320" in told


def test_damaged_experts(tiny_run, folder, tmp_path, capfd):
    experts = shutil.copytree(tiny_run.directory / "export", tmp_path / "export")
    weights = experts / "router" / "router.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    told = complaint(capfd, ("--model", folder, "--prompt", "a", "--experts", experts), 1)
    assert "router.safetensors has changed" in told


def test_experts_of_another_shape(tiny_run, pretrained, capfd):
    arguments = ("--prompt", "a", "--experts", tiny_run.directory / "export")
    told = complaint(capfd, ("--model", pretrained("gemma2"), *arguments), 1)
    assert "made for another backbone" in told
