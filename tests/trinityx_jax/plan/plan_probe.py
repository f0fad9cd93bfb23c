"""Runs the TPU compiler in a process of its own and prints what it found as one JSON object.

Arguments: YAML files of a small model, and of one whose attention the kernels take. See
test_plan_compiled.py, which reads the object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trinityx_jax.cli import main
from trinityx_jax.config import Config, MeshConfig, load


def cli(*arguments: str) -> tuple[int, str]:
    """Exit status and standard output of `trinityx plan`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["plan", *arguments])
    return status, out.getvalue()


def compiled(step: str, config: Config, devices: list) -> Any:
    """The step's one program, for a mesh over these devices."""
    from trinityx_jax.plan.compiling import QUICK
    from trinityx_jax.plan.plan import _compiled
    from trinityx_jax.plan.programs import STEPS
    from trinityx_jax.sharding import make_mesh

    mesh = make_mesh(config.mesh, devices)
    [(_, found)] = _compiled(STEPS[step](config, mesh), mesh, QUICK)
    return found


def flops(step: str, config: Config, devices: list) -> float:
    """Those of the step's one program, as a plan counts them for so few layers."""
    from trinityx_jax.plan.compiling import QUICK
    from trinityx_jax.plan.plan import _costs
    from trinityx_jax.sharding import make_mesh

    costs = _costs(step, config, make_mesh(config.mesh, devices), QUICK)
    assert costs is not None
    return float(costs[0, 0])


def probe(path: Path, tiled: Path) -> dict:
    small = ("--config", str(path), "--topology", "v5e:2x2", "--step", "score")
    found: dict = {"scored": cli(*small, "--json"), "quick": cli(*small, "--json", "--quick")}
    found["huge"] = cli(*small, "--quick", "--set", f"model.vocab_size={1 << 26}")
    from trinityx_jax.plan.collectives import collectives
    from trinityx_jax.plan.topology import topology_devices

    config = load(path)
    wide = dataclasses.replace(config, mesh=MeshConfig(1, 4, 4))
    alone = dataclasses.replace(
        config,
        mesh=MeshConfig(1),
        model=dataclasses.replace(config.model, num_hidden_layers=1, scan_layers=False),
    )
    with ThreadPoolExecutor(2) as pool:
        tiles = pool.submit(flops, "train-experts", load(tiled), topology_devices("v5e:2x2")[:1])
        train = pool.submit(compiled, "train-experts", config, topology_devices("v5e:2x2"))
        wider = pool.submit(compiled, "score", wide, topology_devices("v5e:4x4"))
        layer = pool.submit(compiled, "train-experts", alone, topology_devices("v5e:2x2")[:1])
    found["train"] = [dataclasses.asdict(c) for c in collectives(train.result().as_text())]
    found["wider"] = wider.result().memory_analysis().peak_memory_in_bytes
    found["tiled"] = tiles.result()
    found["layer"] = layer.result().cost_analysis()["flops"]
    return found


if __name__ == "__main__":
    json.dump(probe(Path(sys.argv[1]), Path(sys.argv[2])), sys.stdout)
