"""Baselines at equal cost or equal Guardian rate, for many splits at once.

* `random`: the straight line between the two models at equal cost, in expectation,
  acc_P + rho (acc_G - acc_P) with rho = (c - c_P) / (c_G - c_P) (Overman and Bayati, App. B.2);
  rho is held within [0, 1]: a policy dearer than the Guardian is compared with the Guardian alone.
* `random_router`: that router for real, a seeded coin with probability rho per row; it pays one
  model per row, so its cost matches only on average.
* `shuffled`: pays as the policy does (the Primary always, the Guardian when asked), asks equally
  often, but random rows.
* `max_probability`: asks where the Primary's largest probability is low; its threshold is tuned on
  the calibration half, to the policy's Guardian rate there.
* `oracle`: asks at most equally often, and only where the Guardian is right and the Primary wrong.
  No router that asks about the whole menu can do better at that rate.

All of them show an asked Guardian the whole menu. Letters as in `policies`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arbitrage.policies import Steps
from arbitrage.splits import split_stream

NAMES = ("random_router", "shuffled", "max_probability", "oracle")
COIN_PURPOSE = 1


def cost_share(cost, primary_cost, guardian_cost) -> np.ndarray:
    """rho: the share of rows a random router can send to the Guardian at `cost`, within [0, 1].

    NaN where the two models cost the same, since the line has no slope there.
    """
    step = np.asarray(guardian_cost) - np.asarray(primary_cost)
    # Sums of equal costs may differ by rounding.
    level = np.abs(step) <= 1e-12 * np.maximum(np.abs(guardian_cost), np.abs(primary_cost))
    share = (np.asarray(cost) - primary_cost) / np.where(level, 1.0, step)
    return np.where(level, np.nan, np.clip(share, 0.0, 1.0))


@dataclass(frozen=True, eq=False)
class Alone:
    """Each model by itself, per row; columns of `names`, (N, D) float64 each."""

    names: tuple[str, ...]
    primary: np.ndarray
    guardian: np.ndarray

    def at(self, name: str) -> int:
        """Index of a column."""
        return self.names.index(name)


def random_order_baselines(
    alone: Alone,
    weights: np.ndarray,
    numbers: range,
    share: np.ndarray,
    rate: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums (b, P, D) of the random router and of shuffled escalation.

    weights (b, N) float64, 0 outside the test half; share (b, P): rho; rate (b, P): the policy's
    Guardian rate on the test half. Both use the same random keys: rows with key < rho are the
    router's coin, and the first rows in key order up to the rate are the shuffled ones.
    """
    gain = alone.guardian - alone.primary
    start = weights @ alone.primary
    shape = (*share.shape, len(alone.names))
    router, shuffled = np.empty(shape), np.empty(shape)
    cost = alone.at("cost")
    for at, number in enumerate(numbers):
        rows = np.flatnonzero(weights[at])
        keys = split_stream(seed, number, COIN_PURPOSE).random_raw(len(rows))
        order = np.argsort(keys)
        rows = rows[order]
        weight = weights[at, rows]
        moved = np.zeros((len(rows) + 1, len(alone.names)))
        np.cumsum(gain[rows] * weight[:, None], axis=0, out=moved[1:])
        coin = np.searchsorted(keys[order], np.nan_to_num(share[at]) * 2.0**64)
        router[at] = start[at] + moved[coin]
        mass = np.append(0.0, np.cumsum(weight))
        count = np.searchsorted(mass, rate[at] * mass[-1] * (1 + 1e-12), side="right") - 1
        shuffled[at] = start[at] + moved[count]
        # The Primary was paid for these rows as well.
        paid = np.append(0.0, np.cumsum(alone.primary[rows, cost] * weight))
        shuffled[at, :, cost] += paid[count]
    router[np.isnan(share)] = np.nan
    return router, shuffled


def tuned_positions(steps: Steps, weights: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """(b, P) positions: the largest knob whose Guardian rate is at most `rate` (b, P).

    weights (b, N) are the rows' weights in the half that is tuned on.
    """
    rises = steps.change[:, steps.names.index("guardian_rate")]
    ends = np.append(steps.knob[1:] != steps.knob[:-1], True) if len(rises) else np.zeros(0, bool)
    ends = np.flatnonzero(ends)
    positions = np.zeros(rate.shape, dtype=np.int64)
    if len(ends):
        for at, weight in enumerate(weights):
            asked = np.cumsum(weight.take(steps.row) * rises)[ends]
            # A rounding error must not cost the last row of an exact match.
            limit = rate[at] * weight.sum() * (1 + 1e-12)
            count = np.searchsorted(asked, limit, side="right")
            positions[at] = np.append(0, ends + 1)[count]
    return positions


def oracle_sums(alone: Alone, weights: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """(b, P): accuracy sums when only useful questions are asked, at most at `rate` (b, P)."""
    right = alone.at("accuracy")
    useful = (alone.guardian[:, right] > 0) & (alone.primary[:, right] == 0)
    total = weights.sum(axis=1, keepdims=True)
    benefit = (weights @ useful.astype(np.float64))[:, None]
    return (weights @ alone.primary[:, right])[:, None] + np.minimum(rate * total, benefit)
