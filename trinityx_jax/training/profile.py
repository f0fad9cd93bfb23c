"""A profiler trace of a few training steps, for xprof (TensorBoard's profile plugin)."""

from __future__ import annotations

from pathlib import Path

import jax

FIRST, LAST = 3, 5  # counted from where the run starts: the first steps compile


class Profile:
    """Traces steps FIRST to LAST of this run below `folder`, on process 0; None: does nothing."""

    def __init__(self, folder: Path | None, start: int):
        self._folder = folder if jax.process_index() == 0 else None
        self._start = start
        self._tracing = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call before each step is begun."""
        if self._folder is not None and step == self._start + FIRST:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, result: jax.Array) -> None:
        """Call after it, with anything that is ready when the step is done."""
        if self._tracing and step == self._start + LAST:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
