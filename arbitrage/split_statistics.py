"""What many splits of one data set say: means, spreads, and how far to trust them.

Three different errors, never to be mixed up:

* `sd`: the standard deviation over splits: how much ONE calibration on a part of this size varies
  (and `p10`, `p90`, its tenth and ninetieth percentile).
* `mc_error` = sd / sqrt(S): how far the mean over splits is from the mean over all possible splits
  of the same rows. Splits are drawn independently given the data, so this holds although they
  overlap. Over random splits the units of ANY fixed data set are exchangeable, so the mean realised
  risk over all splits is at most alpha exactly: this is the error to check that with.
* `stderr`: the sampling error of the data themselves, the one to quote for new questions. Splits
  reuse the same units, so it does not shrink with S: it is the standard error over all U units
  (clusters, where rows are clustered) of the row values at the median threshold, held fixed. What
  the threshold itself adds is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from arbitrage.baselines import Alone, cost_share


def summary(values: np.ndarray, stderr: float | None = None) -> dict[str, float | None] | None:
    """mean, sd (ddof 1), mc_error, p10, median, p90 of (S,) values; None if not all are numbers."""
    if not np.isfinite(values).all():
        return None
    many = len(values) > 1
    sd = float(values.std(ddof=1)) if many else None
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "mean": float(values.mean()),
        "sd": sd,
        "mc_error": None if sd is None else sd / math.sqrt(len(values)),
        "p10": float(low),
        "median": float(median),
        "p90": float(high),
        "stderr": stderr,
    }


def unit_error(values: np.ndarray, weights: np.ndarray, codes: np.ndarray | None) -> float | None:
    """Standard error of the weighted mean of (N,) row values when units are drawn independently.

    weights (N,) sum to 1; codes (N,) name the unit of each row, None for one row a unit.
    """
    parts = weights * (values - weights @ values)
    if codes is not None:
        parts = np.bincount(codes, parts)
    count = len(parts)
    return float(math.sqrt(count / (count - 1) * (parts @ parts))) if count > 1 else None


def delta_influence(rows: np.ndarray, alone: Alone, weights: np.ndarray) -> np.ndarray:
    """(N,) row values whose mean varies as Delta does, to first order (the delta method).

    Delta = acc - acc_P - rho (acc_G - acc_P), rho = (c - c_P) / (c_G - c_P). rows (N, D) are the
    policy's columns. NaN where the models cost the same.
    """
    right, cost = alone.at("accuracy"), alone.at("cost")
    c, c_p, c_g = (table[:, cost] for table in (rows, alone.primary, alone.guardian))
    mean_c, mean_p, mean_g = (float(weights @ column) for column in (c, c_p, c_g))
    rho = float(cost_share(mean_c, mean_p, mean_g))
    own, best = alone.primary[:, right], alone.guardian[:, right]
    slope = float(weights @ (best - own))
    change = np.zeros(len(c))
    if 0 < rho < 1:
        change = ((c - c_p) - rho * (c_g - c_p)) / (mean_g - mean_p)
    return rows[:, right] - own - rho * (best - own) - change * slope


def area_over_line(cost: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area between the accuracy-cost curve and the random line, and its mean height.

    cost, delta (..., A): the points of one curve along the last axis, in any order. The trapezoid
    rule between the smallest and the largest cost; the height is NaN where all costs are equal.
    """
    order = np.argsort(cost, axis=-1, kind="stable")
    x = np.take_along_axis(cost, order, axis=-1)
    y = np.take_along_axis(delta, order, axis=-1)
    area = (np.diff(x, axis=-1) * (y[..., 1:] + y[..., :-1]) / 2).sum(axis=-1)
    width = x[..., -1] - x[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return area, np.where(width > 0, area / width, np.nan)


def summaries(
    values: Mapping[str, np.ndarray], errors: Mapping[str, float | None]
) -> dict[str, Any]:
    """`summary` of each named (S,) array, with its `stderr` where there is one."""
    return {name: summary(array, errors.get(name)) for name, array in values.items()}
