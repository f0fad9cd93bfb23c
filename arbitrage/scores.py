"""The score table: one row per question, one score per answer option, and how two tables meet.

Letters: N questions, K answer options of the longest row.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from arbitrage.errors import DataError, UsageError, first_row

COLUMNS = ("question_id", "scores", "n_options", "label", "group")


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of one model (or rule) for every option of every question; checked when made.

    Fields:
      question_id: (N,) str, unique.
      scores: (N, K) float32, any unit; finite at valid options, -inf elsewhere.
      mask: (N, K) bool, true at valid options, which are the first `n_options` of each row.
      label: (N,) int16, index of the right option, or None.
      group: (N,) str, a category known before acting, or None.
      extra: further columns by name, each with N rows.
      metadata: text by name (model, revision, source ...), stored in the file.

    K is always the largest option count, so equal tables have equal shapes.
    Raises DataError naming the first offending row.
    """

    question_id: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    label: np.ndarray | None = None
    group: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        ids = np.asarray(self.question_id).astype(np.str_)
        mask = np.asarray(self.mask, dtype=bool)
        with np.errstate(over="ignore"):  # an overflow becomes inf and is reported with its row
            scores = np.asarray(self.scores, dtype=np.float32)
        _check_shapes(ids, scores, mask)
        _check_ids(ids)
        counts = _check_mask(mask, ids)
        scores, mask = scores[:, : counts.max()], mask[:, : counts.max()]
        _check_finite(scores, mask, ids)
        values: dict[str, Any] = {
            "question_id": ids,
            "scores": scores if mask.all() else np.where(mask, scores, np.float32(-np.inf)),
            "mask": mask,
            "label": _check_label(self.label, counts, ids),
            "group": None if self.group is None else np.asarray(self.group).astype(np.str_),
            "extra": {name: np.asarray(value) for name, value in self.extra.items()},
            "metadata": {str(name): str(value) for name, value in self.metadata.items()},
        }
        _check_columns(values, len(ids))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.question_id)

    @property
    def n_options(self) -> np.ndarray:
        """(N,) int16: number of valid options of each row."""
        return self.mask.sum(axis=1).astype(np.int16)

    def take(self, rows) -> ScoreTable:
        """The table of the given rows: (M,) indices without repeats, or (N,) bool."""
        return replace(
            self,
            question_id=self.question_id[rows],
            scores=self.scores[rows],
            mask=self.mask[rows],
            label=None if self.label is None else self.label[rows],
            group=None if self.group is None else self.group[rows],
            extra={name: value[rows] for name, value in self.extra.items()},
        )

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        *,
        columns: Mapping[str, str] | None = None,
        format: str | None = None,
        filter_name: str | None = None,
        normalise: str | None = None,
        options: int | str | Sequence[str] | None = None,
        on_error: str | None = None,
        shuffle_options: int | None = None,
    ) -> ScoreTable:
        """Reads Parquet, JSON lines, CSV, NumPy, lm-eval samples or OpenAI batch output.

        `path` is a file or folder, or a URI of a file system that pyarrow opens. The arguments are
        those of `arbitrage.score_files.read_table`.
        """
        from arbitrage.score_files import read_table

        return read_table(
            path,
            columns=columns,
            format=format,
            filter_name=filter_name,
            normalise=normalise,
            options=options,
            on_error=on_error,
            shuffle_options=shuffle_options,
        )

    def write(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes a Parquet file at a path or URI, whole or not at all.

        See `arbitrage.parquet_files.write_parquet`.
        """
        from arbitrage.score_files import write_table

        write_table(self, path, overwrite=overwrite)


def softmax(table: ScoreTable) -> ScoreTable:
    """The table with each row's scores as probabilities over its valid options.

    Computed in float64 and rounded to float32, so that probabilities do not depend on the
    hardware. Logits and log-likelihoods need it; scores that are losses or rewards do not.
    """
    logits = table.scores.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return replace(table, scores=weights / weights.sum(axis=1, keepdims=True))


def join(primary: ScoreTable, guardian: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    """Both tables with the same questions in the Primary's row order.

    Raises DataError, naming the first row, when a question is in one table only, or has another
    number of options or another label in the other.
    """
    if not np.array_equal(primary.question_id, guardian.question_id):
        rows = _positions(primary, guardian, "Primary", "Guardian")
        _positions(guardian, primary, "Guardian", "Primary")
        guardian = guardian.take(rows)
    _check_equal("option(s)", primary.n_options, guardian.n_options, primary.question_id)
    if primary.label is not None and guardian.label is not None:
        _check_equal("as label", primary.label, guardian.label, primary.question_id)
    return primary, guardian


def _positions(table: ScoreTable, other: ScoreTable, name: str, other_name: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    options = pc.SetLookupOptions(pa.array(other.question_id))
    found = pc.call_function("index_in", [pa.array(table.question_id)], options)
    row = first_row(found.is_null().to_numpy(zero_copy_only=False)) if found.null_count else None
    if row is not None:
        raise DataError(
            f"{_at(row, table.question_id)} of the {name} table is missing from the {other_name} "
            f"table ({found.null_count} such rows): score both models on the same questions",
            row,
        )
    return found.to_numpy()


def _check_equal(what: str, primary: np.ndarray, guardian: np.ndarray, ids: np.ndarray) -> None:
    row = first_row(primary != guardian)
    if row is not None:
        raise DataError(
            f"{_at(row, ids)} of the Primary table has {primary[row]} {what}, the Guardian's has "
            f"{guardian[row]}: both models must score the same options in the same order",
            row,
        )


def _at(row: int, ids: np.ndarray) -> str:
    return f"row {row} (question_id {str(ids[row])!r})"


def _check_shapes(ids: np.ndarray, scores: np.ndarray, mask: np.ndarray) -> None:
    if ids.ndim != 1 or scores.ndim != 2 or mask.shape != scores.shape:
        raise DataError(
            f"a score table needs question_id (N,) and scores and mask (N, K), "
            f"not {ids.shape}, {scores.shape} and {mask.shape}"
        )
    if len(ids) != len(scores):
        raise DataError(f"{len(ids)} question ids for {len(scores)} rows of scores")
    if not len(ids):
        raise DataError("the table has no rows")


def _check_ids(ids: np.ndarray) -> None:
    import pyarrow as pa

    encoded = pa.array(ids).dictionary_encode()
    if len(encoded.dictionary) == len(ids):
        return
    # Codes count up as new ids appear, so a code not above all earlier ones is a repeat.
    codes = encoded.indices.to_numpy()
    row = 1 + int(np.argmax(codes[1:] <= np.maximum.accumulate(codes)[:-1]))
    raise DataError(
        f"{_at(row, ids)} repeats the id of row {int(np.argmax(codes == codes[row]))}: "
        "question ids must be unique",
        row,
    )


def _check_mask(mask: np.ndarray, ids: np.ndarray) -> np.ndarray:
    counts = mask.sum(axis=1)
    row = first_row(counts == 0)
    if row is not None:
        raise DataError(f"{_at(row, ids)} has no valid option", row)
    row = first_row(mask[:, 1:] & ~mask[:, :-1])
    if row is not None:
        raise DataError(
            f"{_at(row, ids)} has a gap in its mask: valid options must come first", row
        )
    return counts


def _check_finite(scores: np.ndarray, mask: np.ndarray, ids: np.ndarray) -> None:
    bad = mask & ~np.isfinite(scores)
    row = first_row(bad)
    if row is not None:
        option = int(np.argmax(bad[row]))
        raise DataError(
            f"{_at(row, ids)}: score of option {option} is {scores[row, option]}; scores must be "
            "finite float32 numbers (options that were not shown go after n_options)",
            row,
        )


def _check_label(label, counts: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    if label is None:
        return None
    label = np.asarray(label)
    if label.shape != ids.shape or label.dtype.kind not in "iu":
        raise DataError(f"label must hold {len(ids)} integers, not {label.dtype} {label.shape}")
    row = first_row((label < 0) | (label >= counts))
    if row is not None:
        raise DataError(
            f"{_at(row, ids)}: label {label[row]} is outside its {counts[row]} valid option(s) "
            f"(0 to {counts[row] - 1})",
            row,
        )
    return label.astype(np.int16)


def _check_columns(values: Mapping[str, Any], n: int) -> None:
    if values["group"] is not None and values["group"].shape != (n,):
        raise DataError(f"group must hold {n} strings, not shape {values['group'].shape}")
    for name, value in values["extra"].items():
        if name in COLUMNS:
            raise UsageError(f"extra column {name!r} has a name the score table keeps for itself")
        if value.ndim == 0 or len(value) != n:
            raise DataError(f"extra column {name!r} must have {n} rows, not shape {value.shape}")
