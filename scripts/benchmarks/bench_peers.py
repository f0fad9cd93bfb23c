"""One threshold by MAPIE, by a grid of losses, and by `arbitrage.calibrate`, side by side.

    pip install "trinityx-jax[bench]"
    python scripts/benchmarks/bench_peers.py

The problem that all three can state: the right option must stay in the candidate set, so the loss
is 1{label not in C}. MAPIE's multi-label recall with one right class per row has this loss; its
scores are 1 - gap and its sets {1 - gap > t}, so that lambda = 1 - t. The grid method fills an
n x grid table of losses and takes the first column within the budget, as the published code of
conformal risk control does. "error" is the distance to the exact infimum, found by sorting.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from mapie.risk_control import MultiLabelClassificationController
from timing import best_times, environment, print_table

from arbitrage import GuardianCorrect, calibrate, gaps


def by_mapie(gap: np.ndarray, label: np.ndarray, alpha: float, grid: np.ndarray) -> float:
    """MAPIE's conformal risk control of recall."""
    controller = MultiLabelClassificationController(
        predict_function=np.asarray,
        risk="recall",
        method="crc",
        target_level=1 - alpha,
        predict_params=1 - grid[::-1],
    )
    one_hot = np.eye(gap.shape[1], dtype=int)[label]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller.calibrate((1 - gap).astype(np.float64), one_hot)
    return 1 - float(np.ravel(controller.best_predict_param)[0])


def by_grid(gap: np.ndarray, label: np.ndarray, alpha: float, grid: np.ndarray) -> float:
    """The first grid point whose corrected mean loss is within alpha."""
    n = len(gap)
    losses = gap[np.arange(n), label][:, None] > grid
    risk = losses.mean(axis=0)
    return float(grid[np.argmax(n / (n + 1) * risk + 1 / (n + 1) <= alpha)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 1_000_000])
    parser.add_argument("--mapie-rows", type=int, default=10_000, help="MAPIE runs up to here")
    parser.add_argument("--alpha", type=float, default=0.1)
    options = parser.parse_args()
    print(environment("mapie", "scikit-learn"))
    hundred, thousand = np.linspace(0, 1, 101, dtype=np.float32), np.linspace(0, 1, 1001)
    for n in options.rows:
        rng = np.random.default_rng(n)
        p = rng.dirichlet(np.ones(4), n).astype(np.float32)
        label = rng.integers(0, 4, n)
        right = np.eye(4, dtype=np.float32)[label]  # a Guardian that knows the answer
        gap = gaps(p)
        at_label = np.sort(gap[np.arange(n), label])
        # sum L + 1 <= alpha (n + 1): so many rows may lose their answer.
        allowed = int(np.floor(options.alpha * (n + 1) - 1 + 1e-9))
        exact = float(at_label[n - 1 - allowed])
        answers: dict[str, float] = {}

        def keep(name, function, answers=answers):
            def run():
                answers[name] = function()

            return run

        tasks = {
            "arbitrage": keep(
                "arbitrage",
                lambda p=p, right=right, label=label: float(
                    calibrate(
                        p, right, label=label, alpha=options.alpha, bound=1, loss=GuardianCorrect()
                    ).threshold
                ),
            ),
            "grid of 1,000": keep(
                "grid of 1,000",
                lambda gap=gap, label=label: by_grid(gap, label, options.alpha, thousand),
            ),
        }
        if n <= options.mapie_rows:
            tasks["MAPIE, grid of 100"] = keep(
                "MAPIE, grid of 100",
                lambda gap=gap, label=label: by_mapie(gap, label, options.alpha, hundred),
            )
        times = best_times(tasks, 1 if n > 5000 else 3)
        base = times["arbitrage"]
        print(f"\nn = {n}, K = 4, alpha = {options.alpha:g}; exact lambda {exact:.9g}")
        print_table(
            ["method", "seconds", "to arbitrage", "lambda", "error"],
            [
                [name, f"{t:.4f}", f"{t / base:.1f}", f"{answers[name]:.9g}",
                 f"{abs(answers[name] - exact):.2g}"]
                for name, t in times.items()
            ],
        )  # fmt: skip


if __name__ == "__main__":
    main()
