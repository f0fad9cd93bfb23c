"""Figures of an evaluation over splits, drawn from its JSON alone.

Needs matplotlib, which is loaded when a figure is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from arbitrage.report import BLACK, COLOURS, GREY, MARKERS, new_axes, styled

MENU_LOOK = {"restricted": (COLOURS[0], "o"), "full": (COLOURS[1], "s")}
DASHED = (0, (4, 3))


def _of_menu(evaluation: Mapping[str, Any], menu: str) -> list[Mapping[str, Any]]:
    return [entry for entry in evaluation["policies"] if entry["menu"] == menu]


def _counts(evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['splits']} splits, {evaluation['test_units']:.0f} test units each"


@styled
def split_frontier_figure(evaluation: Mapping[str, Any]):
    """Accuracy (risk without labels) against cost: bands over splits, alphas, the random line."""
    value = "risk" if evaluation["primary"]["accuracy"] is None else "accuracy"
    figure, axes = new_axes(
        f"{value.capitalize()} against cost ({_counts(evaluation)})",
        f"mean cost ({evaluation['cost_unit']})",
        value if value == "accuracy" else "mean loss",
    )
    ends = [evaluation[model] for model in ("primary", "guardian")]
    x, y = ([end[name]["mean"] for end in ends] for name in ("cost", value))
    axes.plot(x, y, color=GREY, lw=1.2, ls=DASHED, label="random router, equal cost")
    for menu, (colour, marker) in MENU_LOOK.items():
        band = evaluation["curves"][menu]
        cost, level = band["cost"]["mean"], band[value]
        axes.plot(cost, level["mean"], color=colour, lw=1.4)
        axes.fill_between(cost, level["p10"], level["p90"], color=colour, alpha=0.13, lw=0)
        points = [entry for entry in _of_menu(evaluation, menu) if entry[value] and entry["cost"]]
        axes.plot(
            [entry["cost"]["mean"] for entry in points],
            [entry[value]["mean"] for entry in points],
            marker, color=colour, ms=6, mec="white", mew=0.8, zorder=3,
            label=f"{menu} menu: all lambdas, marks = alphas",
        )  # fmt: skip
    axes.plot(x[0], y[0], "*", color=BLACK, ms=14, zorder=2.5, label="Primary alone")
    axes.plot(x[1], y[1], "X", color=BLACK, ms=11, zorder=2.5, label="Guardian alone")
    axes.legend(loc="best", title="bands: 10-90% of the splits", alignment="left")
    return figure


@styled
def split_risk_figure(evaluation: Mapping[str, Any]):
    """Realised test risk against alpha: mean over splits and the 10-90% range; the diagonal."""
    figure, axes = new_axes(
        f"Realised risk against the risk asked for ({_counts(evaluation)})",
        "alpha (risk level asked for)",
        "mean loss on the test part",
    )
    levels = evaluation["alphas"]
    gap = min([abs(b - a) for a, b in itertools.pairwise(levels)] or [levels[0]])
    top = 0.0
    for side, (menu, (colour, marker)) in zip((-1, 1), MENU_LOOK.items(), strict=True):
        for at, entry in enumerate(_of_menu(evaluation, menu)):
            risk = entry["risk"]
            bars = [[risk["mean"] - risk["p10"]], [risk["p90"] - risk["mean"]]]
            axes.errorbar(
                entry["alpha"] + side * gap * 0.06, risk["mean"], yerr=bars, fmt=marker,
                color=colour, ms=6, mec="white", mew=0.8, capsize=3, lw=1.2, zorder=3,
                label=f"{menu} menu" if at == 0 else None,
            )  # fmt: skip
            top = max(top, entry["alpha"], risk["p90"])
    top *= 1.12
    axes.plot([0, top], [0, top], color=GREY, lw=1.2, ls=DASHED, label="risk = alpha")
    own = evaluation["primary"]["risk"]["mean"]
    if own <= top:
        axes.axhline(own, color=BLACK, lw=0.9, ls=":", label="Primary alone")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.legend(loc="upper left", title="bars: 10-90% of the splits", alignment="left")
    return figure


@styled
def set_size_figure(evaluation: Mapping[str, Any]):
    """How many candidates the restricted policy leaves open, per alpha."""
    figure, axes = new_axes(
        f"Candidates at the median threshold (n = {evaluation['n']} rows)",
        "number of candidates (1: the Primary answers alone)",
        "share of rows",
    )
    sizes, shares = evaluation["set_sizes"]["sizes"], evaluation["set_sizes"]["share"]
    width = 0.8 / len(shares)
    for at, (level, share) in enumerate(zip(evaluation["alphas"], shares, strict=True)):
        where = [size - 0.4 + width * (at + 0.5) for size in sizes]
        hatch = "" if at < len(COLOURS) else "///"
        axes.bar(where, share, width * 0.92, color=COLOURS[at % len(COLOURS)], hatch=hatch,
                 label=f"alpha = {level:g}")  # fmt: skip
    axes.set_xticks(sizes)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="best")
    return figure


@styled
def group_threshold_figure(evaluation: Mapping[str, Any]):
    """The threshold each group alone would get, against the one of all rows together."""
    groups = sorted(evaluation["groups"].items(), key=lambda item: -item[1]["units"])
    figure, axes = new_axes("", "threshold lambda", "")
    # Group names make the axes narrow: the title starts at the figure's edge.
    figure.suptitle(
        "Threshold of each group alone (marks: median split, bars: 10-90%)",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    figure.set_size_inches(6.4, max(3.0, 1.6 + 0.26 * len(groups)))
    pooled = _of_menu(evaluation, "restricted")
    chosen = sorted({0, len(pooled) // 2, len(pooled) - 1})
    for order, at in enumerate(chosen):
        colour, entry = COLOURS[order], pooled[at]
        if entry["threshold"] not in (None, "inf"):
            axes.axvline(entry["threshold"]["mean"], color=colour, lw=1, ls=DASHED)
        axes.plot([], [], MARKERS[order], color=colour, label=f"alpha = {entry['alpha']:g}")
        for row, (_, group) in enumerate(groups):
            found = group["thresholds"][at]
            if found is None or group["feasible"][at] < 0.5:
                continue
            low, high, y = found["p10"], found["p90"], row + 0.22 * (order - 1)
            axes.plot([low, high], [y, y], color=colour, lw=1.2)
            axes.plot(found["median"], y, MARKERS[order], color=colour, ms=5, mec="white", mew=0.6)
    axes.set_yticks(range(len(groups)), [f"{name} ({g['units']})" for name, g in groups])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(left=min(0.0, *axes.get_xlim()))
    figure.legend(
        loc="outside lower center", ncols=3, alignment="left",
        title="dashed: all rows together; no mark: always deferred",
    )  # fmt: skip
    return figure


FIGURES = {
    "split_frontier": split_frontier_figure,
    "split_risk": split_risk_figure,
    "set_sizes": set_size_figure,
    "group_thresholds": group_threshold_figure,
}


def split_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures this evaluation has content for, by file name."""
    without = () if evaluation["groups"] else ("group_thresholds",)
    return {name: draw for name, draw in FIGURES.items() if name not in without}
