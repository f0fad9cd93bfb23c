"""Clusters: rows that belong together, for example rotations of one question.

Rows of one cluster are dependent, so they are not exchangeable with one another, but clusters are.
Averaging the losses inside each cluster gives one exchangeable unit per cluster: the guarantee then
holds for the mean loss of a new cluster, with n = the number of calibration clusters.
"""

from __future__ import annotations

import numpy as np

from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.loss_curves import LossCurves
from arbitrage.scores import ScoreTable


def cluster_codes(table: ScoreTable, spec: str) -> np.ndarray:
    """(N,) int64 codes 0 .. C-1 of the rows' clusters, in order of the sorted cluster names.

    `spec` names a column (`question_id`, `group` or a further column of the table), or takes whole
    numbers modulo M: `question_id%1000000` puts rows together whose ids end in the same six digits.
    Raises UsageError for an unknown column, DataError naming a row whose value is not a number.
    """
    name, percent, modulus = spec.partition("%")
    values = _column(table, name)
    if percent:
        if not modulus.isdecimal() or not int(modulus):
            raise UsageError(f"--cluster {spec}: write COLUMN%M with a whole number M > 0")
        values = _remainders(values, name, table, int(modulus))
    elif values.dtype.kind == "f":
        row = first_row(~np.isfinite(values))
        if row is not None:
            raise DataError(f"row {row}: the cluster column {name!r} is missing (null or NaN)", row)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _column(table: ScoreTable, name: str) -> np.ndarray:
    columns = {"question_id": table.question_id, "group": table.group, **table.extra}
    values = columns.get(name)
    if values is None or values.ndim != 1:
        known = ", ".join(key for key, value in columns.items() if value is not None)
        raise UsageError(f"--cluster {name}: no such column; the Primary's table has {known}")
    return values


def _remainders(values: np.ndarray, name: str, table: ScoreTable, modulus: int) -> np.ndarray:
    if values.dtype.kind in "iu":
        return values % modulus
    text = values.astype(np.str_)
    row = first_row(~np.char.isdecimal(text))
    if row is not None:
        raise DataError(
            f"row {row} (question_id {str(table.question_id[row])!r}): {name} is "
            f"{str(text[row])!r}, not a whole number, so it has no remainder",
            row,
        )
    # Python's whole numbers: ids may be longer than 64 bits.
    return np.array([int(value) % modulus for value in text.tolist()])


def check_codes(cluster, n: int) -> np.ndarray:
    """`cluster` as (n,) int64 codes 0 .. C-1 that all occur. Raises UsageError otherwise."""
    codes = np.asarray(cluster)
    if codes.shape != (n,) or codes.dtype.kind not in "iu":
        raise UsageError(f"cluster must hold {n} integer codes, not {codes.dtype} {codes.shape}")
    if codes.min() < 0 or not np.bincount(codes).all():
        raise UsageError(
            "cluster codes must be 0 .. C-1, each used: np.unique(..., return_inverse)"
        )
    return codes.astype(np.int64)


def cluster_curves(curves: LossCurves, cluster) -> LossCurves:
    """The mean step function of each cluster: `n` is then the number of clusters.

    At each lambda the sum of the integer losses of the m rows is divided by m and rounded UP to a
    whole quantum. That is still monotone and right-continuous, at most one quantum above the mean
    and never below it, so the bound stays on the safe side. `cluster` is (N,) codes 0 .. C-1.
    """
    codes = check_codes(cluster, curves.n)
    sizes = np.bincount(codes)
    base = np.zeros(len(sizes), dtype=np.int64)
    np.add.at(base, codes, curves.base)
    owner = codes[curves.row]
    order = np.lexsort((curves.gap, owner))
    owner, gap = owner[order], curves.gap[order]
    removed = np.cumsum(curves.drop[order])
    first = np.searchsorted(owner, np.arange(len(sizes)))
    before = np.append(0, removed)[first]
    left = base[owner] - (removed - before[owner])
    mean = -(-left // sizes[owner])
    start = -(-base // sizes)
    previous = np.append(0, mean[:-1])
    is_first = np.append(True, owner[1:] != owner[:-1]) if len(owner) else np.zeros(0, dtype=bool)
    drop = np.where(is_first, start[owner], previous[: len(owner)]) - mean
    kept = drop > 0
    return LossCurves(start, gap[kept], drop[kept], owner[kept], curves.quantum)


def take_units(curves: LossCurves, kept: np.ndarray) -> LossCurves:
    """The step functions of the units where `kept`, (N,) bool, is true, renumbered in order."""
    number = np.cumsum(kept) - 1
    at = kept[curves.row]
    return LossCurves(
        curves.base[kept], curves.gap[at], curves.drop[at], number[curves.row[at]], curves.quantum
    )
