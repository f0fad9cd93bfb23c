"""A plan: what each step of a configuration needs of every device of a topology."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trinityx_jax.chips import Chip
from trinityx_jax.config import Config
from trinityx_jax.plan.collectives import Collective, collectives
from trinityx_jax.plan.compiling import QUICK, WITHOUT_LOOPS, TooBig, compile_for, memory_limit
from trinityx_jax.plan.kernels import attention_flops
from trinityx_jax.plan.layers import extrapolate
from trinityx_jax.plan.programs import STEPS, Program
from trinityx_jax.plan.shape import with_shape
from trinityx_jax.plan.topology import topology_chip, topology_devices
from trinityx_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One program on one device; all sizes in bytes, by the compiler unless said otherwise.

    `held` counts the values of the arguments by part. `device_bytes` is what the program needs of a
    device: arguments, outputs, temporaries and code; `peak` the most that is in use at a time.
    What a program that does not fit would need beside `device_bytes` is unknown (None, no
    collectives). `flops` and `bytes_accessed` (see layers.HOW) are None where not even one layer
    fits, and count a decoding loop once: one token of each row.
    """

    name: str
    size: str
    held: dict[str, int]
    device_bytes: int
    fits: bool
    temporaries: int | None
    outputs: int | None  # beyond the donated arguments
    code: int | None
    peak: int | None
    flops: float | None
    bytes_accessed: float | None
    collectives: list[Collective]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All steps asked for. `skipped` names programs behind one that does not fit."""

    topology: str
    chip: Chip
    mesh: dict[str, int]
    device_limit_bytes: int
    versions: dict[str, str]
    quick: bool
    steps: list[StepPlan]
    skipped: list[str]

    @property
    def fits(self) -> bool:
        return all(step.fits for step in self.steps) and not self.skipped

    @property
    def device_bytes(self) -> int:
        """The most that any step needs of a device."""
        return max(step.device_bytes for step in self.steps)


def make_plan(
    config: Config, topology: str, steps: Sequence[str] = tuple(STEPS), *, quick: bool = False
) -> Plan:
    """Compiles the steps for the topology; `topology.prepare` comes before anything of jax.

    `quick` compiles at the compiler's least effort: same FLOPs and collectives, other fusions.

    Raises UsageError for an unknown topology, a mesh or batch that does not fit it, and a backbone
    of unknown shape.
    """
    config = with_shape(config)
    chip = topology_chip(topology)
    mesh = make_mesh(config.mesh, topology_devices(topology, config.mesh.slices))
    limit = memory_limit(mesh.devices.flat[0])
    first = {s: STEPS[s](config, mesh) for s in steps}  # all mistakes come before any work
    options = QUICK if quick else {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler holds no lock of Python's
        programs = {
            s: pool.submit(lambda s=s: list(_compiled(first[s], mesh, options))) for s in steps
        }
        costs = {
            s: pool.submit(extrapolate, lambda small, s=s: _costs(s, small, mesh, options), config)
            for s in steps
        }
    plans, skipped = [], []
    for step in steps:
        compiled, cost = programs[step].result(), costs[step].result()
        for i, (program, found) in enumerate(compiled):
            plans.append(_step_plan(program, found, limit, None if cost is None else cost[i]))
        last, found = compiled[-1]
        if isinstance(found, TooBig) and last.then is not None:
            skipped.append(f"{step}, which goes on from {last.name}")
    return Plan(
        topology,
        chip,
        dict(mesh.shape),
        limit,
        {name: version(name) for name in ("jax", "libtpu")},
        quick,
        plans,
        skipped,
    )


def _compiled(
    program: Program, mesh: Mesh, options: Mapping[str, Any]
) -> Iterator[tuple[Program, jax.stages.Compiled | TooBig]]:
    """A step's programs from its first on, up to one that is too big."""
    found = _compile(program, mesh, options)
    yield program, found
    if program.then is not None and not isinstance(found, TooBig):
        program = program.then(found)
        yield program, _compile(program, mesh, options)


def _compile(
    program: Program, mesh: Mesh, options: Mapping[str, Any]
) -> jax.stages.Compiled | TooBig:
    with jax.set_mesh(mesh):  # as the stages do
        lowered = program.lower()
    return compile_for(lowered, options)


def _costs(step: str, config: Config, mesh: Mesh, options: Mapping[str, Any]) -> np.ndarray | None:
    """(programs, 2): FLOPs and bytes accessed of each, None where one does not fit."""
    rows = []
    for _, found in _compiled(STEPS[step](config, mesh), mesh, {**options, **WITHOUT_LOOPS}):
        if isinstance(found, TooBig):
            return None
        costs: Any = found.cost_analysis()
        undeclared = attention_flops(found.as_text() or "", config.model, mesh)
        rows.append((costs["flops"] + undeclared, costs["bytes accessed"]))
    return np.array(rows)


def _step_plan(
    program: Program,
    found: jax.stages.Compiled | TooBig,
    limit: int,
    costs: np.ndarray | None,
) -> StepPlan:
    flops, bytes_accessed = (None, None) if costs is None else map(float, costs)
    known = {"flops": flops, "bytes_accessed": bytes_accessed}
    head = (program.name, program.size, dict(program.held))
    if isinstance(found, TooBig):
        return StepPlan(*head, found.needed, False, None, None, None, None, collectives=[], **known)
    m: Any = found.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    code = m.generated_code_size_in_bytes
    needed = m.argument_size_in_bytes + outputs + m.temp_size_in_bytes + code
    return StepPlan(
        *head,
        needed,
        needed <= limit,
        temporaries=m.temp_size_in_bytes,
        outputs=outputs,
        code=code,
        peak=m.peak_memory_in_bytes,
        collectives=collectives(found.as_text() or ""),
        **known,
    )
