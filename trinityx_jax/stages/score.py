"""Stage `score`: a score table per routing and split, the only thing `arbitrage` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from arbitrage.scores import ScoreTable
from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.examples import Example
from trinityx_jax.evaluation.verified import verified_shares
from trinityx_jax.inference.score import option_scores
from trinityx_jax.inference.setup import ROUTINGS
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context

SPLITS = ("calibration", "test")


def score(run: Run) -> dict[str, Any]:
    """Writes scores/<routing>-<split>.parquet for every routing, and the joint Guardian's.

    Scores are probabilities over a row's options, softmax(mean log-likelihood / T) with the
    routing's answer temperature. The Guardian speaks through the honest expert on honest rows and
    through the harmless expert elsewhere.
    """
    context = open_context(run)
    parameters = context.calibrated()
    answer = run.result("calibrate-router")["answer"]
    tables: dict[str, ScoreTable] = {}
    rows: dict[str, list[Example]] = {}
    for split in SPLITS:
        rows[split] = context.held_out(split)
        shared = _metadata(context, split)
        tables = {
            name: _table(rows[split], scores, name, answer[name]["temperature"], shared)
            for name, scores in option_scores(context.inference, parameters, rows[split]).items()
        }
        tables["guardian"] = _guardian(tables, shared)
        for name, table in tables.items():
            table.write(run.scores(name, split), overwrite=run.resumed)
    return {
        "routings": list(ROUTINGS),
        "objectives": list(OBJECTIVES),
        "rows": {split: len(rows[split]) for split in SPLITS},
        "option_accuracy": _option_accuracy(tables),  # of the test split, the last one written
        "verified": _verified(context, parameters, rows["test"]),
        "verified_rows": context.run.config.score.verify_rows,
    }


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


def _guardian(tables: dict[str, ScoreTable], shared: Mapping[str, str]) -> ScoreTable:
    harmless, honest = tables["harmless"], tables["honest"]
    assert harmless.group is not None
    scores = np.where((harmless.group == "honest")[:, None], honest.scores, harmless.scores)
    metadata = {"routing": "guardian: honest on honest rows, harmless elsewhere", **shared}
    return ScoreTable(
        harmless.question_id,
        scores,
        harmless.mask,
        harmless.label,
        harmless.group,
        metadata=metadata,
    )


def _option_accuracy(tables: dict[str, ScoreTable]) -> list[list[float]]:
    """Share of rows whose highest score is the right option: objectives by ROUTINGS."""
    matrix = []
    for objective in OBJECTIVES:
        shares = []
        for name in ROUTINGS:
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
        for objective in OBJECTIVES
        for row in [r for r in rows if r.objective == objective][:limit]
    ]
    return verified_shares(context.inference, parameters, chosen, context.data.verify)
