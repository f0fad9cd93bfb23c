"""Settings and fixtures shared by every test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILED = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Our own deprecated calls are errors, and TRINITYX_TEST_DEVICES=8 simulates eight devices."""
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", rf"error::{kind}:(trinityx_jax|arbitrage)\b")
    # One cache of compiled programs for this session, its workers and the processes they start.
    if not hasattr(config, "workerinput"):
        config.stash[COMPILED] = tempfile.TemporaryDirectory(prefix="trinityx-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[COMPILED].name
    # With the TPU compiler installed, jax would look for a TPU first.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    devices = os.environ.get("TRINITYX_TEST_DEVICES")
    if devices:
        import jax

        jax.config.update("jax_num_cpu_devices", int(devices))  # before the first computation


def pytest_unconfigure(config: pytest.Config) -> None:
    if COMPILED in config.stash:
        config.stash[COMPILED].cleanup()


@pytest.fixture(scope="session")
def data_pack() -> Path:
    """Folder of the real data sets; tests that need it are skipped, with this reason, without."""
    folder = Path(os.environ.get("TRINITYX_DATA_DIR") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set TRINITYX_DATA_DIR to the folder with the data sets")
    return folder
