"""Rows of a user's own file: one JSON object a line, each fault blamed by line and field.

    prompt            text
    response          the wanted answer; or `chosen` and `rejected`, a better and a worse one
    options, label    texts to choose among, and the index of the right one (optional)
    split             train, validation, calibration or test (default: by hash of the prompt)
    id                text or integer, each once (default: a hash of the row)

Other fields are ignored. A row with options but without a response takes options[label]. The text
may be harmful: no message quotes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arbitrage.filesystems import locate, naming
from arbitrage.json_lines import json_lines, kind_of, text_of
from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.splits import normalise
from trinityx_jax.errors import DataError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclasses.dataclass(frozen=True)
class UserRow:
    """One line; `split` and `id` are empty where the file says nothing."""

    prompt: str
    response: str
    rejected: str = ""
    options: tuple[str, ...] = ()
    label: int = -1
    split: str = ""
    id: str = ""


def user_files(data_dir: str | Path, objectives: Sequence[str]) -> dict[str, Path]:
    """{objective: `data_dir`/<objective>.jsonl or .jsonl.gz}.

    Raises UsageError, with the remedy, for an objective that has neither file or both.
    """
    directory = Path(data_dir).expanduser()
    files = {}
    for objective in objectives:
        names = [objective + suffix for suffix in SUFFIXES]
        found = [directory / name for name in names if (directory / name).is_file()]
        if not found:
            raise UsageError(
                f"data.data_dir={directory} has no {' or '.join(names)}; add the rows of objective "
                f"{objective!r}, or take it out of mocae.objectives"
            )
        if len(found) > 1:
            raise UsageError(f"data.data_dir={directory} has {' and '.join(names)}; keep one")
        files[objective] = found[0]
    return files


@dataclasses.dataclass(frozen=True)
class UserFiles:
    """One file an objective, read together: a prompt belongs to one split in all of them."""

    paths: Mapping[str, Path]

    @functools.cached_property
    def rows(self) -> dict[str, list[UserRow]]:
        """The rows of each objective; one without a split takes that of another with its prompt.

        Raises DataError naming file, line and field of the first fault: among them an id that
        occurs twice in a file, and a prompt in two splits.
        """
        splits: dict[str, tuple[str, str]] = {}
        rows = {objective: _read(path, splits) for objective, path in self.paths.items()}
        return {
            objective: [
                dataclasses.replace(row, split=splits.get(normalise(row.prompt), ("", ""))[0])
                for row in found
            ]
            for objective, found in rows.items()
        }


def _read(path: Path, splits: dict[str, tuple[str, str]]) -> list[UserRow]:
    """Rows of one file; adds to `splits`: key of the prompt -> (split, the line that says so)."""
    rows: list[UserRow] = []
    seen: dict[str, int] = {}
    with naming(str(path)):
        for number, line in json_lines(locate(path)):
            with naming(f"line {number}"):
                row = _row(line)
                if row.id and seen.setdefault(row.id, number) != number:
                    raise DataError(f"id is that of line {seen[row.id]}, too")
                if row.split:
                    here = f"line {number} of {path.name}"
                    other, where = splits.setdefault(normalise(row.prompt), (row.split, here))
                    if other != row.split:
                        raise DataError(
                            f"split is {row.split}, but {where} has the same prompt in {other}; a "
                            "prompt belongs to one split"
                        )
                rows.append(row)
        if not rows:
            raise DataError("the file has no lines")
    return rows


def _row(line: Mapping[str, Any]) -> UserRow:
    options, label = _options(line)
    if ("chosen" in line) != ("rejected" in line):
        raise DataError("chosen and rejected go together; give both, or response alone")
    if "chosen" in line and "response" in line:
        raise DataError("response and chosen are the same thing; leave one out")
    rejected = ""
    if "chosen" in line:
        response, rejected = _text(line, "chosen"), _text(line, "rejected")
        if response == rejected:
            raise DataError("chosen and rejected are equal; remove the line")
    elif "response" in line or not options:
        response = _text(line, "response")
    else:
        response = options[label]
    split = line.get("split", "")
    if "split" in line and split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}")
    found = text_of(line["id"]) if "id" in line else ""
    if "id" in line and not found:
        raise DataError(f"id must be text or an integer, not {_kind(line['id'])}")
    return UserRow(_text(line, "prompt"), response, rejected, options, label, split, found or "")


def _options(line: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    if ("options" in line) != ("label" in line):
        raise DataError("options and label go together; give both, or neither")
    if "options" not in line:
        return (), -1
    options, label = line["options"], line["label"]
    if not isinstance(options, list) or not all(isinstance(o, str) and o.strip() for o in options):
        raise DataError("options must be a list of texts, none of them empty")
    if len(options) < 2 or len(set(options)) < len(options):
        raise DataError("options must be two or more, all different")
    if type(label) is not int or not 0 <= label < len(options):
        raise DataError(f"label must be the index of an option, 0 to {len(options) - 1}")
    return tuple(options), label


def _text(line: Mapping[str, Any], field: str) -> str:
    value = line.get(field)
    if not isinstance(value, str):
        found = "missing" if field not in line else f"{kind_of(value)}, not text"
        raise DataError(f"{field} is {found}")
    if not value.strip():
        raise DataError(f"{field} is empty; give it text, or remove the line")
    return value


def _kind(value: Any) -> str:
    return "an empty text" if value == "" else kind_of(value)
