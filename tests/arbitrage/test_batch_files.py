"""OpenAI and vLLM batch output: lists of scores, letters' log-probabilities, failures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from arbitrage import DataError, ScoreTable, UsageError


def chat(content, tops=None, model="m") -> dict:
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": content}}
    if tops is not None:
        made = [{"token": token, "logprob": value, "bytes": None} for token, value in tops]
        choice["logprobs"] = {"content": [{"token": "A", "logprob": 0, "top_logprobs": made}]}
    return {"object": "chat.completion", "model": model, "choices": [choice]}


def line(at, body, **changes) -> dict:
    response = {"status_code": 200, "request_id": f"r{at}", "body": body}
    row = {"id": f"b{at}", "custom_id": f"q{at}", "response": response, "error": None}
    return row | changes


def write(path, bodies):
    rows = [line(at, body) if "custom_id" not in body else body for at, body in enumerate(bodies)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "output.jsonl"


def test_lists_become_probabilities(path):
    bodies = [
        chat('{"scores": [0.2, 0.6]}'),
        chat("[1, 2, 1]"),
        chat('```json\n{"s": [0, 3]}\n```'),
    ]
    table = ScoreTable.read(write(path, bodies))
    want = np.array([[0.25, 0.75, -np.inf], [0.25, 0.5, 0.25], [0, 1, -np.inf]], np.float32)
    np.testing.assert_allclose(table.scores, want, rtol=1e-7)
    assert table.question_id.tolist() == ["q0", "q1", "q2"]
    assert table.metadata == {
        "source": "openai-batch", "replies": "list", "unparsed": "0", "failed": "0", "model": "m",
    }  # fmt: skip


def test_the_flatter_shape_of_vllm(path):
    made = [line(at, None, response=chat("[1, 3]")) for at in range(2)]
    assert ScoreTable.read(write(path, made)).scores.tolist() == [[0.25, 0.75]] * 2


@pytest.mark.parametrize(
    "reply",
    ["I think A.", "", None, "[1, 2]", "[1, 2, 3, 4]", '{"a": [1, 2, 3], "b": [1, 2, 3]}', "{}",
     '[1, "2", 3]', "[1, true, 0]", "[1, -1, 2]", "[0, 0, 0]", "[NaN, 1, 2]", "[Infinity, 1, 1]",
     "[1e308, 1e308, 1e308]", "[[1, 2, 3]]", "7", "[" * 100_000],
)  # fmt: skip
def test_other_replies_are_uniform_and_counted(path, reply):
    table = ScoreTable.read(write(path, [chat("[1, 2, 1]"), chat(reply)]), options=3)
    assert table.scores[0].tolist() == [0.25, 0.5, 0.25]
    assert table.scores[1].tolist() == [np.float32(1 / 3)] * 3
    assert table.metadata["unparsed"] == "1" and table.metadata["failed"] == "0"


def test_the_number_of_options_must_be_known(path):
    with pytest.raises(DataError, match=r"line 2: the reply to 'q1' lists no scores.*options="):
        ScoreTable.read(write(path, [chat("[1, 2]"), chat("no")]))
    with pytest.raises(DataError, match="no reply lists one number for each option"):
        ScoreTable.read(write(path, [chat("[1, 2]")]), options=3)
    for wrong in (0, 27, "AA", "", [], ["A", ""], True, 2.5):
        with pytest.raises(UsageError, match="options="):
            ScoreTable.read(path, options=wrong)  # type: ignore[arg-type]


def test_letters_by_their_log_probabilities(path):
    tops = [
        [("A", -0.5), (" B", -1.5), ("x", -4.0)],
        [("C", -1.0), (" C", -2.0), ("\n", -3.0)],
        [("x", -0.1), ("y", -3.0)],
    ]
    write(path, [chat("A", one) for one in tops])
    table = ScoreTable.read(path, options=3)
    both = math.log(math.exp(-1) + math.exp(-2))
    want = [[-0.5, -1.5, -4.0], [-3.0, -3.0, both], [math.log(1 / 3)] * 3]
    np.testing.assert_array_equal(table.scores, np.array(want, np.float32))
    assert table.metadata["replies"] == "letters" and table.metadata["unparsed"] == "1"
    swapped = ScoreTable.read(path, options="BA")
    np.testing.assert_array_equal(swapped.scores[0], np.array([-1.5, -0.5], np.float32))
    with pytest.raises(UsageError, match="pass options=, the number of letters"):
        ScoreTable.read(path)


def test_letters_of_plain_completions(path):
    choice = {"text": " A", "logprobs": {"top_logprobs": [{" A": -0.25, " B": -2.0}]}}
    table = ScoreTable.read(write(path, [{"choices": [choice]}]), options=["A", "B"])
    assert table.scores.tolist() == [[-0.25, -2.0]]


def test_the_two_ways_are_not_mixed_in_one_file(path):
    """A list reply puts the whole file on the scale of probabilities."""
    bodies = [chat("A", [("A", -0.5), ("B", -3.0)]), chat("[1, 3]", [("[", -0.1)])]
    table = ScoreTable.read(write(path, bodies), options=2)
    assert table.scores.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert table.metadata["replies"] == "list" and table.metadata["unparsed"] == "1"


FAILED = [
    ({"response": None, "error": {"code": "expired", "message": "too late"}}, "too late"),
    ({"response": {"status_code": 429, "body": {"error": {"message": "slow\ndown"}}}}, "429: slow"),
    ({"response": None}, "it has no response"),
    ({"response": {"status_code": 500, "body": None}}, "status 500"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FAILED)
def test_failed_requests(path, changes, message):
    write(path, [chat("[1, 3]"), line(1, None, **changes)])
    with pytest.raises(DataError, match=f"line 2: request 'q1' failed .*{message}") as error:
        ScoreTable.read(path)
    assert "\n" not in str(error.value)
    table = ScoreTable.read(path, options=2, on_error="uniform")
    assert table.scores.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert table.metadata["failed"] == "1" and table.metadata["unparsed"] == "0"
    with pytest.raises(UsageError, match="on_error='skip' is not one of raise, uniform"):
        ScoreTable.read(path, on_error="skip")


def test_ids(path):
    write(path, [chat("[1, 3]"), line(0, chat("[1, 3]"))])
    with pytest.raises(DataError, match=r"line 2: row 1 .*'q0'.*repeats the id of row 0"):
        ScoreTable.read(path)
    write(path, [chat("[1, 3]"), line(1, chat("[1, 3]"), custom_id=None)])
    with pytest.raises(DataError, match="line 2 has no custom_id"):
        ScoreTable.read(path)
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        ScoreTable.read(path, format="openai-batch")
    with pytest.raises(UsageError, match=r"columns= is for parquet.*read as openai-batch"):
        ScoreTable.read(write(path, [chat("[1, 3]")]), columns={"scores": "x"})
