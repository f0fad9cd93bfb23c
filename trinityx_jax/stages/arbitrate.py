"""Stages `arbitrage calibrate` and `arbitrage evaluate`, on the tables that `score` wrote."""

from __future__ import annotations

from typing import Any

from arbitrage import commands
from arbitrage.policy import Policy
from trinityx_jax.run import Run

GUARDIAN = "guardian"


def arbitrage_calibrate(run: Run) -> dict[str, Any]:
    """Certified thresholds of the first objective's routing against the Guardian's, on the
    calibration split.

    A policy.json that the user put there (`arbitrage calibrate ... --output`) is taken as it is.
    """
    path = run.directory / "policy.json"
    if path.exists() and not run.resumed:
        return Policy.read(path).to_json()
    policy = commands.calibrate_files(
        run.scores(_primary(run), "calibration"),
        run.scores(GUARDIAN, "calibration"),
        alpha=run.config.arbitrage.alphas,
        bound=run.config.arbitrage.bound,
        output=path,
        overwrite=run.resumed,
    )
    return policy.to_json()


def arbitrage_evaluate(run: Run) -> dict[str, Any]:
    """The policy on the test split: realised risk, Guardian rate, accuracy against random routing.

    Returns the evaluation without its curves, which evaluation.json holds.
    """
    result = commands.evaluate_files(
        run.directory / "policy.json",
        run.scores(_primary(run), "test"),
        run.scores(GUARDIAN, "test"),
        output=run.directory / "evaluation.json",
        overwrite=True,  # derived from policy.json alone, and quick to make again
    )
    return {key: result[key] for key in ("guarantee", "held_out", "overall", "groups")}


def _primary(run: Run) -> str:
    return run.config.mocae.objectives[0]
