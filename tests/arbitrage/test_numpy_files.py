"""NumPy files: a matrix, or named arrays; mapped, and never a pickle."""

from __future__ import annotations

import numpy as np
import pytest

from arbitrage import DataError, ScoreTable, UsageError

SCORES = np.random.default_rng(0).normal(size=(12, 3))


def test_a_matrix_is_mapped_not_copied(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, SCORES.astype(np.float32))
    table = ScoreTable.read(path)
    np.testing.assert_array_equal(table.scores, SCORES.astype(np.float32))
    assert table.question_id.tolist() == [str(at) for at in range(12)] and table.mask.all()
    assert table.question_id.dtype == np.dtype("U2")
    base = table.scores
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_types_become_float32(tmp_path, kind, order):
    values = np.asarray(SCORES * 3, dtype=kind, order=order)
    np.save(tmp_path / "t.npy", values)
    table = ScoreTable.read(tmp_path / "t.npy")
    np.testing.assert_array_equal(table.scores, values.astype(np.float32))


def test_named_arrays(tmp_path):
    path = tmp_path / "t.npz"
    counts = np.arange(12) % 3 + 1
    np.savez(path, scores=SCORES, n_options=counts, gold=np.zeros(12, int), model="m",
             question_id=np.array([f"é{at}" for at in range(12)]), cost=np.arange(12.0),
             group=np.array([b"x", b"y"] * 6))  # fmt: skip
    table = ScoreTable.read(path, columns={"label": "gold"})
    assert table.n_options.tolist() == counts.tolist()
    assert table.question_id[3] == "é3" and table.metadata == {"model": "m"}
    assert table.label is not None and table.group is not None
    assert table.group[:2].tolist() == ["x", "y"] and table.extra["cost"][5] == 5.0
    np.savez_compressed(path, scores=SCORES)
    table = ScoreTable.read(path)
    assert table.question_id[11] == "11" and table.label is None


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ({"scores": SCORES[0]}, UsageError, r"matrix \(N, K\) of numbers, not float64 \(3,\)"),
        ({"scores": SCORES > 0}, UsageError, "of numbers, not bool"),
        ({"scores": SCORES[:0]}, DataError, "it holds nothing"),
        ({"p": SCORES}, UsageError, "no column 'scores'; the file has p"),
        ({"label": np.zeros(12)}, UsageError, "label must hold 12 integers, not float64"),
        ({"label": np.zeros(11, int)}, UsageError, "label must hold 12 integers"),
        ({"label": np.full(12, 3)}, DataError, r"row 0 \(question_id '0'\): label 3 is outside"),
        ({"n_options": np.full(12, 4)}, DataError, "row 0 .*n_options is 4, but it has 3"),
        ({"question_id": np.zeros(12, int)}, DataError, "row 1 .*repeats the id of row 0"),
        ({"question_id": np.zeros(12)}, UsageError, "question_id must hold 12 texts or integers"),
        ({"question_id": np.array([b"\xff"] * 12)}, DataError, "not valid UTF-8"),
        ({"cost": np.zeros(5)}, DataError, "'cost' must have 12 rows"),
        ({"scores": np.where(SCORES > 2, np.nan, np.inf)}, DataError, "row 0 .*option 0 is inf"),
    ],
)
def test_bad_arrays(tmp_path, arrays, kind, message):
    path = tmp_path / "t.npz"
    np.savez(path, **({} if "p" in arrays else {"scores": SCORES}) | arrays)
    with pytest.raises(kind, match=message) as error:
        ScoreTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, SCORES)
    with pytest.raises(UsageError, match="no columns to name"):
        ScoreTable.read(path, columns={"scores": "p"})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:5], whole[:40], whole[:-1], b"\x93NUMPY\x09" + whole[7:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable NumPy file") as error:
            ScoreTable.read(path)
        assert "\n" not in str(error.value)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable NumPy file.*"):
        ScoreTable.read(path)
    np.savez(tmp_path / "t.npz", scores=SCORES, note=np.array([None] * 12, dtype=object))
    with pytest.raises(DataError, match="not a readable NumPy file"):
        ScoreTable.read(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", scores=SCORES)
    (tmp_path / "t.npz").write_bytes((tmp_path / "t.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable NumPy file"):
        ScoreTable.read(tmp_path / "t.npz")
