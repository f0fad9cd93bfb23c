"""Conformal arbitrage on real option scores: every ordered pair of the MMBench models.

    python scripts/arbitrage_real_scores.py DATA/scores/mmbench --output runs/mmbench_pairs.csv

Per pair, loss and split: half of the base questions calibrates, the other half tests. All rotations
of a question stay together and their losses are averaged (cost = Guardian rate; answers only;
softmax). The CSV gets one row per pair, loss, menu and alpha; what is printed is Markdown: counts
over the pairs, and a table in the form of Table 1 of arXiv 2506.00911 for one pair. That pair is
chosen by rule: of those whose Guardian is the more accurate, the one with the median difference.

A second model's score is its confidence to be right. It is no measure of harm.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from prepare_mmbench import BASE_QUESTIONS, models, read_model

from arbitrage import ScoreTable, UsageError, softmax
from arbitrage.cli import OneLineParser
from arbitrage.clusters import cluster_codes
from arbitrage.errors import run_cli
from arbitrage.io import atomic_path, check_output
from arbitrage.split_evaluation import evaluate_splits
from arbitrage.split_problem import LOSSES, MENUS
from arbitrage.split_tables import baseline_table, split_table

ALPHAS = ("0.05", "0.10", "0.15", "0.20", "0.25")
COLUMNS = (
    "primary", "guardian", "loss", "menu", "alpha", "primary_accuracy", "guardian_accuracy",
    "primary_risk", "threshold", "guardian_rate", "accuracy", "risk", "risk_sd", "risk_mc_error",
    "delta", "delta_sd", "delta_stderr", "max_probability_accuracy",
)  # fmt: skip
Row = dict[str, Any]
_tables: dict[str, ScoreTable] = {}


def load(folder: Path) -> None:
    """Reads every model once for this process."""
    for model in models(folder):
        table = read_model(folder, model, all_rotations=True, answers_only=True)
        _tables[model] = softmax(table)


def pair_result(pair: tuple[str, str], loss: str, splits: int, **options: Any) -> dict[str, Any]:
    """`evaluate_splits` of one ordered pair (Primary, Guardian)."""
    primary, guardian = (_tables[model] for model in pair)
    codes = cluster_codes(primary, f"question_id%{BASE_QUESTIONS}")
    return evaluate_splits(
        primary, guardian, alpha=ALPHAS, loss=loss, n_splits=splits, cluster=codes, **options
    )


def pair_rows(task: tuple[tuple[str, str], str], splits: int) -> list[dict[str, Any]]:
    """One row per menu and alpha of one pair and loss."""
    pair, loss = task
    result = pair_result(pair, loss, splits, baselines=("max_probability",), curves=False)
    head = {"primary": pair[0], "guardian": pair[1], "loss": loss}
    for model in ("primary", "guardian"):
        head[f"{model}_accuracy"] = result[model]["accuracy"]["mean"]
    head["primary_risk"] = result["primary"]["risk"]["mean"]
    rows = []
    for entry in result["policies"]:
        row = head | {"menu": entry["menu"], "alpha": entry["alpha"]}
        for name in ("threshold", "guardian_rate", "accuracy", "risk", "delta"):
            row[name] = entry[name]["mean"]
        for name, part in (("risk", "sd"), ("risk", "mc_error"), ("delta", "sd"),
                           ("delta", "stderr")):  # fmt: skip
            row[f"{name}_{part}"] = entry[name][part]
        row["max_probability_accuracy"] = entry["baselines"]["max_probability"]["accuracy"]["mean"]
        rows.append(row)
    return rows


def all_rows(folder: Path, tasks: list, splits: int, processes: int) -> Iterable[dict[str, Any]]:
    """`pair_rows` of all tasks, over processes; one line to stderr now and then."""
    start = time.perf_counter()
    # The processes share the cores; they read this when they start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with get_context("spawn").Pool(processes, load, (folder,)) as pool:
        work = pool.imap(partial(pair_rows, splits=splits), tasks, chunksize=4)
        for done, rows in enumerate(work, start=1):
            yield from rows
            if done % 100 == 0 or done == len(tasks):
                took = time.perf_counter() - start
                print(f"{done} of {len(tasks)} in {took:.0f} s", file=sys.stderr, flush=True)


def counts_table(rows: list[Row], loss: str, menu: str) -> str:
    """How many pairs keep alpha, and how many beat the random router, per alpha; Markdown."""
    lines = [
        "| alpha | pairs | kept | within 2 errors | acting | beats random | by 2 errors "
        "| worse by 2 errors | mean Delta | beats max probability |",
        "|---" * 10 + "|",
    ]
    for alpha in ALPHAS:
        mine = [
            row for row in rows
            if (row["loss"], row["menu"], row["alpha"]) == (loss, menu, float(alpha))
        ]  # fmt: skip
        # Where the Primary alone keeps alpha there is nothing to route.
        acting = [row for row in mine if row["primary_risk"] > row["alpha"]]
        numbers = [
            len(mine),
            sum(row["risk"] <= row["alpha"] for row in mine),
            sum(row["risk"] <= row["alpha"] + 2 * row["risk_mc_error"] for row in mine),
            len(acting),
            sum(row["delta"] > 0 for row in acting),
            sum(row["delta"] > 2 * row["delta_stderr"] for row in acting),
            sum(row["delta"] < -2 * row["delta_stderr"] for row in acting),
            f"{sum(row['delta'] for row in acting) / max(1, len(acting)):+.4f}",
            sum(row["accuracy"] > row["max_probability_accuracy"] for row in acting),
        ]
        lines.append(f"| {alpha} | " + " | ".join(str(number) for number in numbers) + " |")
    return "\n".join(lines)


def example_pair(rows: list[Row]) -> tuple[str, str]:
    """Of the pairs with the better Guardian, the one with the median accuracy difference."""
    gaps = {
        (row["primary"], row["guardian"]): row["guardian_accuracy"] - row["primary_accuracy"]
        for row in rows
    }
    better = sorted((gap, pair) for pair, gap in gaps.items() if gap > 0)
    if not better:
        raise UsageError("no pair has a Guardian that is more accurate than its Primary")
    return better[len(better) // 2][1]


def report(rows: list[Row], folder: Path, splits: int) -> None:
    """Prints the counts and the example."""
    for loss, menu in itertools.product(LOSSES, MENUS):
        print(f"\n{loss}, {menu} menu\n\n{counts_table(rows, loss, menu)}")
    pair = example_pair(rows)
    load(folder)
    for loss in LOSSES:
        result = pair_result(pair, loss, splits, curves=False)
        print(f"\nPrimary {pair[0]}, Guardian {pair[1]}, {loss}, {splits} splits\n\n```text")
        print(f"{split_table(result)}\n\n{baseline_table(result)}\n```")


def _main() -> None:
    assert __doc__ is not None
    parser = OneLineParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with one <model>.parquet per model")
    parser.add_argument("--output", type=Path, required=True, metavar="pairs.csv")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--pairs", type=int, help="only so many pairs, evenly spread over all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args()
    check_output(options.output, options.overwrite)
    pairs = list(itertools.permutations(models(options.folder), 2))
    if not pairs:
        raise UsageError(f"{options.folder} holds no two <model>.parquet files")
    wanted = min(options.pairs or len(pairs), len(pairs))
    chosen = [pairs[at * len(pairs) // wanted] for at in range(wanted)]
    tasks = list(itertools.product(chosen, LOSSES))
    rows = list(all_rows(options.folder, tasks, options.splits, options.processes))
    with (
        atomic_path(options.output, options.overwrite) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer: csv.DictWriter[str] = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report(rows, options.folder, options.splits)


if __name__ == "__main__":
    raise SystemExit(run_cli(_main))
