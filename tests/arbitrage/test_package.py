"""What importing the package costs and needs, its public names and its example."""

from __future__ import annotations

import doctest

from problems import run_python

import arbitrage

HEAVY = (
    "flax",
    "optax",
    "orbax",
    "tyro",
    "tqdm",
    "matplotlib",
    "jax",
    "trinityx_jax",
    "tensorflow",
)
# Installed with the package, but loaded only when first used.
LATER = (*HEAVY, "scipy", "pyarrow")


def test_import_is_light_and_fast():
    code = (
        "import time; start = time.perf_counter(); import numpy; import arbitrage, arbitrage.cli\n"
        "took = time.perf_counter() - start; import sys\n"
        f"print(sorted(set({LATER!r}) & set(sys.modules)), took)"
    )
    done = run_python("-c", code, check=True)
    loaded, seconds = done.stdout.strip().rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 1.0


def test_it_works_without_any_optional_package():
    """Calibrates, evaluates and routes with everything but NumPy, JAX and pyarrow forbidden."""
    banned = [name for name in HEAVY if name != "jax"]
    code = (
        "import sys\n"
        f"for name in {banned!r}: sys.modules[name] = None\n"
        "import arbitrage, arbitrage.cli, arbitrage.score_files, numpy as np\n"
        "p, g = np.random.default_rng(0).dirichlet(np.ones(3), (2, 50))\n"
        "found = arbitrage.calibrate(p, g, alpha=0.2, bound=1)\n"
        "import jax, jax.numpy as jnp\n"
        "print(int(jax.jit(arbitrage.choose)(jnp.asarray(p), g, found.threshold).sum()) >= 0)"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_public_names_exist_and_are_sorted():
    assert all(hasattr(arbitrage, name) for name in arbitrage.__all__)
    assert arbitrage.__all__ == sorted(arbitrage.__all__)


def test_the_example_runs():
    assert doctest.testmod(arbitrage).attempted >= 6
    assert doctest.testmod(arbitrage).failed == 0
