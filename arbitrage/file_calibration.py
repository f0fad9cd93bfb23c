"""Calibration of score tables: one function for each method, all with one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arbitrage.betting import calibrate_betting
from arbitrage.bounds import Control, ExactBinomial, ExpectedRisk, HoeffdingBentkus
from arbitrage.errors import DataError, UsageError
from arbitrage.groups import calibrate_groups
from arbitrage.losses import Loss
from arbitrage.policy import METHODS, route
from arbitrage.progress import ShownStream
from arbitrage.risk import Calibration, calibrate, calibrate_stream
from arbitrage.scores import ScoreTable
from arbitrage.selection import Levels, Number
from arbitrage.weighted import calibrate_weighted

CONTROLS: dict[str, Callable[..., Control]] = {
    kind.name: kind for kind in (ExpectedRisk, HoeffdingBentkus, ExactBinomial)
}


@dataclass(frozen=True)
class Task:
    """What to calibrate for.

    Fields:
      alpha, bound, loss: as in `calibrate`.
      method: one of `policy.METHODS`.
      delta: probability of error, for the methods that have one.
      groups: a threshold for each value of the tables' group column as well.
      weights: column with each row's likelihood ratio, for "crc_weighted".
      test_weight: the largest ratio of a new row that the threshold must serve.
    """

    alpha: Levels
    bound: Number
    loss: Loss
    method: str = "crc"
    delta: float | None = None
    groups: bool = False
    weights: str | None = None
    test_weight: float | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if METHODS[self.method] != (self.delta is not None):
            what = "needs a delta" if METHODS[self.method] else "takes no delta"
            raise UsageError(f"method {self.method} {what}")
        weighted = self.method == "crc_weighted"
        if weighted != (self.weights is not None) or weighted != (self.test_weight is not None):
            raise UsageError("weights and test_weight belong to the method crc_weighted, together")
        if self.groups and self.method not in CONTROLS:
            raise UsageError(f"groups go with {', '.join(CONTROLS)}, not with {self.method}")

    def control(self) -> Control:
        """The control of a method that has one."""
        kind = CONTROLS[self.method]
        return kind() if self.delta is None else kind(self.delta)

    @property
    def arguments(self) -> dict[str, Any]:
        """What every calibrating function takes."""
        return {"alpha": self.alpha, "bound": self.bound, "loss": self.loss}


@dataclass(frozen=True)
class Found:
    """The fields of a `Policy` that a calibration fills."""

    alphas: tuple[float, ...]
    thresholds: tuple[float, ...]
    feasible: tuple[bool, ...]
    empirical_risk: tuple[float | None, ...]
    bound: float
    n: int
    quantum: float
    guarantee: str
    group_thresholds: dict[str, tuple[float, ...]] = field(default_factory=dict)


def calibrate_tables(task: Task, primary: ScoreTable, guardian: ScoreTable) -> Found:
    """The thresholds of two tables that `join` has brought together.

    Raises UsageError where a column is missing, DataError naming the question of a bad row.
    """
    arrays = {"mask": primary.mask, "label": _label(task, primary, guardian)}
    with question_ids(primary.question_id):
        if task.method == "wsr":
            return _by_betting(task, primary, guardian, arrays)
        if task.method == "crc_weighted":
            return _by_weights(task, primary, guardian, arrays)
        found = calibrate(
            primary.scores, guardian.scores, control=task.control(), **arrays, **task.arguments
        )
        if not task.groups:
            return _found(found)
        return _found(found, *_by_group(task, primary, guardian, arrays))


def calibrate_blocks(task: Task, stream) -> Found:
    """The thresholds of a `ScoreStream`. Raises UsageError for what needs all rows at once."""
    if task.groups or task.method not in CONTROLS:
        raise UsageError("a stream is calibrated as a whole, with crc, hoeffding_bentkus, binomial")
    if task.loss.needs_label and not stream.has_label:
        raise UsageError(f"the loss {task.loss.name} needs a label column in one of the tables")
    shown = ShownStream(stream)
    return _found(calibrate_stream(shown, control=task.control(), **task.arguments))


def _found(found: Calibration, groups: dict | None = None, note: str = "") -> Found:
    return Found(
        alphas=_tuple(found.alpha),
        thresholds=_tuple(found.threshold),
        feasible=_tuple(found.feasible),
        empirical_risk=_tuple(found.empirical_risk),
        bound=found.bound,
        n=found.n,
        quantum=found.quantum,
        guarantee=found.guarantee + note,
        group_thresholds=groups or {},
    )


def _by_group(task: Task, primary: ScoreTable, guardian: ScoreTable, arrays) -> tuple[dict, str]:
    group = primary.group if primary.group is not None else guardian.group
    if group is None:
        raise UsageError("groups: neither table has a group column")
    inside = calibrate_groups(
        primary.scores,
        guardian.scores,
        groups=group,
        control=task.control(),
        **arrays,
        **task.arguments,
    )
    limits = {
        str(name): _tuple(one.threshold)
        for name, one in zip(inside.names, inside.calibrations, strict=True)
    }
    sizes = inside.n
    note = (
        f" With the thresholds of the {len(limits)} groups the same holds inside each group, over "
        f"its own {sizes.min()} to {sizes.max()} rows; a group with too few is always deferred."
    )
    return limits, note


def _by_betting(task: Task, primary: ScoreTable, guardian: ScoreTable, arrays) -> Found:
    assert task.delta is not None
    found = calibrate_betting(
        primary.scores, guardian.scores, delta=task.delta, **arrays, **task.arguments
    )
    return Found(
        alphas=_tuple(found.alpha),
        thresholds=_tuple(found.threshold),
        # A policy defers every row wherever the threshold is infinite.
        feasible=_tuple(np.isfinite(found.threshold)),
        empirical_risk=_tuple(found.empirical_risk),
        bound=found.bound,
        n=found.n,
        quantum=float(np.finfo(np.float64).eps),
        guarantee=found.guarantee,
    )


def _by_weights(task: Task, primary: ScoreTable, guardian: ScoreTable, arrays) -> Found:
    assert task.weights is not None and task.test_weight is not None
    columns = {**guardian.extra, **primary.extra}
    if task.weights not in columns:
        known = ", ".join(columns) or "none"
        raise UsageError(f"weights: no column {task.weights!r}; further columns are {known}")
    found = calibrate_weighted(
        primary.scores,
        guardian.scores,
        weights=columns[task.weights],
        test_weight=task.test_weight,
        **arrays,
        **task.arguments,
    )
    return _found(found)


def _label(task: Task, primary: ScoreTable, guardian: ScoreTable) -> np.ndarray | None:
    label = primary.label if primary.label is not None else guardian.label
    if task.loss.needs_label and label is None:
        raise UsageError(f"the loss {task.loss.name} needs a label column in one of the tables")
    return label


def guardian_rates(found: Found, primary: ScoreTable) -> tuple[float, ...]:
    """Share of the rows that each threshold defers."""
    rates = (route(primary.scores, t, primary.mask).defer.mean() for t in found.thresholds)
    return tuple(float(rate) for rate in rates)


def _tuple(values: Any) -> tuple:
    return tuple(np.atleast_1d(np.asarray(values)).tolist())


@contextmanager
def question_ids(ids: np.ndarray) -> Iterator[None]:
    """Adds the question id to an error that only knows the row."""
    try:
        yield
    except DataError as error:
        if error.row is None or "question_id" in str(error):
            raise
        text = f"question_id {str(ids[error.row])!r}, {error}"
        raise DataError(text, error.row) from None
