"""Many splits of one problem: thresholds on the calibration halves, numbers on the test halves.

Per split and risk level: the threshold of the calibration half, then every measured column on the
test half, by look-ups in step functions that were sorted once. Letters as in `policies`; S splits,
A risk levels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.baselines import (
    NAMES,
    cost_share,
    oracle_sums,
    random_order_baselines,
    tuned_positions,
)
from arbitrage.errors import UsageError
from arbitrage.selection import Number
from arbitrage.split_problem import Menu, Problem
from arbitrage.splits import (
    calibration_size,
    loss_budgets,
    map_splits,
    random_splits,
    thresholds_within,
)

GRID = 33  # points of the frontier bands


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
    baselines: Collection[str] = NAMES,
    grid: dict[str, np.ndarray] | None = None,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
) -> SplitValues:
    """Draws the splits and looks every number up.

    `baselines` are names of `baselines.NAMES`; `grid` gives fixed thresholds per menu whose
    test-half columns are wanted too. Raises UsageError for an empty half.
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
    data: Problem,
    halves: np.ndarray,
    numbers: range,
    seed: int,
    baselines: Collection[str],
    grid: dict,
) -> SplitValues:
    in_rows = halves if data.codes is None else halves[:, data.codes]
    units = halves if data.cluster_mean else in_rows
    test = np.where(in_rows, 0.0, data.weights)
    total = test.sum(axis=1)[:, None, None]
    n = np.array([np.count_nonzero(unit) for unit in units], dtype=np.int64)
    both = np.stack([test @ data.alone.primary, test @ data.alone.guardian], axis=1) / total
    result = SplitValues(n, both, {}, {}, {}, {}, {}, {})
    asked, rates = data.alone.at("guardian_rate"), []
    count = len(data.levels)
    for name, menu in data.menus.items():
        found = _thresholds(data, menu, units, n)
        fixed = np.asarray(grid.get(name, ()), dtype=np.float32)
        knobs = np.concatenate([*found, np.tile(fixed, (len(n), 1))], axis=1)
        positions = menu.steps.position(knobs)
        sums = menu.steps.sums(test, positions)
        means = sums / total
        result.threshold[name], result.hindsight_threshold[name] = found
        result.policy[name] = means[:, :count]
        result.hindsight[name] = means[:, count : 2 * count]
        result.grid[name] = means[:, 2 * count :]
        if baselines:
            # On the calibration half: all rows less those of the test half.
            here = positions[:, :count]
            everyone = menu.steps.sums(data.weights[None], here.reshape(1, -1))
            there = everyone[0, :, asked].reshape(here.shape) - sums[:, :count, asked]
            rates.append(there / (data.weights.sum() - total[..., 0]))
    if baselines:
        # Both menus at once: they share the random order of the rows.
        means = np.concatenate([result.policy[name] for name in data.menus], axis=1)
        rate = np.concatenate(rates, axis=1)
        found = _baselines(data, numbers, seed, test, both, means, rate, baselines)
        for at, name in enumerate(data.menus):
            own = slice(at * count, (at + 1) * count)
            result.baselines[name] = {key: array[:, own] for key, array in found.items()}
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


def _baselines(data: Problem, numbers, seed, test, both, means, rate_there, names) -> dict:
    alone, at = data.alone, data.alone.at
    total = test.sum(axis=1)[:, None, None]
    cost, rate = means[..., at("cost")], means[..., at("guardian_rate")]
    found = {}
    if "random_router" in names or "shuffled" in names:
        share = cost_share(cost, both[:, :1, at("cost")], both[:, 1:, at("cost")])
        router, shuffled = random_order_baselines(alone, test, numbers, share, rate, seed)
        found = {"random_router": router / total, "shuffled": shuffled / total}
    if "max_probability" in names:
        positions = tuned_positions(data.confidence, data.weights - test, rate_there)
        found["max_probability"] = data.confidence.sums(test, positions) / total
    if "oracle" in names and data.label is not None:
        best = np.full(means.shape, np.nan)
        best[..., at("accuracy")] = oracle_sums(alone, test, rate) / total[..., 0]
        found["oracle"] = best
    return {name: found[name] for name in names if name in found}
