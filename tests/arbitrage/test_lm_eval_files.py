"""lm-eval samples: text numbers, filters, targets, normalised scores, shuffled options."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest

from arbitrage import DataError, ScoreTable, UsageError
from arbitrage.option_order import option_order

NAME = "samples_arc_easy_2026-01-02T03-04-05.678901.jsonl"


def sample(at: int, logliks, target, **changes) -> dict:
    """One line as the harness writes it: every number is text."""
    row = {
        "doc_id": at,
        "doc": {"question": f"what is {at}?", "subject": "even" if at % 2 == 0 else "odd"},
        "target": str(target),
        "arguments": {
            f"gen_args_{option}": {"arg_0": "Q", "arg_1": " " + "é" * (option + 1)}
            for option in range(len(logliks))
        },
        "resps": [[[str(value), "False"]] for value in logliks],
        "filtered_resps": [[str(value), "False"] for value in logliks],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": f"hash{at}",
        "acc": 1.0,
    }
    return row | changes


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)
    return path


LOGLIKS = [[-1.5, -0.25, -3.0], [-2.0, -1.0], [-0.125, -7.0, -1e-40]]


def rows(**changes):
    return [sample(at, values, 1, **changes) for at, values in enumerate(LOGLIKS)]


@pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
def test_text_numbers_and_metadata(tmp_path, name):
    path = write(tmp_path / "org__model" / name, rows())
    for place in (path, path.parent):
        table = ScoreTable.read(place)
        assert table.question_id.tolist() == ["0", "1", "2"]
        assert table.scores.tolist() == [
            [-1.5, -0.25, -3.0],
            [-2.0, -1.0, -np.inf],
            np.array(LOGLIKS[2], np.float32).tolist(),
        ]
        assert table.n_options.tolist() == [3, 2, 3]
        assert table.label is not None and table.label.tolist() == [1, 1, 1]
        assert table.metadata == {
            "source": "lm-eval", "model": "org__model", "task": "arc_easy", "filter": "none",
        }  # fmt: skip


def test_floats_and_list_arguments_of_older_versions(tmp_path):
    old = [
        sample(at, values, 0, filtered_resps=[[value, False] for value in values],
               arguments=[["Q", " a"], ["Q", " bb"], ["Q", " cccc"]][: len(values)])
        for at, values in enumerate(LOGLIKS)
    ]  # fmt: skip
    for row in old:
        del row["filter"]
    path = write(tmp_path / NAME, old)
    assert ScoreTable.read(path).scores[0].tolist() == [-1.5, -0.25, -3.0]
    assert ScoreTable.read(path, normalise="chars").scores[0].tolist() == [-1.5, -0.125, -0.75]


def test_normalised_by_the_continuation_without_its_delimiter(tmp_path):
    path = write(tmp_path / NAME, rows())
    chars = ScoreTable.read(path, normalise="chars")
    assert chars.scores[0].tolist() == [-1.5, -0.125, -1.0]
    assert chars.metadata["normalise"] == "chars"
    assert ScoreTable.read(path, normalise="bytes").scores[0].tolist() == [-0.75, -0.0625, -0.5]
    with pytest.raises(UsageError, match=r"normalise='words' is not one of chars, bytes"):
        ScoreTable.read(path, normalise="words")
    broken = rows()
    del broken[1]["arguments"]["gen_args_1"]["arg_1"]
    write(path, broken)
    with pytest.raises(DataError, match=r"line 2: normalise='chars'.*option 1 \(gen_args_1, arg_1\)"
                       r" is not in"):  # fmt: skip
        ScoreTable.read(path, normalise="chars")
    broken[1]["arguments"]["gen_args_1"]["arg_1"] = "  "
    with pytest.raises(DataError, match=r"option 1 .* is empty"):
        ScoreTable.read(write(path, broken), normalise="chars")


def test_filters(tmp_path):
    one = rows()
    other = [row | {"filter": "strict", "filtered_resps": [["-9", "False"]] * 2} for row in rows()]
    path = write(tmp_path / NAME, [line for pair in zip(one, other, strict=True) for line in pair])
    assert ScoreTable.read(path).n_options.tolist() == [3, 2, 3]
    strict = ScoreTable.read(path, filter_name="strict")
    assert strict.scores.tolist() == [[-9.0, -9.0]] * 3 and strict.metadata["filter"] == "strict"
    with pytest.raises(UsageError, match="no filter 'x'; the file has none, strict"):
        ScoreTable.read(path, filter_name="x")
    assert len(ScoreTable.read(write(path, other))) == 3
    loose = [row | {"filter": "loose"} for row in one]
    with pytest.raises(UsageError, match=r"the filters strict, loose: pass filter_name="):
        ScoreTable.read(write(path, other + loose))
    with pytest.raises(DataError, match="line 4 repeats doc_id 1 of line 2 for filter 'strict'"):
        ScoreTable.read(write(path, [*other, other[1]]))


def test_targets(tmp_path):
    path = tmp_path / NAME

    def labels(made, **options):
        return ScoreTable.read(write(path, made), **options).label

    texts = [sample(at, values, "éé", doc={}) for at, values in enumerate(LOGLIKS)]
    np.testing.assert_array_equal(labels(texts), [1, 1, 1])
    letters = {"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}}
    lettered = [sample(at, LOGLIKS[0], "C", doc=letters) for at in range(2)]
    np.testing.assert_array_equal(labels(lettered), [2, 2])
    # Digits: an index where that fits all rows, the option's text where only that does.
    numbers = {"choices": ["2", "1", "0"]}
    np.testing.assert_array_equal(labels([sample(0, LOGLIKS[0], 2, doc=numbers)]), [2])
    numbers = {"choices": ["4", "1", "7"]}
    both = [sample(at, LOGLIKS[0], target, doc=numbers) for at, target in enumerate((1, 7))]
    np.testing.assert_array_equal(labels(both), [1, 2])
    assert labels([sample(at, LOGLIKS[0], "none of these") for at in range(2)]) is None
    mixed = rows()
    mixed[1]["target"] = "2"  # that row has two options
    with pytest.raises(
        DataError, match=r"line 2: target is not an index.*2 of 3 lines.*label=NAME"
    ):
        labels(mixed)
    gold = [row | {"doc": {"gold": 0}} for row in mixed]
    np.testing.assert_array_equal(labels(gold, columns={"label": "doc.gold"}), [0, 0, 0])


def test_fields_of_the_document(tmp_path):
    path = write(tmp_path / NAME, rows())
    columns = {"question_id": "doc_hash", "group": "doc.subject"}
    table = ScoreTable.read(path, columns=columns)
    assert table.question_id.tolist() == ["hash0", "hash1", "hash2"]
    assert table.group is not None and table.group.tolist() == ["even", "odd", "even"]
    with pytest.raises(DataError, match=r"line 1: doc\.topic is null, not text or an integer"):
        ScoreTable.read(path, columns={"group": "doc.topic"})
    with pytest.raises(UsageError, match=r"scores=.*question_id, label, group only"):
        ScoreTable.read(path, columns={"scores": "resps"})
    same = write(path, [row | {"doc_hash": "h"} for row in rows()])
    with pytest.raises(DataError, match=r"line 2: row 1 .*repeats the id of row 0"):
        ScoreTable.read(same, columns={"question_id": "doc_hash"})


def test_mutual_information_keeps_the_half_with_the_question(tmp_path):
    made = [sample(0, [-1, -2, -5, -6], 1, metrics=["acc", "acc_mutual_info"])]
    assert ScoreTable.read(write(tmp_path / NAME, made)).scores.tolist() == [[-1.0, -2.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filtered_resps": ["a reply"]}, r"line 2: filtered_resps\[0\] is not \[log-likelihood"),
        ({"filtered_resps": []}, "line 2: filtered_resps is not a list of replies"),
        ({"filtered_resps": [["-1,5", "False"]]}, "line 2: log-likelihood of option 0: '-1,5'"),
        ({"filtered_resps": [["1_0", "False"]]}, "line 2: log-likelihood of option 0"),
        ({"filtered_resps": [[True, False]]}, "option 0: a boolean is not a number"),
        ({"filtered_resps": [["-inf", "False"]] * 2}, r"line 2: row 1 .*score of option 0 is -inf"),
        ({"filtered_resps": [["nan", "False"]] * 2}, r"line 2: row 1 .*is nan"),
        ({"filter": 3}, "line 2: filter is a number, not text"),
    ],
)
def test_bad_lines_are_named(tmp_path, changes, message):
    made = rows()
    made[1] = made[1] | changes
    path = write(tmp_path / NAME, made)
    with pytest.raises(DataError, match=message) as error:
        ScoreTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_folders(tmp_path):
    with pytest.raises(DataError, match=r"without samples_\*\.jsonl files"):
        ScoreTable.read(tmp_path, format="lm-eval")
    write(tmp_path / NAME, rows())
    (tmp_path / "results_2026.json").write_text("{}")
    assert len(ScoreTable.read(tmp_path)) == 3
    write(tmp_path / "samples_other.jsonl", rows())
    with pytest.raises(DataError, match=r"2 samples files.*samples_arc_easy.*samples_other.jsonl"):
        ScoreTable.read(tmp_path)


def test_shuffled_options_are_the_same_for_every_model(tmp_path):
    rng = np.random.default_rng(0)
    made = rng.normal(size=(2, 400, 4)).round(3)
    paths = [write(tmp_path / name / NAME, [sample(at, list(row), 0) for at, row in enumerate(one)])
             for name, one in zip("pg", made, strict=True)]  # fmt: skip
    plain = ScoreTable.read(paths[0])
    assert plain.label is not None and not plain.label.any()
    tables = [ScoreTable.read(path, shuffle_options=7) for path in paths]
    assert tables[0].metadata["shuffle_options"] == "7"
    assert tables[0].label is not None and tables[1].label is not None
    np.testing.assert_array_equal(tables[0].label, tables[1].label)
    for table, scores in zip(tables, made.astype(np.float32), strict=True):
        assert table.label is not None
        orders = np.array([option_order(7, str(at), 4) for at in range(400)])
        np.testing.assert_array_equal(table.scores, np.take_along_axis(scores, orders, 1))
        np.testing.assert_array_equal(table.scores[np.arange(400), table.label], scores[:, 0])
    # Every position is as likely: 400 draws, 5 standard deviations.
    counts = np.bincount(tables[0].label, minlength=4)
    assert (abs(counts - 100) < 5 * np.sqrt(400 * 3 / 16)).all()
    other = ScoreTable.read(paths[0], shuffle_options=8)
    assert other.label is not None and (other.label != tables[0].label).any()
    with pytest.raises(UsageError, match="must be an integer"):
        ScoreTable.read(paths[0], shuffle_options=True)


def test_shuffling_moves_valid_options_only(tmp_path):
    table = ScoreTable.read(write(tmp_path / NAME, rows()), shuffle_options=1)
    assert table.n_options.tolist() == [3, 2, 3]
    assert sorted(table.scores[1, :2]) == [-2.0, -1.0] and table.scores[1, 2] == -np.inf
    # It must not change between versions, or two tables would no longer fit.
    keys = [hashlib.sha256(f"-3\né\n{option}".encode()).hexdigest() for option in range(12)]
    assert option_order(-3, "é", 12) == sorted(range(12), key=keys.__getitem__)
