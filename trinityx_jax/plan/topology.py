"""TPU topologies by name, through the compiler in the libtpu wheel; no TPU is looked for."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

from trinityx_jax.chips import CHIPS, Chip
from trinityx_jax.errors import UsageError

# Generation -> dimensions of its slices.
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_FORMS = "v5e:4x4, v6e:8x8, v5p:2x2x4, v4:2x2x2 (chips along each dimension, in twos)"

# libtpu reads these when it is loaded. The last two say what a TPU machine would tell it: without
# them it complains on stderr.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock: nothing here uses a device
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def prepare() -> None:
    """Sets up this process for the TPU compiler; to be called before jax is imported.

    Raises UsageError where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "plan needs the TPU compiler of the libtpu package; pip install 'trinityx-jax[tpu]'"
        )
    os.environ.update(_ENVIRONMENT)


def topology_chip(name: str) -> Chip:
    """The chip of a topology such as `v5e:4x4`. Raises UsageError for an unknown form."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match[2].count("x") + 1 != _DIMENSIONS.get(match[1]):
        raise UsageError(f"--topology {name!r}: known forms are {_FORMS}")
    return next(chip for chip in CHIPS if chip.name == match[1])


def topology_devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of `slices` slices, one for each chip, to compile for: they cannot run anything.

    Raises UsageError for a name that the compiler refuses.
    """
    from jax.experimental import topologies

    chip = topology_chip(name)
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":
        more["chip_config_name"] = "megacore"  # one device a chip, as on a machine
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
    except Exception as e:  # JaxRuntimeError, with several statuses
        raise UsageError(
            f"--topology {name}: the TPU compiler refuses it ({str(e).splitlines()[0]}); "
            f"known forms are {_FORMS}"
        ) from e
    chips = slices * math.prod(int(n) for n in name.partition(":")[2].split("x"))
    assert len(devices) == chips, f"{name}: {len(devices)} devices for {chips} chips"
    return list(devices)
