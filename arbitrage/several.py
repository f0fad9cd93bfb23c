"""Several risks at once: the threshold that is safe for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from arbitrage.errors import UsageError
from arbitrage.risk import Calibration


@dataclass(frozen=True, eq=False)
class JointCalibration:
    """The largest of several thresholds.

    Fields:
      threshold: float32, scalar or (A,); +inf where one of the risks is infeasible.
      feasible: bool, of the same shape.
      calibrations: what each risk asked for alone.
    """

    threshold: Any
    feasible: Any
    calibrations: tuple[Calibration, ...]

    @property
    def guarantee(self) -> str:
        """Every risk's own guarantee; a probability holds for each risk on its own."""
        each = " ".join(f"({at}) {one.guarantee}" for at, one in enumerate(self.calibrations, 1))
        return f"All of these hold at the largest of their thresholds. {each}"


def strictest(*calibrations: Calibration) -> JointCalibration:
    """The smallest threshold that keeps every risk j at most alpha_j.

    Losses never rise with lambda, so the largest threshold is safe for all, without a correction
    for their number (Angelopoulos et al., arXiv 2208.02814, Prop. 5). The calibrations must share
    the Primary and its rows, and hold one alpha each or equally many.

    Each risk is that of the candidate SET: with several Guardians no single option need be best
    for all of them. Raises UsageError for none, or for different numbers of alphas.
    """
    shapes = {np.shape(one.threshold) for one in calibrations}
    if len(shapes) != 1:
        raise UsageError("strictest needs at least one calibration, all with equally many alphas")
    return JointCalibration(
        np.max([one.threshold for one in calibrations], axis=0),
        np.all([one.feasible for one in calibrations], axis=0),
        calibrations,
    )
