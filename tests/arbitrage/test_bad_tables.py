"""Damaged files of every format: one line naming the file, or a valid table; never a traceback."""

from __future__ import annotations

import gzip
import json
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_table

from arbitrage import DataError, ScoreTable, UsageError
from arbitrage.score_files import detect_format, read_table


def parquet(folder):
    make_table(12).write(folder / "t.parquet")
    return "t.parquet"


def jsonl(folder):
    lines = [{"question_id": f"q{at}", "scores": [0.25, at, -1e-40], "label": 1, "note": "é"}
             for at in range(5)]  # fmt: skip
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "t.jsonl"


def lm_eval(folder):
    lines = [{"doc_id": at, "doc": {"choices": ["a", "b"]}, "target": "b", "filter": "none",
              "arguments": {"gen_args_0": {"arg_1": " a"}, "gen_args_1": {"arg_1": " b"}},
              "filtered_resps": [["-1.5", "True"], ["-2.5", "False"]]}
             for at in range(4)]  # fmt: skip
    (folder / "samples_t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "samples_t.jsonl"


def batch(folder):
    lines = [{"custom_id": f"q{at}", "error": None, "response": {"status_code": 200, "body": {
        "choices": [{"message": {"content": "[0.5, 0.25]"}, "logprobs": None}]}}}
        for at in range(4)]  # fmt: skip
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "b.jsonl"


def csv(folder):
    lines = [
        "question_id,scores_0,scores_1,label,note",
        *(f'q{at},0.5,{at},1,"a,b"' for at in range(5)),
    ]
    (folder / "t.csv").write_text("\n".join(lines))
    return "t.csv"


def csv_gz(folder):
    (folder / "t.csv.gz").write_bytes(gzip.compress((folder / csv(folder)).read_bytes()))
    return "t.csv.gz"


def npy(folder):
    np.save(folder / "t.npy", np.ones((5, 3)))
    return "t.npy"


def npz(folder):
    np.savez_compressed(folder / "t.npz", scores=np.ones((5, 3)), label=np.zeros(5, int))
    return "t.npz"


FORMATS = {parquet: "parquet", jsonl: "jsonl", lm_eval: "lm-eval", batch: "openai-batch",
           csv: "csv", csv_gz: "csv", npy: "numpy", npz: "numpy"}  # fmt: skip
MAKERS = list(FORMATS)


@pytest.mark.parametrize("make", MAKERS)
def test_formats_are_told_apart(tmp_path, make):
    path = tmp_path / make(tmp_path)
    assert detect_format(path) == FORMATS[make]
    bare = path.rename(tmp_path / "no_suffix")
    if make in (csv, csv_gz):
        with pytest.raises(UsageError, match="pass format=, one of parquet, lm-eval, jsonl, csv, "
                           "numpy, openai-batch"):  # fmt: skip
            detect_format(bare)
        return
    assert detect_format(bare) == FORMATS[make]
    assert len(ScoreTable.read(bare)) >= 4


def read_or_one_line(path, format) -> None:
    for normalise in (None, "chars") if format == "lm-eval" else (None,):
        try:
            table = ScoreTable.read(path, format=format, normalise=normalise)
        except (DataError, UsageError) as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            assert len(str(error)) < 1000
        else:
            assert np.isfinite(table.scores[table.mask]).all() and len(table)


DAMAGE = st.tuples(st.sampled_from(["set", "cut", "drop", "insert", "double"]),
                   st.floats(0, 1), st.binary(min_size=1, max_size=4))  # fmt: skip


def damaged(content: bytes, damage) -> bytes:
    what, where, new = damage
    at = int(where * (len(content) - 1))
    return {
        "set": content[:at] + new + content[at + len(new) :],
        "cut": content[:at],
        "drop": content[:at] + content[at + len(new) :],
        "insert": content[:at] + new + content[at:],
        "double": content[:at] + content,
    }[what]


@pytest.mark.parametrize("make", MAKERS)
def test_any_damage(tmp_path_factory, make):
    folder = tmp_path_factory.mktemp("whole")
    whole = (folder / make(folder)).read_bytes()
    bad = folder / "bad"
    suffix = ".gz" if make is csv_gz else ".npz" if make is npz else ""

    @settings(max_examples=60, deadline=None)
    @given(damage=st.lists(DAMAGE, min_size=1, max_size=2))
    def check(damage):
        content = whole
        for one in damage:
            content = damaged(content, one) if content else content
        path = bad.with_suffix(suffix)
        path.write_bytes(content)
        read_or_one_line(path, FORMATS[make])

    check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["choices", "message", "content", "logprobs", "arg_1", "x"]),
                      inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PATHS = {
    jsonl: [("question_id",), ("scores",), ("scores", 1), ("label",), ("note",), ("n_options",)],
    lm_eval: [("doc_id",), ("doc",), ("doc", "choices"), ("target",), ("arguments",), ("filter",),
              ("arguments", "gen_args_0"), ("filtered_resps",), ("filtered_resps", 0),
              ("filtered_resps", 0, 0), ("metrics",)],
    batch: [("custom_id",), ("error",), ("response",), ("response", "status_code"),
            ("response", "body"), ("response", "body", "choices"),
            ("response", "body", "choices", 0, "message"),
            ("response", "body", "choices", 0, "logprobs"), ("response", "body", "model")],
}  # fmt: skip


@pytest.mark.parametrize("make", list(PATHS))
def test_any_value_in_any_field(tmp_path_factory, make):
    folder = tmp_path_factory.mktemp("whole")
    lines = (folder / make(folder)).read_text().splitlines()

    @settings(max_examples=100, deadline=None)
    @given(at=st.integers(0, 3), where=st.sampled_from(PATHS[make]), value=json_values)
    def check(at, where, value):
        rows = [json.loads(line) for line in lines]
        inside = rows[at]
        for key in where[:-1]:
            inside = inside[key]
        inside[where[-1]] = value
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "bad").write_text(text)
        read_or_one_line(folder / "bad", FORMATS[make])

    check()


@pytest.mark.parametrize("make", MAKERS)
def test_empty_and_unreadable_files(tmp_path, make):
    name = make(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"empty|not a readable") as error:
        ScoreTable.read(tmp_path / name, format=FORMATS[make])
    assert "\n" not in str(error.value)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        ScoreTable.read(tmp_path / name, format=FORMATS[make])
    with pytest.raises(DataError, match="no such file"):
        ScoreTable.read(tmp_path / "none", format=FORMATS[make])


def test_arguments_of_another_format(tmp_path):
    path = tmp_path / jsonl(tmp_path)
    for name in ("filter_name", "normalise", "options", "on_error"):
        with pytest.raises(UsageError, match=f"{name}= is for .*; this file is read as jsonl"):
            read_table(path, **cast(Any, {name: "x"}))
    with pytest.raises(UsageError, match="format 'pickle' is not one of parquet, lm-eval"):
        ScoreTable.read(path, format="pickle")


def test_special_floats_survive_every_format(tmp_path):
    values = np.array([[-0.0, 1e-45, 3.4028235e38], [0.1, -1e-38, 2.0]], dtype=np.float32)
    np.save(tmp_path / "t.npy", values)
    table = ScoreTable.read(tmp_path / "t.npy")
    table.write(tmp_path / "t.parquet")
    rows = [[repr(float(value)) for value in row] for row in values]
    (tmp_path / "t.csv").write_text("question_id,s0,s1,s2\n" + "".join(
        f"{at},{','.join(row)}\n" for at, row in enumerate(rows)))  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(
        f'{{"question_id": {at}, "scores": [{",".join(row)}]}}\n'
        for at, row in enumerate(rows)))  # fmt: skip
    for name, columns in (("t.parquet", None), ("t.csv", {"scores": "s"}), ("t.jsonl", None)):
        read = ScoreTable.read(tmp_path / name, columns=columns)
        assert read.question_id.tolist() == ["0", "1"]
        np.testing.assert_array_equal(read.scores.view(np.uint32), values.view(np.uint32))
