"""A lower bound on a step's time from the chip's published figures: no speed, nothing is timed."""

from __future__ import annotations

import dataclasses

from trinityx_jax.chips import Chip
from trinityx_jax.plan.plan import StepPlan


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that the step takes at least, if only this limited it."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The bound: all three at once, each at its peak."""
        return max(self.compute, self.memory, self.links)

    @property
    def limited_by(self) -> str:
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def bound(step: StepPlan, chip: Chip) -> Bound | None:
    """FLOPs at the bfloat16 peak, bytes accessed at the memory's bandwidth, and what the
    collectives must send over all links of a chip together; None where the costs are unknown.

    Bytes accessed are the compiler's estimate, and all links are taken to be of one slice.
    """
    if step.flops is None or step.bytes_accessed is None:
        return None
    return Bound(
        step.flops / chip.peak_flops,
        step.bytes_accessed / chip.hbm_bandwidth,
        sum(c.wire_bytes for c in step.collectives) / chip.link_bandwidth,
    )
