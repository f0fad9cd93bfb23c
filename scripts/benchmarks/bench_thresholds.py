"""Exact thresholds of scores in memory, against one reading of the data and against sorting.

    python scripts/benchmarks/bench_thresholds.py

"one reading" is NumPy's maximum of both arrays: what it takes to see every number once. The event
sort builds every event with NumPy and sorts them. Ratios are of the best times in one run; compile
time is the first call minus the best one. "memory" is what a first call adds to resident memory, as
a share of the two input arrays.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from timing import best_times, environment, peak_memory, print_table, resident_memory

from arbitrage import calibrate


def event_sort(p: np.ndarray, g: np.ndarray, alphas, bound: float = 1.0) -> np.ndarray:
    """The straightforward exact thresholds in NumPy floats: events, argsort, cumulative sum."""
    gap = p.max(axis=1, keepdims=True) - p
    order = np.argsort(gap, axis=1)
    gap = np.take_along_axis(gap, order, axis=1)
    best = np.maximum.accumulate(np.take_along_axis(g, order, axis=1), axis=1)
    drop = np.diff(best, axis=1)
    at = np.nonzero(drop > 0)
    when, how_much = gap[:, 1:][at], drop[at]
    by_gap = np.argsort(when)
    left = (best[:, -1] - best[:, 0]).sum(dtype=np.float64) - np.cumsum(
        how_much[by_gap], dtype=np.float64
    )
    budgets = np.asarray(alphas) * (len(p) + 1) - bound
    return when[by_gap][np.searchsorted(-left, -budgets)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--options", type=int, default=4)
    parser.add_argument("--alphas", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    p, g = (rng.random((options.rows, options.options), dtype=np.float32) for _ in range(2))
    for scores in (p, g):
        scores /= scores.sum(axis=1, keepdims=True)
    many = np.linspace(0.002, 0.2, options.alphas)
    print(environment())
    print(f"{options.rows} rows, {options.options} options, float32")

    before, start = resident_memory(), time.perf_counter()
    calibrate(p, g, alpha=0.1, bound=1)
    first = time.perf_counter() - start
    # The peak is that of the call: making the scores above needed no more than they hold now.
    added = max(peak_memory() - before, 0.0) / ((p.nbytes + g.nbytes) / 2**20)
    found = calibrate(p, g, alpha=many, bound=1)
    straight = event_sort(p, g, many)
    error = np.abs(found.threshold - straight).max()

    few = best_times(
        {
            "one reading": lambda: (p.max(), g.max()),
            "one alpha": lambda: calibrate(p, g, alpha=0.1, bound=1),
        },
        options.repeats,
    )
    large = best_times(
        {
            "many": lambda: calibrate(p, g, alpha=many, bound=1),
            "event sort": lambda: event_sort(p, g, many),
        },
        max(options.repeats // 2, 1),
    )
    base, sort = few["one reading"], large["event sort"]
    print_table(
        ["what", "seconds", "to one reading", "to event sort", "memory"],
        [
            ["one reading (NumPy max)", f"{base:.4f}", "1.0", f"{base / sort:.4f}", "-"],
            [
                "one alpha",
                f"{few['one alpha']:.4f}",
                f"{few['one alpha'] / base:.1f}",
                f"{few['one alpha'] / sort:.4f}",
                f"{added:.0%}",
            ],
            [
                f"{options.alphas} alphas",
                f"{large['many']:.4f}",
                f"{large['many'] / base:.1f}",
                f"{large['many'] / sort:.2f}",
                "-",
            ],
            ["NumPy event sort", f"{sort:.4f}", f"{sort / base:.1f}", "1.0", "-"],
        ],
    )
    print(f"first call with one alpha, compilation included: {first:.2f} s")
    print(f"largest difference from the float64 event sort: {error:.2g}")


if __name__ == "__main__":
    main()
