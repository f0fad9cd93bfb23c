"""A job of two processes on this machine, against the same job in one; start-up's errors."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from arbitrage.scores import ScoreTable
from trinityx_jax.config import MeshConfig
from trinityx_jax.distributed import VARIABLES
from trinityx_jax.errors import UsageError
from trinityx_jax.sharding import make_mesh
from trinityx_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TRINITYX = [sys.executable, "-m", "trinityx_jax"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "TRINITYX_TEST_DEVICES")}
    return kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | more


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_two_processes(*arguments: str) -> list[str]:
    """Standard output of both, after both have ended well."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [*TRINITYX, *arguments, "--distributed"],
            env=environment(
                JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    ended = [process.communicate(timeout=600) for process in started]
    for process, (_, complaint) in zip(started, ended, strict=True):
        assert process.returncode == 0, complaint[-3000:]
    return [out for out, _ in ended]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tiny_run, tiny_config, tiny_yaml, tmp_path):
    run = tmp_path / "run"
    told = in_two_processes("quickstart", "--run", str(run), "--config", str(tiny_yaml))
    assert "report.html" in told[0]
    for stage in ("pretrain", "train-experts", "train-router"):
        one, two = (read_metrics(p / "metrics.jsonl", stage) for p in (tiny_run.directory, run))
        assert [row["step"] for row in two] == [row["step"] for row in one]  # written by one alone
        np.testing.assert_allclose(
            [row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-4
        )
    for path in sorted((run / "scores").iterdir()):
        wanted = ScoreTable.read(tiny_run.directory / "scores" / path.name)
        np.testing.assert_allclose(ScoreTable.read(path).scores, wanted.scores, atol=1e-3)
    assert sorted(p.name for p in run.iterdir()) == sorted(
        p.name for p in tiny_run.directory.iterdir()
    )


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(tiny_run, tiny_config, tiny_yaml, tmp_path):
    """Another number of processes, another mesh: the same next steps, to rounding."""
    run = tmp_path / "run"
    options = ["--run", str(run), "--config", str(tiny_yaml)]
    half = ["--set", "pretrain.steps=12"]
    in_two_processes("pretrain", *options, *half)
    # As after a stop: the stage is not finished, its newest checkpoint is of step 8.
    (run / "stages" / "pretrain.json").unlink()
    newest = max((run / "checkpoints" / "pretrain").iterdir(), key=lambda p: _step(p.name))
    subprocess.run(["rm", "-r", str(newest)], check=True)
    done = subprocess.run(
        [*TRINITYX, "pretrain", *options, *half], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_metrics(p / "metrics.jsonl", "pretrain") for p in (tiny_run.directory, run))
    np.testing.assert_allclose(
        [row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-4
    )


def _step(name: str) -> int:
    return int(re.sub(r"\D", "", name) or -1)


def start_alone(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [*TRINITYX, "pretrain", "--run", "nowhere", "--distributed"]
    return subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=120
    )


def test_half_an_address_is_refused_in_one_line():
    done = start_alone(JAX_COORDINATOR_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2
    assert "JAX_NUM_PROCESSES, JAX_PROCESS_ID must be set" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_mesh_over_slices_keeps_all_but_data_inside_a_slice():
    devices = [_Device(slice_index=i // 4, id=i) for i in range(8)]
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, slices=2), devices)
    assert mesh.axis_names == ("data", "fsdp", "tensor", "expert")
    assert mesh.devices.shape == (4, 2, 1, 1)
    of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices)[..., 0, 0]
    np.testing.assert_array_equal(of_slice, [[0, 0], [0, 0], [1, 1], [1, 1]])


def test_slices_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match=r"mesh\.slices=2 must divide mesh\.data=1"):
        make_mesh(MeshConfig(data=1, fsdp=-1, slices=2), jax.devices())
    devices = [_Device(slice_index=0, id=i) for i in range(4)]
    with pytest.raises(UsageError, match="do not come in 2 slices"):
        make_mesh(MeshConfig(slices=2), devices)


class _Device:
    """What the mesh's construction asks of a device."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, slice_index: int, id: int):
        self.slice_index, self.id = slice_index, id


LAUNCHERS = sorted((ROOT / "scripts").glob("launch_*"))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launch_files_call_what_there_is(path):
    text = path.read_text()
    assert "--distributed" in text
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", str(path)], check=True)
        done = subprocess.run(["bash", str(path)], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("usage:")
    else:
        service, job = yaml.safe_load_all(text)
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert [variable["name"] for variable in container["env"]] == list(VARIABLES)
        count = {v["name"]: v.get("value") for v in container["env"]}["JAX_NUM_PROCESSES"]
        assert int(count) == job["spec"]["completions"] == job["spec"]["parallelism"]
        assert pod["subdomain"] == service["metadata"]["name"]
