"""The three builders of real data, on made-up rows."""

import json

import pytest

from trinityx_jax.data.alpaca import Alpaca
from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.safety_pairs import SafetyPairs
from trinityx_jax.data.sources import local_files
from trinityx_jax.data.splits import normalise
from trinityx_jax.data.truthful_qa import TruthfulQa
from trinityx_jax.errors import DataError

BUILDERS = (Alpaca, SafetyPairs, TruthfulQa)


def build(builder, directory, tmp_path, **kwargs):
    return builder(files=local_files(directory), data_dir=str(tmp_path / "out"), **kwargs)


def prompts(builder, split):
    return [row.prompt for row in builder.rows(split)]


def number(prompt):
    return int("".join(c for c in prompt if c.isdigit()))


@pytest.mark.parametrize("builder", BUILDERS)
def test_rows_are_a_function_of_the_seed(builder, pack, tmp_path):
    first, again = (build(builder, pack, tmp_path) for _ in range(2))
    other = build(builder, pack, tmp_path, seed=5)
    assert first.rows("test") == again.rows("test") != other.rows("test")
    assert first.rows("pretrain_train") == again.rows("pretrain_train")


@pytest.mark.parametrize("builder", BUILDERS)
def test_splits_share_no_prompt_and_ids_are_unique(builder, pack, tmp_path):
    made = build(builder, pack, tmp_path)
    seen: dict[str, str] = {}
    for split in SPLITS:
        rows = made.rows(split)
        assert rows
        for row in rows:
            assert seen.setdefault(normalise(row.prompt), split) == split
            assert row.objective == made.objective
        assert len({row.example_id for row in rows}) == len(rows)
    held_out = {prompt for prompt, split in seen.items() if split != "train"}
    corpus = made.rows("pretrain_train")
    assert corpus and all(row.objective == "pretrain" for row in corpus)
    assert not held_out & {normalise(row.prompt) for row in corpus}
    assert set(prompts(made, "pretrain_validation")) <= set(prompts(made, "validation"))


@pytest.mark.parametrize("builder", BUILDERS)
def test_held_out_rows_have_one_prompt_each_and_shuffled_options(builder, pack, tmp_path):
    made = build(builder, pack, tmp_path)
    labels = set()
    for split in SPLITS[1:]:
        assert len(set(prompts(made, split))) == len(made.rows(split))
        for row in made.rows(split):
            assert row.options[row.label] == row.response
            assert len(set(row.options)) == len(row.options) >= 2
            labels.add(row.label)
    assert len(labels) > 1


@pytest.mark.parametrize("builder, word", [(SafetyPairs, "ask"), (TruthfulQa, "Question")])
def test_split_files_are_honoured(builder, word, pack, tmp_path):
    made = build(builder, pack, tmp_path)
    for split, rests in (
        ("train", (0, 1, 2)), ("validation", (0, 1, 2)), ("calibration", (3,)), ("test", (4,)),
    ):  # fmt: skip
        assert all(number(prompt) % 5 in rests for prompt in prompts(made, split))
    assert len(made.rows("calibration")) == len(made.rows("test")) == 12
    assert all(prompt.startswith(word) for prompt in prompts(made, "test"))


def test_pairs_without_repeats_and_contradictions(pack, tmp_path):
    made = build(SafetyPairs, pack, tmp_path)
    assert not any(row.prompt == "ask 1" for split in SPLITS for row in made.rows(split))
    assert {row.response for row in made.rows("train") if row.prompt == "ask 2"} <= {"fine 2"}
    assert made.dropped["repeated pair"] == 1 and made.dropped["contradictory labels"] == 2
    corpus = {row.response for row in made.rows("pretrain_train")}
    assert any(text.startswith("bad") for text in corpus)
    assert any(text.startswith("fine") for text in corpus)
    for row in made.rows("train"):  # the pair itself, for preference losses
        assert row.options[row.label] == row.response and len(row.options) == 2
        assert row.rejected == row.options[1 - row.label] != row.response
    assert not any(row.rejected for row in build(Alpaca, pack, tmp_path).rows("train"))


def test_only_true_answers_are_trained_on(pack, tmp_path):
    made = build(TruthfulQa, pack, tmp_path)
    assert all(row.response.startswith("right") for row in made.rows("train"))
    assert all(row.options == () and row.label == -1 for row in made.rows("train"))
    assert not any(row.prompt == "left out" for row in made.rows("pretrain_train"))
    assert made.dropped["empty answer"] == 1 and made.dropped["labelled true and false"] == 1
    responses = {row.response.split()[0] for row in made.rows("pretrain_train")}
    assert responses == {"right", "wrong"}
    assert all(len(row.options) == 4 for row in made.rows("test"))


def test_a_prompt_held_out_elsewhere_is_not_trained_on(pack, tmp_path):
    made = build(Alpaca, pack, tmp_path)
    every = [p for split in (*SPLITS, "pretrain_train") for p in prompts(made, split)]
    assert "question  4 ?" not in every
    assert made.dropped["prompt held out by another objective"] == 1


def test_without_split_files_groups_are_split_by_hash(pack, tmp_path):
    for name in ("truthfulqa_split.json", "pku_split.json"):
        (pack / name).unlink()
    for builder in (SafetyPairs, TruthfulQa):
        made = build(builder, pack, tmp_path)
        split = {prompt: s for s in SPLITS for prompt in prompts(made, s)}
        assert set(split.values()) == set(SPLITS)


def test_a_prompt_that_the_split_file_lacks_is_named_by_hash_only(pack, tmp_path):
    for name, builder in (("truthfulqa_split.json", TruthfulQa), ("pku_split.json", SafetyPairs)):
        table = json.loads((pack / name).read_text())
        table.pop(next(iter(table)))
        (pack / name).write_text(json.dumps(table))
        with pytest.raises(DataError, match=r"SHA-1 [0-9a-f]{40}") as error:
            build(builder, pack, tmp_path).rows("train")
        assert "Question" not in str(error.value) and "ask" not in str(error.value)


def test_official_forms_give_the_same_rows(pack, tmp_path):
    packed = [build(b, pack, tmp_path) for b in BUILDERS]
    files = local_files(pack)
    official = tmp_path / "official"
    official.mkdir()
    _write_official(packed, files, official)
    for one, builder in zip(packed, BUILDERS, strict=True):
        other = builder(
            files=local_files(official) | {k: v for k, v in files.items() if "split" in k},
            data_dir=str(tmp_path / "out"),
        )
        for split in one.splits:
            assert other.rows(split) == one.rows(split), (builder, split)


def _write_official(packed, files, official):
    from trinityx_jax.data.raw_rows import read_rows

    rows = read_rows(files["helpful"], [{"prompt": str}])
    alpaca = [{"instruction": r["prompt"], "input": "", "output": r["response"]} for r in rows]
    (official / "alpaca_data.json").write_text(json.dumps(alpaca))
    lines = []
    for i, row in enumerate(read_rows(files["harmless"], [{"prompt": str}])):
        answers = [row["chosen"], row["rejected"]]
        safe = [True, False]
        if i % 2:
            answers.reverse()
            safe.reverse()
        lines.append(
            {"prompt": row["prompt"], "response_0": answers[0], "response_1": answers[1],
             "is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
        )  # fmt: skip
    lines.append({**lines[0], "prompt": "both safe", "is_response_0_safe": True,
                  "is_response_1_safe": True})  # fmt: skip
    (official / "pku_saferlhf.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [
        {"prompt": f"Q: {r['prompt']}\nA: {r['response']}\nTrue:",
         "completion": " yes" if r["true"] else " no"}
        for r in read_rows(files["honest_labeled"], [{"prompt": str}])
        if r["src"] == "truthfulqa_judge"
    ]  # fmt: skip
    (official / "finetune_truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    choices = read_rows(files["honest_mc"], [{"question": str}])
    (official / "mc_task.json").write_text(json.dumps(choices))


def test_alpaca_input_follows_the_instruction_on_its_own_line(tmp_path, pack):
    (pack / "train_helpful.jsonl.gz").unlink()
    rows = [{"instruction": f"Do {i}", "input": "with this", "output": f"o{i}"} for i in range(90)]
    (pack / "alpaca_data.json").write_text(json.dumps(rows))
    made = build(Alpaca, pack, tmp_path)
    assert all(prompt.endswith("\nwith this") for prompt in prompts(made, "train"))


def test_a_question_with_two_right_answers_is_refused(pack, tmp_path):
    row = {"question": "Question 4 ?", "mc1_targets": {"a": 1, "b": 1}}
    (pack / "eval_truthfulqa_mc.jsonl.gz").unlink()
    (pack / "mc_task.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="row 0 has not exactly one right"):
        build(TruthfulQa, pack, tmp_path).rows("test")


def test_an_empty_wrong_option_is_left_out_and_counted(pack, tmp_path):
    targets = {"right": 1, "": 0, "wrong": 0}
    rows = [{"question": f"Question {i} ?", "mc1_targets": targets} for i in range(60)]
    (pack / "eval_truthfulqa_mc.jsonl.gz").unlink()
    (pack / "mc_task.json").write_text(json.dumps(rows))
    made = build(TruthfulQa, pack, tmp_path)
    held_out = [row for split in ("validation", "calibration", "test") for row in made.rows(split)]
    assert held_out and all(sorted(row.options) == ["right", "wrong"] for row in held_out)
    assert all(row.options[row.label] == "right" for row in held_out)
    assert made.dropped["empty wrong option"] == len(held_out)
