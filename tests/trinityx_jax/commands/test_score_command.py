"""`trinityx score --model`: tables against transformers and the run's stage, and every mistake."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arbitrage import Policy, ScoreTable
from arbitrage.cli import main as arbitrage_main
from trinityx_jax.cli import main
from trinityx_jax.language_model import from_pretrained
from trinityx_jax.stages.context import open_context

QUESTIONS = [
    {"id": "sky", "prompt": "Is the sky blue?", "options": ["Yes, the sky is blue.", "né"],
     "label": 0, "group": "a"},
    {"id": 2, "prompt": "the user and", "options": ["the assistant", "no", "x y z"],
     "label": 1, "group": "b", "unused": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(pretrained):
    return pretrained("llama")


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.jsonl", QUESTIONS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(*arguments) -> int:
    return main(["score", *map(str, arguments)])


def complaint(capfd, arguments, status) -> str:
    capfd.readouterr()
    assert score(*arguments) == status
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def torch_scores(folder):
    """Summed log-likelihoods and token counts of every option, one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    codec = from_pretrained(folder).setup.codec
    total, tokens = np.full((2, 3), -np.inf), np.ones((2, 3))
    for i, row in enumerate(QUESTIONS):
        prompt, options = codec.encode_options(row["prompt"], row["options"])
        for k, option in enumerate(options):
            ids = torch.tensor([*prompt, *option])
            with torch.no_grad():
                log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
            each = log_p[torch.arange(len(ids) - 1), ids[1:]]
            total[i, k], tokens[i, k] = each[len(prompt) - 1 :].sum(), len(option)
    return total, tokens


@pytest.mark.parametrize("normalise", ["tokens", "bytes", "none"])
def test_a_table_holds_the_scores_of_transformers(folder, questions, tmp_path, capfd, normalise):
    output = tmp_path / "new" / "table.parquet"
    arguments = ("--questions", questions, "--output", output, "--normalise", normalise)
    assert score("--model", folder, *arguments) == 0
    table = ScoreTable.read(output)
    total, tokens = torch_scores(folder)
    mask = np.isfinite(total)
    size = np.array([[21, 3, 1], [13, 2, 5]])  # UTF-8 bytes of the options
    divisor = {"tokens": tokens, "bytes": size, "none": np.ones((2, 3))}[normalise]
    z = np.where(mask, total / divisor, -np.inf)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(table.mask, mask)
    np.testing.assert_allclose(table.scores[mask], p[mask], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(table.extra["choice_loglik"][mask], total[mask], rtol=1e-4)
    np.testing.assert_array_equal(table.extra["choice_num_tokens"][mask], tokens[mask])
    np.testing.assert_array_equal(table.extra["choice_num_bytes"][mask], size[mask])
    assert table.question_id.tolist() == ["sky", "2"]
    assert table.label is not None and table.label.tolist() == [0, 1]
    assert table.group is not None and table.group.tolist() == ["a", "b"]
    assert table.metadata["model"] == str(folder) and table.metadata["routing"] == "backbone"
    assert table.metadata["normalise"] == normalise
    assert json.loads(table.metadata["codec"])["template"] == "{prompt}"
    printed = capfd.readouterr().out.splitlines()
    right = (z.argmax(axis=1) == [0, 1]).mean()
    assert printed[1].split() == ["backbone", "2", f"{right:.4f}", f"{z[mask].mean():.4f}"]


def test_two_routings_of_a_run_make_a_policy(tiny_run, tmp_path, capfd):
    """The scores are those of the run's own stage, at temperature 1."""
    rows = list(open_context(tiny_run).data.rows("harmless", "calibration"))  # of one length
    questions = write(
        tmp_path / "questions.jsonl",
        [
            {"id": row.example_id, "prompt": row.prompt, "options": row.options,
             "label": row.label, "group": row.objective}
            for row in rows
        ],
    )  # fmt: skip
    model = ("--model", tiny_run.directory)
    given = ("--questions", questions, "--output", tmp_path / "scores")
    assert score(*model, *given, "--routing", "helpful", "harmless", "helpful") == 0
    tables = {path.stem: ScoreTable.read(path) for path in (tmp_path / "scores").iterdir()}
    assert set(tables) == {"helpful", "harmless"}
    for name, table in tables.items():
        stage = ScoreTable.read(tiny_run.scores(name, "calibration"))
        stage = stage.take(stage.group == "harmless")
        temperature = float(stage.metadata["temperature"])
        z = table.extra["choice_loglik"] / table.extra["choice_num_tokens"] / temperature
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(p, stage.scores, rtol=1e-3)
        np.testing.assert_array_equal(table.question_id, stage.question_id)
        np.testing.assert_array_equal(table.label, stage.label)
        np.testing.assert_array_equal(table.group, stage.group)
    paths = [str(tmp_path / "scores" / f"{name}.parquet") for name in ("helpful", "harmless")]
    policy = tmp_path / "policy.json"
    assert arbitrage_main(["calibrate", *paths, "--alpha", "0.1", "--output", str(policy)]) == 0
    assert Policy.read(policy).n == len(rows)
    # A folder of score tables may be replaced, one with anything else may not.
    assert "--overwrite" in complaint(capfd, (*model, *given), 2)
    (tmp_path / "scores" / "mine.txt").write_text("")
    told = complaint(capfd, (*model, *given, "--overwrite"), 2)
    assert "mine.txt" in told and (tmp_path / "scores" / "mine.txt").exists()


def test_without_labels_there_is_no_accuracy(folder, tmp_path, capfd):
    rows = [{k: row[k] for k in ("id", "prompt", "options")} for row in QUESTIONS]
    questions = write(tmp_path / "questions.jsonl", rows)
    output = tmp_path / "scores"
    assert score("--model", folder, "--questions", questions, "--output", output) == 0
    table = ScoreTable.read(output / "backbone.parquet")
    assert table.label is None and table.group is None
    assert capfd.readouterr().out.splitlines()[1].split()[2] == "-"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "--questions"),
        (["--questions", "q.jsonl"], 2, "--output"),
        (["--questions", "nowhere.jsonl", "--output", "o"], 1, "nowhere.jsonl: no such file"),
        (["--questions", "q.jsonl", "--output", "o", "--routing", "kind"], 2, "routing 'kind'"),
        (["--questions", "q.jsonl", "--output", "o", "--routing", "honest"], 2, "no experts"),
        (
            ["--questions", "q.jsonl", "--output", "o.parquet", "--routing", "top1", "honest"],
            2,
            "2 routings have a table each",
        ),
        (["--questions", "q.jsonl", "--output", "q.jsonl"], 2, "already exists"),
        (["--questions", "q.jsonl", "--output", "o", "--run", "r"], 2, "--run is for the score"),
        (["--set", "seed=1"], 2, "--set is for the score of a run"),
    ],
)
def test_bad_arguments(folder, questions, monkeypatch, capfd, arguments, status, message):
    monkeypatch.chdir(questions.parent)
    questions.rename("q.jsonl")
    assert message in complaint(capfd, ["--model", folder, *arguments], status)
    assert [path.name for path in questions.parent.iterdir()] == ["q.jsonl"]


def test_questions_need_a_model(questions, capfd):
    told = complaint(capfd, ("--questions", questions, "--output", "o"), 2)
    assert "--model" in told and "--run" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["a", ""]}, "option 1 has no tokens"),
        ({"options": ["a", 1]}, "option 1 must be text, not a number"),
        ({"options": "ab"}, "options must be a list of texts, not text"),
        ({"options": []}, "options must be a list of texts, not an empty value"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "prompt must be text, not null"),
        ({"prompt": "word " * 300}, "prompt and longest option have"),
        ({"id": None}, "id must be text"),
        ({"id": "sky"}, "id 'sky' is that of"),
        ({"label": 3}, "label must be the index of an option, 0 to 2"),
        ({"label": True}, "label must be the index"),
        ({"label": None}, "label must be in every line or in none; the first line has one"),
        ({"group": 1.5}, "group must be text"),
    ],
)
def test_a_bad_line_is_named(folder, tmp_path, capfd, change, message):
    questions = write(tmp_path / "questions.jsonl", [QUESTIONS[0], QUESTIONS[1] | change])
    arguments = ("--model", folder, "--questions", questions, "--output", tmp_path / "o")
    told = complaint(capfd, arguments, 1)
    assert f"{questions}: line 2: " in told and message in told
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]
