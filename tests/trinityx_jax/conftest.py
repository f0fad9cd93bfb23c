"""One tiny run of the whole chain, and tiny checkpoints, shared by the tests of their parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import pretrained as checkpoints
import pytest

from trinityx_jax import config as cfg
from trinityx_jax.quickstart import quickstart
from trinityx_jax.run import Run

TINY = {
    "model": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "mocae": {"rank": 2, "lora_alpha": 4.0},
    "data": {"train_rows": 120, "held_out_rows": 40, "pretrain_rows": 600},
    "pretrain": {"steps": 12, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 4},
    "experts": {"steps": 10, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 3},
    "router": {"steps": 8, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 3},
    "score": {"batch_size": 32, "verify_rows": 4},
    "arbitrage": {"alphas": ["0.1", "0.2"]},
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Programs are compiled fast, not to be fast: compiling is most of these tests' time."""
    _optimise(item.get_closest_marker("optimised") is not None)


def pytest_runtest_teardown() -> None:
    _optimise(True)


def _optimise(wanted: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", not wanted)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if wanted else "1"  # for subprocesses


@pytest.fixture(scope="session")
def tiny_config() -> cfg.Config:
    return cfg.from_dict(cfg.Config, TINY)


@pytest.fixture(scope="session")
def tiny_yaml(tiny_config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(cfg.dump(tiny_config))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> Run:
    """A finished quickstart; read it, do not change it."""
    run = Run(tmp_path_factory.mktemp("runs") / "tiny", tiny_config)
    quickstart(run, heading=lambda text: None)
    return run


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint that transformers wrote; read it, do not change it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folders = {}

    def folder(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("pretrained") / case
            checkpoints.write(case, folders[case])
        return folders[case]

    return folder


@pytest.fixture(scope="session", params=checkpoints.CASES)
def pretrained_case(request, pretrained) -> Path:
    """The same for each case in turn."""
    return pretrained(request.param)
