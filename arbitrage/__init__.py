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

Importing this package needs NumPy alone; pyarrow and matplotlib load when they are first used, and
JAX arrays are accepted without importing JAX here.
"""

from arbitrage.candidates import gaps
from arbitrage.commands import calibrate_files, evaluate_files, route_files
from arbitrage.errors import DataError, InfeasibleWarning, UsageError
from arbitrage.frontier import evaluate, frontier_curve, risk_curve
from arbitrage.policy import Policy, Route, choose, route
from arbitrage.risk import Calibration, calibrate
from arbitrage.scores import ScoreTable, join, softmax
from arbitrage.version import __version__

__all__ = [
    "Calibration",
    "DataError",
    "InfeasibleWarning",
    "Policy",
    "Route",
    "ScoreTable",
    "UsageError",
    "__version__",
    "calibrate",
    "calibrate_files",
    "choose",
    "evaluate",
    "evaluate_files",
    "frontier_curve",
    "gaps",
    "join",
    "risk_curve",
    "route",
    "route_files",
    "softmax",
]
