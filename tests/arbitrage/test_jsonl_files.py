"""JSON lines: what is read, and how faulty lines are named."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from arbitrage import DataError, ScoreTable, UsageError, jsonl_files

LINES = [
    {"question_id": "a", "scores": [0.5, 1], "label": 1, "group": "x", "cost": 2,
     "day": "2026-01-01"},
    {"question_id": "007", "scores": [-0.0, 1e-42, 3], "label": 2, "group": "y", "cost": 0.5,
     "day": "no day"},
]  # fmt: skip


def write(path, lines, end="\n"):
    text = end.join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_slowly(monkeypatch, path, **options):
    """By the standard library alone: the two ways must agree."""
    monkeypatch.setattr(jsonl_files, "BLOCK_BYTES", 8)  # no line fits into a block
    return ScoreTable.read(path, **options)


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json", "noname"])
def test_fields(tmp_path, monkeypatch, name, slowly):
    path = write(tmp_path / name, ["", *LINES, "  "])
    table = read_slowly(monkeypatch, path) if slowly else ScoreTable.read(path)
    assert table.question_id.tolist() == ["a", "007"]
    want = np.array([[0.5, 1, -np.inf], [-0.0, 1e-42, 3]], dtype=np.float32)
    np.testing.assert_array_equal(table.scores, want)
    np.testing.assert_array_equal(np.signbit(table.scores), np.signbit(want))
    assert table.label is not None and table.label.tolist() == [1, 2]
    assert table.group is not None and table.group.tolist() == ["x", "y"]
    assert table.extra["cost"].tolist() == [2.0, 0.5]
    # Text that looks like a date stays text.
    assert table.extra["day"].tolist() == ["2026-01-01", "no day"]


def test_numbers_are_rounded_as_python_rounds_them(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(500, 3)) * 10.0 ** np.arange(-1, 2)
    lines = [{"question_id": at, "scores": row.tolist()} for at, row in enumerate(values)]
    path = write(tmp_path / "t.jsonl", lines)
    np.testing.assert_array_equal(ScoreTable.read(path).scores, values.astype(np.float32))
    slow = read_slowly(monkeypatch, path)
    np.testing.assert_array_equal(slow.scores, values.astype(np.float32))


def test_ids_of_mixed_type_and_hidden_options(tmp_path):
    lines = [
        {"question_id": 12345678901234567890123, "scores": [1, None], "n_options": 1},
        {"question_id": "x", "scores": [1, 2], "n_options": 2, "note": {"any": ["thing"]}},
        {"question_id": 3, "scores": [1, 2], "n_options": 2, "note": 5},
    ]
    table = ScoreTable.read(write(tmp_path / "t.jsonl", lines))
    assert table.question_id.tolist() == ["12345678901234567890123", "x", "3"]
    assert table.n_options.tolist() == [1, 2, 2] and not table.extra


def test_columns_and_byte_order_mark(tmp_path):
    path = write(tmp_path / "t.jsonl", ["\ufeff" + json.dumps({"id": 1, "p": [1, 2]})])
    table = ScoreTable.read(path, columns={"question_id": "id", "scores": "p"})
    assert table.question_id.tolist() == ["1"]
    with pytest.raises(UsageError, match=r"no column 'question_id'; the file has id, p"):
        ScoreTable.read(path)


GOOD = '{"question_id": "%s", "scores": [1, 2], "label": 0}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": "c", "scores": [1, 2', "line 4 is not valid JSON"),
        ('{"question_id": "c", "scores": [1, 2],}', "line 4 is not valid JSON"),
        ("[1, 2]", "line 4 holds a list, not a JSON object"),
        ("null", "line 4: row 2: question_id is missing"),
        ('{"question_id": "c", "scores": [1, 2], "scores": [3, 4]}', "line 4 .*occurs twice"),
        ('{"question_id": "c", "scores": [1, "2"]}', r"line 4: scores\[1\] is text, not a number"),
        ('{"question_id": "c", "scores": [1, true]}', r"line 4: scores\[1\]: a boolean"),
        ('{"question_id": "c", "scores": 5}', "line 4: scores must be a list of numbers, not a n"),
        ('{"question_id": "c", "scores": [1, 1e400], "label": 0}', "line 4: row 2 .*is inf"),
        ('{"question_id": "c", "scores": [1, NaN], "label": 0}', "line 4: row 2 .*is nan"),
        ('{"question_id": "c", "scores": [1, 1e39], "label": 0}', "line 4: row 2 .*is inf"),
        ('{"question_id": "c", "scores": [], "label": 0}', "line 4: row 2 .*has no valid option"),
        ('{"question_id": "c"}', "line 4: row 2 .*scores is missing"),
        ('{"scores": [1, 2]}', "line 4: row 2: question_id is missing"),
        ('{"question_id": 1.5, "scores": [1, 2]}', "line 4: question_id must be text or an int"),
        ('{"question_id": "a", "scores": [1, 2], "label": 0}', "line 4: row 2 .*repeats the id"),
        ('{"question_id": "c", "scores": [1, 2], "label": 9}', "line 4: row 2 .*label 9"),
        (
            '{"question_id": "c", "scores": [1, 2], "label": "1"}',
            "line 4: label must be an integer",
        ),
        ('{"question_id": "c", "scores": [1, 2], "label": 1e30}', "line 4: label must be an integ"),
        ('{"question_id": "\\ud800", "scores": [1, 2]}', "line 4: question_id holds half"),
        ("[" * 100_000, "line 4 is not valid JSON"),
    ],
)
def test_faulty_lines_are_named(tmp_path, line, message):
    lines = [GOOD % "a", "", GOOD % "b", line, GOOD % "d"]
    path = write(tmp_path / "t.jsonl", lines)
    with pytest.raises(DataError, match=message) as error:
        ScoreTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_faulty_files(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        ScoreTable.read(path)
    path.write_bytes((GOOD % "a").encode() + b'\n{"question_id": "\xff", "scores": [1]}\n')
    with pytest.raises(DataError, match="line 2: row 1: question_id is not valid UTF-8"):
        ScoreTable.read(path)
    path.write_bytes(b'{"question_id": "\xff", "scores": [1]}\n')
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        ScoreTable.read(path)
    whole = gzip.compress("\n".join(GOOD % at for at in range(5000)).encode())
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable text file, or cut short"):
        ScoreTable.read(packed)
    packed.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="not a readable text file"):
        ScoreTable.read(packed)
