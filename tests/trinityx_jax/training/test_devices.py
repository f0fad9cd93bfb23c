"""Other meshes and other numbers of processes go on to the same losses, to rounding."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import training_job as tiny

from trinityx_jax.training.metrics import read_metrics

STEPS = 6
FAST = "--xla_backend_optimization_level=0"  # compiles in half the time


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The job on one device, never interrupted."""
    folder = tmp_path_factory.mktemp("one")
    tiny.job(folder)
    return folder


def python(script: str, *arguments: object, **env: str) -> subprocess.Popen:
    """`script` in a process of its own, with training_job at hand."""
    path = os.pathsep.join([str(Path(tiny.__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FOUR = """
import os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 4)
import training_job as tiny
from trinityx_jax.config import MeshConfig
from trinityx_jax.training.preemption import Stopped
folder = Path(sys.argv[1])
stream = tiny.Stream(at_step=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
try:
    tiny.job(folder, stream=stream, accumulate=3, mesh=MeshConfig(data=2, fsdp=2))
except Stopped:
    tiny.job(folder, mesh=MeshConfig(data=1, fsdp=2, tensor=2))
"""


def test_parts_sharded_over_four_devices_and_then_another_mesh(whole, tmp_path):
    """Three steps in three parts each on one mesh, the rest of them whole on another."""
    process = python(FOUR, tmp_path, XLA_FLAGS=FAST)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert "holds step 3" in output
    np.testing.assert_allclose(tiny.losses(tmp_path), tiny.losses(whole), rtol=2e-5)


ONE_OF_TWO = """
import sys
from pathlib import Path
import jax
address, process, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
import training_job as tiny
import time
tiny.job(Path(folder), stream=tiny.Stream(at_step=lambda step: time.sleep(0.3)))
"""


def test_one_of_two_processes_is_told_to_stop_and_one_process_goes_on(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [python(ONE_OF_TWO, address, process, tmp_path, XLA_FLAGS=FAST) for process in range(2)]
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and read_metrics(metrics, tiny.STAGE)):
        assert both[0].poll() is None, both[0].communicate()[0][-3000:]
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)  # not the one that writes
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    done = len(tiny.losses(tmp_path))
    assert f"holds step {done} of {STEPS}" in outputs[0] and done < STEPS
    assert tiny.saved_steps(tmp_path)[-1] == done
    assert ": step" not in outputs[1]  # process 0 speaks for all
    tiny.job(tmp_path)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(tiny.losses(tmp_path), tiny.losses(whole), rtol=2e-5)
