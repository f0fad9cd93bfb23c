"""lm-evaluation-harness' results and samples as strict JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arbitrage.io import atomic_path

# The harness' own record of the machine and its repository stays out.
_KEPT = (
    "results", "groups", "group_subtasks", "configs", "n-shot", "higher_is_better", "n-samples",
    "config", "date", "lm_eval_version",
)  # fmt: skip


def results_tree(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness found, under its own names, of JSON types; without the samples.

    The tasks' versions are `task_versions`.
    """
    tree = {name: results[name] for name in _KEPT if name in results}
    return plain({**tree, "task_versions": results["versions"]})


def write_samples(
    path: str | Path, samples: Sequence[Mapping[str, Any]], *, overwrite: bool = False
) -> None:
    """JSON lines as the harness' `--log_samples` writes them; whole or not at all."""
    with atomic_path(path, overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            line = json.dumps(plain(_as_logged(sample)), ensure_ascii=False, allow_nan=False)
            file.write(line + "\n")


def plain(value: Any) -> Any:
    """`value` with JSON's types alone: None for what is not finite, text for other objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _as_logged(sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(one)}
        for i, one in enumerate(sample["arguments"])
    }
    replies = {name: _texts(sample[name]) for name in ("resps", "filtered_resps")}
    return {**sample, **replies, "arguments": arguments, "target": str(sample["target"])}


def _texts(value: Any) -> Any:
    """Every leaf of nested lists as text, as the harness stores replies."""
    return [_texts(item) for item in value] if isinstance(value, list | tuple) else str(value)
