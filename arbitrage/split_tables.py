"""Evaluations over splits as text for a terminal and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arbitrage.tables import aligned

MEASURES = (
    "accuracy", "cost", "threshold", "delta", "guardian_rate", "risk", "mean_set_size",
    "primary_drop", "random_accuracy",
)  # fmt: skip
NUMBERS = ("mean", "sd", "mc_error", "stderr", "p10", "median", "p90")
BASELINES = {
    "random router": "random_router",
    "shuffled": "shuffled",
    "max prob.": "max_probability",
    "oracle": "oracle",
}


def split_table(result: Mapping[str, Any]) -> str:
    """One line per policy: means over splits, each with its standard deviation over splits.

    The columns of Table 1 of arXiv 2506.00911, and the realised risk. Dollars are per 1,000 rows.
    """
    dollars = result["cost_unit"].startswith("dollars")
    cost = "$/1000" if dollars else "cost"
    headers = ["policy", "accuracy", cost, "lambda", "Delta", "G%", "risk"]
    scale = 1000 if dollars else 1
    rows = [_row("Primary", result["primary"], scale)]
    for entry in result["policies"]:
        rows.append(_row(f"{entry['menu']} {entry['alpha']:g}", entry, scale))
    rows.append(_row("Guardian", result["guardian"], scale))
    return aligned(headers, rows)


def _row(name: str, values: Mapping[str, Any], scale: int) -> list[str]:
    return [
        name,
        plus_minus(values["accuracy"]),
        plus_minus(values["cost"], scale=scale),
        plus_minus(values.get("threshold")),
        plus_minus(values.get("delta"), signed=True),
        plus_minus(values["guardian_rate"], scale=100, digits=1),
        plus_minus(values["risk"], digits=4),
    ]


def plus_minus(value: Any, *, scale: float = 1, digits: int = 3, signed: bool = False) -> str:
    """`mean +- sd` of a summary, `-` where there is none."""
    if value is None or isinstance(value, str):
        return value or "-"
    text = f"{scale * value['mean']:{'+' if signed else ''}.{digits}f}"
    return text if not value["sd"] else f"{text} +- {scale * value['sd']:.{digits}f}"


def baseline_table(result: Mapping[str, Any]) -> str | None:
    """Accuracy of each policy beside its baselines; None without labels or baselines."""
    entries = [entry for entry in result["policies"] if entry["accuracy"] and "baselines" in entry]
    if not entries:
        return None
    headers = ["accuracy", "policy", "random line", *BASELINES, "best lambda"]
    rows = []
    for entry in entries:
        found = entry["baselines"]
        others = [found[key]["accuracy"] for key in BASELINES.values()]
        values = [entry["accuracy"], entry["random_accuracy"], *others]
        values.append(entry["hindsight"]["accuracy"])
        means = ["-" if value is None else f"{value['mean']:.3f}" for value in values]
        rows.append([f"{entry['menu']} {entry['alpha']:g}", *means])
    return aligned(headers, rows)


def area_lines(result: Mapping[str, Any]) -> list[str]:
    """How far each menu's frontier lies above the random line, on average over its costs."""
    lines = []
    for menu, area in result["areas"].items():
        if area is None:
            continue
        heights = [("between the alphas", plus_minus(area["alphas_mean_height"], signed=True))]
        if area["family_mean_height"] is not None:
            heights.append(("over every lambda", f"{area['family_mean_height']:+.3f}"))
        told = ", ".join(f"{value} {where}" for where, value in heights)
        lines.append(f"Mean accuracy above the random line, {menu} menu: {told}.")
    return lines


def csv_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per policy (or baseline), alpha and measure."""
    for model in ("primary", "guardian"):
        yield from _measures({"policy": model}, result[model])
    for entry in result["policies"]:
        head = {"menu": entry["menu"], "alpha": entry["alpha"]}
        yield from _measures(head | {"policy": "conformal"}, entry)
        for name, values in {**entry.get("baselines", {}), "hindsight": entry["hindsight"]}.items():
            yield from _measures(head | {"policy": name}, values)


def _measures(head: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for measure in MEASURES:
        found = values.get(measure)
        if found == "inf":
            found = {"mean": "inf"}
        if found is not None:
            numbers = {name: found.get(name) for name in NUMBERS}
            yield dict(head) | {"measure": measure} | numbers


def write_csv(result: Mapping[str, Any], path: Path) -> None:
    """Writes `csv_rows`; columns policy, menu, alpha, measure and the numbers of a summary."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        columns = ["policy", "menu", "alpha", "measure", *NUMBERS]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(csv_rows(result))
