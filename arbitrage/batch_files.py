"""Score tables from the output of OpenAI's batch API, which `vllm run-batch` writes as well."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arbitrage.arrow_columns import option_mask
from arbitrage.errors import DataError, UsageError, one_line
from arbitrage.filesystems import Place
from arbitrage.json_lines import json_lines, number_of, padded, rows_on_lines, text_of
from arbitrage.scores import ScoreTable

ON_ERROR = ("raise", "uniform")
_FENCE = re.compile(r"```[a-z]*\s*(.*?)\s*```", re.DOTALL)


@dataclass
class _Reply:
    """One answered request: the scores its text lists and those its log-probabilities give."""

    line: int
    question: str
    failed: bool
    listed: list[float] | None
    lettered: list[float] | None
    has_logprobs: bool


def read_batch(
    place: Place,
    *,
    options: int | str | Sequence[str] | None = None,
    on_error: str = "raise",
) -> ScoreTable:
    """The scores in a batch output file; `custom_id` is the question id.

    The replies of a file are read in one of two ways:
      list: where any reply's text is a JSON list of numbers, or an object with one such list. Its
        entries must be finite and not negative; they are divided by their sum.
      letters: else, the log-probabilities of the first token, matched to the option letters (the
        letter with and without white space adds up). A letter outside the top tokens gets the
        smallest log-probability among them: its true one is not larger.
    A reply that does not fit, in a list of other length than `options` for example, gets uniform
    scores, so that all its options stay candidates (Overman and Bayati, arXiv 2506.00911, appendix
    B.1), and is counted in the metadata as `unparsed`.

    Args:
      options: number of options of every question (letters A, B ...), or the letters themselves.
        Not needed for lists, unless some reply has none.
      on_error: "raise", or "uniform": uniform scores for failed requests, counted as `failed`.

    Raises UsageError for a bad argument, DataError naming the first bad line and its custom_id.
    """
    letters = _letters(options)
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error={on_error!r} is not one of {', '.join(ON_ERROR)}")
    models: dict[str, None] = {}
    replies = [
        _reply(row, line, letters, on_error, models) for line, row in json_lines(place)
    ]  # fmt: skip
    if not replies:
        raise DataError("the file is empty")
    way = _way(replies, letters)
    scores, unparsed = _scores(replies, way, letters)
    metadata = {"source": "openai-batch", "replies": way, "unparsed": str(unparsed),
                "failed": str(sum(reply.failed for reply in replies))}  # fmt: skip
    if len(models) == 1:
        metadata["model"] = next(iter(models))
    matrix, counts = padded(scores)
    with rows_on_lines(np.array([reply.line for reply in replies])):
        return ScoreTable(
            question_id=np.array([reply.question for reply in replies], dtype=np.str_),
            scores=matrix,
            mask=option_mask(counts, matrix.shape[1]),
            metadata=metadata,
        )


def _letters(options: int | str | Sequence[str] | None) -> list[str] | None:
    if options is None:
        return None
    if isinstance(options, int) and not isinstance(options, bool):
        if not 1 <= options <= 26:
            raise UsageError(f"options={options}: it must be from 1 to 26, or the letters")
        return list(string.ascii_uppercase[:options])
    letters = list(options) if isinstance(options, str | Sequence) else []
    if not letters or len(set(letters)) < len(letters) or not all(
        isinstance(one, str) and one and one == one.strip() for one in letters
    ):  # fmt: skip
        raise UsageError(f"options={options!r}: pass a number, or different letters such as 'ABCD'")
    return letters


def _reply(
    row: Mapping[str, Any],
    line: int,
    letters: list[str] | None,
    on_error: str,
    models: dict[str, None],
) -> _Reply:
    question = text_of(row.get("custom_id"))
    if question is None:
        raise DataError(f"line {line} has no custom_id: not a line of batch output")
    body, failure = _body(row)
    if failure is not None and on_error == "raise":
        raise DataError(
            f"line {line}: request {question!r} failed ({failure}): run it again, or pass "
            "on_error='uniform' for equal scores"
        )
    if isinstance(body.get("model"), str):
        models[body["model"]] = None
    content, tops = _content(body)
    return _Reply(
        line=line,
        question=question,
        failed=failure is not None,
        listed=_listed(content, None if letters is None else len(letters)),
        lettered=None if letters is None else _lettered(tops, letters),
        has_logprobs=tops is not None,
    )


def _body(row: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The completion, and what failed. OpenAI nests it in `response.body`; older vLLM does not."""
    if row.get("error") is not None:
        return {}, one_line(str(_message(row["error"])))[:200]
    response = row.get("response")
    if not isinstance(response, dict):
        return {}, "it has no response"
    status = response.get("status_code", 200)
    body = response.get("body", response)
    if status != 200 or not isinstance(body, dict):
        inner = body.get("error") if isinstance(body, dict) else None
        detail = f": {_message(inner)}" if inner is not None else ""
        return {}, one_line(f"status {status}{detail}")[:200]
    return body, None


def _message(error: Any) -> Any:
    return error.get("message") or error.get("code") or error if isinstance(error, dict) else error


def _content(body: Mapping[str, Any]) -> tuple[str | None, dict[str, float] | None]:
    """The reply's text, and the log-probability of each top token at its first position."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return None, None
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None, _top_tokens(choice.get("logprobs"))


def _top_tokens(logprobs: Any) -> dict[str, float] | None:
    try:
        if "content" in logprobs:  # chat completions
            tops = logprobs["content"][0]["top_logprobs"]
            found = [(top["token"], number_of(top["logprob"])) for top in tops]
        else:  # completions
            tops = logprobs["top_logprobs"][0]
            found = [(token, number_of(value)) for token, value in tops.items()]
    except (LookupError, TypeError, AttributeError, ValueError):
        return None
    known = {token: value for token, value in found if isinstance(token, str)}
    return known if known and all(map(math.isfinite, known.values())) else None


def _listed(content: str | None, count: int | None) -> list[float] | None:
    """The scores a text lists, as probabilities; None where it lists none, or too many or few."""
    fenced = _FENCE.fullmatch((content or "").strip())
    try:
        value = json.loads(fenced[1] if fenced else content or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or not value or (count is not None and len(value) != count):
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
        return None
    total = sum(map(float, value)) if max(map(abs, value)) < 1e300 else math.nan
    if not (0 < total < math.inf) or min(value) < 0:
        return None
    return [float(one) / total for one in value]


def _lettered(tops: Mapping[str, float] | None, letters: list[str]) -> list[float] | None:
    found: dict[str, float] = {}
    for token, value in (tops or {}).items():
        letter = token.strip()
        if letter in letters:
            found[letter] = float(np.logaddexp(found[letter], value)) if letter in found else value
    if not found or tops is None:
        return None
    floor = min(tops.values())
    return [found.get(letter, floor) for letter in letters]


def _way(replies: list[_Reply], letters: list[str] | None) -> str:
    if any(reply.listed is not None for reply in replies):
        return "list"
    if any(reply.lettered is not None for reply in replies):
        return "letters"
    if letters is None and any(reply.has_logprobs for reply in replies):
        raise UsageError("the replies have log-probabilities: pass options=, the number of letters")
    raise DataError(
        "no reply lists one number for each option, and none has log-probabilities of the letters "
        "in its first token: check the prompt, and options="
    )


def _scores(
    replies: list[_Reply], way: str, letters: list[str] | None
) -> tuple[list[list[float]], int]:
    """The scores of each reply, and the number of replies that did not parse."""
    scores, unparsed = [], 0
    for reply in replies:
        found = reply.listed if way == "list" else reply.lettered
        if found is None:
            if letters is None:
                raise DataError(
                    f"line {reply.line}: the reply to {reply.question!r} lists no scores, so its "
                    "number of options is not known: pass options="
                )
            unparsed += not reply.failed
            even = 1 / len(letters)
            found = [even if way == "list" else math.log(even)] * len(letters)
        scores.append(found)
    return scores, unparsed
