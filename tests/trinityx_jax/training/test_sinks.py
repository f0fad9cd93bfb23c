"""Metrics reach TensorBoard and W&B, and a missing package is told by the name of its extra."""

import sys
from types import SimpleNamespace

import pytest

from trinityx_jax.config import LoggingConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.training.metrics import read_metrics
from trinityx_jax.training.sinks import open_sinks

ROWS = {1: {"loss": 2.0, "mfu": None}, 2: {"loss": 1.5, "mfu": None}}


def write(folder, config, start=0):
    sinks = open_sinks("pretrain", start, folder, config)
    for step, values in ROWS.items():
        for sink in sinks:
            sink.write(step + start, values)
    for sink in sinks:
        sink.close()


def test_only_the_file_without_being_asked(tmp_path):
    write(tmp_path, LoggingConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_metrics(tmp_path / "metrics.jsonl", "pretrain")[0]["mfu"] is None


def test_tensorboard_events_read_back(tmp_path):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    write(tmp_path, LoggingConfig(tensorboard=True))
    (file,) = (tmp_path / "tensorboard" / "pretrain").iterdir()
    data, got = file.read_bytes(), []
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = events.Event.FromString(data[12 : 12 + size])
        got += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert got == [(1, "loss", 2.0), (2, "loss", 1.5)]


class StubRun:
    def __init__(self):
        self.rows, self.finished = [], False

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_wandb_gets_every_step_and_a_resumed_stage_goes_on_in_its_run(tmp_path, monkeypatch):
    calls, runs = [], []

    def init(**arguments):
        calls.append(arguments)
        runs.append(StubRun())
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = LoggingConfig(wandb="mine")
    write(tmp_path, config)
    write(tmp_path, config, start=2)
    write(tmp_path, config)
    assert runs[0].rows == [(1, {"loss": 2.0}), (2, {"loss": 1.5})] and runs[0].finished
    assert [row[0] for row in runs[1].rows] == [3, 4]
    assert calls[0]["project"] == "mine"
    assert calls[0]["id"] == calls[1]["id"] != calls[2]["id"]


@pytest.mark.parametrize(
    ("config", "module", "extra"),
    [
        (LoggingConfig(tensorboard=True), "tensorboardX", "tensorboard"),
        (LoggingConfig(wandb="mine"), "wandb", "wandb"),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, config, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # import fails
    with pytest.raises(UsageError, match=rf'needs {module}; pip install "trinityx-jax\[{extra}\]"'):
        open_sinks("pretrain", 0, tmp_path, config)
    assert not (tmp_path / "metrics.jsonl").exists()
