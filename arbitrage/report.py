"""Figures of an evaluation, drawn from its JSON alone: no score table is needed.

Needs matplotlib, which is loaded when a figure is drawn: pip install "trinityx-jax[report]".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arbitrage.errors import UsageError
from arbitrage.io import atomic_path, check_output

# Okabe and Ito's palette: told apart by colour-blind readers. Six colours and seven shapes, so
# that 42 alphas look different.
BLACK, GREY = "#222222", "#8c8c8c"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "<")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",  # a white ground without a frame: lines pass behind the text
    "legend.framealpha": 0.9,
    "svg.hashsalt": "arbitrage",  # the same input gives the same file
}
FORMATS = ("svg", "png")


def check_matplotlib() -> None:
    """Raises UsageError with the remedy when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError('figures need matplotlib: pip install "trinityx-jax[report]"') from error


def styled(draw: Callable[[Mapping[str, Any]], Any]):
    """Draws inside our style: much of it is read when a text or a legend is made."""

    @functools.wraps(draw)
    def wrapper(evaluation: Mapping[str, Any]):
        check_matplotlib()
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(evaluation)

    return wrapper


def new_axes(title: str, x_label: str, y_label: str):
    """A new figure without pyplot, so that no window or global state is involved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _policies(evaluation: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, str]]:
    """Each alpha's results with its colour and marker."""
    policies: Sequence[Mapping[str, Any]] = evaluation["overall"]["policies"]
    return [
        (policy, COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)])
        for at, policy in enumerate(policies)
    ]


@styled
def risk_curve_figure(evaluation: Mapping[str, Any]):
    """Held-out risk against lambda as a staircase; per alpha its threshold and its budget line."""
    figure, axes = new_axes(
        f"Risk falls as more options stay open (n = {evaluation['overall']['n']} held-out rows)",
        "lambda (largest gap to the Primary's top score that stays a candidate)",
        "mean shortfall in the Guardian's score",
    )
    curve = evaluation["curves"]["risk"]
    lambdas, risk = list(curve["lambda"]), list(curve["risk"])
    last = max(lambdas[-1], 1e-6) * 1.03
    axes.step([*lambdas, last], [*risk, risk[-1]], where="post", color=BLACK, lw=1.4)
    for policy, colour, marker in _policies(evaluation):
        alpha, infinite = policy["alpha"], policy["threshold"] == "inf"
        axes.axhline(alpha, color=colour, lw=1, ls=(0, (4, 3)))
        label = f"alpha = {alpha:g}: "
        label += "infeasible" if infinite else f"threshold {policy['threshold']:.3g}"
        where = last if infinite else policy["threshold"]
        axes.plot(
            where,
            policy["risk"],
            marker,
            color=colour,
            ms=7,
            label=label,
            clip_on=False,
            mec="white",
            mew=0.8,
            zorder=3,
        )
    axes.set_xlim(0, last)
    axes.set_ylim(0, 1.08 * max([*risk, *(p["alpha"] for p, _, _ in _policies(evaluation))]))
    axes.legend(loc="upper right", title="dashed: risk budget", alignment="left")
    return figure


@styled
def frontier_figure(evaluation: Mapping[str, Any]):
    """Accuracy against Guardian rate: all lambdas, the calibrated ones, the random router's line.

    Without labels the vertical axis is the risk.
    """
    curve = evaluation["curves"]["frontier"]
    overall = evaluation["overall"]
    value = "risk" if curve["accuracy"] is None else "accuracy"
    title = {
        "accuracy": "Accuracy bought by asking the Guardian",
        "risk": "Risk removed by asking the Guardian",
    }[value]
    y_label = "accuracy" if value == "accuracy" else "mean shortfall in the Guardian's score"
    figure, axes = new_axes(
        f"{title} (n = {overall['n']} held-out rows)", "share of rows sent to the Guardian", y_label
    )
    ends = [overall["primary"][value], overall["guardian"][value]]
    axes.plot([0, 1], ends, color=GREY, lw=1.2, ls=(0, (4, 3)), label="random router, equal rate")
    axes.plot(curve["guardian_rate"], curve[value], color=BLACK, lw=1.4, label="every lambda")
    for policy, colour, marker in _policies(evaluation):
        error = policy[f"{value}_stderr"]
        axes.errorbar(
            policy["guardian_rate"],
            policy[value],
            yerr=error,
            fmt=marker,
            color=colour,
            ms=7,
            mec="white",
            mew=0.8,
            capsize=2.5,
            lw=1,
            zorder=3,
            label=f"alpha = {policy['alpha']:g}",
        )
    axes.plot(0, ends[0], "*", color=BLACK, ms=15, zorder=2.5, label="Primary alone")
    axes.plot(1, ends[1], "X", color=BLACK, ms=12, zorder=2.5, label="Guardian alone")
    axes.set_xlim(-0.02, 1.02)
    axes.legend(
        loc="best",  # the curve may take any corner
        title="bars: one standard error",
        alignment="left",
    )
    return figure


@styled
def risk_vs_alpha_figure(evaluation: Mapping[str, Any]):
    """Realised held-out risk, with two standard errors, against alpha; the diagonal is equality."""
    n = evaluation["overall"]["n"]
    figure, axes = new_axes(
        f"Realised risk against the risk asked for (n = {n} held-out rows)",
        "alpha (risk level asked for)",
        "mean shortfall in the Guardian's score",
    )
    top = 0.0
    for policy, colour, marker in _policies(evaluation):
        error = 2 * (policy["risk_stderr"] or 0.0)
        feasible = policy["feasible"]
        axes.errorbar(
            policy["alpha"],
            policy["risk"],
            yerr=error,
            fmt=marker,
            color=colour,
            ms=7,
            mec="white" if feasible else colour,
            mfc=colour if feasible else "white",
            mew=0.8,
            capsize=3,
            lw=1.2,
            zorder=3,
        )
        top = max(top, policy["alpha"], policy["risk"] + error)
    top = 1.12 * (top or 1.0)
    axes.plot([0, top], [0, top], color=GREY, lw=1.2, ls=(0, (4, 3)), label="risk = alpha")
    axes.plot([], [], "o", color=BLACK, label="held-out risk, +- 2 standard errors")
    if not all(policy["feasible"] for policy, _, _ in _policies(evaluation)):
        axes.plot([], [], "o", color=BLACK, mfc="white", label="infeasible alpha: always deferred")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.legend(loc="lower right")
    return figure


FIGURES = {
    "risk_curve": risk_curve_figure,
    "frontier": frontier_figure,
    "risk_vs_alpha": risk_vs_alpha_figure,
}


def _paths(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, list[Path]]:
    return {name: [Path(folder) / f"{name}.{form}" for form in FORMATS] for name in names}


def check_figures(
    folder: str | os.PathLike, overwrite: bool = False, names: Iterable[str] = tuple(FIGURES)
) -> None:
    """Fails at once where `write_figures` would fail after the work is done."""
    check_matplotlib()
    for paths in _paths(folder, names).values():
        for path in paths:
            check_output(path, overwrite)


def write_figures(
    evaluation: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
    figures: Mapping[str, Callable[[Mapping[str, Any]], Any]] = FIGURES,
) -> list[Path]:
    """Writes every figure as SVG and PNG into `folder` and returns the paths."""
    check_figures(folder, overwrite, figures)
    files = _paths(folder, figures)
    for name, paths in files.items():
        figure = figures[name](evaluation)
        for path in paths:
            with atomic_path(path, overwrite) as temporary:
                save_figure(figure, temporary)
    return [path for paths in files.values() for path in paths]


def save_figure(figure, path: Path) -> None:
    """Saves as the format of the path's suffix, without a date, so that files are reproducible."""
    from matplotlib import rc_context

    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context(STYLE):
        figure.savefig(path, dpi=160, metadata=metadata)
