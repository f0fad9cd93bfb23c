"""What the commands do, callable from Python with paths; printing is in `tables` and `cli`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arbitrage.errors import UsageError
from arbitrage.file_calibration import (
    Task,
    calibrate_blocks,
    calibrate_tables,
    guardian_rates,
    question_ids,
)
from arbitrage.frontier import evaluate, prepare
from arbitrage.io import atomic_path, check_output, sha256_file, write_json
from arbitrage.losses import loss_by_name
from arbitrage.policy import Policy, choose, route
from arbitrage.scores import ScoreTable, softmax
from arbitrage.selection import Levels, Number
from arbitrage.version import __version__

StrPath = str | os.PathLike
Columns = Mapping[str, str] | None


def calibrate_files(
    primary_path: StrPath,
    guardian_path: StrPath,
    *,
    alpha: Levels,
    bound: Number = 1,
    loss: str = "guardian_shortfall",
    method: str = "crc",
    delta: float | None = None,
    groups: bool = False,
    weights: str | None = None,
    test_weight: float | None = None,
    softmax: bool = False,
    stream: bool = False,
    output: StrPath | None = None,
    overwrite: bool = False,
    columns: Columns = None,
    **reading: Any,
) -> Policy:
    """Calibrates every alpha on two score tables and writes the policy to `output`, if given.

    Args:
      primary_path, guardian_path: tables in any format that `ScoreTable.read` knows; `columns` and
        further arguments are passed to it.
      alpha, bound: as in `calibrate`.
      loss: name of a loss family (`losses.LOSS_FORMS`).
      method, delta, groups, weights, test_weight: as in `file_calibration.Task`.
      softmax: turn both models' scores into probabilities first.
      stream: read Parquet tables in blocks (`open_stream`): for tables that do not fit in memory.
        Both must hold the same questions in the same order.

    Raises UsageError and DataError as `ScoreTable.read`, `join`, `calibrate` and `io.atomic_path`.
    """
    if output is not None:
        check_output(output, overwrite)
    from arbitrage.streams import open_stream

    task = Task(alpha, bound, loss_by_name(loss), method, delta, groups, weights, test_weight)
    if stream:
        if softmax or reading:
            given = ", ".join([*(["softmax"] if softmax else []), *reading])
            raise UsageError(f"stream reads finished scores from Parquet: leave out {given}")
        blocks = open_stream(primary_path, guardian_path, columns=columns)
        found, metadata = calibrate_blocks(task, blocks), blocks.metadata
        rates: tuple[float | None, ...] = (None,) * len(found.alphas)
    else:
        primary, guardian = prepare(
            ScoreTable.read(primary_path, columns=columns, **reading),
            ScoreTable.read(guardian_path, columns=columns, **reading),
            "softmax" if softmax else "none",
        )
        found = calibrate_tables(task, primary, guardian)
        metadata = {"primary": dict(primary.metadata), "guardian": dict(guardian.metadata)}
        rates = guardian_rates(found, primary)
    policy = Policy(
        **vars(found),
        guardian_rate=rates,
        loss=task.loss.name,
        method=method,
        delta=delta,
        transform="softmax" if softmax else "none",
        calibration_sha256={
            "primary": sha256_file(primary_path),
            "guardian": sha256_file(guardian_path),
        },
        metadata=metadata,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"arbitrage {__version__}",
    )
    if output is not None:
        policy.write(output, overwrite=overwrite)
    return policy


def evaluate_files(
    policy_path: StrPath,
    primary_path: StrPath,
    guardian_path: StrPath,
    *,
    output: StrPath | None = None,
    overwrite: bool = False,
    figures: StrPath | None = None,
    columns: Columns = None,
    **reading: Any,
) -> dict[str, Any]:
    """Evaluates a policy on held-out score tables; the result is what `output` holds.

    `figures` is a folder for the three figures, as SVG and PNG. The result's `inputs` says which
    files were used; `held_out` is false when one of them is a file the policy was calibrated on.
    """
    if output is not None:
        check_output(output, overwrite)
    if figures is not None:
        from arbitrage.report import check_figures

        check_figures(figures, overwrite)
    policy = Policy.read(policy_path)
    primary = ScoreTable.read(primary_path, columns=columns, **reading)
    guardian = ScoreTable.read(guardian_path, columns=columns, **reading)
    with question_ids(primary.question_id):
        result = evaluate(policy, primary, guardian)
    hashes = {"primary": sha256_file(primary_path), "guardian": sha256_file(guardian_path)}
    seen = set(policy.calibration_sha256.values()) & set(hashes.values())
    result["held_out"] = not seen
    result["inputs"] = {
        "policy": sha256_file(policy_path),
        "calibration": dict(policy.calibration_sha256),
        "test": hashes,
        "metadata": {"primary": dict(primary.metadata), "guardian": dict(guardian.metadata)},
    }
    result["software"] = f"arbitrage {__version__}"
    if output is not None:
        write_json(output, result, overwrite)
    if figures is not None:
        from arbitrage.report import write_figures

        write_figures(result, figures, overwrite=overwrite)
    return result


def route_files(
    policy_path: StrPath,
    primary_path: StrPath,
    *,
    alpha: Number,
    output: StrPath,
    overwrite: bool = False,
    columns: Columns = None,
    **reading: Any,
) -> dict[str, Any]:
    """Routes every row of a Primary score table and writes one row for each to `output` (Parquet).

    Columns: question_id string, defer bool, candidates list<bool> (one per valid option),
    primary_choice int16. A policy with groups needs the table's group column; a group that was not
    calibrated is always deferred. `columns` and further arguments are those of `ScoreTable.read`.
    Returns `n`, `deferred`, `guardian_rate` and `threshold` (the one for all groups together).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_output(output, overwrite)
    policy = Policy.read(policy_path)
    table = ScoreTable.read(primary_path, columns=columns, **reading)
    threshold = policy.row_threshold(alpha, table.group)
    if policy.transform == "softmax":
        table = softmax(table)
    candidates, defer = route(table.scores, threshold, table.mask)
    # With threshold 0 and no Guardian preference, `choose` is the Primary's own top.
    top = choose(table.scores, np.zeros_like(table.scores), 0.0, table.mask)
    offsets = np.concatenate([[0], np.cumsum(table.n_options, dtype=np.int64)])
    content = pa.table(
        {
            "question_id": pa.array(table.question_id, pa.string()),
            "defer": pa.array(defer),
            "candidates": pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), pa.array(candidates[table.mask])
            ),
            "primary_choice": pa.array(top.astype(np.int16)),
        }
    )
    details = {"alpha": str(alpha), "policy_sha256": sha256_file(policy_path)}
    with atomic_path(output, overwrite) as temporary:
        pq.write_table(content.replace_schema_metadata(details), temporary, compression="zstd")
    return {
        "n": len(table),
        "deferred": int(defer.sum()),
        "guardian_rate": float(defer.mean()),
        "threshold": float(policy.threshold(alpha)),
        "output": str(Path(output)),
    }
