"""`evaluate_splits`: policies and baselines over many random splits, as one plain JSON object."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from arbitrage.baselines import NAMES, cost_share
from arbitrage.bounds import ExpectedRisk
from arbitrage.clusters import take_units
from arbitrage.costs import Costs
from arbitrage.losses import loss_by_name
from arbitrage.risk import guarantee_text
from arbitrage.scores import ScoreTable
from arbitrage.selection import Levels, Number
from arbitrage.split_problem import MENUS, Problem, problem
from arbitrage.split_runs import GRID, SplitValues, run_splits
from arbitrage.split_statistics import (
    area_over_line,
    delta_influence,
    summaries,
    summary,
    unit_error,
)
from arbitrage.splits import random_splits, split_thresholds

SCHEMA_VERSION = 1
NOTE = (
    "Means over splits, on the test part; sd = over splits; mc_error = sd / sqrt(splits): how "
    "far the mean over ALL splits of these rows may be; stderr = sampling error of the rows "
    "themselves at the median threshold; delta = accuracy minus that of a random router at equal "
    "cost. The policy always pays the Primary as well, the random router one model per question."
)


def evaluate_splits(
    primary: ScoreTable,
    guardian: ScoreTable,
    *,
    alpha: Levels,
    bound: Number = 1,
    loss: str = "guardian_shortfall",
    n_splits: int = 1000,
    size: int | None = None,
    fraction: Number = "0.5",
    seed: int = 0,
    cluster=None,
    cluster_mean: bool = True,
    costs: Costs | None = None,
    baselines: Collection[str] = NAMES,
    curves: bool = True,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Conformal policies (restricted and full menu) and baselines over random splits.

    In each split both menus are calibrated on the calibration part, each with its own loss
    (arXiv 2506.00911, Eq. 2, and the smaller loss of a full menu), and measured on the test part.

    Args:
      primary, guardian: tables of the same questions, after any transform (`softmax`).
      alpha: A risk levels; bound: B; as in `calibrate`.
      loss: "guardian_shortfall", or "guardian_correct" for its binarised form, which needs labels.
      n_splits: how many; size, fraction, seed: as in `random_splits`.
      cluster: (N,) integer codes of the Primary's rows that stay together (`cluster_codes`). With
        `cluster_mean` the losses of a cluster are averaged, every mean is over clusters, and the
        guarantee holds for a new cluster with n = number of calibration clusters. Without it rows
        stay the units: n counts rows, and as rows of a cluster are dependent no guarantee is
        claimed.
      costs: default: 0 for the Primary and 1 for the Guardian, so that cost = Guardian rate.
      baselines: names of `baselines.NAMES`, all by default; curves: also what the figures need.
      threads: of this process; progress: told the number of splits done, block by block.

    `policies` has one entry per menu and alpha. Every measured number is an object with mean, sd,
    mc_error, p10, p90 (over splits) and stderr (`split_statistics`), or None where it does not
    exist: accuracies without labels, `delta` where the models cost the same, an infinite threshold.

    Raises UsageError for bad arguments, DataError naming the first row with bad content.
    """
    data = problem(
        primary, guardian, alpha=alpha, bound=bound, loss=loss, costs=costs,
        cluster=cluster, cluster_mean=cluster_mean,
    )  # fmt: skip
    grid = {name: _grid(menu.steps.knob) for name, menu in data.menus.items()} if curves else {}
    values = run_splits(
        data, n_splits, size=size, fraction=fraction, seed=seed, baselines=baselines,
        grid=grid, threads=threads, progress=progress,
    )  # fmt: skip
    result = _header(data, values, costs or Costs(), n_splits, seed)
    result |= _alone(data, values)
    result["policies"] = [entry for name in MENUS for entry in _policies(data, values, name)]
    result["areas"] = {name: _area(data, values, name) for name in MENUS}
    if curves:
        result["curves"] = {name: _bands(data, values, name, grid[name]) for name in MENUS}
        result["set_sizes"] = _set_sizes(data, values)
        result["groups"] = _groups(data, n_splits, size, fraction, seed)
    return result


def _grid(knob: np.ndarray) -> np.ndarray:
    """Fixed thresholds, spread over the events: 0, quantiles, and beyond the last."""
    inner = np.quantile(knob, np.linspace(0, 1, GRID - 1)) if len(knob) else np.zeros(GRID - 1)
    return np.append(0, inner).astype(np.float32)


def _header(data: Problem, values: SplitValues, costs: Costs, splits: int, seed: int) -> dict:
    rows, n = len(data.weights), values.n
    kind, about = "row", ""
    if data.codes is not None and data.cluster_mean:
        kind = "mean over a cluster"
        about = " Here a row is a cluster and its loss the mean of the cluster's losses."
    elif data.codes is not None:
        kind = "row, clusters kept together"
    text = "No guarantee is claimed: rows of one cluster are dependent, hence not exchangeable."
    if kind != "row, clusters kept together":
        control, words = ExpectedRisk(), loss_by_name(data.loss).words
        feasible = np.isfinite(values.threshold["restricted"]).all(axis=0)
        levels = [float(level) for level in data.levels]
        text = guarantee_text(levels, feasible, float(data.bound), int(n.min()), words, control)
    units = rows if data.codes is None or not data.cluster_mean else data.n_clusters
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "splits",
        "note": NOTE,
        "guarantee": text + about,
        "loss": data.loss,
        "bound": float(data.bound),
        "alphas": [float(level) for level in data.levels],
        "n": rows,
        "unit": kind,
        "units": units,
        "clusters": None if data.codes is None else data.n_clusters,
        "splits": splits,
        "seed": seed,
        "calibration_units": float(n.mean()),
        "test_units": float(units - n.mean()),
        "cost_unit": costs.unit,
    }


def _mean_weights(data: Problem) -> np.ndarray:
    return data.weights / data.weights.sum()


def _alone(data: Problem, values: SplitValues) -> dict[str, Any]:
    found = {}
    weights = _mean_weights(data)
    for at, name in enumerate(("primary", "guardian")):
        rows = getattr(data.alone, name)
        errors = {
            column: unit_error(rows[:, d], weights, data.codes)
            for d, column in enumerate(data.alone.names)
        }
        columns = {c: values.alone[:, at, d] for d, c in enumerate(data.alone.names)}
        found[name] = {"accuracy": None} | summaries(columns, errors)
    return found


def _delta(data: Problem, values: SplitValues, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of the random router at equal cost, and the policy's lead over it, (S, A)."""
    if data.label is None:
        nothing = np.full(means.shape[:2], np.nan)
        return nothing, nothing
    cost, right = data.alone.at("cost"), data.alone.at("accuracy")
    both = values.alone
    rho = cost_share(means[..., cost], both[:, :1, cost], both[:, 1:, cost])
    line = both[:, :1, right] + rho * (both[:, 1:, right] - both[:, :1, right])
    return line, means[..., right] - line


def _policies(data: Problem, values: SplitValues, menu: str) -> list[dict[str, Any]]:
    names, weights = data.alone.names, _mean_weights(data)
    line, delta = _delta(data, values, values.policy[menu])
    entries = []
    for a, level in enumerate(data.levels):
        threshold = values.threshold[menu][:, a].astype(np.float64)
        feasible = np.isfinite(threshold)
        rows = data.menus[menu].steps.rows_at(float(np.median(threshold)))
        errors = {n: unit_error(rows[:, d], weights, data.codes) for d, n in enumerate(names)}
        measured = {n: values.policy[menu][:, a, d] for d, n in enumerate(names)}
        measured |= {"random_accuracy": line[:, a], "delta": delta[:, a]}
        if data.label is not None:
            influence = delta_influence(rows, data.alone, weights)
            errors["delta"] = unit_error(influence, weights, data.codes)
        entry = {
            "menu": menu,
            "alpha": float(level),
            "threshold": summary(threshold) if feasible.all() else "inf",
            "feasible": float(feasible.mean()),
            "accuracy": None,
        } | summaries(measured, errors)
        best = {n: values.hindsight[menu][:, a, d] for d, n in enumerate(names)}
        best["threshold"] = values.hindsight_threshold[menu][:, a].astype(np.float64)
        entry["hindsight"] = summaries(best, {})
        if values.baselines:
            entry["baselines"] = {
                baseline: summaries({n: array[:, a, d] for d, n in enumerate(names)}, {})
                for baseline, array in values.baselines[menu].items()
            }
        entries.append(entry)
    return entries


def _area(data: Problem, values: SplitValues, menu: str) -> dict[str, Any] | None:
    """Area over the random line: between the alphas' costs, and for every lambda on all rows."""
    if data.label is None:
        return None
    cost, right = data.alone.at("cost"), data.alone.at("accuracy")
    _, delta = _delta(data, values, values.policy[menu])
    area, height = area_over_line(values.policy[menu][..., cost], delta)
    weights = _mean_weights(data)
    curve = data.menus[menu].steps.curve(weights)
    own, best = weights @ data.alone.primary, weights @ data.alone.guardian
    rho = cost_share(curve["cost"], own[cost], best[cost])
    lead = curve["accuracy"] - own[right] - rho * (best[right] - own[right])
    whole, mean = (float(value) for value in area_over_line(curve["cost"], lead))
    return {
        "alphas": summary(area),
        "alphas_mean_height": summary(height),
        "family": whole if np.isfinite(whole) else None,
        "family_mean_height": mean if np.isfinite(mean) else None,
    }


def _bands(data: Problem, values: SplitValues, menu: str, grid: np.ndarray) -> dict[str, Any]:
    """The test-part curve at fixed thresholds: mean and the 10-90% band over splits."""
    points = values.grid[menu]
    columns: dict[str, Any] = {"lambda": grid.tolist()}
    for d, name in enumerate(data.alone.names):
        if name in ("risk", "guardian_rate", "cost", "accuracy"):
            low, high = np.quantile(points[..., d], [0.1, 0.9], axis=0)
            mean = points[..., d].mean(axis=0)
            columns[name] = {"mean": mean.tolist(), "p10": low.tolist(), "p90": high.tolist()}
    return columns


def _set_sizes(data: Problem, values: SplitValues) -> dict[str, Any]:
    """Share of rows with 1, 2, ... candidates at the median threshold, over all rows."""
    steps, weights = data.menus["restricted"].steps, _mean_weights(data)
    column = steps.names.index("mean_set_size")
    largest = data.primary.scores.shape[1]
    shares = []
    for a in range(len(data.levels)):
        median = float(np.median(values.threshold["restricted"][:, a]))
        size = np.rint(steps.rows_at(median)[:, column]).astype(np.int64)
        shares.append(np.bincount(size, weights, minlength=largest + 1)[1:].tolist())
    return {"sizes": list(range(1, largest + 1)), "share": shares}


def _groups(data: Problem, splits: int, size, fraction, seed: int) -> dict[str, Any]:
    """The restricted threshold that each group alone would get, over the same splits.

    Empty without groups, and where a cluster lies in several of them.
    """
    group = data.guardian.group if data.primary.group is None else data.primary.group
    if group is None:
        return {}
    names, codes = np.unique(group, return_inverse=True)
    owner = codes
    if data.codes is not None and data.cluster_mean:
        first = np.unique(data.codes, return_index=True)[1]
        owner = codes[first]
        if (owner[data.codes] != codes).any():
            return {}
    if data.codes is not None and not data.cluster_mean:
        return {}
    halves = random_splits(len(owner), min(splits, 200), size=size, fraction=fraction, seed=seed)
    found = {}
    for at, name in enumerate(names.tolist()):
        kept = owner == at
        curves = take_units(data.menus["restricted"].curves, kept)
        one = split_thresholds(curves, halves[:, kept], list(data.levels), data.bound)
        found[name] = {
            "units": int(kept.sum()),
            "feasible": one.feasible.mean(axis=0).tolist(),
            "thresholds": [
                summary(one.threshold[one.feasible[:, a], a].astype(np.float64))
                if one.feasible[:, a].any()
                else None
                for a in range(len(data.levels))
            ],
        }
    return found
