"""Published figures of accelerators, for utilisation and for estimates; never measured here.

TPUs: the "System architecture" tables of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. A TPU's links
are its inter-chip interconnect (v4 2,400 Gbps, v5e 1,600, v5p 4,800; v6e 800 GB/s both ways).
GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM; rates are those without
sparsity, links are NVLink. Vendors' GB of device memory are GiB.
"""

from __future__ import annotations

import dataclasses

GiB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """`device_kind` is what JAX calls it, without "NVIDIA ".

    `peak_flops` are bfloat16 FLOP/s, `hbm_bytes` the device memory, `hbm_bandwidth` bytes/s, and
    `link_bandwidth` the bytes/s that it can send over all its links together, one way.
    """

    name: str
    device_kind: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float


CHIPS: tuple[Chip, ...] = (
    Chip("v4", "TPU v4", 275e12, 32 * GiB, 1200e9, 300e9),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GiB, 819e9, 200e9),
    Chip("v5p", "TPU v5", 459e12, 95 * GiB, 2765e9, 600e9),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GiB, 1638e9, 400e9),
    Chip("a100", "A100-SXM4-80GB", 312e12, 80 * GiB, 2039e9, 300e9),
    Chip("h100", "H100 80GB HBM3", 989e12, 80 * GiB, 3350e9, 450e9),
    Chip("h200", "H200", 989e12, 141 * GiB, 4800e9, 450e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a `jax.Device.device_kind` names, with or without its maker; None for others.

    Kinds are compared as a whole: "TPU v5" is another chip than "TPU v5 lite".
    """
    kind = device_kind.removeprefix("NVIDIA ")
    return next((chip for chip in CHIPS if chip.device_kind == kind), None)
