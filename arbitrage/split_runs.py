"""Policies and baselines over many random calibration / test splits of two score tables.

Per split and risk level: the threshold of the calibration half, then every measured column on the
test half, by look-ups in step functions that were sorted once. Letters as in `policies`; U units
(rows, or clusters), S splits, A risk levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.baselines import (
    Alone,
    cost_share,
    oracle_sums,
    random_order_baselines,
    tuned_positions,
)
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
from arbitrage.scores import ScoreTable
from arbitrage.selection import Levels, Number, exact_alphas, exact_number
from arbitrage.splits import (
    SortedEvents,
    calibration_size,
    loss_budgets,
    map_splits,
    random_splits,
    sort_events,
    thresholds_within,
)

LOSSES = {loss.name: loss for loss in (GuardianShortfall(), GuardianCorrect())}
MENUS = ("restricted", "full")
GRID = 33  # points of the frontier bands


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

    @property
    def row_codes(self) -> np.ndarray | None:
        """Cluster of each row for the curves' units: None where a unit is a row."""
        return self.codes if self.cluster_mean else None


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
    """Prepares two joined tables (`frontier.prepare`); see `split_evaluation`."""
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
    if averaged:
        weights = 1.0 / np.bincount(codes)[codes]
    confidence = measured(confidence_states(p, g, mask))
    return Problem(primary, guardian, label, codes, averaged, weights, tuple(levels), limit,
                   loss, menus, confidence, alone)  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class SplitValues:
    """What every split gave; NaN where a number does not exist.

    Fields:
      n: (S,) units in the calibration half.
      alone: (S, 2, D), the Primary and the Guardian by themselves on the test half.
      threshold: per menu (S, A) float32.
      policy: per menu (S, A, D), test half at the calibrated threshold.
      hindsight: per menu (S, A, D), at the smallest threshold whose TEST risk is within alpha.
      hindsight_threshold: per menu (S, A).
      grid: per menu (S, GRID, D) at fixed thresholds, or (S, 0, D).
      baselines: per menu and name (S, A, D); empty without baselines.
    """

    n: np.ndarray
    alone: np.ndarray
    threshold: dict[str, np.ndarray]
    policy: dict[str, np.ndarray]
    hindsight: dict[str, np.ndarray]
    hindsight_threshold: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]
    baselines: dict[str, dict[str, np.ndarray]]


def run_splits(
    data: Problem,
    n_splits: int,
    *,
    size: int | None = None,
    fraction: Number = "0.5",
    seed: int = 0,
    baselines: bool = True,
    grid: dict[str, np.ndarray] | None = None,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> SplitValues:
    """Draws the splits and looks every number up.

    `grid` gives fixed thresholds per menu whose test-half columns are wanted too. Raises UsageError
    for an empty half.
    """
    if n_splits < 1:
        raise UsageError(f"splits must be at least 1, not {n_splits}")
    wanted = calibration_size(data.n_clusters, size=size, fraction=fraction)

    def work(numbers: range) -> SplitValues:
        halves = random_splits(data.n_clusters, numbers, size=wanted, seed=seed)
        return _block(data, halves, numbers, seed, baselines, grid or {})

    # A block of rows x splits stays in cache.
    block = min(32, max(1, (1 << 18) // len(data.weights)))
    return _joined(map_splits(work, n_splits, block=block, threads=threads, progress=progress))


def _joined(parts: list[Any]) -> Any:
    """Blocks of results as one: arrays are concatenated, dictionaries and SplitValues by field."""
    first = parts[0]
    if isinstance(first, SplitValues):
        fields = SplitValues.__dataclass_fields__
        return SplitValues(**{name: _joined([getattr(p, name) for p in parts]) for name in fields})
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return np.concatenate(parts)


def _block(
    data: Problem, halves: np.ndarray, numbers: range, seed: int, baselines: bool, grid: dict
) -> SplitValues:
    in_rows = halves if data.codes is None else halves[:, data.codes]
    units = halves if data.cluster_mean else in_rows
    test = np.where(in_rows, 0.0, data.weights)
    total = test.sum(axis=1)[:, None, None]
    n = np.array([np.count_nonzero(unit) for unit in units], dtype=np.int64)
    both = np.stack([test @ data.alone.primary, test @ data.alone.guardian], axis=1) / total
    result = SplitValues(n, both, {}, {}, {}, {}, {}, {})
    for name, menu in data.menus.items():
        found = _thresholds(data, menu, units, n)
        fixed = np.asarray(grid.get(name, ()), dtype=np.float32)
        knobs = np.concatenate([*found, np.tile(fixed, (len(n), 1))], axis=1)
        positions = menu.steps.position(knobs)
        sums = menu.steps.sums(test, positions)
        count = len(data.levels)
        means = sums / total
        result.threshold[name], result.hindsight_threshold[name] = found
        result.policy[name] = means[:, :count]
        result.hindsight[name] = means[:, count : 2 * count]
        result.grid[name] = means[:, 2 * count :]
        if baselines:
            # On the calibration half: all rows less those of the test half.
            here = positions[:, :count]
            everyone = menu.steps.sums(data.weights[None], here.reshape(1, -1))
            asked = data.alone.at("guardian_rate")
            there = everyone[0, :, asked].reshape(here.shape) - sums[:, :count, asked]
            rate = there / (data.weights.sum() - total[..., 0])
            result.baselines[name] = _baselines(
                data, numbers, seed, test, both, means[:, :count], rate
            )
    return result


def _thresholds(data: Problem, menu: Menu, units: np.ndarray, n: np.ndarray):
    """Calibrated on the members, and the best in hindsight on the others: both (b, A)."""
    quantum = menu.curves.quantum
    budget = loss_budgets(data.levels, data.bound, n, quantum)
    calibrated, _ = thresholds_within(menu.events, units, budget)
    # In hindsight the test risk itself must be within alpha: alpha n, without the + B of CRC.
    others = units.shape[1] - n
    exact = [
        [int(level * m // Fraction(quantum)) for level in data.levels] for m in others.tolist()
    ]
    best, _ = thresholds_within(menu.events, ~units, np.array(exact, dtype=np.int64))
    return calibrated, best


def _baselines(data: Problem, numbers, seed, test, both, means, rate_there) -> dict:
    alone, at = data.alone, data.alone.at
    total = test.sum(axis=1)[:, None, None]
    cost, rate = means[..., at("cost")], means[..., at("guardian_rate")]
    share = cost_share(cost, both[:, :1, at("cost")], both[:, 1:, at("cost")])
    router, shuffled = random_order_baselines(alone, test, numbers, share, rate, seed)
    positions = tuned_positions(data.confidence, data.weights - test, rate_there)
    tuned = data.confidence.sums(test, positions)
    found = {
        "random_router": router / total,
        "shuffled": shuffled / total,
        "max_probability": tuned / total,
    }
    if data.label is not None:
        best = np.full(means.shape, np.nan)
        best[..., at("accuracy")] = oracle_sums(alone, test, rate) / total[..., 0]
        found["oracle"] = best
    return found
