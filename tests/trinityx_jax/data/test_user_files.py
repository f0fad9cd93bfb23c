"""Rows of users' own files: what a line may hold, where it goes, and how faults are named."""

import gzip
import json

import pytest

from trinityx_jax.config import DataConfig
from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.prepare import prepare
from trinityx_jax.data.splits import normalise
from trinityx_jax.data.user_files import FilesBuilder
from trinityx_jax.data.user_rows import UserFiles, user_files
from trinityx_jax.errors import DataError, UsageError


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def plain(count):
    return [{"prompt": f"ask {i}", "response": f"answer {i}"} for i in range(count)]


def builder(tmp_path, rows, objective="kind", seed=0):
    path = write(tmp_path / f"{objective}.jsonl", rows)
    source = UserFiles({objective: path})
    return FilesBuilder(
        objective=objective, source=source, seed=seed, data_dir=str(tmp_path / "tfds")
    )


def by_prompt(made):
    return {row.prompt: (split, row) for split in SPLITS for row in made.rows(split)}


def test_every_form_of_a_line(tmp_path):
    made = builder(tmp_path, [
        {"prompt": "given", "response": "long right", "options": ["wrong", "right"], "label": 1,
         "split": "test", "id": 7, "source": "ignored"},
        {"prompt": "pair", "chosen": "good", "rejected": "bad", "split": "calibration"},
        {"prompt": "pair", "chosen": "good", "rejected": "worse", "split": "calibration"},
        {"prompt": "menu", "options": ["a", "b"], "label": 0, "split": "train"},
        {"prompt": "learn", "chosen": "yes", "rejected": "no", "split": "train"},
        {"prompt": "learn", "chosen": "yes", "rejected": "no", "split": "train"},
    ])  # fmt: skip
    found = by_prompt(made)
    split, row = found["given"]
    assert (split, row.example_id, row.options, row.label) == (
        "test", "kind-7", ("wrong", "right"), 1,
    )  # fmt: skip
    assert row.response == "long right" and row.objective == "kind" and not row.rejected
    split, row = found["pair"]  # the first of a held-out prompt
    assert split == "calibration" and row.rejected == "bad"
    assert set(row.options) == {"good", "bad"} and row.options[row.label] == "good"
    assert found["menu"][1].response == "a"
    assert [r.rejected for r in made.rows("train")] in (["", "no"], ["no", ""])
    assert made.dropped == {"further row of a held-out prompt": 1, "repeated row": 1}
    corpus = {(r.prompt, r.response) for r in made.rows("pretrain_train")}
    assert corpus == {("menu", "a"), ("learn", "yes"), ("learn", "no")}


def test_splits_by_hash_are_the_same_for_every_objective_and_share_no_prompt(tmp_path):
    one, two = (by_prompt(builder(tmp_path, plain(200), o)) for o in ("one", "two"))
    assert {p: split for p, (split, _) in one.items()} == {p: s for p, (s, _) in two.items()}
    counts = [sum(split == s for split, _ in one.values()) for s in SPLITS]
    assert min(counts) > 10 and counts[0] > 80
    other = by_prompt(builder(tmp_path, plain(200), seed=1))
    assert any(other[p][0] != one[p][0] for p in one)
    for split, row in one.values():
        assert (len(row.options), row.label >= 0) == ((0, False) if split == "train" else (4, True))
    held_out = {normalise(p) for p, (split, _) in one.items() if split != "train"}
    corpus = builder(tmp_path, plain(200)).rows("pretrain_train")
    assert not held_out & {normalise(row.prompt) for row in corpus}


def test_a_row_without_a_split_follows_its_prompt(tmp_path):
    rows = [{**row, "split": "test"} for row in plain(40)]
    again = [{"prompt": f"ASK  {i}", "response": "another"} for i in range(40)]
    made = builder(tmp_path, rows + again)
    assert len(made.rows("test")) == 40
    assert not any(made.rows(split) for split in SPLITS[:3])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]", "line 2 holds a list"),
        ({"response": "a"}, "line 2: prompt is missing"),
        ({"prompt": "  ", "response": "a"}, "line 2: prompt is empty"),
        ({"prompt": "p"}, "line 2: response is missing"),
        ({"prompt": "p", "response": 3}, "line 2: response is a number, not text"),
        ({"prompt": "p", "chosen": "a"}, "line 2: chosen and rejected go together"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "line 2: chosen and rejected are equal"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "line 2: rejected is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "response": "a"}, "leave one out"),
        ({"prompt": "p", "options": ["a", "b"]}, "line 2: options and label go together"),
        ({"prompt": "p", "options": "ab", "label": 0}, "line 2: options must be a list of texts"),
        ({"prompt": "p", "options": ["a", " "], "label": 0}, "none of them empty"),
        ({"prompt": "p", "options": ["a", "a"], "label": 0}, "two or more, all different"),
        ({"prompt": "p", "options": ["a", "b"], "label": 2}, "index of an option, 0 to 1"),
        ({"prompt": "p", "options": ["a", "b"], "label": True}, "index of an option"),
        ({"prompt": "p", "response": "a", "split": "dev"}, "line 2: split must be one of train"),
        ({"prompt": "p", "response": "a", "id": ""}, "line 2: id must be text or an integer"),
        ({"prompt": "p", "response": "a", "id": "x"}, "line 2: id is that of line 1"),
        ({"prompt": "Secret", "response": "a", "split": "test"}, "line 1 of kind.jsonl has the"),
    ],
)
def test_a_bad_line_is_named_and_never_quoted(tmp_path, line, message):
    first = {"prompt": "secret", "response": "a", "id": "x", "split": "train"}
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "kind.jsonl"
    path.write_text(f"{json.dumps(first)}\n{text}\n")
    with pytest.raises(DataError) as error:
        _ = UserFiles({"kind": path}).rows
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and "secret" not in str(error.value).lower()


def test_a_prompt_has_one_split_over_all_files(tmp_path):
    rows = [{"prompt": "p", "response": "a", "split": split} for split in ("train", "test")]
    paths = {o: write(tmp_path / f"{o}.jsonl", [r]) for o, r in zip("ab", rows, strict=True)}
    with pytest.raises(DataError, match=r"b.jsonl: line 1: split is test, but line 1 of a.jsonl"):
        _ = UserFiles(paths).rows


def test_files_are_found_by_objective(tmp_path):
    write(tmp_path / "a.jsonl.gz", plain(1))
    assert user_files(tmp_path, ["a"]) == {"a": tmp_path / "a.jsonl.gz"}
    with pytest.raises(UsageError, match=r"no b.jsonl or b.jsonl.gz.* take it out of mocae.obj"):
        user_files(tmp_path, ["a", "b"])
    write(tmp_path / "a.jsonl", plain(1))
    with pytest.raises(UsageError, match=r"has a.jsonl and a.jsonl.gz; keep one"):
        user_files(tmp_path, ["a"])


def test_prepare_builds_them_and_notices_another_file_or_objective(tmp_path):
    write(tmp_path / "v1.0.jsonl.gz", plain(120))
    write(tmp_path / "kind.jsonl", [{**row, "response": "no"} for row in plain(60)])
    config = DataConfig(source="files", data_dir=str(tmp_path), vocab_size=300)
    with pytest.raises(
        DataError, match="objective 'kind': no validation rows"
    ):  # all answers are the same
        prepare(config, tmp_path / "out", ("v1.0", "kind"))
    write(tmp_path / "kind.jsonl", plain(100))
    data = prepare(config, tmp_path / "out", ("v1.0", "kind"))
    table = builder(tmp_path, plain(100)).rows("test")
    assert list(data.rows("kind", "test")) == table
    assert data.verify is None and data.tokenizer.get_vocab_size() <= 300
    assert list(data.describe()["rows"]) == ["v1.0", "kind"]
    assert {row.objective for row in data.pretrain()} == {"pretrain"}
    assert prepare(config, tmp_path / "out", ("kind",)).directory != data.directory
    write(tmp_path / "kind.jsonl", plain(101))
    assert prepare(config, tmp_path / "out", ("v1.0", "kind")).directory != data.directory
