"""Learn then test: which configurations of a fixed finite set are certified, for any risk.

For risks that do not fall with lambda, for several knobs at once and for several risks
(Angelopoulos et al., arXiv 2110.01052). Each configuration has the hypothesis "its risk is ABOVE
alpha"; its p-value (see `bounds`) is small where it is safe. A procedure rejects hypotheses so that
with probability at least 1 - delta every certified configuration is safe, whichever of them is then
deployed. The set, its order and delta must be fixed BEFORE seeing the calibration rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.bounds import binomial_p, check_probability, hoeffding_bentkus_p, wsr_p
from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.selection import Levels, Number, exact_alphas, exact_number

PROCEDURES = ("fixed_sequence", "bonferroni", "holm")
P_VALUES = ("hoeffding_bentkus", "binomial", "betting")


@dataclass(frozen=True, eq=False)
class Certified:
    """Which configurations are certified. J is the number of configurations, or a grid's shape.

    Fields:
      certified: (J,) bool.
      p_values: (J,) float64; NaN where it was not needed.
      delta: probability that any certified configuration is not safe.
      procedure: one of `PROCEDURES`.
      n: number of rows.
      alphas: the level of each risk.
    """

    certified: np.ndarray
    p_values: np.ndarray
    delta: float
    procedure: str
    n: int
    alphas: tuple[float, ...]

    @property
    def guarantee(self) -> str:
        """What is guaranteed, in words."""
        count, total = int(self.certified.sum()), self.certified.size
        if not count:
            return f"None of the {total} configurations could be certified with n = {self.n} rows."
        levels = ", ".join(f"{alpha:g}" for alpha in self.alphas)
        what = "its risk is" if len(self.alphas) == 1 else "each of its risks is"
        return (
            f"With probability at least {1 - self.delta:g} over the draw of the {self.n} "
            "calibration rows (independent and identically distributed), for EVERY one of the "
            f"{count} certified configurations {what} at most alpha = {levels} on average over new "
            "rows from the same source (family-wise error, "
            f"{self.procedure.replace('_', ' ')}). It is a mean over new rows, not a promise for "
            "one question or one group."
        )


def learn_then_test(
    losses,
    *,
    alpha: Levels,
    bound: Number = 1,
    delta: float = 0.1,
    procedure: str = "fixed_sequence",
    p_value: str = "hoeffding_bentkus",
    order=None,
) -> Certified:
    """Certifies configurations from the losses of n calibration rows.

    Args:
      losses: an array (n, *J), one risk; or (n, *J, R) where `alpha` is a sequence of R levels; in
        [0, bound]. Or an iterator over configurations, safest first, each (n,) or (n, R): only one
        is held at a time, and a fixed sequence stops drawing at its first failure.
      alpha: the level of the risk, or of each of R risks. A configuration is certified only if all
        its risks are: its p-value is the largest of theirs, with no correction for R.
      bound: B, an upper bound of every loss.
      delta: probability of error over all configurations together.
      procedure: "fixed_sequence" tests from the safest end and stops at the first p > delta;
        "bonferroni" asks p <= delta / J; "holm" steps down and is never worse than "bonferroni".
      p_value: "hoeffding_bentkus", "binomial" (losses 0 or B only) or "betting" (`wsr_p`: sharper
        where losses vary little; the order of the rows must not depend on their content).
      order: for a fixed sequence over an array: flat indices of configurations, safest first, fixed
        in advance; C order if None. Configurations left out are not certified.

    Raises UsageError for bad arguments, DataError naming the first row with a bad loss.
    """
    limit = exact_number(bound, "bound")
    alphas, single = exact_alphas(alpha, limit)
    _check_choices(procedure, p_value, delta)
    sequence = procedure == "fixed_sequence"
    if order is not None and (not sequence or isinstance(losses, Iterator)):
        raise UsageError(
            "order is for a fixed sequence over an array; an iterator gives the safest first"
        )
    given, shape = _configurations(losses, len(alphas), single)
    path = None if shape is None else _checked_order(order, math.prod(shape))
    tables = given if path is None else (given[j] for j in path)
    values, n = [], 0
    for table in tables:
        n = len(table)
        levels = zip(table.T, alphas, strict=True)
        values.append(max(_p_value(p_value, loss, level, limit, delta) for loss, level in levels))
        if sequence and values[-1] > delta:
            break
    if not values:
        raise UsageError("losses: give at least one configuration")
    found = np.array(values)
    if path is not None and shape is not None:
        found = np.full(math.prod(shape), np.nan)
        found[path[: len(values)]] = values
        found = found.reshape(shape)
    certified = certify(found, delta=delta, procedure=procedure, order=path if sequence else None)
    return Certified(certified, found, delta, procedure, n, tuple(float(level) for level in alphas))


def certify(p_values, *, delta: float, procedure: str = "fixed_sequence", order=None) -> np.ndarray:
    """Which of several hypotheses are rejected, at most one wrongly with probability `delta`.

    Args:
      p_values: any shape; for several risks at once, the largest p-value of each configuration.
        NaN counts as "not rejected".
      delta, procedure, order: as in `learn_then_test`.

    Returns bool of the same shape: p <= delta along `order` up to the first failure; p <= delta / J
    (Bonferroni); or the k-th smallest p <= delta / (J - k + 1), up to the first failure (Holm).
    """
    _check_choices(procedure, P_VALUES[0], delta)
    shape = np.shape(p_values)
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    p = np.where(np.isnan(p), np.inf, p)
    if order is not None and procedure != "fixed_sequence":
        raise UsageError(f"order has no meaning for the procedure {procedure}")
    if procedure == "bonferroni":
        return (p <= delta / max(1, len(p))).reshape(shape)
    if procedure == "holm":
        path = np.argsort(p, kind="stable")
        limits = delta / np.arange(len(p), 0, -1)
    else:
        path = _checked_order(order, len(p))
        limits = np.full(len(path), delta)
    rejected = np.zeros(len(p), dtype=bool)
    rejected[path] = np.logical_and.accumulate(p[path] <= limits)
    return rejected.reshape(shape)


def selective_risk_p(
    loss, acted, alpha: Number, *, bound: Number = 1, rows: str = "acted", p_value=P_VALUES[0]
) -> float:
    """p-value of "E[L | acted] is above alpha", the risk among the rows where the policy acts.

    Args:
      loss: (n,) losses in [0, bound] of one fixed configuration; ignored where it does not act.
      acted: (n,) bool, whether it acts (does not ask the Guardian, say).
      alpha: the level in (0, bound).
      rows: "acted" tests the rows acted on, which are a sample of L given acted once their number
        is known. "all" tests E[(L - alpha) 1{acted}] <= 0 on all rows, each row not acted on
        counting as a loss of alpha; it is weaker with "hoeffding_bentkus", alike with "betting".
      p_value: as in `learn_then_test`; "binomial" needs losses 0 or B and rows="acted".

    The selective risk does not fall with lambda: use the value with `certify` over a fixed grid.
    Acting nowhere gives 1. Returns a float.
    """
    limit = exact_number(bound, "bound")
    level = exact_alphas(alpha, limit)[0][0]
    _check_choices(PROCEDURES[0], p_value, 0.1)
    chosen, height = np.asarray(acted, dtype=bool), np.asarray(loss, dtype=np.float64)
    if chosen.ndim != 1 or chosen.shape != height.shape:
        raise UsageError(
            f"loss and acted must both have shape (n,), not {height.shape} and {chosen.shape}"
        )
    if rows not in ("acted", "all") or (rows == "all" and p_value == "binomial"):
        raise UsageError(f'rows must be "acted" or, without "binomial", "all", not {rows!r}')
    if not chosen.any():
        return 1.0
    _check_losses(np.where(chosen, height, 0.0), limit)
    height = height[chosen] if rows == "acted" else np.where(chosen, height, float(level))
    return _p_value(p_value, height, level, limit, 0.1)


def _configurations(losses, risks: int, single: bool) -> tuple[Any, tuple[int, ...] | None]:
    """(n, R) tables: a sequence of them and the grid's shape, or an iterator and None."""
    if isinstance(losses, Iterator):
        return (_risk_columns(np.asarray(each), risks, single) for each in losses), None
    table = np.asarray(losses)
    wanted = f"(n, ..., {risks})" if not single else "(n, ...)"
    if table.ndim < 2 + (not single) or (not single and table.shape[-1] != risks):
        raise UsageError(f"losses must have shape {wanted}, not {table.shape}")
    shape = table.shape[1:] if single else table.shape[1:-1]
    table = table.reshape(len(table), math.prod(shape), risks)
    return table.swapaxes(0, 1), shape


def _risk_columns(table: np.ndarray, risks: int, single: bool) -> np.ndarray:
    if table.ndim != 2 - single or (not single and table.shape[1] != risks):
        wanted = "(n,)" if single else f"(n, {risks})"
        raise UsageError(f"each configuration's losses must have shape {wanted}, not {table.shape}")
    return table.reshape(len(table), risks)


def _p_value(method: str, loss: np.ndarray, alpha: Fraction, bound: Fraction, delta: float):
    _check_losses(loss, bound)
    share, level = np.asarray(loss, dtype=np.float64) / float(bound), float(alpha / bound)
    if method == "betting":
        return float(wsr_p(share, level, delta))
    if method == "binomial":
        row = first_row((share != 0) & (share != 1))
        if row is not None:
            raise DataError(f"row {row}: the binomial p-value needs losses 0 or the bound", row)
        return float(binomial_p(share.sum(), len(share), level))
    return float(hoeffding_bentkus_p(share.mean(), len(share), level))


def _check_losses(loss: np.ndarray, bound: Fraction) -> None:
    if not len(loss):
        raise DataError("no rows: calibration needs at least one example")
    row = first_row(~((loss >= 0) & (loss <= float(bound))))
    if row is not None:
        raise DataError(f"row {row}: losses must lie in [0, {float(bound):g}]", row)


def _check_choices(procedure: str, p_value: str, delta: float) -> None:
    for name, value, known in (
        ("procedure", procedure, PROCEDURES),
        ("p_value", p_value, P_VALUES),
    ):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    check_probability("delta", delta)


def _checked_order(order, count: int) -> np.ndarray:
    """The flat indices of `order`, or all in turn. Raises UsageError for a bad or repeated one."""
    if order is None:
        return np.arange(count)
    path = np.asarray(order)
    fits = path.ndim == 1 and path.dtype.kind in "iu" and ((path >= 0) & (path < count)).all()
    if not fits or len(np.unique(path)) != len(path):
        raise UsageError(f"order must hold different whole numbers from 0 to {count - 1}")
    return path
