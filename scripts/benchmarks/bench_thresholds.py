"""Exact thresholds of scores in memory, against one reading of the data and against sorting.

    python scripts/benchmarks/bench_thresholds.py

"one reading" is NumPy's maximum of both arrays: what it takes to see every number once. The event
sort builds every event with NumPy and sorts them. Ratios are of the best times in one run; compile
time is the first call minus the best one. "memory" is how far a call raises resident memory, as a
share of the two input arrays, once programs are compiled. With an accelerator the scores are also
calibrated where they lie, against a copy of both arrays on the device.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from timing import added_memory, best_times, environment, print_table

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


def on_device(p: np.ndarray, g: np.ndarray, alphas: np.ndarray, repeats: int) -> None:
    """The same calibrations of arrays on an accelerator, if there is one."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return
    pair = jax.device_put((p, g), device)
    copy = jax.jit(lambda arrays: jax.tree.map(lambda a: a + 0, arrays))
    times = best_times(
        {
            "copy of both arrays": lambda: jax.block_until_ready(copy(pair)),
            "one alpha": lambda: calibrate(*pair, alpha=0.1, bound=1),
            f"{len(alphas)} alphas": lambda: calibrate(*pair, alpha=alphas, bound=1),
        },
        repeats,
    )
    base = times["copy of both arrays"]
    rate = 2 * (p.nbytes + g.nbytes) / base / 1e9
    print(f"on {device.device_kind}; the copy moves {rate:.0f} GB/s")
    rows = [[name, f"{seconds:.4f}", f"{seconds / base:.1f}"] for name, seconds in times.items()]
    print_table(["what", "seconds", "to one copy"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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

    start = time.perf_counter()
    calibrate(p, g, alpha=0.1, bound=1)
    first = time.perf_counter() - start
    inputs = (p.nbytes + g.nbytes) / 2**20
    added = added_memory(lambda: calibrate(p, g, alpha=0.1, bound=1)) / inputs
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
    on_device(p, g, many, options.repeats)
    print(f"first call with one alpha, compilation included: {first:.2f} s")
    print(f"largest difference from the float64 event sort: {error:.2g}")


if __name__ == "__main__":
    main()
