"""`arbitrage certify`: which of several fixed configurations are safe (learn then test)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from arbitrage.commands import StrPath
from arbitrage.errors import DataError
from arbitrage.io import check_output, write_json
from arbitrage.learn_then_test import P_VALUES, PROCEDURES, Certified, learn_then_test
from arbitrage.scores import ScoreTable
from arbitrage.selection import Number
from arbitrage.tables import aligned
from arbitrage.version import __version__


def certify_files(
    path: StrPath,
    *,
    alpha: Number,
    bound: Number = 1,
    delta: float = 0.1,
    procedure: str = "fixed_sequence",
    p_value: str = "hoeffding_bentkus",
    output: StrPath | None = None,
    overwrite: bool = False,
    **reading: Any,
) -> tuple[Certified, np.ndarray]:
    """`learn_then_test` on a table whose `scores` are the losses of J configurations, safest first.

    Returns what is certified and each configuration's mean loss, (J,) float64. `reading` are the
    arguments of `ScoreTable.read`; every row needs all J losses.
    """
    if output is not None:
        check_output(output, overwrite)
    table = ScoreTable.read(path, **reading)
    if not table.mask.all():
        row = int(np.argmin(table.mask.all(axis=1)))
        raise DataError(f"{path}: row {row} has no loss for some configurations", row)
    losses = table.scores.astype(np.float64)
    found = learn_then_test(
        losses, alpha=alpha, bound=bound, delta=delta, procedure=procedure, p_value=p_value
    )
    means = losses.mean(axis=0)
    if output is not None:
        result = {
            "certified": found.certified.tolist(),
            "p_values": [None if np.isnan(p) else p for p in found.p_values.tolist()],
            "mean_loss": means.tolist(),
            "delta": delta,
            "alpha": found.alphas[0],
            "procedure": procedure,
            "p_value": p_value,
            "n": found.n,
            "guarantee": found.guarantee,
            "software": f"arbitrage {__version__}",
        }
        write_json(output, result, overwrite)
    return found, means


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, without those on how to read tables."""
    parser.add_argument("losses", metavar="LOSSES", help="one loss per configuration in `scores`")
    parser.add_argument("--alpha", required=True, help="risk level in (0, bound)")
    parser.add_argument("--bound", default="1", help="largest possible loss (default 1)")
    parser.add_argument("--delta", type=float, default=0.1, help="allowed probability of error")
    parser.add_argument("--procedure", choices=PROCEDURES, default="fixed_sequence")
    parser.add_argument("--p-value", choices=P_VALUES, default="hoeffding_bentkus")
    parser.add_argument("--output", metavar="certified.json")


def run(options: argparse.Namespace, reading: Mapping[str, Any]) -> None:
    """Runs the command and prints its table."""
    found, means = certify_files(
        options.losses,
        alpha=options.alpha,
        bound=options.bound,
        delta=options.delta,
        procedure=options.procedure,
        p_value=options.p_value,
        output=options.output,
        overwrite=options.overwrite,
        **reading,
    )
    rows = [
        [str(j), f"{mean:.4f}", "-" if np.isnan(p) else f"{p:.4g}", "yes" if ok else "no"]
        for j, (mean, p, ok) in enumerate(zip(means, found.p_values, found.certified, strict=True))
    ]
    print(aligned(["configuration", "mean loss", "p-value", "certified"], rows))
    print(found.guarantee)
