"""What a policy does on held-out questions: risk, Guardian calls, accuracy and the baselines.

The deployed action is taken with `policy.choose`, the same code that serves. Risk is the mean of
the policy's own loss: by default the shortfall max_A g - g(deployed), in the Guardian's score. The
random baseline sends each question to one model by a coin with the policy's Guardian rate (Overman
and Bayati, arXiv 2506.00911, App. B.2), so its accuracy is the straight line between the two
models. The policy always pays the Primary as well and the coin does not: at high Guardian rates the
comparison favours the coin. `split_evaluation` does the same over many splits, at equal cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arbitrage.candidates import gaps
from arbitrage.errors import DataError, UsageError
from arbitrage.loss_curves import SHORTFALL, as_rows, loss_curves, prepared
from arbitrage.losses import Exceeds, FullMenuShortfall, Loss, loss_by_name
from arbitrage.policies import full_menu_states, restricted_states, state_columns, steps
from arbitrage.policy import Policy, choose, route
from arbitrage.scores import ScoreTable, join, softmax
from arbitrage.selection import Number, exact_number, risk_steps

SCHEMA_VERSION = 1
MAX_POINTS = 512
NOTE = (
    "risk = mean shortfall of the deployed answer in the Guardian's score; stderr = standard error "
    "of the mean over rows; delta = accuracy minus that of a random router with the same Guardian "
    "rate; the policy always pays the Primary, the random router pays one model per question."
)


def evaluate(policy: Policy, primary: ScoreTable, guardian: ScoreTable) -> dict[str, Any]:
    """Evaluation of every alpha of `policy` on held-out tables, as a plain JSON object.

    The tables are joined by question id and the policy's score transform is applied. `overall` and
    each entry of `groups` hold `n`, `primary`, `guardian` and `policies` (one entry per alpha);
    `curves` holds what the figures need. Accuracies are None without labels, standard errors None
    for a single row. With group thresholds a group's `threshold` is its own.

    Raises UsageError where the policy's loss needs labels or its groups are missing, DataError
    where the tables do not fit or a loss exceeds the bound.
    """
    primary, guardian = prepare(primary, guardian, policy.transform)
    label = guardian.label if primary.label is None else primary.label
    group = guardian.group if primary.group is None else primary.group
    loss = loss_by_name(policy.loss)
    if loss.needs_label and label is None:
        raise UsageError(
            f"the policy's loss {policy.loss} needs a label column in one of the tables"
        )
    scores = (primary.scores, guardian.scores)
    curve_lambda, curve_risk = risk_curve(
        *scores, bound=policy.bound, mask=primary.mask, label=label, loss=loss
    )
    runs = _runs(policy, primary, guardian, label, group, loss)
    groups: dict[str, Any] = {}
    if group is not None:
        names, codes = np.unique(group, return_inverse=True)
        parts = _summaries(policy, runs, codes, [str(name) for name in names])
        groups = dict(zip(names.tolist(), parts, strict=True))
    note = NOTE
    if policy.loss not in (SHORTFALL.name, FullMenuShortfall.name):
        note = f"risk = {loss.words}" + NOTE[NOTE.index(";") :]
    return {
        "schema_version": SCHEMA_VERSION,
        "note": note,
        "guarantee": policy.guarantee,
        "loss": policy.loss,
        "bound": policy.bound,
        "calibration_n": policy.n,
        "transform": policy.transform,
        "overall": _summaries(policy, runs, np.zeros(len(primary), dtype=int), [None])[0],
        "groups": groups,
        "curves": {
            "risk": {"lambda": curve_lambda.tolist(), "risk": curve_risk.tolist()},
            "frontier": frontier_curve(
                *scores, label=label, mask=primary.mask, loss=loss, full_menu=policy.full_menu
            ),
        },
    }


def prepare(
    primary: ScoreTable, guardian: ScoreTable, transform: str
) -> tuple[ScoreTable, ScoreTable]:
    """The two tables joined by question id, after the score transform ("none" or "softmax")."""
    primary, guardian = join(primary, guardian)
    return (softmax(primary), softmax(guardian)) if transform == "softmax" else (primary, guardian)


@dataclass(frozen=True, eq=False)
class _Run:
    """What one way to act does with each row; all (N,)."""

    shortfall: np.ndarray
    primary_drop: np.ndarray
    defer: np.ndarray
    set_size: np.ndarray
    correct: np.ndarray | None


def _run(primary: ScoreTable, value, target, label, action, defer, set_size) -> _Run:
    rows = np.arange(len(action))
    return _Run(
        shortfall=target - value[rows, action],
        primary_drop=gaps(primary.scores, primary.mask)[rows, action].astype(np.float64),
        defer=defer.astype(np.float64),
        set_size=set_size.astype(np.float64),
        correct=None if label is None else (action == label).astype(np.float64),
    )


def _runs(policy: Policy, primary: ScoreTable, guardian: ScoreTable, label, group, loss: Loss):
    """The Primary alone, the Guardian alone, then the policy at each alpha."""
    n, one = len(primary), np.ones(len(primary))
    own = np.argmax(primary.scores, axis=1)
    best = np.argmax(guardian.scores, axis=1)
    value, target = option_values(primary.scores, guardian.scores, primary.mask, label, loss)
    runs = [
        _run(primary, value, target, label, own, np.zeros(n), one),
        _run(primary, value, target, label, best, one, primary.n_options),
    ]
    tables = (primary.scores, guardian.scores)
    for alpha in policy.alphas:
        threshold = policy.row_threshold(alpha, group)
        candidates, defer = route(primary.scores, threshold, primary.mask)
        action = choose(*tables, threshold, primary.mask, full_menu=policy.full_menu)
        runs.append(_run(primary, value, target, label, action, defer, candidates.sum(axis=1)))
    return runs


def option_values(primary, guardian, mask, label, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) and (N,) float64: the loss of deploying an option is target - value[option].

    For losses of the full menu this is the shortfall itself: a deferred row deploys the best.
    """
    if isinstance(loss, FullMenuShortfall):
        loss = SHORTFALL
    elif isinstance(loss, Exceeds) and isinstance(loss.of, FullMenuShortfall):
        loss = Exceeds(SHORTFALL, loss.level)
    at = prepared(as_rows(primary, guardian, mask, label, loss), loss)
    return np.stack(at.value, axis=1).astype(np.float64), np.asarray(at.target, dtype=np.float64)


def _summaries(
    policy: Policy, runs: Sequence[_Run], codes: np.ndarray, names: Sequence[str | None]
) -> list[dict]:
    """One summary for each code of the rows' codes (N,); `names` are the groups, or one None."""
    sizes = np.bincount(codes, minlength=len(names))
    own, best, *routed = [_averages(run, codes, sizes) for run in runs]
    summaries = []
    for at, name in enumerate(names):
        alone, guard = own[at], best[at]
        thresholds = policy.thresholds
        if name is not None and policy.group_thresholds:
            never = (math.inf,) * len(policy.alphas)
            thresholds = policy.group_thresholds.get(name, never)
        policies = []
        for index, (alpha, averages) in enumerate(zip(policy.alphas, routed, strict=True)):
            threshold = thresholds[index]
            head = {
                "alpha": alpha,
                "threshold": "inf" if math.isinf(threshold) else threshold,
                "feasible": policy.feasible[index],
            }
            policies.append(head | averages[at] | _against_random(averages[at], alone, guard))
        summaries.append(
            {"n": int(sizes[at]), "primary": alone, "guardian": guard, "policies": policies}
        )
    return summaries


def _averages(run: _Run, codes: np.ndarray, sizes: np.ndarray) -> list[dict[str, float | None]]:
    columns: dict[str, Sequence[float | None]] = {}
    columns["risk"], columns["risk_stderr"] = _mean_and_error(run.shortfall, codes, sizes)
    columns["guardian_rate"], _ = _mean_and_error(run.defer, codes, sizes)
    columns["mean_set_size"], _ = _mean_and_error(run.set_size, codes, sizes)
    columns["primary_drop"], _ = _mean_and_error(run.primary_drop, codes, sizes)
    columns["accuracy"] = columns["accuracy_stderr"] = [None] * len(sizes)
    if run.correct is not None:
        columns["accuracy"], columns["accuracy_stderr"] = _mean_and_error(run.correct, codes, sizes)
    return [{name: column[at] for name, column in columns.items()} for at in range(len(sizes))]


def _mean_and_error(values: np.ndarray, codes: np.ndarray, sizes: np.ndarray):
    """Mean and standard error of the mean (ddof 1; None for one row) of each code."""
    mean = np.bincount(codes, values, len(sizes)) / sizes
    squares = np.bincount(codes, (values - mean[codes]) ** 2, len(sizes))
    error = np.sqrt(squares / np.maximum(sizes - 1, 1) / sizes)
    errors = [float(e) if size > 1 else None for e, size in zip(error, sizes, strict=True)]
    return mean.tolist(), errors


def _against_random(averages: Mapping, alone: Mapping, guard: Mapping) -> dict[str, float | None]:
    if averages["accuracy"] is None:
        return {"random_accuracy": None, "delta": None}
    rate = averages["guardian_rate"]
    random = (1 - rate) * alone["accuracy"] + rate * guard["accuracy"]
    return {"random_accuracy": random, "delta": averages["accuracy"] - random}


def risk_curve(
    primary,
    guardian,
    *,
    bound: Number,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
    max_points: int = MAX_POINTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Lambdas (J,) float32 and the mean loss (J,) float64 at each: a right-continuous staircase.

    Thinned to at most `max_points` steps, the first and the last kept. Arguments as in `calibrate`.
    """
    limit = exact_number(bound, "bound")
    curves = loss_curves(primary, guardian, bound=limit, mask=mask, label=label, loss=loss)
    staircase = risk_steps(curves)
    kept = _thin(staircase.risk, max_points)
    return staircase.thresholds[kept], staircase.risk[kept]


def frontier_curve(
    primary,
    guardian,
    *,
    label=None,
    mask=None,
    loss: Loss = SHORTFALL,
    full_menu: bool = False,
    max_points: int = MAX_POINTS,
) -> dict[str, list[float] | None]:
    """Every policy of the family at once: what each lambda costs and brings.

    Lists of equal length (at most `max_points`, the first at lambda = 0): `lambda`,
    `guardian_rate`, `risk` (mean loss), `mean_set_size`, `primary_drop` (mean p of the Primary's
    top minus that of the deployed action: utility given up) and `accuracy` (None without `label`,
    (N,) int). With `full_menu` a deferred row's Guardian chooses among all options.
    """
    p, g = np.asarray(primary, dtype=np.float32), np.asarray(guardian, dtype=np.float32)
    valid = np.ones(p.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if p.ndim != 2 or p.shape != g.shape or not p.size:
        raise DataError(f"scores must both have shape (N, K), not {p.shape} and {g.shape}")
    states = (full_menu_states if full_menu else restricted_states)(p, g, valid)
    value, target = option_values(p, g, valid, label, loss)
    columns = state_columns(states, p, valid, value, target, label=label)
    # Sums of whole numbers are exact; they are divided once.
    curves = steps(states.knob, columns).curve(np.ones(len(p)))
    curves = {name: c if name == "lambda" else c / len(p) for name, c in curves.items()}
    kept = _thin(curves["guardian_rate"], max_points)
    lists: dict[str, list[float] | None] = {name: c[kept].tolist() for name, c in curves.items()}
    return {"accuracy": None} | lists


def _thin(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` points of a monotone sequence, evenly spread over its range."""
    if len(values) <= count:
        return np.arange(len(values))
    share = np.abs(values - values[0]) / max(abs(values[-1] - values[0]), 1e-300)
    wanted = np.searchsorted(share, np.linspace(0, 1, count - 1))
    return np.unique(np.append(np.minimum(wanted, len(values) - 1), len(values) - 1))
