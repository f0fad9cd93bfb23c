"""Arrays split over devices and over processes give the bits that NumPy arrays give."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from problems import ROOT, mesh_cases

from arbitrage import DataError, calibrate

WORKER = Path(__file__).with_name("mesh_worker.py")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(devices: int, processes: int) -> list[dict]:
    """What each of `processes` processes with `devices` devices printed."""
    port = str(free_port())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(devices), str(processes), str(number), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(processes)
    ]
    outputs = [process.communicate(timeout=240) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def expected() -> dict:
    answers = {}
    for name, (arrays, options) in mesh_cases().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = calibrate(**arrays, **options)
            except DataError as error:
                answers[name] = {"error": str(error), "row": error.row}
                continue
        answers[name] = {
            "bits": np.asarray(found.threshold).view(np.uint32).tolist(),
            "risk": np.asarray(found.empirical_risk).tolist(),
        }
    assert answers["broken"]["row"] == 41
    return answers


def test_eight_devices_of_one_process(expected):
    assert start(8, 1) == [expected]


def test_two_processes_with_two_devices_each(expected):
    assert start(2, 2) == [expected, expected]
