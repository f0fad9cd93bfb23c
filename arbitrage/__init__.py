"""Conformal Arbitrage: thresholds, with a risk guarantee, for routing between two models.

A cheap or helpful Primary answers where it is sure; where it is not, a Guardian chooses among the
answers the Primary finds close. The threshold between the two is set so that the expected loss of
the deployed answer, in the Guardian's score, stays below alpha (Overman and Bayati, arXiv
2506.00911; Angelopoulos et al., arXiv 2208.02814).

>>> import numpy as np
>>> from arbitrage import calibrate, choose, route
>>> primary, guardian = np.random.default_rng(0).dirichlet(np.ones(4), (2, 500))
>>> found = calibrate(primary, guardian, alpha=0.1, bound=1)
>>> candidates, defer = route(primary[:3], found.threshold)
>>> action = choose(primary[:3], guardian[:3], found.threshold)

Importing this package needs NumPy alone; JAX, pyarrow and matplotlib load when they are first used.
"""

from typing import TYPE_CHECKING, Any

from arbitrage.betting import BettingCalibration, calibrate_betting
from arbitrage.bounds import ExactBinomial, ExpectedRisk, HoeffdingBentkus
from arbitrage.candidates import gaps
from arbitrage.commands import calibrate_files, evaluate_files, route_files
from arbitrage.errors import DataError, InfeasibleWarning, UsageError
from arbitrage.frontier import evaluate, frontier_curve, risk_curve
from arbitrage.groups import GroupCalibration, calibrate_groups
from arbitrage.learn_then_test import learn_then_test
from arbitrage.losses import (
    AbsoluteShortfall,
    Exceeds,
    FullMenuShortfall,
    GuardianCorrect,
    GuardianShortfall,
)
from arbitrage.online import OnlineControl
from arbitrage.policy import Policy, Route, choose, route
from arbitrage.risk import Calibration, calibrate, calibrate_steps, calibrate_stream
from arbitrage.rows import Rows
from arbitrage.scores import ScoreTable, join, softmax
from arbitrage.several import JointCalibration, strictest
from arbitrage.split_evaluation import evaluate_splits
from arbitrage.splits import SplitSelection, calibrate_splits
from arbitrage.version import __version__
from arbitrage.weighted import calibrate_weighted

if TYPE_CHECKING:
    from arbitrage.streams import open_stream

__all__ = [
    "AbsoluteShortfall",
    "BettingCalibration",
    "Calibration",
    "DataError",
    "ExactBinomial",
    "Exceeds",
    "ExpectedRisk",
    "FullMenuShortfall",
    "GroupCalibration",
    "GuardianCorrect",
    "GuardianShortfall",
    "HoeffdingBentkus",
    "InfeasibleWarning",
    "JointCalibration",
    "OnlineControl",
    "Policy",
    "Route",
    "Rows",
    "ScoreTable",
    "SplitSelection",
    "UsageError",
    "__version__",
    "calibrate",
    "calibrate_betting",
    "calibrate_files",
    "calibrate_groups",
    "calibrate_splits",
    "calibrate_steps",
    "calibrate_stream",
    "calibrate_weighted",
    "choose",
    "evaluate",
    "evaluate_files",
    "evaluate_splits",
    "frontier_curve",
    "gaps",
    "join",
    "learn_then_test",
    "open_stream",
    "risk_curve",
    "route",
    "route_files",
    "softmax",
    "strictest",
]


def __getattr__(name: str) -> Any:
    if name == "open_stream":  # needs pyarrow
        from arbitrage.streams import open_stream

        return open_stream
    raise AttributeError(f"module 'arbitrage' has no attribute {name!r}")
