"""Thresholds of many splits in one call, as `calibrate` on each half."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arbitrage import FullMenuShortfall, GuardianShortfall, calibrate, calibrate_splits
from arbitrage.splits import random_splits

HALVES: list[dict[str, Any]] = [{"size": 50}, {"fraction": "0.4", "cluster": np.arange(120) // 3}]


@pytest.mark.parametrize("halves", HALVES, ids=["size", "clusters"])
@pytest.mark.parametrize("loss", [GuardianShortfall(), FullMenuShortfall()])
def test_each_split_is_calibrated_as_if_alone(halves, loss):
    rng = np.random.default_rng(0)
    p, g = rng.random((2, 120, 4), dtype=np.float32)
    mask = np.arange(4) < rng.integers(1, 5, 120)[:, None]
    options: dict[str, Any] = {"alpha": ["0.1", "0.3"], "bound": 1, "loss": loss}
    found = calibrate_splits(p, g, n_splits=40, seed=7, mask=mask, threads=2, **options, **halves)
    assert found.threshold.shape == (40, 2)
    members = random_splits(120, 40, seed=7, **halves)
    for half, limits, n in zip(members, found.threshold, found.n, strict=True):
        alone = calibrate(p[half], g[half], mask=mask[half], **options)
        np.testing.assert_array_equal(limits, alone.threshold)
        assert n == half.sum()
