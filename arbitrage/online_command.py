"""`arbitrage online`: the threshold that an online update would have taken through a table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from arbitrage.commands import StrPath
from arbitrage.frontier import prepare
from arbitrage.io import atomic_path, check_output
from arbitrage.loss_curves import SHORTFALL, as_rows, check_rows, loss_at, loss_quantum, prepared
from arbitrage.online import OnlineControl, OnlineState
from arbitrage.rows import Rows
from arbitrage.scores import ScoreTable
from arbitrage.tables import aligned

SHOWN = 10


def online_files(
    primary_path: StrPath,
    guardian_path: StrPath,
    control: OnlineControl,
    *,
    threshold: float = 0.0,
    softmax: bool = False,
    output: StrPath | None = None,
    overwrite: bool = False,
    **reading: Any,
) -> tuple[OnlineState, np.ndarray, np.ndarray]:
    """Replays two tables row by row, in the Primary's order, with every loss fed back.

    Returns the last state, and the threshold (N,) and loss (N,) of each row, float64. `output` is
    a CSV file of question_id, threshold, loss and mean loss so far. `reading` are the arguments of
    `ScoreTable.read`.
    """
    if output is not None:
        check_output(output, overwrite)
    primary, guardian = prepare(
        ScoreTable.read(primary_path, **reading),
        ScoreTable.read(guardian_path, **reading),
        "softmax" if softmax else "none",
    )
    bound = Fraction(control.bound)
    rows = as_rows(primary.scores, guardian.scores, primary.mask)
    check_rows(rows, SHORTFALL, bound)
    quantum = loss_quantum(bound)
    state = control.init(threshold)
    limits, losses = np.empty(len(primary)), np.empty(len(primary))
    for row in range(len(primary)):
        limits[row] = control.threshold(state)
        one = Rows(*(None if array is None else array[row : row + 1] for array in rows))
        units = loss_at(prepared(one, SHORTFALL), np.float32(limits[row]), 1 / quantum)
        losses[row] = float(units[0]) * quantum
        state = control.update(state, losses[row])
    if output is not None:
        means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
        with atomic_path(output, overwrite) as temporary:
            _write_csv(temporary, primary.question_id, limits, losses, means)
    return state, limits, losses


def _write_csv(path, ids, limits, losses, means) -> None:
    import pyarrow as pa
    from pyarrow import csv

    columns = {"question_id": ids, "threshold": limits, "loss": losses, "mean_loss": means}
    csv.write_csv(pa.table({name: pa.array(column) for name, column in columns.items()}), path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, without those on how to read tables."""
    parser.add_argument("primary", metavar="PRIMARY")
    parser.add_argument("guardian", metavar="GUARDIAN")
    parser.add_argument("--alpha", type=float, required=True, help="level for the mean loss")
    parser.add_argument("--eta", type=float, default=0.05, help="step size (default 0.05)")
    parser.add_argument(
        "--lambda-max", type=float, default=1.0, help="from here on the full menu (default 1)"
    )
    parser.add_argument("--threshold", type=float, default=0.0, help="to start from (default 0)")
    parser.add_argument("--bound", type=float, default=1.0, help="largest possible loss")
    parser.add_argument(
        "--softmax", action="store_true", help="turn both models' scores into probabilities first"
    )
    parser.add_argument("--output", metavar="online.csv", help="threshold and loss of each row")


def run(options: argparse.Namespace, reading: Mapping[str, Any]) -> None:
    """Runs the command and prints the state now and then."""
    control = OnlineControl(options.alpha, options.eta, options.lambda_max, options.bound)
    _, limits, losses = online_files(
        options.primary,
        options.guardian,
        control,
        threshold=options.threshold,
        softmax=options.softmax,
        output=options.output,
        overwrite=options.overwrite,
        **reading,
    )
    n = len(losses)
    marks = np.unique(np.linspace(1, n, min(SHOWN, n)).astype(int))
    rows = [[str(t), f"{limits[t - 1]:.4f}", f"{losses[:t].mean():.4f}"] for t in marks]
    print(aligned(["rows", "threshold", "mean loss so far"], rows))
    print(control.words(n, options.threshold))
