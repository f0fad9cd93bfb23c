"""Side-by-side timing for the benchmark scripts: interleaved repeats, best of each, one table."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from arbitrage.tables import aligned


def best_times(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each task: the best of `repeats`, taken in turn so that noise hits all alike.

    Every task runs once before, so that nothing is compiled inside a measurement.
    """
    best = dict.fromkeys(tasks, float("inf"))
    for round_ in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if round_:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def added_memory(task: Callable[[], object]) -> float:
    """How far resident memory rises above its present level while `task` runs, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    task()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def environment(*packages: str) -> str:
    """One line: processor, cores, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        processor = platform.machine()
    names = ("numpy", "jax", *packages)
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def print_table(headers: list[str], rows: list[list[str]]) -> None:
    """The rows with aligned columns."""
    print(aligned(headers, rows), flush=True)
