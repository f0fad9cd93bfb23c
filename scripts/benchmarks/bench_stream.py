"""Exact thresholds of Parquet tables larger than memory, against pyarrow's own reading.

    python scripts/benchmarks/bench_stream.py --folder /tmp/bench_stream

Writes two folders of part files (the same part over and over, as links, so that 10^8 rows take
little disk) and times one pyarrow scan of the same columns against a calibration with one alpha and
with twenty. Resident memory is the peak of the process, Python and JAX included.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from timing import environment, peak_memory, print_table

from arbitrage import calibrate_stream, open_stream


def write_tables(folder: Path, rows: int, part_rows: int, options: int) -> None:
    """`primary` and `guardian`: folders of `rows / part_rows` links to one part file each."""
    rng = np.random.default_rng(0)
    for model in ("primary", "guardian"):
        parts = folder / model
        parts.mkdir(parents=True)
        scores = rng.random((part_rows, options), dtype=np.float32)
        scores /= scores.sum(axis=1, keepdims=True)
        table = pa.table(
            {
                "question_id": np.arange(part_rows).astype(str),
                "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), options),
            }
        )
        first = folder / f"{model}.parquet"
        pq.write_table(table, first, compression="zstd", row_group_size=131_072)
        for number in range(rows // part_rows):
            os.link(first, parts / f"part-{number:05d}.parquet")


def scan(folder: Path) -> int:
    """Rows of one pyarrow scan of the columns that a first reading takes, batch after batch."""
    rows = 0
    for model in ("primary", "guardian"):
        for batch in ds.dataset(folder / model).to_batches(columns=["question_id", "scores"]):
            rows += batch.num_rows
    return rows


def timed(task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--part-rows", type=int, default=5_000_000)
    parser.add_argument("--options", type=int, default=4)
    options = parser.parse_args()
    if not options.folder.exists():
        write_tables(options.folder, options.rows, options.part_rows, options.options)

    def calibrated(alpha):
        stream = open_stream(options.folder / "primary", options.folder / "guardian")
        return calibrate_stream(stream, alpha=alpha, bound=1)

    print(environment("pyarrow"))
    times, memory = {}, {}
    twenty = np.linspace(0.01, 0.2, 20)
    tasks = {
        "1 alpha": lambda: calibrated(0.1),
        "20 alphas": lambda: calibrated(twenty),
        "pyarrow scan": lambda: scan(options.folder),
    }
    for name, task in tasks.items():
        times[name], memory[name] = timed(task), peak_memory()
    rows = options.rows // options.part_rows * options.part_rows
    print(f"{rows} rows, {options.options} options, float32, zstd")
    base = times["pyarrow scan"]
    print_table(
        ["what", "seconds", "to one scan", "peak memory so far (MB)"],
        [[name, f"{t:.1f}", f"{t / base:.2f}", f"{memory[name]:.0f}"] for name, t in times.items()],
    )


if __name__ == "__main__":
    main()
