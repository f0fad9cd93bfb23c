"""A block of rows: what one step of a stream of scores yields."""

from __future__ import annotations

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """Scores of both models for n questions and K answer options.

    Fields:
      primary: (n, K) float32.
      guardian: (n, K) float32.
      mask: (n, K) bool, true at valid options; None when all are valid.
      label: (n,) int, index of the right option, or None.
    """

    primary: Any
    guardian: Any
    mask: Any = None
    label: Any = None
