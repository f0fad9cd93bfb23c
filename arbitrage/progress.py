"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arbitrage.rows import Rows


@contextmanager
def progress_bar(
    total: int, unit: str, wanted: bool = True, *, delay: float = 1.0
) -> Iterator[Callable[[int], object]]:
    """A function that is told how many more are done.

    Shown on a terminal after `delay` seconds, if tqdm is installed.
    """
    if wanted and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            with tqdm(total=total, unit=unit, unit_scale=True, delay=delay, leave=False) as bar:
                yield bar.update
            return
    yield lambda done: None


class ShownStream:
    """A sized stream of `Rows` with a bar for each reading."""

    def __init__(self, stream):
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Rows]:
        with progress_bar(len(self), "row") as tell:
            for rows in self.stream:
                yield rows
                tell(len(rows.primary))
