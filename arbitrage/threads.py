"""A few blocks at a time: NumPy and XLA leave Python free while they work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

WORKERS = 2
Out = TypeVar("Out")


def pipelined(function: Callable[..., Out], items: Iterable[Any]) -> Iterator[Out]:
    """`map` on a few threads, in order, never reading far ahead of what is consumed."""
    waiting: deque = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, *item))
                if len(waiting) > WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
