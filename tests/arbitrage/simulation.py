"""Simulated calibrations with the shipped code, in bulk, and what must be true of them.

A setting says how scores are drawn; a run draws n calibration rows, calibrates, and routes fresh
rows with the threshold found. Letters: R runs, F fresh rows a run, K options, A levels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arbitrage.kernels import threshold_by_bisection
from arbitrage.loss_curves import SHORTFALL, loss_quantum
from arbitrage.policy import choose
from arbitrage.rows import Rows

FRESH = 4
BATCH = 10_000


@dataclass(frozen=True)
class Setting:
    """How the scores of a simulated problem are drawn.

    Fields:
      n: calibration rows.
      options: K.
      shape: "dirichlet": two independent uniform points of the simplex. "skewed": a Guardian whose
        scores are mostly near 0 and seldom near 1, and who dislikes what the Primary likes.
        "severity": its score is minus 0, 1, 2 or 3. "binary": of two options the Guardian wants the
        Primary's second, whose gap is uniform on [0, 1]: L = 1{gap > lam}, the risk is 1 - lam.
      tied: the Primary's scores, and the Guardian's, are rounded to multiples of 1/8.
    """

    n: int
    options: int
    shape: str
    tied: bool

    @property
    def bound(self) -> Fraction:
        """B: severities differ by up to 3."""
        return Fraction(3 if self.shape == "severity" else 1)

    @property
    def scale(self) -> float:
        """Quanta in one unit of loss."""
        return 1 / loss_quantum(self.bound)


@functools.partial(jax.jit, static_argnames=("setting", "runs", "rows"))
def draw(key, setting: Setting, runs: int, rows: int):
    """Primary and Guardian, (runs, rows, K) float32 each."""
    size = (2, runs, rows, setting.options)
    u, v = jax.random.uniform(key, size, dtype=jnp.float32, minval=1e-7)
    if setting.shape == "dirichlet":
        primary, guardian = (jnp.log(x) / jnp.log(x).sum(axis=-1, keepdims=True) for x in (u, v))
    elif setting.shape == "skewed":
        primary, guardian = u, ((1 - u + v) / 2) ** 4
    elif setting.shape == "binary":
        primary, guardian = u.at[..., 0].set(1), jnp.zeros_like(v).at[..., 1].set(1)
    else:
        primary, guardian = u, -jnp.floor(4 * v * jnp.sqrt(v))
    if setting.tied:
        return jnp.round(8 * primary) / 8, jnp.round(8 * guardian) / 8
    return primary, guardian


def shortfall(primary, guardian, action):
    """What the deployed option lacks in the Guardian's score; (..., K) and (...) to (...)."""
    taken = jnp.take_along_axis(guardian, action[..., None], axis=-1)[..., 0]
    return guardian.max(axis=-1) - taken


def strict_choose(primary, guardian, threshold):
    """A defect on purpose: candidates with gap < threshold instead of gap <= threshold."""
    return choose(primary, guardian, jnp.nextafter(threshold, -jnp.float32(1)))


@functools.partial(jax.jit, static_argnames="scale")
def thresholds(primary, guardian, budgets, scale: float):
    """(R, A) float32: the shipped selection for (R, n, K) scores and (A,) budgets in quanta."""

    def one(p, g, budget):
        return threshold_by_bisection(Rows(p, g), budget, loss=SHORTFALL, scale=scale)

    of_runs = jax.vmap(one, in_axes=(0, 0, None))
    return jax.vmap(of_runs, in_axes=(None, None, 0), out_axes=1)(primary, guardian, budgets)


@functools.partial(jax.jit, static_argnames="deploy")
def fresh_loss(primary, guardian, threshold, deploy):
    """(R, A): mean loss of (R, F, K) rows routed with `deploy` at the thresholds (R, A)."""

    def one(p, g, lam):
        return shortfall(p, g, deploy(p, g, lam)).mean()

    of_levels = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(of_levels)(primary, guardian, threshold)


def simulated_thresholds(
    setting: Setting, budgets: list[int], *, runs: int, seed: int = 0, deploy=None
) -> tuple[np.ndarray, np.ndarray]:
    """Threshold (R, A) float32 and, with `deploy`, mean fresh loss (R, A) float32 of each run."""
    found, losses = [], []
    extra = 0 if deploy is None else FRESH
    # "rbg" compiles faster than the default generator.
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), math.ceil(runs / BATCH))
    with jax.enable_x64(True):
        allowed = jnp.asarray(budgets, jnp.int64)
        for key in keys:
            p, g = draw(key, setting, BATCH, setting.n + extra)
            found.append(thresholds(p[:, extra:], g[:, extra:], allowed, setting.scale))
            if deploy is not None:
                losses.append(fresh_loss(p[:, :extra], g[:, :extra], found[-1], deploy))
        return np.concatenate(found), np.concatenate(losses or found)


class Outcome(NamedTuple):
    """What simulated calibrations led to; arrays (A,).

    Fields:
      risk: mean loss of fresh rows.
      error: its standard error.
      at_zero, infeasible: share of thresholds that are 0, and +inf.
      runs: number of calibrations.
    """

    risk: np.ndarray
    error: np.ndarray
    at_zero: np.ndarray
    infeasible: np.ndarray
    runs: int


def simulate(
    setting: Setting, budgets: list[int], *, runs: int, seed: int = 0, deploy: Any = choose
) -> Outcome:
    """`runs` calibrations (rounded up to whole batches) at each budget."""
    lam, loss = simulated_thresholds(setting, budgets, runs=runs, seed=seed, deploy=deploy)
    error = loss.std(axis=0, dtype=np.float64) / math.sqrt(len(loss))
    risk = loss.mean(axis=0, dtype=np.float64)
    return Outcome(risk, error, (lam == 0).mean(axis=0), np.isinf(lam).mean(axis=0), len(loss))


def check_expected_risk(
    outcome: Outcome, alphas: list[Fraction], bound: Fraction, n: int, *, jumps: bool
) -> None:
    """Raises AssertionError unless E[L] is within the limits of conformal risk control.

    At most alpha; and at least alpha - 2 B / (n + 1) unless losses jump at a fixed lambda (`jumps`)
    with positive probability (arXiv 2208.02814, Theorems 1 and 2). A threshold of 0 means that the
    loss cannot be made larger, so that share of runs is taken off the lower limit. Four standard
    errors are allowed: a false alarm has probability 3e-5.
    """
    for at, alpha in enumerate(alphas):
        risk, slack = float(outcome.risk[at]), 4 * float(outcome.error[at])
        if risk > alpha + slack:
            raise AssertionError(f"risk {risk:.5f} above alpha = {float(alpha):g} + {slack:.5f}")
        low = float(alpha - 2 * bound / (n + 1) - bound * Fraction(float(outcome.at_zero[at])))
        if not jumps and risk < low - slack:
            raise AssertionError(f"risk {risk:.5f} below its limit {low:.5f} - {slack:.5f}")


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """Risk as a function of the threshold, from a large fresh sample; sorted once."""

    gap: np.ndarray
    risk: np.ndarray

    @classmethod
    def of(cls, curves) -> RiskCurve:
        """From `LossCurves`."""
        order = np.argsort(curves.gap)
        total = curves.base.sum() - np.concatenate([[0], np.cumsum(curves.drop[order])])
        return cls(curves.gap[order], total * curves.quantum / curves.n)

    def at(self, threshold) -> np.ndarray:
        """Risk at thresholds of any shape."""
        return self.risk[np.searchsorted(self.gap, threshold, side="right")]


def check_exceedance(risk: np.ndarray, alpha: Fraction, delta: float) -> float:
    """Share of runs with a true risk above alpha; AssertionError if above delta + 4 std errors."""
    share = float((risk > float(alpha)).mean())
    slack = 4 * math.sqrt(delta * (1 - delta) / len(risk))
    if share > delta + slack:
        raise AssertionError(f"risk above alpha in a share {share:.4f} of runs, delta = {delta:g}")
    return share
