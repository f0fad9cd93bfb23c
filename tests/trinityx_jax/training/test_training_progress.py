"""What a step's line says, with the numbers of a known chip."""

import numpy as np
import pytest

from trinityx_jax.chips import CHIPS, chip_of
from trinityx_jax.training import progress
from trinityx_jax.training.metrics import named


class Device:
    device_kind = "TPU v5 lite"


def test_utilisation_is_of_all_devices(monkeypatch):
    monkeypatch.setattr(progress.jax, "devices", lambda: [Device()])
    monkeypatch.setattr(progress.jax, "device_count", lambda: 4)
    got = progress.speed(positions=1000, flops=197e9, seconds=2.0)
    assert got == {"tokens_per_second": 500, "mfu": pytest.approx(0.125)}


def test_the_line():
    values = {
        "loss": 1.5, "loss/b": 1.0, "loss/a": 0.5, "tokens_per_second": 12345.6, "mfu": 0.456,
        "memory_peak_bytes": 3 * 2**30, "skipped_steps": 2.0,
    }  # fmt: skip
    assert progress.summary(values, ("a", "b", "c")) == (
        "loss 1.5000, a 0.5000, b 1.0000, 12,346 tokens/s, MFU 45.6%, 3.0 GiB, 2 skipped"
    )


def test_rows_are_named_by_objective():
    batch = {"objective": np.array([0, 0, 1, 1]), "index": np.array([12, 40, 3, 7])}
    assert (
        progress.rows(batch, ("helpful", "harmless")) == "helpful rows 12, 40; harmless rows 3, 7"
    )
    many = {"objective": np.zeros(25, int), "index": np.arange(25)}
    assert progress.rows(many, ("helpful",)).endswith("18, 19 and 5 more")


def test_metrics_by_layer_and_objective_get_names():
    got = named({"loss": np.float32(1), "load": np.array([[0.1, 0.9], [0.3, 0.7]])}, "ab", (1, 3))
    assert got == {"loss": 1, "load/a/1": 0.1, "load/b/1": 0.9, "load/a/3": 0.3, "load/b/3": 0.7}


def test_a_chip_is_found_by_its_whole_name():
    assert {chip_of(chip.device_kind) for chip in CHIPS} == set(CHIPS)
    for kind, name in (("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("NVIDIA H200", "h200")):
        chip = chip_of(kind)
        assert chip is not None and chip.name == name
    assert chip_of("cpu") is None and chip_of("TPU v99") is None
