"""CSV: one column an option, and how faulty lines are named."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from arbitrage import DataError, ScoreTable, UsageError

HEAD = "question_id,scores_0,scores_1,label,group,cost,day,note\n"
GOOD = HEAD + '007,0.5,-1,0,x,1.5,2026-01-01,"a ""b"", c"\nb,1e-42,,0,,2,,"two\nlines"\n'


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_fields(tmp_path, name, text):
    table = ScoreTable.read(write(tmp_path / name, text))
    assert table.question_id.tolist() == ["007", "b"]
    want = np.array([[0.5, -1], [1e-42, -np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(table.scores, want)
    assert table.n_options.tolist() == [2, 1]
    assert table.label is not None and table.label.tolist() == [0, 0]
    assert table.group is not None and table.group.tolist() == ["x", ""]
    assert table.extra["cost"].tolist() == [1.5, 2.0]
    assert table.extra["note"][0] == 'a "b", c'


def test_many_options_in_any_column_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 12))
    order = np.random.default_rng(1).permutation(12)
    lines = [",".join(["id", *(f"p{at}" for at in order)])]
    lines += [",".join([str(at), *(repr(float(v)) for v in row[order])])
              for at, row in enumerate(values)]  # fmt: skip
    path = write(tmp_path / "t.csv", "\n".join(lines))
    table = ScoreTable.read(path, columns={"question_id": "id", "scores": "p"})
    np.testing.assert_array_equal(table.scores, values.astype(np.float32))


def test_hidden_options_may_be_filled(tmp_path):
    path = write(
        tmp_path / "t.csv", "question_id,scores_0,scores_1,n_options\na,1,nan,1\nb,1,2,2\n"
    )
    assert ScoreTable.read(path).scores.tolist() == [[1.0, -np.inf], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("head", "line", "message"),
    [
        ("question_id,scores_0,scores_1", "b,1", r"line 5 has 2 field\(s\), the header has 3"),
        ("question_id,scores_0,scores_1", "b,1,2,3", r"line 5 has 4 field\(s\)"),
        ("question_id,scores_0,scores_1", "b,1,x", "line 5: scores_1 is 'x', not a number"),
        ("question_id,scores_0,scores_1", "b,1,1_0", "line 5: scores_1 is '1_0', not a number"),
        ("question_id,scores_0,scores_1", 'b,1,"2', "line 6"),
        ("question_id,scores_0,scores_1", "b,1,nan", "line 5: row 2 .*option 1 is nan"),
        ("question_id,scores_0,scores_1", "b,-inf,1", "line 5: row 2 .*option 0 is -inf"),
        ("question_id,scores_0,scores_1", "b,1,1e400", "line 5: row 2 .*option 1 is inf"),
        ("question_id,scores_0,scores_1", "b,,1", "line 5: row 2 has an empty score before"),
        ("question_id,scores_0,scores_1", "b,,", "line 5: row 2 .*has no valid option"),
        ("question_id,scores_0,scores_1", "a0,1,2", "line 5: row 2 .*repeats the id of row 0"),
        ("question_id,scores_0,label", "b,1,", "line 5: row 2 .*label is missing"),
        ("question_id,scores_0,label", "b,1,0.5", "line 5: label is '0.5', not an integer"),
        ("question_id,scores_0,label", "b,1,7", "line 5: row 2 .*label 7 is outside"),
        ("question_id,scores_0,label", f"b,1,{2**63}", "line 5: label is .*not an integer"),
    ],
)
def test_faulty_lines_are_named(tmp_path, head, line, message):
    good = [f"a{at}," + ",".join("0" * head.count(",")) for at in range(3)]
    text = "\n".join([head, good[0], "", good[1], line, good[2], ""])
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=message) as error:
        ScoreTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", DataError, "the file is empty"),
        ("question_id,scores_0\n", DataError, "no rows"),
        ("question_id,p_0\na,1\n", UsageError, r"no columns scores_0.*--columns scores=PREFIX"),
        ("id,scores_0\na,1\n", UsageError, "no column 'question_id'; the file has id, scores_0"),
        ("question_id,scores_0,scores_2\na,1,2\n", DataError, "no column for option 1"),
        ("question_id,scores_0,scores0\na,1,2\n", DataError, "are the same option"),
        ("question_id,scores_0,scores_0\na,1,2\n", DataError, "are the same option"),
        ("question_id,scores_0,x,x\na,1,2,3\n", DataError, "column 'x' occurs 2 times"),
        ("question_id,scores_0\n\udcff,1\n", DataError, "not UTF-8"),
    ],
)
def test_faulty_files(tmp_path, text, kind, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(kind, match=message) as error:
        ScoreTable.read(path)
    assert "\n" not in str(error.value)


def test_cut_gzip(tmp_path):
    lines = [f"{at},{at * 0.37},1" for at in range(5000)]
    whole = gzip.compress("\n".join(["question_id,scores_0,scores_1", *lines]).encode())
    path = tmp_path / "t.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.csv\.gz: not a readable CSV file"):
        ScoreTable.read(path)
