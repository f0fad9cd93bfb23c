"""Score tables from lm-evaluation-harness samples (`--log_samples`): multiple-choice tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arbitrage.arrow_columns import option_mask
from arbitrage.errors import DataError, UsageError
from arbitrage.filesystems import Place, naming_part
from arbitrage.json_lines import (
    json_lines,
    kind_of,
    number_of,
    padded,
    rows_on_lines,
    text_of,
)
from arbitrage.scores import ScoreTable

NORMALISE = ("chars", "bytes")
FIELDS = ("question_id", "label", "group")
SAMPLES = re.compile(r"samples_(.+?)(_\d{4}-\d{2}-\d{2}T[0-9T.:-]+)?\.jsonl(\.gz)?")


@dataclass
class _Found:
    """What the rows of one filter say; every list has one entry a row."""

    lines: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    targets: list[tuple[int | None, int | None]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def read_lm_eval(
    place: Place,
    *,
    columns: Mapping[str, str] | None = None,
    filter_name: str | None = None,
    normalise: str | None = None,
) -> ScoreTable:
    """The log-likelihoods of the options in a `samples_TASK_DATE.jsonl`, or the one in a folder.

    Args:
      columns: fields to use as `question_id` (default doc_id), `label` (default target) and
        `group` (default none); `doc.subject` is a field of the document.
      filter_name: rows of which filter; default "none", else the only one.
      normalise: "chars" or "bytes" divides each score by the length of its continuation without
        the white space before it, as the harness does for acc_norm and acc_bytes.

    Options keep the file's order. A target is the option's index or its text, the same for the
    whole file; digits are read as an index where that fits every row. No label where no target
    fits. With the metric acc_mutual_info the second half of the replies, which has no question, is
    left out. Metadata: model (the folder's name), task, filter, normalise.

    Raises UsageError for a bad argument, DataError naming the first bad line.
    """
    columns = _checked_columns(columns)
    if normalise not in (None, *NORMALISE):
        raise UsageError(f"normalise={normalise!r} is not one of {', '.join(NORMALISE)}")
    file = samples_file(place)
    with naming_part(file, place):
        chosen = _choose_filter(file, filter_name)
        found = _Found()
        for line, row in json_lines(file):
            if _filter_of(row, line) == chosen:
                _add(found, row, line, columns, normalise)
        return _table(found, _metadata(file, chosen, normalise), "group" in columns)


def samples_file(place: Place) -> Place:
    """The samples file itself, or the only one of a folder."""
    if place.kind() != "folder":
        return place
    files = [child for child in place.children() if SAMPLES.fullmatch(child.base)]
    if len(files) == 1:
        return files[0]
    if not files:
        raise DataError("it is a folder without samples_*.jsonl files: pass the model's own folder")
    raise DataError(
        f"it is a folder of {len(files)} samples files, pass one of them: "
        f"{', '.join(one.base for one in files)}"
    )


def _checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    for name in columns or {}:
        if name not in FIELDS:
            raise UsageError(
                f"--columns {name}=...: lm-eval samples have a choice of fields for "
                f"{', '.join(FIELDS)} only"
            )
    return {"question_id": "doc_id", "label": "target", **(columns or {})}


def _filter_of(row: Mapping[str, Any], line: int) -> str:
    found = row.get("filter", "none")
    if not isinstance(found, str):
        raise DataError(f"line {line}: filter is {kind_of(found)}, not text")
    return found


def _choose_filter(file: Place, asked: str | None) -> str:
    """The filter whose rows are used; every document must occur once for each filter."""
    seen: dict[tuple[str, str], int] = {}
    for line, row in json_lines(file):
        if "filtered_resps" not in row or "doc_id" not in row:
            raise DataError(f"line {line} has no doc_id or no filtered_resps: not lm-eval samples")
        key = (_filter_of(row, line), str(row["doc_id"]))
        if key in seen:
            raise DataError(
                f"line {line} repeats doc_id {key[1]} of line {seen[key]} for filter {key[0]!r}"
            )
        seen[key] = line
    names = list(dict.fromkeys(name for name, _ in seen))
    if not names:
        raise DataError("the file is empty")
    if asked is not None and asked not in names:
        raise UsageError(f"no filter {asked!r}; the file has {', '.join(names)}")
    if asked is None and "none" not in names and len(names) > 1:
        raise UsageError(f"the file has the filters {', '.join(names)}: pass filter_name=")
    return asked or ("none" if "none" in names else names[0])


def _add(
    found: _Found,
    row: Mapping[str, Any],
    line: int,
    columns: Mapping[str, str],
    normalise: str | None,
) -> None:
    scores = _log_likelihoods(row, line)
    if normalise is not None:
        lengths = _lengths(row, len(scores), line, normalise)
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    found.lines.append(line)
    found.scores.append(scores)
    found.ids.append(_field(row, columns["question_id"], line))
    if "group" in columns:
        found.groups.append(_field(row, columns["group"], line))
    found.targets.append(_target(row, columns["label"], len(scores)))


def _field(row: Mapping[str, Any], name: str, line: int) -> str:
    value = _look_up(row, name)
    text = text_of(value)
    if text is None:
        raise DataError(f"line {line}: {name} is {kind_of(value)}, not text or an integer")
    return text


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    outer, dot, inner = name.partition(".")
    if name in row or not dot:
        return row.get(name)
    return row[outer].get(inner) if isinstance(row.get(outer), dict) else None


def _log_likelihoods(row: Mapping[str, Any], line: int) -> list[float]:
    replies = row["filtered_resps"]
    if not isinstance(replies, list) or not replies:
        raise DataError(f"line {line}: filtered_resps is not a list of replies")
    metrics = row.get("metrics")
    named = metrics if isinstance(metrics, list) else row
    if "acc_mutual_info" in named and len(replies) % 2 == 0:
        replies = replies[: len(replies) // 2]
    scores = []
    for option, reply in enumerate(replies):
        # On disk the harness turns both into text.
        if not (isinstance(reply, list) and len(reply) == 2
                and str(reply[1]) in ("True", "False")):  # fmt: skip
            raise DataError(
                f"line {line}: filtered_resps[{option}] is not [log-likelihood, is_greedy]: "
                "only multiple-choice tasks have scores for every option"
            )
        try:
            scores.append(number_of(reply[0]))
        except ValueError as error:
            raise DataError(f"line {line}: log-likelihood of option {option}: {error}") from None
    return scores


def _continuations(row: Mapping[str, Any], count: int) -> list[str | None]:
    """What was scored for each option; None where the file does not say."""
    arguments = row.get("arguments")
    found: list[str | None] = []
    for option in range(count):
        one: Any = None
        if isinstance(arguments, dict):
            one = arguments.get(f"gen_args_{option}")
        elif isinstance(arguments, list) and option < len(arguments):
            one = arguments[option]
        if isinstance(one, dict):
            one = [one.get("arg_0"), one.get("arg_1")]
        text = one[1] if isinstance(one, list) and len(one) > 1 else None
        found.append(text if isinstance(text, str) else None)
    return found


def _lengths(row: Mapping[str, Any], count: int, line: int, normalise: str) -> list[int]:
    lengths = []
    for option, text in enumerate(_continuations(row, count)):
        # The harness counts the choice, not the delimiter it puts before it.
        bare = (text or "").lstrip()
        if not bare:
            what = "is empty" if text is not None else "is not in `arguments`"
            raise DataError(
                f"line {line}: normalise={normalise!r} needs the continuation of every option, "
                f"but that of option {option} (gen_args_{option}, arg_1) {what}"
            )
        lengths.append(len(bare) if normalise == "chars" else len(bare.encode(errors="replace")))
    return lengths


def _target(row: Mapping[str, Any], name: str, count: int) -> tuple[int | None, int | None]:
    """The target read as an index and as the text of an option; None where it does not fit."""
    text = text_of(_look_up(row, name))
    if text is None:
        return None, None
    text = text.strip()
    index = int(text) if re.fullmatch(r"[0-9]{1,4}", text) and int(text) < count else None
    choices = row["doc"].get("choices") if isinstance(row.get("doc"), dict) else None
    lists = list(choices.values()) if isinstance(choices, dict) else [choices]
    for options in (*lists, _continuations(row, count)):
        if isinstance(options, list) and len(options) == count:
            bare = [(text_of(option) or "").strip() for option in options]
            if bare.count(text) == 1:
                return index, bare.index(text)
    return index, None


def _labels(found: _Found) -> np.ndarray | None:
    readings = [[target[way] for target in found.targets] for way in range(2)]
    known = [sum(label is not None for label in labels) for labels in readings]
    if not any(known):
        return None
    labels = readings[0] if known[0] >= known[1] else readings[1]
    if None in labels:
        line = found.lines[labels.index(None)]
        way = "an index" if labels is readings[0] else "the text of an option"
        raise DataError(
            f"line {line}: target is not {way}, though it is on {max(known)} of {len(labels)} "
            "lines; name another field with --columns label=NAME"
        )
    return np.array(labels, dtype=np.int64)


def _metadata(file: Place, chosen: str, normalise: str | None) -> dict[str, str]:
    path = file.path if file.filesystem is not None else os.path.abspath(file.path)
    match = SAMPLES.fullmatch(file.base)
    metadata = {
        "source": "lm-eval",
        "model": path.replace(os.sep, "/").rpartition("/")[0].rpartition("/")[2],
        "task": match[1] if match else file.base.split(".")[0],
        "filter": chosen,
    }
    return metadata if normalise is None else metadata | {"normalise": normalise}


def _table(found: _Found, metadata: Mapping[str, str], grouped: bool) -> ScoreTable:
    scores, counts = padded(found.scores)
    label = _labels(found)
    with rows_on_lines(np.array(found.lines)):
        return ScoreTable(
            question_id=np.array(found.ids, dtype=np.str_),
            scores=scores,
            mask=option_mask(counts, scores.shape[1]),
            label=label,
            group=np.array(found.groups, dtype=np.str_) if grouped else None,
            metadata=metadata,
        )
