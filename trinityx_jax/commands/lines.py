"""The JSON lines that commands read: prompts and questions, each blamed by its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from arbitrage.filesystems import locate, naming
from arbitrage.json_lines import json_lines, kind_of, text_of
from trinityx_jax.errors import DataError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and where it came from: `where` names it in messages."""

    id: str
    text: str
    where: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A question with its K answer options; `label` is the index of the right one, if known."""

    id: str
    prompt: str
    options: tuple[str, ...]
    label: int | None
    group: str | None
    where: str


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: `prompt`, and `id` (default: its place, from 0).

    Raises DataError naming the first bad line.
    """
    return _read(path, lambda i, line, where: Prompt(_id(line, str(i)), _prompt(line), where))


def read_questions(path: Path) -> list[Row]:
    """Questions of a file: `id`, `prompt`, `options`, and `label` and `group` in all or none.

    Raises DataError naming the first bad line.
    """
    rows = _read(path, _question)
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise DataError(f"{row.where}: id {row.id!r} is that of {seen[row.id]}, too")
        seen[row.id] = row.where
        for field in ("label", "group"):
            if (getattr(row, field) is None) != (getattr(rows[0], field) is None):
                raise DataError(
                    f"{row.where}: {field} must be in every line or in none; the first line "
                    f"{'has none' if getattr(rows[0], field) is None else 'has one'}"
                )
    return rows


def _read(path: Path, parse: Callable[[int, dict[str, Any], str], Item]) -> list[Item]:
    items = []
    with naming(str(path)):
        for number, line in json_lines(locate(path)):
            with naming(f"line {number}"):
                items.append(parse(len(items), line, f"{path}: line {number}"))
        if not items:
            raise DataError("the file has no lines")
    return items


def _question(index: int, line: dict[str, Any], where: str) -> Row:
    del index
    options = line.get("options")
    if not isinstance(options, list) or not options:
        raise DataError(f"options must be a list of texts, not {_kind(options)}")
    for k, option in enumerate(options):
        if not isinstance(option, str):
            raise DataError(f"option {k} must be text, not {_kind(option)}")
    label, group = line.get("label"), line.get("group")
    if label is not None and not (type(label) is int and 0 <= label < len(options)):
        raise DataError(f"label must be the index of an option, 0 to {len(options) - 1}")
    if group is not None and text_of(group) is None:
        raise DataError(f"group must be text, not {_kind(group)}")
    return Row(_id(line), _prompt(line), tuple(options), label, text_of(group), where)


def _prompt(line: dict[str, Any]) -> str:
    value = line.get("prompt")
    if not isinstance(value, str):
        raise DataError(f"prompt must be text, not {_kind(value)}")
    if not value.strip():
        raise DataError("the prompt is empty; give it text, or remove the line")
    return value


def _id(line: dict[str, Any], default: str | None = None) -> str:
    value = line.get("id", default)
    found = text_of(value)
    if not found:
        raise DataError(f"id must be text or an integer, not {_kind(value)}")
    return found


def _kind(value: Any) -> str:
    return "an empty value" if value in ("", []) else kind_of(value)
