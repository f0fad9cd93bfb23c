"""Which programs were compiled: every shape costs seconds, so users are told how many there are."""

from __future__ import annotations

import logging

_compiled: list[str] = []


def note(name: str) -> None:
    """Call it in the body of a jitted function: the body runs once for each compilation."""
    logging.getLogger(__name__).info("compiling %s", name)
    _compiled.append(name)


def compiled() -> tuple[str, ...]:
    """Every program noted so far in this process, in order."""
    return tuple(_compiled)
