"""Stage `score`: a score table per routing and split, the only thing `arbitrage` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from arbitrage.scores import ScoreTable
from trinityx_jax.data.examples import Example
from trinityx_jax.distributed import first_alone
from trinityx_jax.evaluation.verified import verified_shares
from trinityx_jax.inference.score import option_scores
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context

SPLITS = ("calibration", "test")


def score(run: Run) -> dict[str, Any]:
    """Writes scores/<routing>-<split>.parquet for every routing, and the joint Guardian's.

    Scores are probabilities over a row's options, softmax(mean log-likelihood / T) with the
    routing's answer temperature. The Guardian speaks through every objective's own expert on its
    rows, but not through the first one, which is the Primary's: there the second speaks. So with
    helpful, harmless and honest: honest on honest rows, harmless elsewhere.
    """
    context = open_context(run)
    setup = context.inference
    parameters = context.calibrated()
    answer = run.result("calibrate-router")["answer"]
    tables: dict[str, ScoreTable] = {}
    rows: dict[str, list[Example]] = {}
    for split in SPLITS:
        rows[split] = context.held_out(split)
        shared = _metadata(context, split)
        tables = {
            name: _table(rows[split], scores, name, answer[name]["temperature"], shared)
            for name, scores in option_scores(setup, parameters, rows[split]).items()
        }
        tables["guardian"] = guardian_table(tables, setup.objectives, shared)
        first_alone(partial(_write, run, split, tables), f"scores {split}")
    return {
        "routings": list(setup.routings),
        "objectives": list(setup.objectives),
        "rows": {split: len(rows[split]) for split in SPLITS},
        "option_accuracy": _option_accuracy(
            tables, setup
        ),  # of the test split, the last one written
        "verified": _verified(context, parameters, rows["test"]),
        "verified_rows": context.run.config.score.verify_rows,
    }


def _write(run: Run, split: str, tables: Mapping[str, ScoreTable]) -> None:
    for name, table in tables.items():
        table.write(run.scores(name, split), overwrite=run.resumed)


def _metadata(context: Context, split: str) -> dict[str, str]:
    """What all tables of a split share."""
    codec = context.codec.describe()
    text = {key: str(codec[key] or "") for key in ("template", "tokenizer", "revision")}
    return {
        "split": split,
        "score": "softmax over options of mean log-likelihood per token / temperature",
        **text,
        "tokenizer_sha256": codec["tokenizer_sha256"],
    }


def _table(
    rows: list[Example],
    scores: np.ndarray,
    routing: str,
    temperature: float,
    shared: Mapping[str, str],
) -> ScoreTable:
    p = np.asarray(jax.nn.softmax(scores / temperature, axis=-1))
    return ScoreTable(
        question_id=np.array([row.example_id for row in rows]),
        scores=p,
        mask=np.isfinite(scores),
        label=np.array([row.label for row in rows], np.int16),
        group=np.array([row.objective for row in rows]),
        metadata={"routing": routing, **shared, "temperature": repr(temperature)},
    )


def guardian_table(
    tables: Mapping[str, ScoreTable], objectives: Sequence[str], shared: Mapping[str, str]
) -> ScoreTable:
    """The joint Guardian's scores, as `score` says; with one objective the Primary's own."""
    default, others = objectives[min(1, len(objectives) - 1)], objectives[2:]
    base = tables[default]
    assert base.group is not None
    scores = base.scores
    for objective in others:
        scores = np.where((base.group == objective)[:, None], tables[objective].scores, scores)
    own = "".join(f"{objective} on {objective} rows, " for objective in others)
    metadata = {"routing": f"guardian: {own}{default} {'elsewhere' if own else 'on all rows'}"}
    return ScoreTable(
        base.question_id,
        scores,
        base.mask,
        base.label,
        base.group,
        metadata={**metadata, **shared},
    )


def _option_accuracy(tables: Mapping[str, ScoreTable], setup: Setup) -> list[list[float]]:
    """Share of rows whose highest score is the right option: objectives by routings."""
    matrix = []
    for objective in setup.objectives:
        shares = []
        for name in setup.routings:
            table = tables[name]
            right = table.scores.argmax(axis=1) == table.label
            shares.append(float(right[table.group == objective].mean()))
        matrix.append(shares)
    return matrix


def _verified(
    context: Context, parameters: Parameters, rows: list[Example]
) -> list[list[float]] | None:
    limit = context.run.config.score.verify_rows
    if context.data.verify is None or not limit:
        return None
    chosen = [
        row
        for objective in context.inference.objectives
        for row in [r for r in rows if r.objective == objective][:limit]
    ]
    return verified_shares(context.inference, parameters, chosen, context.data.verify)
