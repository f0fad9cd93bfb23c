"""The `arbitrage` command: calibrate, evaluate, frontier, route, certify, online.

Exit status 0; 2 for bad usage, 1 for failed work, each with one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from arbitrage import certify_command, commands, online_command, split_command, tables
from arbitrage.errors import UsageError, run_cli
from arbitrage.losses import LOSS_FORMS
from arbitrage.policy import METHODS
from arbitrage.version import __version__


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are UsageErrors, so that `run_cli` prints one line."""

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def run() -> None:
        options = build_parser().parse_args(arguments)
        options.run(options)

    return run_cli(run)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = OneLineParser(
        prog="arbitrage",
        description="Thresholds with a conformal risk guarantee for routing between two models.",
    )
    parser.add_argument("--version", action="version", version=f"arbitrage {__version__}")
    commands_ = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)

    calibrate = commands_.add_parser("calibrate", help="score tables -> policy.json")
    calibrate.add_argument("primary", metavar="PRIMARY")
    calibrate.add_argument("guardian", metavar="GUARDIAN")
    # Kept as text, so that 0.1 means one tenth.
    calibrate.add_argument("--alpha", nargs="+", required=True, help="risk levels in (0, bound)")
    calibrate.add_argument("--bound", default="1", help="largest possible loss (default 1)")
    calibrate.add_argument(
        "--loss",
        default="guardian_shortfall",
        help=f"what is kept small: {', '.join(LOSS_FORMS)} (default %(default)s)",
    )
    calibrate.add_argument(
        "--method",
        choices=tuple(METHODS),
        help="crc: expected loss; hoeffding_bentkus, binomial (0/1 losses), wsr: with probability "
        "1 - delta; crc_weighted: shifted questions (default crc, hoeffding_bentkus with --delta)",
    )
    calibrate.add_argument("--delta", type=float, help="allowed probability of a risk above alpha")
    calibrate.add_argument(
        "--groups", action="store_true", help="a threshold for each value of the group column too"
    )
    calibrate.add_argument(
        "--weights", metavar="COLUMN", help="column of likelihood ratios, for crc_weighted"
    )
    calibrate.add_argument(
        "--test-weight", type=float, help="largest ratio of a new row, for crc_weighted"
    )
    calibrate.add_argument(
        "--softmax", action="store_true", help="turn both models' scores into probabilities first"
    )
    calibrate.add_argument(
        "--stream", action="store_true", help="read Parquet in blocks: more rows than memory"
    )
    calibrate.add_argument("--output", required=True, metavar="policy.json")
    calibrate.set_defaults(run=_calibrate)

    evaluate = commands_.add_parser("evaluate", help="policy and held-out tables -> evaluation")
    evaluate.add_argument("policy", metavar="policy.json")
    evaluate.add_argument("primary", metavar="PRIMARY")
    evaluate.add_argument("guardian", metavar="GUARDIAN")
    evaluate.add_argument("--output", metavar="evaluation.json")
    evaluate.add_argument("--figures", metavar="DIR", help="folder for figures (SVG and PNG)")
    evaluate.set_defaults(run=_evaluate)

    frontier = commands_.add_parser(
        "frontier", help="score tables -> policies and baselines over many random splits"
    )
    certify = commands_.add_parser("certify", help="losses of fixed settings -> which are safe")
    online = commands_.add_parser("online", help="score tables -> thresholds that follow the rows")
    parts = ((split_command, frontier), (certify_command, certify), (online_command, online))
    for command, arguments in parts:
        command.add_arguments(arguments)
        arguments.set_defaults(run=lambda given, run=command.run: run(given, _reading(given)))

    route = commands_.add_parser("route", help="policy and Primary table -> who answers each row")
    route.add_argument("policy", metavar="policy.json")
    route.add_argument("primary", metavar="PRIMARY")
    route.add_argument("--alpha", required=True, help="one of the policy's risk levels")
    route.add_argument("--output", required=True, metavar="routes.parquet")
    route.set_defaults(run=_route)

    for command in (calibrate, evaluate, frontier, route, certify, online):
        _add_reading(command)
        command.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    return parser


def _add_reading(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("reading the tables")
    group.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=NAME",
        help="the files' own column names, for example scores=logits",
    )
    group.add_argument(
        "--format", help="parquet, lm-eval, jsonl, csv, numpy, openai-batch (default: found out)"
    )
    group.add_argument("--filter-name", help="lm-eval: which filter's answers")
    group.add_argument("--normalise", help="lm-eval: divide scores by chars or by bytes")
    group.add_argument("--options", type=int, help="openai-batch: number of answer options")
    group.add_argument(
        "--on-error", choices=("uniform",), help="openai-batch: failed requests get equal scores"
    )
    group.add_argument(
        "--shuffle-options", type=int, metavar="SEED", help="where the right option comes first"
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for on how to read, as arguments of `ScoreTable.read`."""
    names = ("format", "filter_name", "normalise", "options", "on_error", "shuffle_options")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return given | {"columns": _columns(options.columns)}


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        field, equals, name = pair.partition("=")
        if not (field and equals and name):
            raise UsageError(f"--columns {pair}: write FIELD=NAME, for example scores=logits")
        columns[field] = name
    return columns


def _calibrate(options: argparse.Namespace) -> None:
    weighted = "crc_weighted" if options.weights else "crc"
    policy = commands.calibrate_files(
        options.primary,
        options.guardian,
        alpha=options.alpha,
        bound=options.bound,
        loss=options.loss,
        method=options.method or ("hoeffding_bentkus" if options.delta else weighted),
        delta=options.delta,
        groups=options.groups,
        weights=options.weights,
        test_weight=options.test_weight,
        softmax=options.softmax,
        stream=options.stream,
        output=options.output,
        overwrite=options.overwrite,
        **_reading(options),
    )
    print(tables.calibration_table(policy))
    print(policy.guarantee)


def _evaluate(options: argparse.Namespace) -> None:
    result = commands.evaluate_files(
        options.policy,
        options.primary,
        options.guardian,
        output=options.output,
        overwrite=options.overwrite,
        figures=options.figures,
        **_reading(options),
    )
    print(tables.evaluation_table(result))
    print(f"n = {result['overall']['n']} rows; {result['note']}")
    if not result["held_out"]:
        print("These are calibration rows: the risk is not a held-out one.")


def _route(options: argparse.Namespace) -> None:
    done = commands.route_files(
        options.policy,
        options.primary,
        alpha=options.alpha,
        output=options.output,
        overwrite=options.overwrite,
        **_reading(options),
    )
    print(
        f"{done['n']} rows: {done['n'] - done['deferred']} answered by the Primary, "
        f"{done['deferred']} deferred to the Guardian ({done['guardian_rate']:.1%})"
    )
