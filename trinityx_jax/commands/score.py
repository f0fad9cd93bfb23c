"""`trinityx score --model`: option scores of any model, one table for each routing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from arbitrage.filesystems import naming
from arbitrage.scores import ScoreTable, softmax
from arbitrage.tables import aligned
from trinityx_jax.commands.lines import Row, read_questions
from trinityx_jax.commands.opening import (
    ModelOptions,
    check_routings,
    experts_of,
    open_model,
    record,
)
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.errors import UsageError

if TYPE_CHECKING:
    from trinityx_jax.inference.packing import Question
    from trinityx_jax.language_model import LanguageModel

SUFFIX = ".parquet"
Normalise = Literal["tokens", "bytes", "none"]
DIVIDED = {"tokens": " per token", "bytes": " per byte", "none": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Scores of any model's answer options; without --model, the stage of a run."""

    model: str = ""
    """Run folder, Hugging Face folder, or org/name of the Hub."""
    questions: Path | None = None
    """JSON lines with `id`, `prompt`, `options` and, optionally, `label` and `group`."""
    routing: tuple[str, ...] = ()
    """Which experts score (default: mixture; backbone where there are none)."""
    output: Path | None = None
    """Folder for ROUTING.parquet, or for one routing a file NAME.parquet."""
    normalise: Normalise = "tokens"
    """Divide an option's log-likelihood by its tokens, by its UTF-8 bytes, or by nothing."""


def given(options: Options) -> list[str]:
    """Names of the options that differ from their defaults."""
    default = Options()
    names = (field.name for field in dataclasses.fields(options))
    return [name for name in names if getattr(options, name) != getattr(default, name)]


def run(options: Options, *, overwrite: bool = False) -> None:
    """Writes a score table for each routing, all or none, and prints a summary of them."""
    for name in ("model", "questions", "output"):
        if not getattr(options, name):
            raise UsageError(f"score of a model needs --{name}; without --model it takes --run")
    assert options.questions is not None and options.output is not None
    routings = tuple(dict.fromkeys(options.routing))
    check_routings(options, routings)
    with _targets(options, routings, overwrite) as target:
        rows = read_questions(options.questions)
        model = open_model(options)
        tables = _score(options, model, rows, routings or (model.default_routing,))
        for name, table in tables.items():
            softmax(table).write(target / f"{name}{SUFFIX}" if target.is_dir() else target)
    print(_summary(tables, options.normalise))
    print(f"scores of {len(rows)} questions in {options.output}")


@contextlib.contextmanager
def _targets(options: Options, routings: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """The folder to write the tables to, or the file where `output` is one."""
    from arbitrage.io import atomic_path
    from trinityx_jax.inference.routings import routing_names
    from trinityx_jax.io.folder import new_folder

    output = options.output
    assert output is not None
    if output.suffix != SUFFIX:
        names = {*routings, *routing_names(experts_of(options) or OBJECTIVES)}
        with new_folder(output, {f"{n}{SUFFIX}" for n in names}, overwrite=overwrite) as folder:
            yield folder
        return
    if len(routings) > 1:
        raise UsageError(
            f"--output {output}: {len(routings)} routings have a table each; name a folder"
        )
    with atomic_path(output, overwrite) as file:
        yield file


def _score(
    options: Options, model: LanguageModel, rows: Sequence[Row], routings: Sequence[str]
) -> dict[str, ScoreTable]:
    """A table for each routing, whose scores are log-likelihoods, divided as asked for."""
    questions = [_question(model, row) for row in rows]
    found = model.score(questions, routings)
    tokens = _padded([[len(ids) for ids in q.options] for q in questions])
    size = _padded([[len(option.encode()) for option in row.options] for row in rows])
    divisor = {"tokens": tokens, "bytes": size, "none": np.ones_like(tokens)}[options.normalise]
    about = _metadata(options, model)
    return {
        name: ScoreTable(
            question_id=np.array([row.id for row in rows]),
            scores=scores.log_likelihood / np.maximum(divisor, 1),
            mask=tokens > 0,
            label=_column([row.label for row in rows]),
            group=_column([row.group for row in rows]),
            extra={
                "choice_loglik": scores.log_likelihood,
                "choice_num_tokens": tokens,
                "choice_num_bytes": size,
            },
            metadata={**about, "routing": name},
        )
        for name, scores in found.items()
    }


def _question(model: LanguageModel, row: Row) -> Question:
    with naming(row.where):
        return model.question(row.prompt, row.options, name=row.id)


def _padded(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, K) int32, with 0 behind the end of a row."""
    array = np.zeros((len(lists), max(map(len, lists))), np.int32)
    for row, values in zip(array, lists, strict=True):
        row[: len(values)] = values
    return array


def _column(values: list) -> np.ndarray | None:
    return None if values[0] is None else np.array(values)


def _metadata(options: Options, model: LanguageModel) -> dict[str, str]:
    """Text by name: what made the table, and what its scores are."""
    about = record(options, model)
    score = f"softmax over options of log-likelihood{DIVIDED[options.normalise]}"
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items() if v}
    return {**text, "normalise": options.normalise, "score": score}


def _summary(tables: Mapping[str, ScoreTable], normalise: Normalise) -> str:
    lines = []
    for name, table in tables.items():
        accuracy = "-"
        if table.label is not None:
            accuracy = f"{(table.scores.argmax(axis=1) == table.label).mean():.4f}"
        mean = table.scores[table.mask].mean()
        lines.append([name, str(len(table)), accuracy, f"{mean:.4f}"])
    headers = ["routing", "rows", "accuracy", f"mean log-likelihood{DIVIDED[normalise]}"]
    return aligned(headers, lines)
