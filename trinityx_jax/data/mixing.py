"""How many rows of a batch each objective gets, and whether passes and processes can share them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from trinityx_jax.errors import UsageError

_TRIED = 10_000  # how far from the given batch size a remedy is looked for


def rows_per_objective(
    objectives: Sequence[str], batch_size: int, mix: Sequence[float] = ()
) -> dict[str, int]:
    """{objective: its packed rows in a batch}, `batch_size` times the number of objectives in all.

    In proportion to `mix`, which has the order of `objectives`; () for equal shares. Shares are
    rounded to whole rows by largest remainder (ties: the earlier objective), and none is below one
    row. They depend on nothing else: how many processes or passes share the work is never learnt.
    """
    # By their decimals: 0.1 means one tenth, so that 0.1 : 0.2 is 1 : 2.
    weights = [Fraction(str(weight)) for weight in mix] or [Fraction(1)] * len(objectives)
    total = batch_size * len(objectives)
    exact = [total * weight / sum(weights) for weight in weights]
    rows = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(rows)), key=lambda i: rows[i] - exact[i])
    for i in by_remainder[: max(0, total - sum(rows))]:
        rows[i] += 1
    while sum(rows) > total:  # the rows that tiny shares were raised to come from the largest
        rows[rows.index(max(rows))] -= 1
    return dict(zip(objectives, rows, strict=True))


def check_shares(
    objectives: Sequence[str], batch_size: int, mix: Sequence[float] = (), *, parts: int
) -> None:
    """Raises UsageError where an objective's rows cannot be split into `parts` (processes x
    passes) equal parts; it names the nearest batch size for which all can."""

    def uneven(size: int) -> dict[str, int]:
        rows = rows_per_objective(objectives, size, mix)
        return {objective: count for objective, count in rows.items() if count % parts}

    if not (left := uneven(batch_size)):
        return
    sizes = (batch_size + sign * away for away in range(1, _TRIED) for sign in (1, -1))
    near = next((size for size in sizes if size > 0 and not uneven(size)), None)
    objective, count = next(iter(left.items()))
    raise UsageError(
        f"batch_size={batch_size}: {count} rows of {objective!r} in a batch cannot be shared "
        f"equally by {parts} parts (processes x accumulate); "
        + ("choose another mix" if near is None else f"the nearest size that can is {near}")
    )
