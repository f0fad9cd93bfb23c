"""A plan as text for people, and as one object of JSON's types."""

from __future__ import annotations

import dataclasses
from typing import Any

from arbitrage.tables import aligned
from trinityx_jax.plan.layers import HOW
from trinityx_jax.plan.plan import Plan, StepPlan
from trinityx_jax.plan.roofline import bound

GiB = 1 << 30
_MOST = 12  # collectives listed for a step


def to_dict(plan: Plan) -> dict[str, Any]:
    """One object: the plan's verdict, sums over its steps, and each step under `steps`.

    `device_bytes` is the most that a step needs; `flops` and `bytes_accessed` are sums over one
    execution of each step on one device, null where a step's are unknown; `collectives` are all of
    them, with the step's name.
    """
    steps = [_step_dict(step, plan) for step in plan.steps]
    named = [{"step": s["name"], **c} for s in steps for c in s["collectives"]]
    return {
        "fits": plan.fits,
        "device_bytes": plan.device_bytes,
        "device_limit_bytes": plan.device_limit_bytes,
        "flops": _sum([step.flops for step in plan.steps]),
        "bytes_accessed": _sum([step.bytes_accessed for step in plan.steps]),
        "collectives": named,
        "topology": plan.topology,
        "chip": dataclasses.asdict(plan.chip),
        "mesh": plan.mesh,
        "versions": plan.versions,
        "quick": plan.quick,
        "skipped": plan.skipped,
        "steps": steps,
    }


def to_text(plan: Plan) -> str:
    """Memory, costs and collectives of every step, and the verdict as the last line."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    versions = ", ".join(f"{name} {number}" for name, number in plan.versions.items())
    head = f"{plan.topology} ({plan.chip.device_kind}), mesh {mesh or 'of one device'}; {versions}"
    head += "; at the compiler's least effort" if plan.quick else ""
    parts = [head, _memory(plan), _costs(plan)]
    parts += [_collectives(step) for step in plan.steps]
    return "\n\n".join([*(part for part in parts if part), verdict(plan)])


def verdict(plan: Plan) -> str:
    """Fits, with what is left; or by how much it does not."""
    limit = plan.device_limit_bytes
    least = f"{plan.device_bytes / GiB:.2f} of {limit / GiB:.2f} GiB a device"
    if plan.fits:
        return f"fits: needs {least}"
    over = [
        f"{step.name} by {(step.device_bytes - limit) / GiB:.2f} GiB"
        for step in plan.steps
        if not step.fits
    ]
    skipped = "".join(f"; not compiled: {name}" for name in plan.skipped)
    return f"does not fit: {', '.join(over)} (needs {least}){skipped}"


def _memory(plan: Plan) -> str:
    headers = ["GiB a device", "rows x tokens", "parameters", "optimiser", "batch", "cache"]
    rows = [
        [
            step.name,
            step.size,
            *(_gib(step.held.get(part)) for part in headers[2:]),
            _gib(step.outputs),
            _gib(step.temporaries),
            _gib(step.code),
            _gib(step.device_bytes),
            _gib(plan.device_limit_bytes),
            "yes" if step.fits else "NO",
        ]
        for step in plan.steps
    ]
    return aligned([*headers, "outputs", "temporaries", "code", "needs", "limit", "fits"], rows)


def _costs(plan: Plan) -> str:
    rows = []
    for step in plan.steps:
        found = bound(step, plan.chip)
        if step.flops is None or step.bytes_accessed is None or found is None:
            continue
        sent = sum(c.wire_bytes for c in step.collectives)
        rows.append([
            step.name, f"{step.flops / 1e12:.3f}", f"{step.bytes_accessed / 1e9:.2f}",
            f"{sent / 1e9:.3f}", f"{1e3 * found.compute:.2f}", f"{1e3 * found.memory:.2f}",
            f"{1e3 * found.links:.2f}", found.limited_by,
        ])  # fmt: skip
    if not rows:
        return ""
    headers = ["a device", "TFLOP", "GB accessed", "GB sent", "compute ms", "memory ms"]
    return (
        aligned([*headers, "links ms", "bound by"], rows)
        + f"\nFLOPs and bytes: {HOW}.\nKernels count what they declare; attention, the pairs of"
        + " tokens that see each other. A decode step is one token a row.\n"
        + "The milliseconds are lower bounds (roofline estimates at the chip's"
        + " published peaks), not speeds."
    )


def _collectives(step: StepPlan) -> str:
    if not step.collectives:
        return ""
    rows = [
        [
            c.kind,
            " ".join(c.shapes) if len(c.shapes) < 4 else f"{c.shapes[0]} and {len(c.shapes) - 1}",
            f"{c.bytes / 1e6:.3f}",
            str(c.group),
            f"{c.places} x {c.trips}" + (" a token" if c.endless else ""),
            f"{c.bytes * c.count / 1e6:.1f}",
        ]
        for c in step.collectives[:_MOST]
    ]
    rest = step.collectives[_MOST:]
    if rest:
        mb = sum(c.bytes * c.count for c in rest) / 1e6
        count = sum(c.count for c in rest)
        rows.append(["others", f"{len(rest)} kinds and sizes", "", "", str(count), f"{mb:.1f}"])
    headers = [step.name, "result", "MB each", "devices", "times", "MB in all"]
    return aligned(headers, rows)


def _step_dict(step: StepPlan, plan: Plan) -> dict[str, Any]:
    found = bound(step, plan.chip)
    sent = {"count": lambda c: c.count, "sent_bytes": lambda c: c.wire_bytes}
    return {
        **dataclasses.asdict(step),
        "collectives": [
            {**dataclasses.asdict(c), **{name: of(c) for name, of in sent.items()}}
            for c in step.collectives
        ],
        "bound_seconds": None
        if found is None
        else {**dataclasses.asdict(found), "total": found.seconds},
    }


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GiB:.3f}"
