"""`trinityx plan`: compiles a configuration's steps for a TPU topology, without a TPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import tyro

from trinityx_jax import config as cfg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Whether a configuration fits a TPU topology, by the TPU's own compiler; none is needed."""

    config: Path
    """YAML file of the run; its `mesh` lays out the topology's chips."""
    topology: str
    """Chips of a slice, such as v5e:4x4, v6e:8x8 or v5p:2x2x4."""
    step: tuple[Literal["train-experts", "train-router", "score", "decode"], ...] = ()
    """Only these steps (default: all)."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Override one configuration key, as in --set experts.batch_size=8."""
    quick: bool = False
    """Compile at the least effort, many times sooner: the same FLOPs, other fusions."""
    json: bool = False
    """Print one JSON object."""


def run(options: Options) -> None:
    """Prints the plan; the exit status is 0 whether it fits or not.

    Raises UsageError without libtpu, for an unknown topology and a configuration that does not suit
    it.
    """
    from trinityx_jax.plan.topology import prepare, topology_chip

    config = cfg.load(options.config, options.set)
    topology_chip(options.topology)
    prepare()
    from trinityx_jax.plan.plan import make_plan
    from trinityx_jax.plan.programs import STEPS
    from trinityx_jax.plan.report import to_dict, to_text

    plan = make_plan(config, options.topology, options.step or tuple(STEPS), quick=options.quick)
    print(json.dumps(to_dict(plan)) if options.json else to_text(plan))
