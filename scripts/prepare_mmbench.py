"""Splits two models' MMBench option scores into calibration and test tables for `arbitrage`.

    python scripts/prepare_mmbench.py scores/mmbench --primary MobileVLM-1.7B \\
        --guardian llava-v1.6-34b --seed 0 --output runs/mmbench

The input folder holds one score table per model, `<model>.parquet`. Two decisions:

* One row per base question, the one with int(question_id) < 1_000_000. Further rows are the same
  question with its options rotated: they are not independent, and conformal calibration assumes
  that rows are exchangeable.
* Every option that was shown stays a valid action, "I don't know" and "None of the above" (the
  last two) included: a model may choose to abstain, and a choice between two models must allow it.
  With --answers-only these two are left out.

Base questions are then halved at random by `--seed`. Writes primary-calibration.parquet,
guardian-calibration.parquet, primary-test.parquet and guardian-test.parquet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from arbitrage import DataError, ScoreTable, UsageError, join
from arbitrage.cli import OneLineParser
from arbitrage.errors import run_cli
from arbitrage.io import check_output

BASE_QUESTIONS = 1_000_000
PARTS = ("calibration", "test")


def prepare(
    folder: Path,
    primary: str,
    guardian: str,
    *,
    seed: int,
    output: Path,
    answers_only: bool = False,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes the four tables into `output` and returns the number of rows of each half."""
    paths = {
        (role, part): output / f"{role}-{part}.parquet"
        for role in ("primary", "guardian")
        for part in PARTS
    }
    for path in paths.values():
        check_output(path, overwrite)
    tables = join(
        read_model(folder, primary, answers_only=answers_only),
        read_model(folder, guardian, answers_only=answers_only),
    )
    n = len(tables[0])
    order = np.random.default_rng(seed).permutation(n)
    rows = {"calibration": np.sort(order[: n // 2]), "test": np.sort(order[n // 2 :])}
    for role, table in zip(("primary", "guardian"), tables, strict=True):
        for part in PARTS:
            details = {**table.metadata, "part": part, "split_seed": str(seed)}
            half = replace(table.take(rows[part]), metadata=details)
            half.write(paths[role, part], overwrite=overwrite)
    return {part: len(rows[part]) for part in PARTS}


def read_model(
    folder: Path, model: str, *, all_rotations: bool = False, answers_only: bool = False
) -> ScoreTable:
    """The scores of one model: base questions, or every rotation of them.

    With `all_rotations`, rows of one base question share int(question_id) % 1_000_000 and must stay
    together in a split. `answers_only` leaves out the last two valid options, which abstain.
    """
    path = folder / f"{model}.parquet"
    if not path.exists():
        known = ", ".join(models(folder)) or "none"
        raise UsageError(f"no scores of {model!r} in {folder}; models there: {known}")
    table = ScoreTable.read(path)
    if answers_only:
        shown = np.arange(table.mask.shape[1]) < (table.n_options - 2)[:, None]
        table = replace(table, mask=shown)
    try:
        number = table.question_id.astype(np.int64)
    except ValueError:
        raise DataError(f"{path}: question ids must be whole numbers") from None
    return table if all_rotations else table.take(number < BASE_QUESTIONS)


def models(folder: Path) -> list[str]:
    """The models in the folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.parquet"))


def _main() -> None:
    assert __doc__ is not None
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with one <model>.parquet per model")
    parser.add_argument("--primary", required=True, metavar="MODEL")
    parser.add_argument("--guardian", required=True, metavar="MODEL")
    parser.add_argument("--seed", type=int, default=0, help="of the random halves (default 0)")
    parser.add_argument(
        "--answers-only", action="store_true", help="leave out the two options that abstain"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace existing tables")
    options = parser.parse_args()
    counts = prepare(
        options.folder,
        options.primary,
        options.guardian,
        seed=options.seed,
        output=options.output,
        answers_only=options.answers_only,
        overwrite=options.overwrite,
    )
    print(", ".join(f"{part}: {count} questions" for part, count in counts.items()))


if __name__ == "__main__":
    raise SystemExit(run_cli(_main))
