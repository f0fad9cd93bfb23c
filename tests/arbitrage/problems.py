"""Random calibration problems, as hypothesis strategies and as score tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from arbitrage import ScoreTable
from arbitrage.losses import FullMenuShortfall, GuardianCorrect

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """A new interpreter that imports the packages of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def f32(values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@st.composite
def problems(draw, max_rows: int = 8, max_options: int = 5):
    """(p, g, mask): ties of every kind, ragged rows, -0.0; g in [0, 1], multiples of 1/8."""
    n = draw(st.integers(1, max_rows))
    k = draw(st.integers(1, max_options))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    rng = np.random.default_rng(seed)
    p = (rng.integers(0, levels, (n, k)) / levels).astype(np.float32)
    p = np.where((p == 0) & (rng.random((n, k)) < 0.5), np.float32(-0.0), p)
    g = (rng.integers(0, 9, (n, k)) / 8).astype(np.float32)
    mask = np.arange(k) < rng.integers(1, k + 1, n)[:, None]
    return p, g, mask


def make_table(n: int = 20, k: int = 4, seed: int = 0, **changes) -> ScoreTable:
    """A small valid table with labels and groups."""
    rng = np.random.default_rng(seed)
    values: dict = {
        "question_id": np.array([f"q{at}" for at in range(n)]),
        "scores": rng.dirichlet(np.ones(k), n).astype(np.float32),
        "mask": np.ones((n, k), dtype=bool),
        "label": rng.integers(0, k, n).astype(np.int16),
        "group": np.array(["even", "odd"])[np.arange(n) % 2],
        "metadata": {"model": f"model-{seed}"},
    }
    return ScoreTable(**(values | changes))


def mesh_cases() -> dict[str, tuple[dict, dict]]:
    """Problems of 64 or 1,024 rows by name: arrays, and the other arguments of `calibrate`."""
    rng = np.random.default_rng(5)
    continuous = rng.dirichlet(np.ones(4), (2, 1024)).astype(np.float32)
    tied = (rng.integers(0, 5, (2, 64, 6)) / 4).astype(np.float32)
    mask = np.arange(6) < rng.integers(1, 7, 64)[:, None]
    broken = tied.copy()
    broken[1, 41, 0] = np.nan
    pair = dict(zip(("primary", "guardian"), continuous, strict=True))
    small = dict(zip(("primary", "guardian"), tied, strict=True)) | {"mask": mask}
    many = [f"{at / 100}" for at in range(2, 99, 3)]
    labelled = pair | {"label": rng.integers(0, 4, 1024)}
    return {
        "two passes": (pair, {"alpha": ["0.1", "0.2"], "bound": 1}),
        "three passes": (small, {"alpha": many, "bound": 1, "loss": FullMenuShortfall()}),
        "labels": (labelled, {"alpha": "0.3", "bound": 1, "loss": GuardianCorrect()}),
        "broken": (small | {"guardian": broken[1]}, {"alpha": "0.1", "bound": 1}),
    }
