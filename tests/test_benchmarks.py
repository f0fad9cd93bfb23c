"""Every benchmark script runs; how fast is for the scripts to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "scripts" / "benchmarks"
TINY = "--hidden 32 --ffn 48 --layers 2 --heads 2 --vocabulary 64 --rank 2 --prompt 8".split()
SMALL = {
    "bench_thresholds.py": ["--rows", "20000", "--alphas", "50", "--repeats", "1"],
    "bench_stream.py": ["--folder", "FOLDER", "--rows", "4000", "--part-rows", "1000"],
    "bench_splits.py": ["--rows", "300", "--splits", "8", "--loop-splits", "4", "--repeats", "1"],
    "bench_peers.py": ["--rows", "200"],
    "bench_generate.py": [*TINY, "--new-tokens", "4", "--batch", "2", "--repeats", "1"],
    "bench_score.py": [*TINY, "--questions", "4", "--one-by-one", "2", "--repeats", "1"],
    "bench_layer.py": "--hidden 16 --ffn 24 --tokens 8 --rank 2 --repeats 1".split(),
    "bench_parameters.py": ["--rank", "4"],
    "bench_train.py": [
        *TINY[:-2],
        "--rows",
        "3",
        "--length",
        "8",
        "--repeats",
        "1",
        "--forms",
        "scanned",
    ],
}


@pytest.mark.parametrize("script", SMALL)
def test_benchmark_runs(script, tmp_path):
    if script == "bench_peers.py":
        pytest.importorskip("mapie", reason='needs pip install "trinityx-jax[bench]"')
    if script == "bench_train.py":
        pytest.importorskip("peft", reason='needs pip install "trinityx-jax[bench]"')
    if script in ("bench_generate.py", "bench_score.py"):
        pytest.importorskip("torch", reason='needs pip install "trinityx-jax[test]"')
    arguments = [str(tmp_path / "data") if a == "FOLDER" else a for a in SMALL[script]]
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cores; Python" in done.stdout
