"""Stopping on request: SIGTERM, or Ctrl-C once, ends the run after a step and a checkpoint."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The run was asked to stop and can be resumed; exit status 0."""

    def __init__(self):
        super().__init__(0)


class Preemption:
    """While entered, SIGTERM and the first SIGINT only ask to stop; a second SIGINT interrupts.

    Signals reach the main thread alone: elsewhere this does nothing. A request that nobody heeded
    is sent again on the way out.
    """

    def __init__(self):
        self._asked: int | None = None
        self._heeded = False
        self._before: dict[int, Any] = {}
        self._somewhere: jax.Array | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked is not None and not self._heeded and exc[0] is None:
            os.kill(os.getpid(), self._asked)

    def agreed(self) -> bool:
        """Whether to stop now. Every process calls this after every step; all get one answer.

        One process answers at once; several, with what any of them was asked a step ago: their
        flags are gathered on the devices behind the step, without waiting for it.
        """
        if jax.process_count() == 1:
            stop = self._asked is not None
        else:
            before, self._somewhere = self._somewhere, _any(self._asked is not None)
            stop = before is not None and bool(before)
        self._heeded |= stop
        return stop

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        os.write(2, b"\nstopping after this step and a checkpoint; Ctrl-C interrupts at once\n")


def _any(flag: bool) -> jax.Array:
    """Whether the flag is set on any process: a () bool that is not waited for."""
    split, gather = _gather()
    local = np.full(jax.local_device_count(), flag)
    return gather(jax.make_array_from_process_local_data(split, local))


@functools.cache  # traced once
def _gather() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = Mesh(np.array(jax.devices()), "all")
    return NamedSharding(mesh, P("all")), jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
