"""Thresholds of many random splits: one global sort against sorting each split.

    python scripts/benchmarks/bench_splits.py --rows 100000 --splits 1000 --repeats 3

Both ways draw the splits inside the timed part. The loop draws a half (`Generator.choice`), takes
the events of that half, sorts them once and reads all alphas off; `split_thresholds` sorts the
events of all rows once (also timed) and passes over them for each split. Making the step functions
from the scores is the same work for both and is not timed. The loop is timed on `--loop-splits`
splits and scaled up, since it takes the same time for each. Results are compared bit for bit first.
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import numpy as np
from timing import best_times, environment, print_table

from arbitrage.cli import OneLineParser
from arbitrage.errors import run_cli
from arbitrage.loss_curves import LossCurves, loss_curves
from arbitrage.selection import loss_budget, risk_steps, select
from arbitrage.splits import map_splits, random_splits, sort_events, split_thresholds


def loop_thresholds(curves: LossCurves, halves, alphas: list[Fraction]) -> np.ndarray:
    """(S, A): each split's events sorted, all alphas read off."""
    found = []
    for half in halves:
        at = half[curves.row]
        part = LossCurves(
            curves.base[half], curves.gap[at], curves.drop[at], curves.row[at], curves.quantum
        )
        budgets = [loss_budget(a, Fraction(1), part.n, part.quantum) for a in alphas]
        found.append(select(risk_steps(part), budgets).threshold)
    return np.array(found)


def drawn_halves(n: int, count: int, rng: np.random.Generator):
    """`count` random halves, one at a time."""
    for _ in range(count):
        half = np.zeros(n, dtype=bool)
        half[rng.choice(n, n // 2, replace=False, shuffle=False)] = True
        yield half


def measure(rows: int, options: int, splits: int, levels: int, loop_splits: int, repeats: int):
    """Seconds per split of each way, best of `repeats`; and the number of events."""
    rng = np.random.default_rng(0)
    primary, guardian = rng.dirichlet(np.ones(options), (2, rows))
    curves = loss_curves(primary, guardian, bound=Fraction(1))
    alphas = [Fraction(at + 1, 2 * levels + 10) for at in range(levels)]

    def fast(threads: int) -> None:
        events = sort_events(curves)
        map_splits(
            lambda numbers: split_thresholds(events, random_splits(rows, numbers), alphas, 1),
            splits,
            threads=threads,
        )

    halves = random_splits(rows, min(splits, 3))
    same = split_thresholds(curves, halves, alphas, 1).threshold
    np.testing.assert_array_equal(same, loop_thresholds(curves, halves, alphas))
    tasks = {
        "loop, one sort per split": lambda: loop_thresholds(
            curves, drawn_halves(rows, loop_splits, rng), alphas
        ),
        "one global sort, 1 thread": lambda: fast(1),
        "one global sort, 2 threads": lambda: fast(2),
    }
    counts = (loop_splits, splits, splits)
    best = best_times(tasks, repeats)
    per_split = {name: best[name] / n for name, n in zip(tasks, counts, strict=True)}
    return per_split, len(curves.gap)


def _main() -> None:
    assert __doc__ is not None
    parser = OneLineParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="N")
    parser.add_argument("--options", type=int, default=4, help="K")
    parser.add_argument("--splits", type=int, default=100, help="S")
    parser.add_argument("--levels", type=int, default=20, help="number of alphas")
    parser.add_argument("--loop-splits", type=int, default=20, help="splits the loop is timed on")
    parser.add_argument("--repeats", type=int, default=3, help="best of so many")
    given = parser.parse_args()
    best, events = measure(
        given.rows, given.options, given.splits, given.levels, given.loop_splits, given.repeats
    )
    loop = next(iter(best.values()))
    print_table(
        ["way", "ms per split", f"s for {given.splits} splits", "ratio"],
        [
            [name, f"{1e3 * took:.3f}", f"{given.splits * took:.2f}", f"{loop / took:.1f}"]
            for name, took in best.items()
        ],
    )
    print(
        f"N = {given.rows}, K = {given.options}, {events} events, {given.levels} alphas, half "
        f"calibration; best of {given.repeats}, interleaved; {environment()}"
    )


if __name__ == "__main__":
    raise SystemExit(run_cli(_main))
