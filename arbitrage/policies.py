"""What each policy does with each row as its knob turns: step functions of every measured column.

A policy is a family indexed by a knob (lambda, or a confidence level). Row i passes through J
states, state 0 first (the Primary alone) and state j from knob[i, j] on; each state has an action,
says whether the Guardian is asked, and how many options it is shown. Sorted once, the states of all
rows answer "what is the mean of every column at this knob, over these rows" for many subsets at
once. Letters: N rows, K options, J states, M events, D columns, b splits, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from arbitrage.candidates import gaps
from arbitrage.costs import RowCosts


@dataclass(frozen=True, eq=False)
class States:
    """The states of every row, all (N, J).

    Fields:
      knob: where the state begins, increasing along a row; column 0 is ignored; +inf: never.
      action: the option that is deployed.
      defer: bool, whether the Guardian is asked.
      size: number of candidates, which are the options the Guardian would see.
    """

    knob: np.ndarray
    action: np.ndarray
    defer: np.ndarray
    size: np.ndarray


def restricted_states(primary, guardian, mask) -> States:
    """Conformal Arbitrage (arXiv 2506.00911, Alg. 1): the Guardian chooses among the candidates.

    primary, guardian (N, K) float32, mask (N, K) bool. State j holds the j + 1 options closest to
    the Primary's top; ties take the lowest index, as in `policy.choose`.
    """
    gap = gaps(primary, mask)
    order = np.argsort(gap, axis=1, kind="stable")
    g = np.where(mask, guardian, np.float32(-np.inf))
    count = np.broadcast_to(np.arange(1, gap.shape[1] + 1), gap.shape)
    return States(np.take_along_axis(gap, order, axis=1), _running_best(g, order), count > 1, count)


def full_menu_states(primary, guardian, mask) -> States:
    """The variant CA* (App. B.5): asked rows are shown the whole menu. The knob is lambda.

    A row is asked when its second smallest gap is at most lambda.
    """
    gap = gaps(primary, mask)
    second = np.full(len(gap), np.inf, dtype=np.float32)
    if gap.shape[1] > 1:
        second = np.partition(gap, 1, axis=1)[:, 1]
    return _two_states(second, primary, guardian, mask)


def confidence_states(primary, guardian, mask) -> States:
    """The max-probability baseline: ask about the whole menu when the Primary is unsure.

    A row is asked when its largest Primary probability is at most the knob. (Deferring by the gap
    between the two largest scores is CA* itself, only tuned differently, so it would be no other
    baseline.) Scores that are not probabilities go through a softmax first.
    """
    return _two_states(top_probability(primary, mask), primary, guardian, mask)


def top_probability(primary, mask) -> np.ndarray:
    """(N,) float32: the largest probability of each row.

    Rows that are not all >= 0 with sum 1 are taken as logits.
    """
    p = np.where(mask, np.asarray(primary, dtype=np.float64), -np.inf)
    shown = np.where(mask, p, 0.0)
    if (shown >= 0).all() and np.allclose(shown.sum(axis=1), 1, atol=1e-4):
        return shown.max(axis=1).astype(np.float32)
    weights = np.exp(p - p.max(axis=1, keepdims=True))
    return (1 / weights.sum(axis=1)).astype(np.float32)


def _two_states(knob: np.ndarray, primary, guardian, mask) -> States:
    """The Primary alone up to `knob`, then the Guardian on the whole menu."""
    own = np.argmin(gaps(primary, mask), axis=1)
    best = np.argmax(np.where(mask, guardian, np.float32(-np.inf)), axis=1)
    options = np.asarray(mask).sum(axis=1)
    one, never = np.ones_like(options), np.zeros(len(own), dtype=bool)
    # A row with a single option has nobody to ask.
    when = np.where(options > 1, knob, np.inf).astype(np.float32)
    return States(
        np.stack([np.zeros_like(when), when], axis=1),
        np.stack([own, best], axis=1),
        np.stack([never, ~never], axis=1),
        np.stack([one, options], axis=1),
    )


def _running_best(g: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(N, K): the Guardian's best among the first j + 1 options in `order`; ties: lowest index."""
    best = order[:, :1]
    actions = [best]
    for column in range(1, order.shape[1]):
        new = order[:, column : column + 1]
        old_score, new_score = np.take_along_axis(g, best, 1), np.take_along_axis(g, new, 1)
        better = (new_score > old_score) | ((new_score == old_score) & (new < best))
        best = np.where(better, new, best)
        actions.append(best)
    return np.concatenate(actions, axis=1)


def state_columns(
    states: States,
    primary,
    mask,
    value,
    target,
    *,
    label=None,
    costs: RowCosts | None = None,
) -> dict[str, np.ndarray]:
    """What is measured in each state, each (N, J) float64.

    `risk` = target - value[action] for the loss's value (N, K) and target (N,); `guardian_rate`;
    `mean_set_size`; `primary_drop` = the action's gap, the Primary utility given up; `cost` with
    `costs`; `accuracy` with `label` (N,) int.
    """
    action = states.action
    columns = {
        "risk": np.asarray(target, dtype=np.float64)[:, None]
        - np.take_along_axis(np.asarray(value), action, axis=1),
        "guardian_rate": states.defer,
        "mean_set_size": states.size,
        "primary_drop": np.take_along_axis(gaps(primary, mask), action, axis=1),
    }
    if costs is not None:
        asked = np.take_along_axis(costs.menu, states.size - 1, axis=1)
        columns["cost"] = costs.primary[:, None] + np.where(states.defer, asked, 0.0)
    if label is not None:
        columns["accuracy"] = action == np.asarray(label)[:, None]
    return {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}


@dataclass(frozen=True, eq=False)
class Steps:
    """The columns of all rows as step functions of the knob, events sorted by the knob.

    Fields:
      names: the D columns.
      base: (N, D) float64, state 0.
      knob: (M,) float32, increasing.
      row: (M,) int64.
      change: (M, D) float64, what each event adds.
    """

    names: tuple[str, ...]
    base: np.ndarray
    knob: np.ndarray
    row: np.ndarray
    change: np.ndarray

    def position(self, knob) -> np.ndarray:
        """How many events have happened at `knob`; any shape."""
        return np.searchsorted(self.knob, np.asarray(knob, dtype=np.float32), side="right")

    def rows_at(self, knob: float) -> np.ndarray:
        """(N, D): every row's columns at one knob."""
        done = slice(0, int(self.position(knob)))
        values = self.base.copy()
        for column in range(len(self.names)):
            values[:, column] += np.bincount(
                self.row[done], self.change[done, column], minlength=len(values)
            )
        return values

    def sums(self, weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(b, P, D): weighted sums over rows after `positions` (b, P) events.

        `weights` (b, N) float64; a row that is not in the subset has weight 0. Between two
        neighbouring positions the events are summed by one matrix product.
        """
        found = np.empty((*positions.shape, len(self.names)))
        start = weights @ self.base
        for split in range(len(weights)):
            weight = weights[split].take(self.row)
            order = np.argsort(positions[split], kind="stable")
            total, reached = start[split], 0
            for at in order.tolist():
                position = int(positions[split, at])
                if position > reached:
                    part = slice(reached, position)
                    total, reached = total + weight[part] @ self.change[part], position
                found[split, at] = total
        return found

    def curve(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The weighted means (weights (N,), sum 1) as step functions: `lambda` and the columns.

        Each (J,), the first at knob 0, one entry per distinct knob above 0.
        """
        ends = np.append(self.knob[1:] != self.knob[:-1], True) if len(self.knob) else np.zeros(0)
        start = int(np.searchsorted(self.knob, 0, side="right"))
        keep = np.flatnonzero(ends)
        keep = keep[keep >= start]
        zero = np.zeros((1, len(self.names)))
        moved = np.cumsum(self.change * weights[self.row][:, None], axis=0)
        means = weights @ self.base + np.vstack([zero, moved])[np.append(start, keep + 1)]
        columns = {name: means[:, at] for at, name in enumerate(self.names)}
        return {"lambda": np.append(np.float32(0), self.knob[keep]), **columns}


def steps(knob: np.ndarray, columns: Mapping[str, np.ndarray]) -> Steps:
    """Sorts the states: `knob` (N, J) as in `States`, each column (N, J). O(N J log(N J))."""
    names = tuple(columns)
    row, state = np.nonzero(np.isfinite(knob[:, 1:]))
    when = knob[row, state + 1]
    order = np.argsort(when, kind="stable")
    row, state = row[order], state[order]
    change = [column[row, state + 1] - column[row, state] for column in columns.values()]
    return Steps(
        names=names,
        base=np.stack([column[:, 0] for column in columns.values()], axis=1),
        knob=when[order],
        row=row,
        change=np.stack(change, axis=1),
    )
