"""Score tables as Parquet files: what is read, what is refused, what is written."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_table

from arbitrage import DataError, ScoreTable, UsageError, parquet_files
from arbitrage.arrow_columns import text


def assert_equal(a: ScoreTable, b: ScoreTable) -> None:
    for name in ("question_id", "scores", "mask", "label", "group"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype.kind == right.dtype.kind
            np.testing.assert_array_equal(left, right)
    assert a.metadata == b.metadata
    assert a.extra.keys() == b.extra.keys()
    for name, value in a.extra.items():
        np.testing.assert_array_equal(value, b.extra[name])


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("ragged", [False, True])
def test_round_trip(tmp_path, ragged):
    mask = np.ones((20, 4), dtype=bool)
    if ragged:
        mask = np.arange(4) < np.random.default_rng(0).integers(1, 5, 20)[:, None]
    table = make_table(
        mask=mask,
        label=np.zeros(20, dtype=int),
        extra={"cost": np.arange(20.0), "tokens": np.arange(40).reshape(20, 2),
               "note": np.array(["é"] * 20)},
    )  # fmt: skip
    table.write(tmp_path / "t.parquet")
    assert_equal(ScoreTable.read(tmp_path / "t.parquet"), table)
    types = {f.name: str(f.type) for f in pq.read_schema(tmp_path / "t.parquet")}
    assert types["question_id"] == types["group"] == "string"
    assert types["label"] == types["n_options"] == "int16"
    assert types["scores"].startswith("list<") and "float" in types["scores"]
    with pytest.raises(UsageError, match="--overwrite"):
        table.write(tmp_path / "t.parquet")
    make_table(3).write(tmp_path / "t.parquet", overwrite=True)
    assert len(ScoreTable.read(tmp_path / "t.parquet")) == 3


def test_every_list_type_chunks_and_minimal_columns(tmp_path):
    values = [[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]]
    for kind in (pa.float16(), pa.float32(), pa.float64(), pa.int32()):
        scores = np.array(values, dtype=kind.to_pandas_dtype())
        for build in (pa.list_(kind, 3), pa.list_(kind), pa.large_list(kind)):
            one = pa.array(list(scores), build)
            path = write(
                tmp_path / "t.parquet",
                question_id=pa.chunked_array([["a", "b"], ["c", "d"]]),
                scores=pa.chunked_array([one, one]),
                n_options=pa.array([3, 2, 3, 2], pa.int64()),
            )
            table = ScoreTable.read(path)
            assert table.n_options.tolist() == [3, 2, 3, 2]
            assert table.scores[1].tolist() == [3.0, 4.0, -np.inf]
            assert table.label is None and table.group is None and table.metadata == {}


def test_variable_lists_need_no_option_count(tmp_path):
    path = write(tmp_path / "t.parquet", question_id=[1, 2], scores=[[0.5], [0.25, 0.125, 1.0]])
    table = ScoreTable.read(path)
    assert table.mask.tolist() == [[True, False, False], [True, True, True]]
    assert table.question_id.tolist() == ["1", "2"]


def test_hidden_scores_may_be_anything(tmp_path):
    scores = pa.array([[1.0, None], [2.0, float("nan")]], pa.list_(pa.float32(), 2))
    path = write(tmp_path / "t.parquet", question_id=["a", "b"], scores=scores, n_options=[1, 1])
    assert ScoreTable.read(path).scores.tolist() == [[1.0], [2.0]]


def test_columns_can_be_renamed(tmp_path):
    path = write(tmp_path / "t.parquet", id=["a"], logits=[[1.0, 2.0]], gold=[1])
    columns = {"question_id": "id", "scores": "logits", "label": "gold"}
    table = ScoreTable.read(path, columns=columns)
    assert table.label is not None and table.label.tolist() == [1] and not table.extra
    with pytest.raises(UsageError, match=r"no column 'scores'; the file has id, logits, gold.*"
                       r"--columns scores=NAME"):  # fmt: skip
        ScoreTable.read(path, columns={"question_id": "id"})
    with pytest.raises(UsageError, match=r"no column 'kind'.*--columns group=NAME"):
        ScoreTable.read(path, columns=columns | {"group": "kind"})
    with pytest.raises(UsageError, match="'score' is not one of question_id, scores"):
        ScoreTable.read(path, columns={"score": "logits"})
    with pytest.raises(UsageError, match="'id' has type string, not list<float32>"):
        ScoreTable.read(path, columns={"question_id": "id", "scores": "id"})


GOOD = {"question_id": ["a", "b", "c"], "scores": [[1.0, 2.0]] * 3}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question_id": ["a", "b", "b"]}, r"row 2 \(question_id 'b'\) repeats the id of row 1"),
        ({"question_id": ["a", None, "b"]}, "row 1: question_id is missing"),
        ({"scores": [[1.0, 2.0], None, [1.0]]}, r"row 1 \(question_id 'b'\): scores is missing"),
        ({"scores": [[1.0], [], [1.0]]}, r"row 1 \(question_id 'b'\) has no valid option"),
        ({"scores": [[1.0], [2.0, None], [1.0]]}, r"row 1 \(question_id 'b'\).*option 1 is nan"),
        ({"scores": [[1.0], [2.0], [float("-inf")]]}, r"row 2 \(question_id 'c'\).*is -inf"),
        ({"label": [0, 2, 5]}, r"row 1 \(question_id 'b'\): label 2 is outside"),
        ({"label": [0, None, 5]}, r"row 1 \(question_id 'b'\): label is missing"),
        ({"n_options": [1, 3, 0]}, r"row 1 \(question_id 'b'\): n_options is 3, but it has 2"),
        ({"n_options": [1, 2, 0]}, r"row 2 \(question_id 'c'\): n_options is 0"),
        ({"group": ["x", "y", None]}, "row 2: group is missing"),
    ],
)
def test_bad_rows_are_named_with_the_file(tmp_path, columns, message):
    path = write(tmp_path / "bad.parquet", **(GOOD | columns))
    with pytest.raises(DataError, match=message) as error:
        ScoreTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="no such file"):
        ScoreTable.read(path)
    with pytest.raises(DataError, match="is a folder"):
        ScoreTable.read(tmp_path)
    for content in (b"", b"not parquet at all", b"PAR1" + b"\0" * 50 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable Parquet file") as error:
            ScoreTable.read(path)
        assert "\n" not in str(error.value)
    write(path, question_id=pa.array([], pa.string()), scores=pa.array([], pa.list_(pa.float32())))
    with pytest.raises(DataError, match="no rows"):
        ScoreTable.read(path)
    with pytest.raises(UsageError, match="'label' has type double, not integers"):
        ScoreTable.read(write(path, **GOOD, label=[0.0, 1.0, 1.0]))


def test_cut_short_at_any_place(tmp_path):
    make_table(200).write(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        (tmp_path / "cut.parquet").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"cut\.parquet"):
            ScoreTable.read(tmp_path / "cut.parquet")


def test_a_damaged_page_is_refused_or_read_as_valid(tmp_path):
    make_table(200).write(tmp_path / "t.parquet")
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    for at in range(4, len(whole), 97):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "d.parquet").write_bytes(damaged)
        try:
            ScoreTable.read(tmp_path / "d.parquet")
        except (DataError, UsageError) as error:
            assert "\n" not in str(error)


def test_unknown_schema_version(tmp_path):
    content = pa.table(GOOD).replace_schema_metadata({"schema_version": "2"})
    pq.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="schema_version '2' is not known"):
        ScoreTable.read(tmp_path / "t.parquet")


def test_text_makes_no_object_for_each_row():
    """A million ids of the usual kind: little more than the bytes of the result."""
    ids = pa.chunked_array([pa.array(np.arange(at, at + 250_000)).cast(pa.string())
                            for at in range(10**6, 2 * 10**6, 250_000)])  # fmt: skip
    tracemalloc.start()
    try:
        made = text(ids, "question_id")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.dtype == np.dtype("U7") and made[[0, -1]].tolist() == ["1000000", "1999999"]
    assert peak < 1.3 * made.nbytes


def test_many_rows_cost_their_bytes(tmp_path):
    """A table of objects would hold a string of 57 bytes or more for each row."""
    n = 300_000
    content = pa.table({
        "question_id": pa.array(np.arange(n)).cast(pa.string()),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4 * n, np.float32)), 4),
        "note": pa.array(np.arange(n) % 7).cast(pa.string()),
    })  # fmt: skip
    pq.write_table(content, tmp_path / "t.parquet")
    tracemalloc.start()
    try:
        table = ScoreTable.read(tmp_path / "t.parquet")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    own = table.question_id.nbytes + table.scores.nbytes + table.extra["note"].nbytes
    assert len(table) == n and peak < 1.7 * own


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=9), min_size=1, max_size=8), min_size=1, max_size=4),
       st.sampled_from([pa.string(), pa.large_string(), "dictionary", "sliced"]))  # fmt: skip
def test_text_of_every_kind(chunks, kind):
    arrays = [pa.array(chunk, pa.string()) for chunk in chunks]
    if kind == "dictionary":
        arrays = [array.dictionary_encode() for array in arrays]
    elif kind == "sliced":
        arrays = [pa.array(["é", *chunk, "tail"]).slice(1, len(chunk)) for chunk in chunks]
    else:
        arrays = [array.cast(kind) for array in arrays]
    want = np.array([one for chunk in chunks for one in chunk], dtype=np.str_)
    got = text(pa.chunked_array(arrays), "question_id")
    assert got.dtype.kind == "U"
    np.testing.assert_array_equal(got, want)


def test_columns_of_other_types_are_not_read(tmp_path):
    path = write(
        tmp_path / "t.parquet", **GOOD, prompt=[{"role": "user"}] * 3, **{"a.b": [1, 2, 3]}
    )
    table = ScoreTable.read(path)
    assert list(table.extra) == ["a.b"] and table.extra["a.b"].tolist() == [1, 2, 3]


def test_large_tables_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "WRITE_ROWS", 7)
    mask = np.arange(4) < np.random.default_rng(0).integers(1, 5, 40)[:, None]
    note = np.array([f"{'long' * (at > 20)}{at}" for at in range(40)])
    table = make_table(40, mask=mask, label=np.zeros(40, dtype=int), extra={"note": note})
    table.write(tmp_path / "t.parquet")
    assert_equal(ScoreTable.read(tmp_path / "t.parquet"), table)


def test_repeated_columns(tmp_path):
    arrays = [pa.array(["a"]), pa.array([[1.0]]), pa.array([1]), pa.array([2])]
    content = pa.Table.from_arrays(arrays, names=["question_id", "scores", "x", "x"])
    pq.write_table(content, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'x' occurs 2 times"):
        ScoreTable.read(tmp_path / "t.parquet")


def test_shuffling_refuses_what_it_cannot_move(tmp_path):
    make_table(5, extra={"tokens": np.ones((5, 4))}).write(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="'tokens' may hold one value an option"):
        ScoreTable.read(tmp_path / "t.parquet", shuffle_options=0)
