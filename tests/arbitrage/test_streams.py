"""Streams: the same rows as the tables in memory, whatever the layout of the files."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_table, run_python

from arbitrage import DataError, ScoreTable, UsageError, join, streams
from arbitrage.streams import open_stream


def pair(n: int, ragged: bool, seed: int = 0) -> tuple[ScoreTable, ScoreTable]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, n) if ragged else np.full(n, 4)
    mask = np.arange(4) < counts[:, None]
    label = np.zeros(n, dtype=int)
    return (
        make_table(n, mask=mask, seed=1, label=label),
        make_table(n, mask=mask, seed=2, label=label),
    )


def check(stream, primary: ScoreTable, guardian: ScoreTable, rows_per_chunk: int) -> None:
    """Twice, because the second iteration reads less."""
    for _ in range(2):
        start = 0
        for rows in stream:
            n, k = rows.primary.shape
            part = slice(start, start + n)
            mask = primary.mask[part]
            assert k == mask.sum(axis=1).max()
            for got, table in ((rows.primary, primary), (rows.guardian, guardian)):
                assert got.dtype == np.float32 and got.shape == (n, k)
                np.testing.assert_array_equal(got, table.scores[part, :k])
            if rows.mask is None:
                assert mask[:, :k].all()
            else:
                assert not mask[:, :k].all()
                np.testing.assert_array_equal(rows.mask, mask[:, :k])
            np.testing.assert_array_equal(rows.label, primary.label[part])  # type: ignore[index]
            start += n
            assert n == rows_per_chunk or start == len(primary)
        assert start == len(primary) == len(stream)


def write_parts(table: ScoreTable, folder, cuts, row_group):
    """The table in one file, or cut into part files, with row groups of any size."""
    table.write(folder / "whole.parquet")
    content = pq.read_table(folder / "whole.parquet")
    (folder / "whole.parquet").unlink()
    edges = [0, *sorted(cuts), len(table)]
    for at, (start, stop) in enumerate(pairwise(edges)):
        pq.write_table(content.slice(start, stop - start), folder / f"part-{at:03}.parquet",
                       row_group_size=row_group)  # fmt: skip
    return folder


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60),
    ragged=st.booleans(),
    rows_per_chunk=st.integers(1, 70),
    piece=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    groups=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_rows_equal_the_tables(tmp_path_factory, n, ragged, rows_per_chunk, piece, cuts, groups):
    primary, guardian = pair(n, ragged, seed=n)
    folder = tmp_path_factory.mktemp("stream")
    for name, table, group in (("p", primary, groups[0]), ("g", guardian, groups[1])):
        (folder / name).mkdir()
        inside = [cut for cut in cuts if cut <= n] if name == "p" else []
        write_parts(table, folder / name, inside, group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_ROWS", piece)
        stream = open_stream(folder / "p", folder / "g", rows_per_chunk=rows_per_chunk)
        check(stream, primary, guardian, rows_per_chunk)


@pytest.fixture
def files(tmp_path):
    """Writes both models' columns; returns the paths."""

    def write(guardian=None, rows=None, **primary):
        paths = []
        for name, columns in (("p", primary), ("g", {**primary, **(guardian or {})})):
            columns = {k: v for k, v in columns.items() if v is not None}
            pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=rows)
            paths.append(tmp_path / f"{name}.parquet")
        return paths

    return write


GOOD = {"question_id": ["a", "b", "c"], "scores": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}


@pytest.mark.parametrize(
    ("primary", "guardian", "message"),
    [
        (
            {},
            {"question_id": ["a", "c", "b"]},
            r"p\.parquet has row 1 \(question_id 'b'\), .*"
            r"g\.parquet has question_id 'c' there: sort both files by question_id, or calibrate",
        ),
        ({}, {"scores": [[1.0, 2.0], [3.0, 4.0], [5.0]]}, r"row 2 .*: n_options 2, .*n_options 1"),
        (
            {"n_options": [2, 1, 2]},
            {"n_options": [2, 2, 2]},
            r"row 1 .*: n_options 1, .*n_options 2",
        ),
        ({"label": [0, 1, 0]}, {"label": [0, 0, 0]}, r"row 1 .*'b'\): label 1, .*label 0 there"),
        (
            {"label": [0, 1, 2]},
            {"label": None},
            r"p\.parquet: row 2 \(question_id 'c'\): label 2 is",
        ),
        ({}, {"label": [-1, 1, 0]}, r"g\.parquet: row 0 .*label -1 is outside its 2"),
        ({"label": [0, None, 2]}, {}, r"p\.parquet: row 1 \(question_id 'b'\): label is missing"),
        ({"question_id": ["a", None, "b"]}, {}, "row 1: question_id is missing"),
        ({}, {"scores": [[1.0, 2.0], None, [5.0, 6.0]]}, r"g\.parquet: row 1 .*scores is missing"),
        ({}, {"scores": [[1.0, 2.0], [3.0, float("nan")], [5.0, 6.0]]}, r"row 1 .*option 1 is nan"),
        ({"scores": [[1.0, 1e39], [3.0, 4.0], [5.0, 6.0]]}, {}, r"row 0 .*option 1 is inf"),
        ({"scores": [[1.0], [3.0], []]}, {}, r"row 2 \(question_id 'c'\) has no valid option"),
        ({"n_options": [1, 2, 3]}, {}, r"row 2 .*n_options is 3, but it has 2"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 100])
def test_rows_that_do_not_fit(files, monkeypatch, primary, guardian, message, piece):
    monkeypatch.setattr(streams, "PIECE_ROWS", piece)
    stream = open_stream(*files(guardian, **(GOOD | primary)), rows_per_chunk=2)
    for _ in range(2):  # an unfinished check is made again
        with pytest.raises(DataError, match=message) as error:
            list(stream)
        assert "\n" not in str(error.value) and error.value.row is not None


def test_a_row_far_into_the_file(files, monkeypatch):
    monkeypatch.setattr(streams, "PIECE_ROWS", 7)
    ids = [f"q{at}" for at in range(100)]
    scores = np.ones((100, 2)).tolist()
    wrong = [*ids[:63], "x", *ids[64:]]
    stream = open_stream(*files({"question_id": wrong}, question_id=ids, scores=scores, rows=9))
    with pytest.raises(DataError, match=r"row 63 \(question_id 'q63'\), .*'x' there") as error:
        list(stream)
    assert error.value.row == 63


def test_ids_of_different_types_and_hidden_scores(files):
    scores = [[1.0, 2.0, float("nan")], [3.0, float("inf"), 0.0]]
    paths = files(
        {"question_id": pa.array(["7", "8"]).dictionary_encode(), "n_options": None,
         "scores": [[0.5, 0.25], [0.125]]},
        question_id=[7, 8], scores=scores, n_options=pa.array([2, 1], pa.int8()),
    )  # fmt: skip
    stream = open_stream(*paths)
    for _ in range(2):
        (rows,) = stream
        assert rows.primary.tolist() == [[1.0, 2.0], [3.0, -np.inf]]
        assert rows.guardian.tolist() == [[0.5, 0.25], [0.125, -np.inf]]
        assert rows.mask.tolist() == [[True, True], [True, False]] and rows.label is None


def test_one_file_with_both_models_and_labels_of_the_guardian(files, tmp_path):
    path, _ = files(
        id=["a", "b"], helpful=[[1.0, 2.0]] * 2, harmless=[[3.0, 4.0]] * 2, label=[0, 1]
    )
    columns = {"question_id": "id", "primary": "helpful", "guardian": "harmless"}
    stream = open_stream(path, path, columns=columns)
    for _ in range(2):
        (rows,) = stream
        assert rows.primary.tolist() == [[1.0, 2.0]] * 2
        assert rows.guardian.tolist() == [[3.0, 4.0]] * 2 and rows.label.tolist() == [0, 1]
    paths = files({"label": [1, 1, 0]}, **GOOD)
    stream = open_stream(*paths)
    assert stream.has_label
    assert [next(iter(stream)).label.tolist() for _ in range(2)] == [[1, 1, 0]] * 2
    assert [rows.label.tolist() for rows in stream] == [[1, 1, 0]]
    assert [rows.label.tolist() for rows in stream] == [[1, 1, 0]]


def test_bad_calls_and_files(files, tmp_path):
    paths = files(**GOOD)
    with pytest.raises(UsageError, match="no column 'logits'; the file has question_id, scores"):
        open_stream(*paths, columns={"scores": "logits"})
    with pytest.raises(UsageError, match="'group' is not one of question_id, scores, primary"):
        open_stream(*paths, columns={"group": "g"})
    with pytest.raises(UsageError, match=r"has type string, not list<float32>.*guardian=NAME"):
        open_stream(*paths, columns={"guardian": "question_id"})
    for wrong in (0, -1, 1.5):
        with pytest.raises(UsageError, match="rows_per_chunk"):
            open_stream(*paths, rows_per_chunk=wrong)  # type: ignore[arg-type]
    make_table(4).write(tmp_path / "four.parquet")
    with pytest.raises(DataError, match=r"p\.parquet has 3 rows, .*four\.parquet has 4"):
        open_stream(paths[0], tmp_path / "four.parquet")
    with pytest.raises(DataError, match="no such file"):
        open_stream(paths[0], tmp_path / "none.parquet")
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    with pytest.raises(DataError, match=r"g\.parquet: not a readable Parquet file"):
        open_stream(*paths)
    empty = {
        "question_id": pa.array([], pa.string()),
        "scores": pa.array([], pa.list_(pa.float32())),
    }
    with pytest.raises(DataError, match="no rows"):
        open_stream(*files(**empty))


def test_a_damaged_page(tmp_path):
    """Found while streaming, in whichever thread, and named with its part file."""
    primary, guardian = pair(2000, False)
    (tmp_path / "g").mkdir()
    primary.write(tmp_path / "p.parquet")
    guardian.write(tmp_path / "g" / "part-0.parquet")
    content = bytearray((tmp_path / "g" / "part-0.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    (tmp_path / "g" / "part-0.parquet").write_bytes(content)
    stream = open_stream(tmp_path / "p.parquet", tmp_path / "g")
    with pytest.raises(DataError, match=r"g: .*part-0\.parquet: not a readable Parquet file|row"):
        list(stream)


def test_no_thread_outlives_its_iteration(tmp_path):
    primary, guardian = pair(500, True)
    primary.write(tmp_path / "p.parquet")
    guardian.write(tmp_path / "g.parquet")
    stream = open_stream(tmp_path / "p.parquet", tmp_path / "g.parquet", rows_per_chunk=10)
    before = threading.active_count()
    steps = iter(stream)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert sum(len(rows.primary) for rows in stream) == 500
    assert threading.active_count() == before


def test_the_join_in_memory_takes_any_order(tmp_path):
    primary, guardian = pair(50, True)
    order = np.random.default_rng(0).permutation(50)
    primary.write(tmp_path / "p.parquet")
    guardian.take(order).write(tmp_path / "g.parquet")
    with pytest.raises(DataError, match="sort both files by question_id"):
        list(open_stream(tmp_path / "p.parquet", tmp_path / "g.parquet"))
    read = join(*(ScoreTable.read(tmp_path / f"{name}.parquet") for name in "pg"))
    np.testing.assert_array_equal(read[1].scores, guardian.scores)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Ten times the rows (the same file as ten parts) may not take 25 MB more."""
    n = 400_000
    rng = np.random.default_rng(0)
    for name in "pg":
        content = pa.table({
            "question_id": pa.array(np.arange(n)).cast(pa.string()),
            "scores": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(4 * n, np.float32)), 4),
        })  # fmt: skip
        pq.write_table(content, tmp_path / f"{name}.parquet", row_group_size=100_000)
        (tmp_path / name).mkdir()
        for part in range(10):
            (tmp_path / name / f"{part}.parquet").symlink_to(tmp_path / f"{name}.parquet")
    code = (
        "import resource, sys\nfrom arbitrage.streams import open_stream\n"
        "stream = open_stream(*sys.argv[1:], rows_per_chunk=100_000)\n"
        "n = sum(len(rows.primary) for _ in range(2) for rows in stream)\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    peaks = []
    for rows, suffix in ((n, ".parquet"), (10 * n, "")):
        paths = [str(tmp_path / f"{name}{suffix}") for name in "pg"]
        count, peak = run_python("-c", code, *paths, check=True).stdout.split()
        assert int(count) == 2 * rows
        peaks.append(float(peak))
    assert peaks[1] < peaks[0] + 25
