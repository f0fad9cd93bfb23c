"""Thresholds of many splits in one call, as `calibrate` on each half."""

from __future__ import annotations

import numpy as np

from arbitrage import FullMenuShortfall, calibrate, calibrate_splits
from arbitrage.splits import random_splits


def test_each_split_is_calibrated_as_if_alone():
    rng = np.random.default_rng(0)
    p, g = rng.random((2, 120, 4), dtype=np.float32)
    mask = np.arange(4) < rng.integers(1, 5, 120)[:, None]
    cluster = np.arange(120) // 3
    for options, menu in (
        ({"size": 50}, {}),
        ({"fraction": "0.4", "cluster": cluster}, {"loss": FullMenuShortfall()}),
    ):
        found = calibrate_splits(
            p,
            g,
            alpha=["0.1", "0.3"],
            bound=1,
            splits=40,
            seed=7,
            mask=mask,
            threads=2,
            **options,
            **menu,
        )
        halves = random_splits(120, 40, seed=7, **options)
        assert found.threshold.shape == (40, 2)
        for half, limits, n in zip(halves, found.threshold, found.n, strict=True):
            alone = calibrate(
                p[half], g[half], mask=mask[half], alpha=["0.1", "0.3"], bound=1, **menu
            )
            np.testing.assert_array_equal(limits, alone.threshold)
            assert n == half.sum()
