"""The script that makes two score tables of XSTest's labels: synthetic rows, then the real file."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from problems import ROOT, run_python

from arbitrage import ScoreTable

SCRIPT = str(ROOT / "scripts" / "prepare_xstest.py")
MODELS = ("a", "b", "c")
FULL, REFUSES, PART = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


def write_rows(path, rows) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for at, (safe, labels) in enumerate(rows):
            answers = [{"model": m, "text": "SECRET", "label": label}
                       for m, label in zip(MODELS, labels, strict=True)]  # fmt: skip
            row = {"id": f"v2-{at}", "prompt": "SECRET", "prompt_safe": safe, "type": "kind"}
            file.write(json.dumps(row | {"answers": answers}) + "\n")
    return str(path)


def test_labels_become_scores_and_texts_stay_out(tmp_path):
    rows = [(True, (FULL, REFUSES, PART)), (False, (FULL, REFUSES, PART)), (True, (FULL,) * 3)]
    file = write_rows(tmp_path / "x.jsonl.gz", rows)
    done = run_python(SCRIPT, file, "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 prompts, 1 with a tie at the Primary's top\n"
    primary, guardian = (ScoreTable.read(tmp_path / "out" / f"{role}.parquet")
                         for role in ("primary", "guardian"))  # fmt: skip
    assert primary.scores.tolist() == [[1, 0, 0.5], [1, 0, 0.5], [1, 1, 1]]
    assert guardian.scores.tolist() == [[1, 1, 1], [0, 1, 0.5], [1, 1, 1]]
    assert primary.metadata["model"] == "human label: helpful" and primary.label is None
    assert primary.metadata["options"] == "a, b, c"
    assert b"SECRET" not in (tmp_path / "out" / "primary.parquet").read_bytes()
    more = ("--overwrite", "--tie-break", "0.01", "--partial", "0")
    done = run_python(SCRIPT, file, "--output", str(tmp_path / "out"), *more)
    assert done.stdout == "3 prompts, 0 with a tie at the Primary's top\n"
    broken = ScoreTable.read(tmp_path / "out" / "primary.parquet")
    assert np.abs(broken.scores - primary.scores).max() <= 0.01
    assert ScoreTable.read(tmp_path / "out" / "guardian.parquet").scores[1, 2] == 0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ((FULL, "nonsense", PART), "row 1 has an unknown label"),
        (None, "row 1 is not an XSTest row"),
    ],
)
def test_bad_rows_are_named_without_their_text(tmp_path, labels, words):
    rows = [(True, (FULL, REFUSES, PART))] * 2
    if labels is not None:
        rows[1] = (True, labels)
    file = write_rows(tmp_path / "x.jsonl.gz", rows)
    if labels is None:
        with gzip.open(file, "at", encoding="utf-8") as broken:
            broken.write("SECRET\n")
        words = words.replace("row 1", "row 2")
    done = run_python(SCRIPT, file, "--output", str(tmp_path / "out"))
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert "SECRET" not in done.stderr and not (tmp_path / "out").exists()


def test_bad_options_are_usage_errors(tmp_path):
    file = write_rows(tmp_path / "x.jsonl.gz", [(True, (FULL, REFUSES, PART))])
    done = run_python(SCRIPT, file, "--output", str(tmp_path / "out"), "--partial", "2")
    assert done.returncode == 2 and "--partial" in done.stderr


def test_the_real_labels(data_pack, tmp_path):
    file = data_pack / "hhh" / "arb_xstest.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    done = run_python(SCRIPT, str(file), "--output", str(tmp_path))
    assert done.stdout == "450 prompts, 291 with a tie at the Primary's top\n"
    primary, guardian = (ScoreTable.read(tmp_path / f"{role}.parquet")
                         for role in ("primary", "guardian"))  # fmt: skip
    unsafe = ~primary.extra["safe"]
    assert unsafe.sum() == 200
    # Full compliances on unsafe prompts, per model, are the published counts.
    assert (guardian.scores == 0).sum(axis=0).tolist() == [1, 0, 0, 7, 128]
    assert (primary.scores[~unsafe] == 1).sum(axis=0).tolist() == [229, 176, 101, 203, 246]
