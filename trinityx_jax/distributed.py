"""One job of many processes: start-up, and what only one of them does.

The processes of a run share one run folder, on a file system that all of them see. All compute;
process 0 writes, while the others wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from trinityx_jax.errors import UsageError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start() -> None:
    """Joins this process to its job; before anything else asks jax for its devices.

    TPU pods, Slurm, Kubernetes and Open MPI are recognised by jax. Elsewhere the environment says
    it, all of JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Raises UsageError where neither holds, or nobody answers at the address.
    """
    import jax

    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if 0 < len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise UsageError(f"--distributed: {', '.join(missing)} must be set, too")
    try:
        if given:
            address, count, index = (given[name] for name in VARIABLES)
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as e:
        reason = str(e).splitlines()[0]
        raise UsageError(
            f"--distributed: no job of several processes found ({reason}); start it with one of "
            f"the launch files in scripts/, or set {', '.join(VARIABLES)}"
        ) from e


def first() -> bool:
    """Whether this is the process that writes."""
    import jax

    return jax.process_index() == 0


def first_alone(work: Callable[[], object], name: str) -> None:
    """`work` on process 0, while the others wait. `name` must not differ between them."""
    import jax

    if first():
        work()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
