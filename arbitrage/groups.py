"""A threshold for each group: the risk of every group is controlled, not only that of the mixture.

Groups are known before acting. Where they are disjoint this is Mondrian calibration; a row that is
in several groups takes the largest of their thresholds, which is safe for each of them because a
larger threshold never raises the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arbitrage.bounds import Control
from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.loss_curves import SHORTFALL, LossCurves, as_rows, curves_of
from arbitrage.losses import Loss
from arbitrage.risk import MARGINAL, Calibration, CalibrationRequest
from arbitrage.selection import Levels, Number


@dataclass(frozen=True, eq=False)
class GroupCalibration:
    """One `Calibration` for each group.

    Fields:
      names: (G,) the groups, as given, in sorted order (or column numbers of a membership matrix).
      calibrations: G calibrations; `n` is the group's number of rows.
    """

    names: np.ndarray
    calibrations: tuple[Calibration, ...]

    @property
    def threshold(self) -> np.ndarray:
        """(G, A) float32, or (G,) for a single alpha; +inf where a group is too small."""
        return np.stack([found.threshold for found in self.calibrations])

    @property
    def n(self) -> np.ndarray:
        """(G,) number of calibration rows of each group."""
        return np.array([found.n for found in self.calibrations])

    @property
    def guarantee(self) -> str:
        """What holds inside each group, one sentence after another."""
        named = zip(self.names, self.calibrations, strict=True)
        return " ".join(f"Group {str(name)!r}: {found.guarantee}" for name, found in named)

    def thresholds_for(self, groups) -> np.ndarray:
        """The threshold of each new row, (M,) or (M, A) float32.

        `groups` is (M,) names or (M, G) bool, as in `calibrate_groups`. A row of a group that was
        not calibrated, or of none, has +inf: it is always deferred.
        """
        given = np.asarray(groups)
        limits = self.threshold
        if given.ndim == 2:
            _check_membership(given, len(self.names))
            shape = (len(given), *limits.shape[1:])
            best = np.full(shape, -np.inf, dtype=np.float32)
            for at in range(len(self.names)):
                best[given[:, at]] = np.maximum(best[given[:, at]], limits[at])
            return np.where(np.isneginf(best), np.float32(np.inf), best)
        at = np.searchsorted(self.names, given)
        known = self.names[np.minimum(at, len(self.names) - 1)] == given
        rows = np.where(known, at, len(self.names))
        return np.concatenate([limits, np.full_like(limits[:1], np.inf)])[rows]


def calibrate_groups(
    primary,
    guardian,
    *,
    groups,
    alpha: Levels,
    bound: Number,
    mask=None,
    label=None,
    loss: Loss = SHORTFALL,
    control: Control = MARGINAL,
) -> GroupCalibration:
    """`calibrate` inside each group; the step functions are built once.

    `groups` is (N,) names (strings or integers), or (N, G) bool for groups that overlap; column j
    says which rows are in group j. Other arguments as in `calibrate`.

    Warns InfeasibleWarning for each group and alpha with too few rows. Raises UsageError and
    DataError as `calibrate`, and DataError for a group of a membership matrix without any row.
    """
    given = np.asarray(groups)
    if given.ndim == 2:
        _check_membership(given, given.shape[1])
        names = np.arange(given.shape[1])
        members = [given[:, at] for at in names]
        empty = first_row(np.array([not rows.any() for rows in members]))
        if empty is not None:
            raise DataError(f"group {empty} has no rows: leave its column out")
    elif given.ndim == 1 and given.dtype.kind in "iuUb":
        names, codes = np.unique(given, return_inverse=True)
        members = [codes == at for at in range(len(names))]
    else:
        raise UsageError(
            "groups must be (N,) names (strings or integers) or (N, G) bool, not "
            f"{given.dtype} {given.shape}"
        )
    rows = as_rows(primary, guardian, mask, label, loss)
    if len(given) != len(rows.primary):
        raise UsageError(f"groups must have one entry for each of {len(rows.primary)} rows")
    request = CalibrationRequest.of(alpha, bound, loss, control)
    curves = curves_of(rows, loss, request.bound)
    found = (
        request.of_curves(curves_subset(curves, rows), where=f"group {str(name)!r}: ")
        for name, rows in zip(names, members, strict=True)
    )
    return GroupCalibration(names, tuple(found))


def curves_subset(curves: LossCurves, rows: np.ndarray) -> LossCurves:
    """The step functions of the given rows, (N,) bool, numbered from 0."""
    events = rows[curves.row]
    number = np.cumsum(rows) - 1
    return LossCurves(
        curves.base[rows],
        curves.gap[events],
        curves.drop[events],
        number[curves.row[events]],
        curves.quantum,
    )


def _check_membership(given: np.ndarray, count: int) -> None:
    if given.dtype != bool or given.shape[1] != count:
        raise UsageError(f"groups must be (N, {count}) bool, not {given.dtype} {given.shape}")
