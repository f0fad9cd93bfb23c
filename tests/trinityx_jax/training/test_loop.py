"""The loop: resumes to the same losses, after a signal too, and stops at rows it cannot learn."""

import contextlib
import dataclasses
import io
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import training_job as tiny

from trinityx_jax.errors import DataError
from trinityx_jax.training.metrics import read_metrics
from trinityx_jax.training.preemption import Preemption, Stopped

STEPS = 6


@dataclasses.dataclass
class Whole:
    """A job that nothing happened to."""

    folder: Path
    output: str
    trained: dict


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        trained = jax.device_get(tiny.job(folder, profile=folder / "profile"))
    return Whole(folder, output.getvalue(), trained)


def signalled(number, at):
    return tiny.Stream(at_step=lambda step: os.kill(os.getpid(), number) if step == at else None)


def test_sigterm_ends_it_after_a_checkpoint_and_it_resumes(whole, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        tiny.job(tmp_path, stream=signalled(signal.SIGTERM, at=3))
    assert stopped.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert tiny.saved_steps(tmp_path) == [2, 3]
    assert len(tiny.losses(tmp_path)) == 3
    assert f"holds step 3 of {STEPS}" in capsys.readouterr().out
    got = tiny.job(tmp_path)
    assert tiny.losses(tmp_path) == tiny.losses(whole.folder)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), whole.trained)


def test_torn_files_cost_only_the_steps_since(whole, tmp_path):
    """Asked to stop in the last step, then a file is lost: the steps behind the older checkpoint
    are run again to the same losses."""
    with pytest.raises(Stopped):
        tiny.job(tmp_path, stream=signalled(signal.SIGINT, at=STEPS))
    assert tiny.saved_steps(tmp_path) == [4, 6]
    (tmp_path / "checkpoints" / "6" / "parameters" / "manifest.ocdbt").unlink()
    with pytest.warns(UserWarning, match=r"checkpoints/6 is damaged.*going on from .*points/4"):
        tiny.job(tmp_path)
    assert tiny.losses(tmp_path) == tiny.losses(whole.folder)
    assert tiny.saved_steps(tmp_path) == [4, 6]


def test_a_second_interrupt_is_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_request_that_nobody_heeded_is_sent_again():
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append("again"))
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == []
        assert got == ["again"]
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.agreed()
        assert got == ["again"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_bad_steps_are_skipped_and_counted(tmp_path, capsys):
    tiny.job(tmp_path, stream=tiny.Stream(bad=(2, 4)))
    rows = read_metrics(tmp_path / "metrics.jsonl", tiny.STAGE)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 2, 2, 2]
    assert [row["loss"] is None for row in rows] == [False, True, False, True, False, False]
    assert "1 skipped" in capsys.readouterr().out


def test_bad_steps_in_a_row_stop_it_and_name_the_rows(tmp_path):
    bad = tiny.Stream(bad=(3, 4, 5, 6))
    with pytest.raises(DataError, match=r"2 steps in a row.*step 4 \(helpful rows 40, 41") as error:
        tiny.job(tmp_path, stream=bad, max_bad_steps=2)
    assert "harmless rows 40" in str(error.value) and "\n" not in str(error.value)
    assert tiny.saved_steps(tmp_path) == [2]


def test_every_step_has_a_line_with_what_is_known(whole):
    lines = [line for line in whole.output.splitlines() if ": step " in line]
    assert len(lines) == STEPS
    assert lines[0].startswith(f"train-experts: step 1/{STEPS}, loss ")
    for part in ("helpful", "harmless", "honest", "tokens/s"):
        assert part in lines[0]
    row = read_metrics(whole.folder / "metrics.jsonl", tiny.STAGE)[0]
    assert row["tokens_per_second"] > 0 and row["grad_norm"] > 0
    if jax.default_backend() == "cpu":  # nothing is made up
        assert row["mfu"] is None and row["memory_bytes"] is None
        assert "MFU" not in lines[0] and "GiB" not in lines[0]


def test_a_profile_is_written(whole):
    assert list((whole.folder / "profile").rglob("*.xplane.pb"))
