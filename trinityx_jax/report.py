"""report.html: one self-contained page about a run, from the files in its folder.

config.yaml       what was asked for             trinityx pretrain
metrics.jsonl     one JSON object per step       trinityx pretrain, train-experts, train-router
summary.json      {"stages": {stage: results}}   every stage
evaluation.json   thresholds on held-out rows    arbitrage evaluate
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from arbitrage import io
from trinityx_jax import page
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.run import STAGES, hint

NAME = "report.html"
# What makes each input file, for the message when it is missing or damaged.
MAKERS = {
    "config.yaml": "trinityx pretrain",
    "metrics.jsonl": "trinityx pretrain",
    "summary.json": "trinityx pretrain",
    "evaluation.json": "arbitrage evaluate",
}
_SCORES = (("nll", "NLL"), ("ece", "ECE"), ("ece_mass", "ECE, equal mass"), ("brier", "Brier"))


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run folder."""

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    stages: dict[str, Any]
    evaluation: dict[str, Any]
    present: tuple[str, ...] = ()  # names in the folder, folders ending in /


def write_report(run_dir: str | Path, *, overwrite: bool = False) -> Path:
    """Writes `run_dir`/report.html and gives its path.

    Raises:
      UsageError: matplotlib is not installed, or the report exists and `overwrite` is false.
      DataError: an input file is missing or damaged; the message names it and the command that
        makes it. A stage that did not run is no error: its section says which command runs it.
    """
    folder = Path(run_dir)
    target = io.check_output(folder / NAME, overwrite)
    draw = _import_figures()
    text = render(read_run(folder), draw)
    with io.atomic_path(target, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def read_run(folder: Path) -> RunFiles:
    """The four input files. Raises DataError naming the first that is missing or damaged."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; run trinityx pretrain first")
    stages = _read(folder / "summary.json", io.read_json).get("stages")
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise DataError(f"{folder / 'summary.json'}: no 'stages'; {_again('summary.json')}")
    evaluation = _read(folder / "evaluation.json", io.read_json)
    for key in ("overall", "curves", "guarantee", "note"):
        if key not in evaluation:
            raise DataError(
                f"{folder / 'evaluation.json'}: no {key!r}; {_again('evaluation.json')}"
            )
    return RunFiles(
        name=folder.resolve().name,
        config=_read(folder / "config.yaml", _read_yaml),
        metrics=_read(folder / "metrics.jsonl", _read_lines),
        stages=stages,
        evaluation=evaluation,
        present=tuple(f"{p.name}/" if p.is_dir() else p.name for p in sorted(folder.iterdir())),
    )


def render(run: RunFiles, draw: ModuleType) -> str:
    """The page as HTML text; `draw` is `trinityx_jax.figures`."""
    builders: tuple[tuple[str, str, Callable[[RunFiles, ModuleType], str]], ...] = (
        ("Summary", "summary.json", _summary),
        ("Training", "metrics.jsonl", _training),
        ("Calibration of the router", "summary.json", _calibration),
        ("Routing", "summary.json", _routing),
        ("Option accuracy", "summary.json", _accuracy),
        ("Risk against the threshold", "evaluation.json", _risk),
        ("Cost against the random router", "evaluation.json", _frontier),
        ("Time", "summary.json", _time),
    )
    sections = []
    for title, file, build in builders:
        try:
            sections.append(page.section(title, build(run, draw)))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            fault = f"has no {e}" if isinstance(e, KeyError) else f"does not fit ({e})"
            raise DataError(
                f"{file}: section {title!r} of the report: the file {fault}; run its stage again"
            ) from e
    return page.page(f"Run {run.name}", "\n".join(sections))


# Inputs.


def _import_figures() -> ModuleType:
    try:
        from trinityx_jax import figures
    except ImportError as e:
        if (e.name or "").split(".")[0] != "matplotlib":
            raise
        raise UsageError('the report needs matplotlib: pip install "trinityx-jax[report]"') from e
    return figures


def _again(file: str) -> str:
    return f"run {MAKERS[file]} to make it"


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_again(path.name)}")
    try:
        return reader(path)
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise DataError(f"{path}: {' '.join(str(e).split())}; {_again(path.name)}") from e


def _read_yaml(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("expected a mapping of sections")
    return tree


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            good = isinstance(row["stage"], str) and isinstance(row["step"], int)
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise ValueError(f"line {i} is not a JSON object with a stage and a step")
        rows.append(row)
    return rows


def _steps(run: RunFiles, stage: str) -> list[dict[str, Any]]:
    """Records of one stage in step order; the last of equal steps wins, as after a resumed run."""
    by_step = {row["step"]: row for row in run.metrics if row["stage"] == stage}
    return [by_step[step] for step in sorted(by_step)]


def _missing(stage: str) -> str:
    return page.note(f"No results of this stage yet: run {hint(stage)}.")


# Sections: RunFiles -> HTML.


def _training(run: RunFiles, draw: ModuleType) -> str:
    experts = _steps(run, "train-experts")
    # Keys in order of first appearance: the objectives' own order.
    keys = list(dict.fromkeys(key for row in experts for key in row))
    panels: dict[str, list[tuple[str, Mapping[str, str]]]] = {
        "pretrain": [("loss (nats per token)", {"loss": "loss"})],
        "train-experts": [
            (label, {k: k.removeprefix(kind) for k in keys if k.startswith(kind)})
            for kind, label in _expert_panels(run).items()
        ],
        "train-router": [
            ("loss (nats)", {"loss": "total", "gate": "gate"}),
            ("gate accuracy", {"gate_accuracy": "gate accuracy"}),
        ],
    }
    seen = {
        "pretrain": "Training loss of the backbone at each step.",
        "train-experts": "Training loss of each objective's expert at each step.",
        "train-router": "Total loss and gate loss of the router at each step; below, how often "
        "its largest weight falls on the row's own objective.",
    }
    parts = []
    for stage, panel in panels.items():
        rows = _steps(run, stage)
        if not rows:
            skipped = run.stages.get(stage, {}).get("skipped")
            text = page.note(f"Skipped: {skipped}.") if skipped else _missing(stage)
            parts.append(f"<figure><strong>{stage}</strong>{text}</figure>")
            continue
        svg = draw.svg(stage, lambda rows=rows, panel=panel: draw.curves(rows, panel))
        parts.append(page.figure(svg, f"{stage}: {seen[stage]}", "metrics.jsonl"))
    return page.figures(*parts)


def _expert_panels(run: RunFiles) -> dict[str, str]:
    """Metrics of the expert stage, by prefix, and what their panels' axes say."""
    if (run.config.get("experts") or {}).get("loss") == "dpo":
        return {"loss/": "loss (nats per pair)", "reward_accuracy/": "pairs told apart"}
    return {"loss/": "loss (nats per token)"}


def _calibration(run: RunFiles, draw: ModuleType) -> str:
    stage = run.stages.get("calibrate-router")
    if stage is None:
        return _missing("calibrate-router")
    method = stage.get("method", "temperature")
    pictures = []
    for i, side in enumerate(("before", "after")):
        bins = stage["reliability"][side]
        svg = draw.svg(
            f"reliability-{side}",
            lambda bins=bins, side=side, i=i: draw.reliability(bins, side, "decisions", i),
        )
        seen = (
            f"Router accuracy against its confidence in bins of equal width, {side} the fit of "
            f"the {method}; on the dotted line both agree. Below, how many gate decisions (one "
            "per token and layer) fall in each bin."
        )
        pictures.append(page.figure(svg, seen, "summary.json"))
    answers = stage.get("answer") or {}
    rows = [
        [f"router, {side}", *(stage[side].get(key) for key, _ in _SCORES)]
        for side in ("before", "after")
    ] + [
        [f"answer by {name}, {side}", *(answer[side].get(key) for key, _ in _SCORES)]
        for name, answer in answers.items()
        for side in ("before", "after")
    ]
    measured = stage.get("measured_on") or stage
    return (
        page.figures(*pictures)
        + page.table(["calibration error", *(title for _, title in _SCORES)], rows)
        + page.note(
            f"Router: every layer's gate on {page.number(measured.get('tokens'))} tokens of the "
            f"{measured.get('split', 'held-out')} split, against the row's objective. Answer: the "
            "chosen option under each routing. Smaller is better in every column."
        )
    )


def _routing(run: RunFiles, draw: ModuleType) -> str:
    routing = run.stages.get("calibrate-router", {}).get("routing")
    if routing is None:
        return _missing("calibrate-router")
    svg = draw.svg(
        "routing",
        lambda: draw.heat_map(
            routing["objectives"],
            routing["experts"],
            routing["weights"],
            row_label="objective of the row",
            column_label="expert",
        ),
    )
    seen = "Mean gating weight that each expert gets on the rows of each objective."
    return page.figures(page.figure(svg, seen, "summary.json"))


def _accuracy(run: RunFiles, draw: ModuleType) -> str:
    stage = run.stages.get("score")
    if stage is None:
        return _missing("score")
    pictures = []
    for key, seen in (
        ("option_accuracy", "Share of rows whose likeliest option is the right one"),
        ("verified", "Share of greedy answers that the exact verifier accepts"),
    ):
        values = stage.get(key)
        if values is None:
            continue
        svg = draw.svg(
            key,
            lambda values=values: draw.heat_map(
                stage["objectives"],
                stage["routings"],
                values,
                row_label="objective",
                column_label="routing",
            ),
        )
        seen = f"{seen}, for each objective under each routing."
        pictures.append(page.figure(svg, seen, "summary.json"))
    return page.figures(*pictures)


def _risk(run: RunFiles, draw: ModuleType) -> str:
    from arbitrage.report import risk_curve_figure

    evaluation = run.evaluation
    svg = draw.svg("risk", lambda: risk_curve_figure(evaluation))
    seen = (
        "Mean shortfall of the deployed answer, in the Guardian's score, against the threshold "
        "lambda on held-out rows, with the calibrated threshold of each alpha."
    )
    head = ["alpha", "threshold", "risk", "stderr", "Guardian calls", "accuracy", "random", "delta"]
    rows: list[Sequence[Any]] = []
    for policy in evaluation["overall"]["policies"]:
        threshold = policy["threshold"]
        rows.append(
            [
                f"{policy['alpha']:g}",
                threshold if isinstance(threshold, str) else page.number(threshold, 6),
                *(policy.get(key) for key in ("risk", "risk_stderr")),
                _percent(policy.get("guardian_rate")),
                *(policy.get(key) for key in ("accuracy", "random_accuracy", "delta")),
            ]
        )
    warning = (
        ""
        if evaluation.get("held_out", True)
        else page.note("These are calibration rows: the risk is not a held-out one.")
    )
    return (
        page.figures(page.figure(svg, seen, "evaluation.json"))
        + page.table(head, rows)
        + _groups(evaluation)
        + page.note(f"{page.number(evaluation['overall']['n'])} rows. {evaluation['guarantee']}")
        + page.note(evaluation["note"])
        + warning
    )


def _groups(evaluation: Mapping[str, Any]) -> str:
    """Risk of each group: the guarantee is for all rows together, so a group may lie above."""
    groups = evaluation.get("groups")
    if not groups:
        return ""
    levels = [f"risk at alpha {p['alpha']:g}" for p in evaluation["overall"]["policies"]]
    rows = [
        [name, group["n"], *(policy["risk"] for policy in group["policies"])]
        for name, group in groups.items()
    ]
    return page.table(["group (not guaranteed each)", "rows", *levels], rows)


def _frontier(run: RunFiles, draw: ModuleType) -> str:
    from arbitrage.report import frontier_figure

    svg = draw.svg("frontier", lambda: frontier_figure(run.evaluation))
    seen = (
        "Every threshold's cost and result on held-out rows, against a router that calls the "
        "Guardian at random equally often."
    )
    return page.figures(page.figure(svg, seen, "evaluation.json"))


def _time(run: RunFiles, draw: ModuleType) -> str:
    rows: list[Sequence[Any]] = []
    for name in (stage for stage in STAGES if stage != "report"):
        stage = run.stages.get(name)
        seconds = "not run" if stage is None else page.number(stage.get("seconds"), 1)
        rows.append([hint(name), seconds])
    return page.table(["command", "seconds"], rows)


def _summary(run: RunFiles, draw: ModuleType) -> str:
    rows = [
        ("Trained", page.escape(_trained(run))),
        ("Router calibration", page.escape(_calibrated(run))),
        *(
            (f"Threshold, alpha {policy['alpha']:g}", page.escape(_threshold(policy)))
            for policy in run.evaluation["overall"]["policies"]
        ),
        ("Time", page.escape(_seconds(run))),
        ("Files", _links(run)),
    ]
    return page.facts(rows)


def _trained(run: RunFiles) -> str:
    model, mocae = (run.config.get(section) or {} for section in ("model", "mocae"))
    experts = run.stages.get("train-experts")
    if experts is None:
        return f"no experts yet; run {hint('train-experts')}"
    share = experts["trainable_parameters"] / experts["total_parameters"]
    return (
        f"{', '.join(experts.get('objectives', ()))} experts of rank {mocae.get('rank', '-')} over "
        f"{model.get('num_hidden_layers', '-')} layers of width {model.get('hidden_size', '-')}: "
        f"{experts['trainable_parameters']:,} of {experts['total_parameters']:,} parameters "
        f"trained ({share:.1%}); data: {(run.config.get('data') or {}).get('source', '-')}"
    ).lstrip()


def _calibrated(run: RunFiles) -> str:
    stage = run.stages.get("calibrate-router")
    if stage is None:
        return f"not yet; run {hint('calibrate-router')}"
    return "; ".join(
        f"{title} {page.number(stage['before'][key])} before, {page.number(stage['after'][key])} "
        "after"
        for key, title in _SCORES
        if key != "ece_mass"
    )


def _threshold(policy: Mapping[str, Any]) -> str:
    called = f"Guardian called on {_percent(policy['guardian_rate'])} of the rows"
    if not policy["feasible"]:
        return f"not feasible with this many calibration rows: always defers; {called}"
    error = policy.get("risk_stderr")
    return (
        f"{policy['threshold']:.6f}; risk {page.number(policy['risk'])}"
        f"{'' if error is None else f' (standard error {page.number(error)})'}; {called}"
    )


def _seconds(run: RunFiles) -> str:
    known = {n: s["seconds"] for n, s in run.stages.items() if n in STAGES and "seconds" in s}
    return f"{sum(known.values()):.0f} s in {len(known)} stages, listed below"


def _links(run: RunFiles) -> str:
    """Links beside the report, so that a moved run folder still works."""
    names = (*MAKERS, "policy.json", "scores/", "checkpoints/", "export/")
    return ", ".join(
        f'<a href="{page.escape(n)}">{page.escape(n)}</a>' for n in names if n in run.present
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
