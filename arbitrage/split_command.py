"""`arbitrage frontier`: the policies and their baselines over many random splits of two tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from arbitrage.clusters import cluster_codes
from arbitrage.commands import StrPath
from arbitrage.costs import Costs, parse_cost
from arbitrage.file_calibration import question_ids
from arbitrage.frontier import prepare
from arbitrage.io import atomic_path, check_output, sha256_file, write_json
from arbitrage.progress import progress_bar
from arbitrage.scores import ScoreTable
from arbitrage.selection import Levels, Number
from arbitrage.split_evaluation import evaluate_splits
from arbitrage.split_problem import LOSSES
from arbitrage.split_tables import area_lines, baseline_table, split_table, write_csv
from arbitrage.version import __version__


def frontier_files(
    primary_path: StrPath,
    guardian_path: StrPath,
    *,
    alpha: Levels,
    bound: Number = 1,
    softmax: bool = False,
    cluster: str | None = None,
    cluster_mean: bool = True,
    costs: Costs | None = None,
    output: StrPath | None = None,
    csv: StrPath | None = None,
    figures: StrPath | None = None,
    overwrite: bool = False,
    columns: Mapping[str, str] | None = None,
    reading: Mapping[str, Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """`evaluate_splits` on two score tables; the result is what `output` holds.

    Args:
      primary_path, guardian_path: tables; `columns` and `reading` are passed to `ScoreTable.read`.
      cluster: a column, or COLUMN%M (`cluster_codes`).
      output: JSON file; csv: CSV file; figures: a folder for SVG and PNG files.
      progress: a progress bar, on a terminal and with tqdm installed.
      options: further arguments of `evaluate_splits` (loss, n_splits, size, seed, threads ...).
    """
    for path in (output, csv):
        if path is not None:
            check_output(path, overwrite)
    if figures is not None:
        from arbitrage.report import check_figures
        from arbitrage.split_figures import FIGURES

        check_figures(figures, overwrite, FIGURES)
    given = {**(reading or {}), "columns": columns}
    primary, guardian = prepare(
        ScoreTable.read(primary_path, **given),
        ScoreTable.read(guardian_path, **given),
        "softmax" if softmax else "none",
    )
    codes = None if cluster is None else cluster_codes(primary, cluster)
    bar = progress_bar(options.get("n_splits", 1000), "split", progress)
    with question_ids(primary.question_id), bar as tell:
        result = evaluate_splits(
            primary, guardian, alpha=alpha, bound=bound, cluster=codes,
            cluster_mean=cluster_mean, costs=costs, progress=tell, **options,
        )  # fmt: skip
    result["cluster"] = cluster
    result["transform"] = "softmax" if softmax else "none"
    result["inputs"] = {
        "primary": sha256_file(primary_path),
        "guardian": sha256_file(guardian_path),
        "metadata": {"primary": dict(primary.metadata), "guardian": dict(guardian.metadata)},
    }
    result["software"] = f"arbitrage {__version__}"
    if output is not None:
        write_json(output, result, overwrite)
    if csv is not None:
        with atomic_path(csv, overwrite) as temporary:
            write_csv(result, temporary)
    if figures is not None:
        from arbitrage.report import write_figures
        from arbitrage.split_figures import split_figures

        write_figures(result, figures, overwrite=overwrite, figures=split_figures(result))
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, without those on how to read tables."""
    parser.add_argument("primary", metavar="PRIMARY")
    parser.add_argument("guardian", metavar="GUARDIAN")
    # Kept as text, so that 0.1 means one tenth.
    parser.add_argument("--alpha", nargs="+", required=True, help="risk levels in (0, bound)")
    parser.add_argument("--bound", default="1", help="largest possible loss (default 1)")
    parser.add_argument(
        "--loss",
        choices=tuple(LOSSES),
        default="guardian_shortfall",
        help="what is kept small; the full-menu policy is calibrated on its own smaller form of it "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="turn both models' scores into probabilities first"
    )
    parser.add_argument("--splits", type=int, default=1000, help="random splits (default 1000)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--fraction", default="0.5", help="calibration share (default 0.5)")
    share.add_argument("--size", type=int, help="calibration units, instead of a share")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default 0)")
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="rows with equal values stay together and their losses are averaged; COLUMN%%M takes "
        "whole numbers modulo M, for example question_id%%1000000",
    )
    parser.add_argument(
        "--cluster-rows",
        action="store_true",
        help="with --cluster: keep rows as units; no guarantee is claimed then",
    )
    for model, default in (("primary", "0"), ("guardian", "1")):
        parser.add_argument(
            f"--cost-{model}",
            default=default,
            metavar="COST",
            help="per call, a column of the table, or IN/OUT prices per million tokens, as "
            f"0.4/1.6 or 0.4/1.6:COLUMN,COLUMN (default {default})",
        )
    parser.add_argument("--threads", type=int, default=1, help="of this process (default 1)")
    parser.add_argument("--output", metavar="result.json")
    parser.add_argument("--csv", metavar="result.csv", help="every number as a table")
    parser.add_argument("--figures", metavar="DIR", help="folder for figures (SVG and PNG)")


def run(options: argparse.Namespace, reading: Mapping[str, Any]) -> None:
    """Runs the command and prints its tables. `reading`: arguments of `ScoreTable.read`."""
    costs = Costs(
        parse_cost(options.cost_primary, "--cost-primary"),
        parse_cost(options.cost_guardian, "--cost-guardian"),
    )
    result = frontier_files(
        options.primary,
        options.guardian,
        alpha=options.alpha,
        bound=options.bound,
        loss=options.loss,
        softmax=options.softmax,
        n_splits=options.splits,
        fraction=options.fraction,
        size=options.size,
        seed=options.seed,
        cluster=options.cluster,
        cluster_mean=not options.cluster_rows,
        costs=costs,
        threads=options.threads,
        output=options.output,
        csv=options.csv,
        figures=options.figures,
        overwrite=options.overwrite,
        reading=reading,
        columns=reading.get("columns"),
        progress=True,
    )
    print(split_table(result))
    baselines = baseline_table(result)
    if baselines is not None:
        print(baselines)
    for line in area_lines(result):
        print(line)
    units = f"{result['calibration_units']:.0f} calibration and {result['test_units']:.0f} test"
    print(
        f"n = {result['n']} rows; {result['splits']} splits into {units} units (unit: "
        f"{result['unit']}); +- is the standard deviation over splits. {result['note']}"
    )
    print(result["guarantee"])
