"""Two score tables made ready for any number of splits: nothing here depends on a split.

Letters as in `policies`; U units (rows, or clusters), A risk levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from arbitrage.baselines import Alone
from arbitrage.clusters import check_codes, cluster_curves
from arbitrage.costs import Costs
from arbitrage.errors import UsageError
from arbitrage.loss_curves import LossCurves, loss_curves
from arbitrage.losses import FullMenuShortfall, GuardianCorrect, GuardianShortfall
from arbitrage.policies import (
    States,
    Steps,
    confidence_states,
    full_menu_states,
    restricted_states,
    state_columns,
    steps,
)
from arbitrage.scores import ScoreTable, join
from arbitrage.selection import Levels, Number, exact_alphas, exact_number
from arbitrage.splits import SortedEvents, sort_events

LOSSES = {loss.name: loss for loss in (GuardianShortfall(), GuardianCorrect())}
MENUS = ("restricted", "full")


@dataclass(frozen=True, eq=False)
class Menu:
    """One conformal policy: its units' step functions of the loss and its rows' columns."""

    curves: LossCurves
    events: SortedEvents
    steps: Steps


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything about the data that no split changes.

    Fields:
      primary, guardian: joined tables, after the score transform.
      label: (N,) int or None.
      codes: (N,) cluster of each row, or None.
      cluster_mean: whether the losses of a cluster are averaged into one unit.
      weights: (N,) float64, 1, or 1 / size of the row's cluster with `cluster_mean`.
      levels, bound: exact.
      loss: name of the loss.
      menus: "restricted" and "full".
      confidence: columns of the max-probability baseline.
      alone: columns of the two models by themselves.
    """

    primary: ScoreTable
    guardian: ScoreTable
    label: np.ndarray | None
    codes: np.ndarray | None
    cluster_mean: bool
    weights: np.ndarray
    levels: tuple[Fraction, ...]
    bound: Fraction
    loss: str
    menus: dict[str, Menu]
    confidence: Steps
    alone: Alone

    @property
    def n_clusters(self) -> int:
        """What a split halves: clusters, or rows where there are none."""
        return len(self.weights) if self.codes is None else int(self.codes.max()) + 1


def problem(
    primary: ScoreTable,
    guardian: ScoreTable,
    *,
    alpha: Levels,
    bound: Number = 1,
    loss: str = "guardian_shortfall",
    costs: Costs | None = None,
    cluster=None,
    cluster_mean: bool = True,
) -> Problem:
    """Joins and prepares two tables; the arguments are those of `evaluate_splits`."""
    primary, guardian = join(primary, guardian)
    limit = exact_number(bound, "bound")
    levels, _ = exact_alphas(alpha, limit)
    if loss not in LOSSES:
        raise UsageError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    label = guardian.label if primary.label is None else primary.label
    p, g, mask = primary.scores, guardian.scores, primary.mask
    codes = None if cluster is None else check_codes(cluster, len(p))
    averaged = codes is not None and cluster_mean
    value, own_menu = g, loss_curves(p, g, bound=limit, mask=mask, label=label, loss=LOSSES[loss])
    if loss == GuardianCorrect.name:
        value = right_answers(g, mask, label)
    whole = loss_curves(p, value, bound=limit, mask=mask, loss=FullMenuShortfall())
    row_costs = (costs or Costs()).of(primary, guardian)

    def columns(states: States) -> dict[str, np.ndarray]:
        target = np.where(mask, value, -np.inf).max(axis=1)
        return state_columns(states, p, mask, value, target, label=label, costs=row_costs)

    def measured(states: States) -> Steps:
        return steps(states.knob, columns(states))

    menus = {}
    makers = (restricted_states, full_menu_states)
    for name, curves, make in zip(MENUS, (own_menu, whole), makers, strict=True):
        units = cluster_curves(curves, codes) if averaged else curves
        menus[name] = Menu(units, sort_events(units), measured(make(p, g, mask)))
    guard = columns(guardian_alone(g, mask)) | {"cost": row_costs.guardian[:, None]}
    names = menus["full"].steps.names
    alone = Alone(
        names, menus["full"].steps.base, np.concatenate([guard[name] for name in names], axis=1)
    )
    weights = np.ones(len(p))
    if codes is not None and averaged:
        weights = 1.0 / np.bincount(codes)[codes]
    confidence = measured(confidence_states(p, g, mask))
    return Problem(
        primary, guardian, label, codes, averaged, weights, tuple(levels), limit,
        loss, menus, confidence, alone,
    )  # fmt: skip


def right_answers(guardian, mask, label) -> np.ndarray:
    """(N, K) float32: 1 at the Guardian's top option where that is the label, else 0."""
    best = np.argmax(np.where(mask, guardian, np.float32(-np.inf)), axis=1)
    right = np.zeros(guardian.shape, dtype=np.float32)
    rows = np.flatnonzero(best == label)
    right[rows, best[rows]] = 1
    return right


def guardian_alone(guardian, mask) -> States:
    """One state: the Guardian answers every row on the whole menu."""
    best = np.argmax(np.where(mask, guardian, np.float32(-np.inf)), axis=1)[:, None]
    size = np.asarray(mask).sum(axis=1)[:, None]
    return States(np.zeros(best.shape, np.float32), best, np.ones(best.shape, dtype=bool), size)
