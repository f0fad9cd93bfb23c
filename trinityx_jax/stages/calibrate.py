"""Stage `calibrate-router`: temperatures on the validation split, reported on the test split."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trinityx_jax.alignment.router_calibration import (
    calibration_metrics,
    fit_temperature,
    reliability,
)
from trinityx_jax.inference.gates import collect_gates
from trinityx_jax.inference.score import option_scores
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context


def calibrate_router(run: Run) -> dict[str, Any]:
    """Fits tau of every layer, then the temperature of each routing's answer confidence.

    The layers' tau are fitted at once, on gate logits of the router at temperature 1; what they
    do together is measured on a fresh pass of the calibrated model over the test split.
    """
    context = open_context(run)
    config = run.config.calibration
    parameters = context.with_router()
    fit_on = collect_gates(context.inference, parameters, context.held_out("validation"))
    tau_ne = np.stack(
        [
            fit_temperature(jnp.asarray(z_te), jnp.asarray(fit_on.objective), method=config.method)
            for z_te in fit_on.logits
        ]
    )
    calibrated = context.with_temperature(parameters, tau_ne)
    test_rows = context.held_out("test")
    before, after = (
        collect_gates(context.inference, p, test_rows) for p in (parameters, calibrated)
    )
    alpha = {
        "before": jax.nn.softmax(before.logits, axis=-1),
        "after": jax.nn.softmax(after.logits / tau_ne[:, None, :], axis=-1),
    }
    labels = np.tile(before.objective, len(tau_ne))
    flat = {name: np.asarray(a).reshape(-1, a.shape[-1]) for name, a in alpha.items()}
    return {
        "method": config.method,
        "temperature": tau_ne.tolist(),
        "fitted_on": {"split": "validation", "tokens": len(fit_on.objective)},
        "measured_on": {"split": "test", "tokens": len(before.objective)},
        **{name: calibration_metrics(p, labels, config.bins) for name, p in flat.items()},
        "reliability": {name: reliability(p, labels, config.bins) for name, p in flat.items()},
        "routing": {
            "objectives": list(context.inference.objectives),
            "experts": list(context.inference.objectives),
            "weights": _mean_weights(alpha["after"], after.objective),
        },
        "answer": _answer_temperatures(context, calibrated),
    }


def _mean_weights(alpha_nte, objective_t: np.ndarray) -> list[list[float]]:
    """Mean gating weight of each expert (columns) on the tokens of each objective (rows)."""
    mean_te = np.asarray(alpha_nte).mean(axis=0)
    return [mean_te[objective_t == o].mean(axis=0).tolist() for o in range(mean_te.shape[-1])]


def _answer_temperatures(context: Context, parameters: Parameters) -> dict[str, Any]:
    """Temperature of softmax(mean log-likelihood / T) per routing: experts calibrated one by one
    do not make a calibrated mixture (arXiv 2606.20544)."""
    rows = context.held_out("validation")
    labels = np.array([row.label for row in rows])
    answer = {}
    for name, scores in option_scores(context.inference, parameters, rows).items():
        valid = np.isfinite(scores)
        finite = np.where(valid, scores, 0.0)
        tau = fit_temperature(jnp.asarray(finite), jnp.asarray(labels), mask_nk=jnp.asarray(valid))
        answer[name] = {
            "temperature": float(tau[0]),
            **{
                key: calibration_metrics(
                    np.asarray(jax.nn.softmax(scores / t, axis=-1)),
                    labels,
                    context.run.config.calibration.bins,
                )
                for key, t in (("before", 1.0), ("after", float(tau[0])))
            },
        }
    return answer
