"""The report page, from made-up results that are no run's."""

from __future__ import annotations

import builtins
import functools
import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import arbitrage
from arbitrage.frontier import evaluate
from trinityx_jax import config, page, report
from trinityx_jax.errors import DataError, UsageError

NAMES = list(config.OBJECTIVES)
ROUTINGS = ["mixture", "uniform", *NAMES]


def synthetic_metrics() -> list[dict]:
    """Smooth made-up curves: exp(-step / 20) with a ripple."""
    rows = []
    for step in range(1, 61):
        fall = math.exp(-step / 20) + 0.02 * math.sin(step)
        rows += [
            {"stage": "pretrain", "step": step, "loss": 1 + 2 * fall},
            {
                "stage": "train-experts",
                "step": step,
                "loss": 3 + fall,
                **{f"loss/{name}": 1 + fall * (i + 1) / 2 for i, name in enumerate(NAMES)},
                "grad_norm/helpful": 1.0,
            },
            {
                "stage": "train-router",
                "step": step,
                "loss": 2 + fall,
                "gate": 1.1 * fall,
                "gate_accuracy": 1 - 0.6 * fall,
            },
        ]
    return rows


def synthetic_summary() -> dict:
    middle = [(i + 0.5) / 10 for i in range(10)]
    before = {"nll": 0.9, "ece": 0.2, "ece_mass": 0.21, "brier": 0.5, "accuracy": 0.7}
    after = {"nll": 0.7, "ece": 0.05, "ece_mass": 0.06, "brier": 0.4, "accuracy": 0.7}
    stages = {
        "pretrain": {"seconds": 60.0},
        "train-experts": {
            "seconds": 50.0,
            "objectives": NAMES,
            "trainable_parameters": 1234,
            "total_parameters": 123_400,
        },
        "train-router": {"seconds": 20.0},
        "calibrate-router": {
            "seconds": 3.5,
            "method": "temperature",
            "measured_on": {"split": "test", "tokens": 12345},
            "temperature": [[1.5] * 3] * 2,
            "before": before,
            "after": after,
            "reliability": {
                "before": {
                    "confidence": [None, *middle[1:]],
                    "accuracy": [None, *(m**2 for m in middle[1:])],
                    "count": [0, *(100 * i for i in range(1, 10))],
                },
                "after": {
                    "confidence": middle,
                    "accuracy": [0.9 * m + 0.05 for m in middle],
                    "count": [50 * (10 - i) for i in range(10)],
                },
            },
            "routing": {
                "objectives": NAMES,
                "experts": NAMES,
                "weights": [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.25, 0.15, 0.6]],
            },
            "answer": {"mixture": {"temperature": 1.2, "before": before, "after": after}},
        },
        "score": {
            "seconds": 12.0,
            "routings": ROUTINGS,
            "objectives": NAMES,
            "option_accuracy": [[0.9, 0.6, 0.95, 0.3, 0.25]] * 3,
            "verified": [[0.5, None, 0.6, 0.1, 0.0]] * 3,
        },
        "arbitrage-calibrate": {"seconds": 0.2},
        "arbitrage-evaluate": {"seconds": 0.3},
    }
    return {"stages": stages}


@functools.cache
def synthetic_evaluation() -> dict:
    """Evaluation of random scores by the package itself, so that its format is the real one."""
    rng = np.random.default_rng(0)
    n = 800
    p, g = rng.dirichlet(np.ones(4), (2, n)).astype(np.float32)
    found = arbitrage.calibrate(p[:400], g[:400], alpha=[0.05, 0.1, 0.2], bound=1)
    policy = arbitrage.Policy(
        alphas=tuple(found.alpha.tolist()),
        thresholds=tuple(found.threshold.tolist()),
        feasible=tuple(found.feasible.tolist()),
        empirical_risk=tuple(found.empirical_risk.tolist()),
        guardian_rate=(0.5,) * 3,
        bound=found.bound,
        n=found.n,
        quantum=found.quantum,
        transform="none",
        calibration_sha256={},
        metadata={},
        created="2000-01-01",
        software="test",
        guarantee=found.guarantee,
    )
    ids = np.array([str(i) for i in range(400)])
    group = np.array(NAMES)[rng.integers(0, 3, 400)]
    label = rng.integers(0, 4, 400).astype(np.int16)
    tables = [
        arbitrage.ScoreTable(ids, scores[400:], np.ones((400, 4), bool), label, group)
        for scores in (p, g)
    ]
    return {**evaluate(policy, *tables), "held_out": True}


def write_run(folder: Path, **changes) -> Path:
    """A run folder with made-up results."""
    content = {
        "summary": synthetic_summary(),
        "evaluation": synthetic_evaluation(),
        "metrics": synthetic_metrics(),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(config.Config()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content["metrics"]))
    for name in ("summary", "evaluation"):
        (folder / f"{name}.json").write_text(json.dumps(content[name]))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One report shared by the tests that only read it."""
    return report.write_report(write_run(tmp_path_factory.mktemp("runs") / "synthetic"))


class Checker(html.parser.HTMLParser):
    """Records tags, ids, texts and outside addresses; complains about tags left open."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in ((name, value or "") for name, value in attrs):
            if name == "id":
                self.ids.append(value)
            elif name == "aria-label":
                self.labels.append(value)
            elif name in ("href", "src", "xlink:href") and not value.startswith("#"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_well_formed_and_self_contained(made):
    text = made.read_text()
    checker = Checker(text)
    assert not checker.open and "script" not in checker.tags
    assert len(set(checker.ids)) == len(checker.ids)
    for target in re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', text):
        assert target in checker.ids
    # Only neighbours in the run folder are linked; XML names are no addresses to fetch.
    assert {*checker.addresses} == {*report.MAKERS}
    outside = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "nan" not in checker.text.lower().replace("finance", "")


def test_every_picture_is_there_with_words(made):
    checker = Checker(made.read_text())
    assert checker.tags.count("svg") == 10 == len(checker.labels)
    assert all(len(label) > 30 for label in checker.labels)
    assert checker.tags.count("figcaption") == 10


def test_summary_gives_the_results(made):
    text = Checker(made.read_text()).text
    for piece in (
        "1,234 of 123,400 parameters trained (1.0%)",
        "NLL 0.9000 before, 0.7000 after",
        "ECE 0.2000 before, 0.0500 after",
        "Threshold, alpha 0.05",
        "Guardian called on",
        "12,345 tokens of the test split",
        "group (not guaranteed each)",
        "146 s in 7 stages",
        "0.9000",
        "0.80",
    ):
        assert piece in text, piece


def test_equal_input_gives_the_same_page(made, tmp_path):
    again = report.write_report(write_run(tmp_path / "synthetic"))
    assert again.read_text() == made.read_text()


def test_nothing_is_overwritten_unasked(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / report.NAME).write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        report.write_report(folder)
    assert (folder / report.NAME).read_text() == "mine"
    assert report.write_report(folder, overwrite=True).read_text().startswith("<!doctype html>")


def test_text_is_escaped(tmp_path):
    summary = synthetic_summary()
    bad = '<script>alert("$1$")</script>'
    summary["stages"]["calibrate-router"]["routing"]["experts"] = [bad, "b&c", "d"]
    summary["stages"]["train-experts"]["objectives"] = [bad]
    summary["stages"]["calibrate-router"]["answer"] = {
        bad: summary["stages"]["calibrate-router"]["answer"]["mixture"]
    }
    evaluation = {**synthetic_evaluation(), "note": bad, "guarantee": bad}
    folder = write_run(tmp_path / "a<b", summary=summary, evaluation=evaluation)
    text = report.write_report(folder).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "a<b" not in text
    assert not Checker(text).open


def test_stages_that_did_not_run_say_how_to_run_them(tmp_path):
    folder = write_run(tmp_path / "run", summary={"stages": {}}, metrics=[])
    checker = Checker(report.write_report(folder).read_text())
    for stage in ("pretrain", "train-experts", "train-router", "calibrate-router", "score"):
        assert f"run trinityx {stage}" in checker.text
    assert checker.text.count("not run") == 8 and checker.tags.count("svg") == 2


def test_skipped_pretraining_and_null_parts(tmp_path):
    summary = synthetic_summary()
    summary["stages"]["pretrain"] = {"skipped": "backbone other/run"}
    summary["stages"]["score"]["verified"] = None
    summary["stages"]["calibrate-router"]["answer"] = {}
    metrics = [row for row in synthetic_metrics() if row["stage"] != "pretrain"]
    folder = write_run(tmp_path / "run", summary=summary, metrics=metrics)
    checker = Checker(report.write_report(folder).read_text())
    assert "Skipped: backbone other/run." in checker.text
    assert checker.tags.count("svg") == 8


def test_resumed_runs_show_each_step_once():
    rows = [
        {"stage": "pretrain", "step": s, "loss": v} for s, v in ((1, 3), (2, 9), (2, 2), (3, 1))
    ]
    run = report.RunFiles("run", {}, rows, {}, {})
    assert [row["loss"] for row in report._steps(run, "pretrain")] == [3, 2, 1]


@pytest.mark.parametrize("name, maker", report.MAKERS.items())
def test_missing_and_damaged_files_are_named(tmp_path, name, maker):
    folder = write_run(tmp_path / "run")
    for content in (None, b"{[", b"\xff\xfe\x00", b"[]", b"{}"):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
        if name == "config.yaml" and content == b"{}":
            continue  # an empty configuration means the defaults
        with pytest.raises(DataError) as caught:
            report.write_report(folder)
        message = str(caught.value)
        assert name in message and maker in message and "\n" not in message
        assert not (folder / report.NAME).exists()


def test_missing_folder_and_misshapen_stage_are_named(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        report.write_report(tmp_path / "elsewhere")
    summary = synthetic_summary()
    del summary["stages"]["calibrate-router"]["reliability"]
    folder = write_run(tmp_path / "run", summary=summary)
    with pytest.raises(DataError, match=r"summary\.json: .*router.* has no 'reliability'"):
        report.write_report(folder)


def test_bad_line_of_metrics_is_numbered(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')
    with pytest.raises(DataError, match="line 181 is not a JSON object"):
        report.write_report(folder)


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "trinityx_jax.figures", raising=False)
    monkeypatch.delattr("trinityx_jax.figures", raising=False)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r'pip install "trinityx-jax\[report\]"'):
        report.write_report(write_run(tmp_path / "run"))


def test_numbers_in_tables():
    assert page.number(None) == page.number(math.nan) == "-"
    assert page.number(12345) == "12,345" and page.number(0.5, 2) == "0.50"
