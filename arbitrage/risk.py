"""Calibration: from two models' scores to a threshold that keeps the loss below alpha."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.bounds import Control, ExpectedRisk
from arbitrage.errors import InfeasibleWarning, UsageError
from arbitrage.loss_curves import SHORTFALL, LossCurves, as_rows, curves_of, loss_quantum
from arbitrage.losses import Loss
from arbitrage.rows import Rows
from arbitrage.selection import (
    Levels,
    Number,
    Selection,
    exact_alphas,
    exact_number,
    risk_steps,
    select,
)

MARGINAL = ExpectedRisk()
# Below so many scores NumPy is done before XLA has compiled.
SMALL = 1 << 18
# Up to so many budgets a bracket for each costs less than reading digits.
BRACKETS = 6


@dataclass(frozen=True, eq=False)
class Calibration:
    """Thresholds with their guarantee.

    `threshold`, `empirical_risk`, `alpha` and `feasible` are scalars for a single alpha and arrays
    of shape (A,) for a sequence.

    Fields:
      threshold: float32, in the Primary's score units; +inf where infeasible (always defer).
      empirical_risk: float64, mean loss of the calibration rows at the threshold.
      alpha: float64, the risk level, in the units of the loss.
      bound: B, the largest possible loss.
      n: number of calibration rows.
      quantum: losses were rounded up to multiples of it, at most 2^-30 of the bound. Where they
        are multiples already the threshold is the exact infimum; otherwise it is that of the
        rounded-up losses, as careful as an alpha smaller by at most one quantum.
      feasible: bool, whether any threshold is allowed.
      loss: name of the loss family.
      method: name of the control.
      guarantee: what is guaranteed in words: for whom, in whose scores, and what would make an
        infeasible alpha feasible.
    """

    threshold: Any
    empirical_risk: Any
    alpha: Any
    bound: float
    n: int
    quantum: float
    feasible: Any
    loss: str
    method: str
    guarantee: str


def calibrate(
    primary,
    guardian,
    *,
    alpha: Levels,
    bound: Number,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
    control: Control = MARGINAL,
) -> Calibration:
    """The smallest relaxation lambda whose loss is controlled at `alpha`.

    By default: expected loss at most alpha (conformal risk control, Angelopoulos et al., arXiv
    2208.02814, Theorem 1), the loss being the shortfall of the deployed answer in the Guardian's
    score, max_A g - max_{C_lambda} g (Overman and Bayati, arXiv 2506.00911, Eq. 2).

    Args:
      primary: (N, K) scores of the Primary, taken as float32.
      guardian: (N, K) scores of the Guardian on the full menu, same units as `alpha` and `bound`.
      alpha: one risk level or several, each in (0, bound); read as the decimal that is written.
      bound: B, an upper bound of the loss: 1 for probabilities, 3 for severities 0 to 3.
      mask: (N, K) bool, true at valid options; None if all are.
      label: (N,) int, index of the right option, for losses that need it.
      loss: the loss family (`arbitrage.losses`).
      control: what is promised: `ExpectedRisk()`, or `HoeffdingBentkus(delta)` and
        `ExactBinomial(delta)` for P(risk <= alpha) >= 1 - delta.

    Arrays are NumPy or JAX. JAX arrays that are split over a mesh by rows (NamedSharding), also of
    several hosts, are summed where they lie. The exact infimum is found, not a grid point: 0, one
    of the gaps, or +inf. It is the same to the bit for any order of the rows, any sharding, and as
    from `calibrate_stream`.

    Warns InfeasibleWarning where no threshold is allowed; it is then +inf.
    Raises UsageError for bad arguments, DataError naming the first row with bad content.
    """
    request = CalibrationRequest.of(alpha, bound, loss, control)
    if _on_devices(primary):
        from arbitrage.radix import device_pass, select_by_digits
        from arbitrage.sources import check_device_rows

        rows = check_device_rows(Rows(primary, guardian, mask, label), loss)
        one_pass = device_pass(rows, loss, request.bound)
        return request.result(*select_by_digits(one_pass, len(request.alphas), request.budgets))
    rows = as_rows(primary, guardian, mask, label, loss)
    if rows.primary.size <= SMALL:
        return request.of_curves(curves_of(rows, loss, request.bound))
    from arbitrage.sources import HostRows

    return request.search(HostRows(rows), len(rows.primary))


def calibrate_stream(
    chunks: Iterable[Rows] | Callable[[], Iterable[Rows]],
    *,
    alpha: Levels,
    bound: Number,
    loss: Loss = SHORTFALL,
    control: Control = MARGINAL,
) -> Calibration:
    """`calibrate` for rows that do not fit in memory: at most three readings, constant memory.

    `chunks` gives `Rows` (or tuples of its fields) of NumPy arrays, any number of rows each, and
    the same ones at each reading: a list, a `ScoreStream` (`open_stream`), or a function without
    arguments that starts a new reading. With a `len`, the number of rows, one reading is mostly
    enough for a few alphas. Other arguments, warnings and errors as in `calibrate`; DataError where
    two readings differ in length.
    """
    from arbitrage.sources import StreamRows

    request = CalibrationRequest.of(alpha, bound, loss, control)
    # The length of a list is its number of chunks.
    length = None if isinstance(chunks, Sequence) else getattr(chunks, "__len__", None)
    return request.search(StreamRows(chunks, loss), length and length())


def calibrate_steps(
    points,
    losses,
    *,
    alpha: Levels,
    bound: Number,
    control: Control = MARGINAL,
) -> Calibration:
    """`calibrate` for losses that the caller has computed, as step functions of lambda.

    Args:
      points: (N, J) float32 >= 0, increasing along each row: where the loss of a row changes.
        Rows with fewer steps end in +inf.
      losses: (N, J + 1) in [0, bound]: before the first point, then from each point on.

    A loss that rises again with lambda is replaced by its running supremum from the right, which
    keeps the guarantee (arXiv 2208.02814, Cor. 1); `guarantee` then says so. Other arguments,
    warnings and errors as in `calibrate`.
    """
    from arbitrage.loss_curves import curves_from_steps

    request = CalibrationRequest.of(alpha, bound, UserLoss(), control)
    curves, risen = curves_from_steps(points, losses, bound=request.bound)
    note = " Losses that rise with lambda were replaced by their running supremum." if risen else ""
    return request.of_curves(curves, note=note)


class UserLoss:
    """The name and the words of losses that the caller has computed."""

    name = "user"
    needs_label = False
    binary = False
    full_menu = False
    words = "the loss given by the caller"

    def values(self, gap, guardian, valid, label):
        """There are no scores to start from."""
        raise UsageError("a loss given as steps has no scores: use calibrate_steps")


@dataclass(frozen=True)
class CalibrationRequest:
    """What is asked for, in exact numbers."""

    alphas: list[Fraction]
    single: bool
    bound: Fraction
    loss: Loss
    control: Control

    @classmethod
    def of(cls, alpha: Levels, bound: Number, loss: Loss, control: Control) -> CalibrationRequest:
        """Raises UsageError for levels or a bound out of range, or a control that does not fit."""
        limit = exact_number(bound, "bound")
        alphas, single = exact_alphas(alpha, limit)
        if control.binary_only and not (loss.binary and limit == 1):
            raise UsageError(
                f"{control.name} is for losses that are 0 or 1 (GuardianCorrect or Exceeds, with "
                f"bound 1), not {loss.name}: use HoeffdingBentkus, or count with Exceeds"
            )
        return cls(alphas, single, limit, loss, control)

    @property
    def quantum(self) -> float:
        """The unit of losses."""
        return loss_quantum(self.bound)

    def budgets(self, n: int) -> list[int]:
        """The largest allowed loss sum of n rows at each alpha, in quanta."""
        return [self.control.budget(a, self.bound, n, self.quantum) for a in self.alphas]

    def of_curves(self, curves: LossCurves, *, note: str = "", where: str = "") -> Calibration:
        """The thresholds by sorting; `note` ends the guarantee, `where` begins warnings."""
        found = select(risk_steps(curves), self.budgets(curves.n))
        return self.result(found, curves.n, note=note, where=where)

    def search(self, source, n: int | None) -> Calibration:
        """The thresholds by compiled passes over a source of NumPy rows."""
        if n is not None and len(self.alphas) <= BRACKETS:
            from arbitrage.bracket import select_by_bracket

            found = select_by_bracket(source, n, self.budgets(n), self.loss, self.bound)
            if found is not None:
                return self.result(found, n)
        from arbitrage.radix import block_pass, select_by_digits

        one_pass = block_pass(source, self.loss, self.bound, n)
        return self.result(*select_by_digits(one_pass, len(self.alphas), self.budgets))

    def result(self, found: Selection, n: int, *, note: str = "", where: str = "") -> Calibration:
        """What was found, with warnings where nothing was."""
        risk = found.total * self.quantum / n
        levels = np.array([float(level) for level in self.alphas])
        for level, feasible in zip(self.alphas, found.feasible, strict=True):
            if not feasible:
                needed = why_infeasible(level, self.bound, n, self.control)
                warnings.warn(
                    f"{where}alpha = {float(level):g} is infeasible with n = {n} calibration rows "
                    f"and bound {float(self.bound):g}: {needed}; every row will be deferred",
                    InfeasibleWarning,
                    stacklevel=4,
                )
        single = self.single
        return Calibration(
            threshold=found.threshold[0] if single else found.threshold,
            empirical_risk=float(risk[0]) if single else risk,
            alpha=float(levels[0]) if single else levels,
            bound=float(self.bound),
            n=n,
            quantum=self.quantum,
            feasible=bool(found.feasible[0]) if single else found.feasible,
            loss=self.loss.name,
            method=self.control.name,
            guarantee=guarantee_text(
                levels, found.feasible, float(self.bound), n, self.loss.words, self.control
            )
            + f" Losses count in multiples of {self.quantum:.2g}, rounded up: no more careful than "
            f"an alpha smaller by that.{note}",
        )


def why_infeasible(alpha: Fraction, bound: Fraction, n: int, control: Control) -> str:
    """What would make an infeasible alpha feasible."""
    needed = control.rows_needed(alpha, bound)
    if n < needed:
        return f"it needs n >= {needed}"
    return "even the full menu loses more than it allows"


def guarantee_text(
    alpha: Any, feasible: Any, bound: float, n: int, what: str, control: Control
) -> str:
    """The guarantee in words, for one alpha or several; `what` is `Loss.words`."""
    levels = [float(level) for level in np.atleast_1d(np.asarray(alpha))]
    passed = [bool(ok) for ok in np.atleast_1d(np.asarray(feasible))]
    good = [f"{level:g}" for level, ok in zip(levels, passed, strict=True) if ok]
    parts = [control.words(", ".join(good), n, bound, what)] if good else []
    exact_bound = exact_number(bound, "bound")
    bad = [
        f"alpha = {level:g}: "
        + why_infeasible(exact_number(level, "alpha"), exact_bound, n, control)
        for level, ok in zip(levels, passed, strict=True)
        if not ok
    ]
    if bad:
        parts.append(f"Infeasible with n = {n}, so every row is deferred: {'; '.join(bad)}.")
    return " ".join(parts)


def _on_devices(array) -> bool:
    """Whether a JAX array lies elsewhere than in this process's main memory, or is split."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(array, jax.Array):
        return False
    devices = array.sharding.device_set
    return len(devices) > 1 or next(iter(devices)).platform != "cpu"
