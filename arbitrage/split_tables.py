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
# Title of a column: the measure and how it is written.
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "accuracy": ("accuracy", {}),
    "p lost": ("primary_drop", {}),
    "cost": ("cost", {}),
    "$/1000": ("cost", {"scale": 1000}),
    "lambda": ("threshold", {}),
    "Delta": ("delta", {"signed": True}),
    "G%": ("guardian_rate", {"scale": 100, "digits": 1}),
    "risk": ("risk", {"digits": 4}),
}
BASELINES = {
    "random router": "random_router",
    "shuffled": "shuffled",
    "max prob.": "max_probability",
    "oracle": "oracle",
}


def split_table(result: Mapping[str, Any]) -> str:
    """One line per policy: means over splits, each with its standard deviation over splits.

    The columns of Table 1 of arXiv 2506.00911, and the realised risk. Dollars are per 1,000 rows.
    Without labels, in place of accuracy and Delta: the Primary score given up, `p lost`.
    """
    dollars = result["cost_unit"].startswith("dollars")
    columns = {name: values for name, values in COLUMNS.items() if name not in ("cost", "$/1000")}
    if result["primary"]["accuracy"] is None:
        columns = {name: columns[name] for name in columns if name not in ("accuracy", "Delta")}
    else:
        del columns["p lost"]
    names = [*columns]
    names.insert(1, "$/1000" if dollars else "cost")
    rows = [["Primary", result["primary"]]]
    rows += [[f"{entry['menu']} {entry['alpha']:g}", entry] for entry in result["policies"]]
    rows.append(["Guardian", result["guardian"]])
    lines = []
    for title, values in rows:
        cells = [(COLUMNS[name][0], COLUMNS[name][1]) for name in names]
        lines.append([title, *(plus_minus(values.get(key), **how) for key, how in cells)])
    return aligned(["policy", *names], lines)


def plus_minus(value: Any, *, scale: float = 1, digits: int = 3, signed: bool = False) -> str:
    """`mean +- sd` of a summary, `-` where there is none."""
    if value is None or isinstance(value, str):
        return value or "-"
    text = f"{scale * value['mean']:{'+' if signed else ''}.{digits}f}"
    return text if not value["sd"] else f"{text} +- {scale * value['sd']:.{digits}f}"


def baseline_table(result: Mapping[str, Any]) -> str | None:
    """Accuracy (risk without labels) of each policy beside its baselines; None without baselines.

    `best lambda`: the smallest threshold whose TEST risk is at most alpha, known in hindsight only.
    """
    entries = [entry for entry in result["policies"] if entry.get("baselines")]
    if not entries:
        return None
    measure = "risk" if result["primary"]["accuracy"] is None else "accuracy"
    known = {title: name for title, name in BASELINES.items() if name in entries[0]["baselines"]}
    if measure == "risk":
        known.pop("oracle", None)
    line = ["random line"] if measure == "accuracy" else []
    rows = []
    for entry in entries:
        values = [entry[measure], *(entry["random_accuracy"] for _ in line)]
        values += [entry["baselines"][name][measure] for name in known.values()]
        values.append(entry["hindsight"][measure])
        means = ["-" if value is None else f"{value['mean']:.3f}" for value in values]
        rows.append([f"{entry['menu']} {entry['alpha']:g}", *means])
    return aligned([measure, "policy", *line, *known, "best lambda"], rows)


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
