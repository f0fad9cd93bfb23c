"""docs/plans.md from real runs of `trinityx plan`: python scripts/make_plans.py --results FOLDER

Each run's JSON is kept in FOLDER, and a run whose file is there is not repeated: the page can be
made in several goes. A run compiles up to three programs a step: seconds each on two cores at the
compiler's least effort (`--quick`), minutes without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GiB = 1 << 30
_TRAIN = ("train-experts",)


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the command; `steps` () for all."""

    config: str
    topology: str
    steps: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    quick: bool = True

    @property
    def arguments(self) -> list[str]:
        """Behind `trinityx plan`."""
        found = ["--config", f"configs/{self.config}.yaml", "--topology", self.topology]
        found += ["--step", *self.steps] if self.steps else []
        found += ["--quick"] if self.quick else []
        return found + [part for override in self.set for part in ("--set", override)]

    @property
    def file(self) -> str:
        parts = [self.config, self.topology, *self.steps, *self.set]
        parts += ["quick"] if self.quick else []
        return "_".join(parts).replace(":", "-").replace("=", "-") + ".json"


HOME = {
    "llama2_7b": "v5e:4x4",
    "mistral_7b": "v6e:2x4",
    "gemma_7b": "v6e:2x4",
    "deepseek_7b": "v5p:2x2x2",
    "qwen3_8b": "v5p:2x2x2",
}
FITS = [
    *(Run(config, topology) for config, topology in HOME.items()),
    *(
        Run(config, topology, _TRAIN)
        for config, home in HOME.items()
        for topology in ("v5e:4x4", "v6e:2x4", "v5p:2x2x2")
        if topology != home
    ),
]
FULL = [Run("llama2_7b", HOME["llama2_7b"], _TRAIN, quick=False)]
# Three rows of 2,048 tokens for each pair of chips, whatever their number.
SCALING = [
    Run(
        "llama2_7b",
        topology,
        _TRAIN,
        ("mesh.tensor=2", f"mesh.fsdp={fsdp}", f"experts.batch_size={fsdp}"),
    )
    for topology, fsdp in (("v5e:2x2", 2), ("v5e:4x4", 8), ("v5e:8x8", 32), ("v5e:16x16", 128))
]


def result(run: Run, results: Path) -> dict[str, Any]:
    """The run's object, from its file or from the command."""
    file = results / run.file
    if not file.exists():
        print(f"trinityx plan {' '.join(run.arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "trinityx_jax", "plan", *run.arguments, "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        temporary = file.with_suffix(".part")
        temporary.write_text(done.stdout)
        temporary.rename(file)
    return json.loads(file.read_text())


def fit_rows(run: Run, found: dict[str, Any]) -> list[list[str]]:
    """A line for each step of a run."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in found["mesh"].items() if n > 1)
    limit = found["device_limit_bytes"]
    rows = []
    for step in found["steps"]:
        over = step["device_bytes"] - limit
        places, count = (sum(c[n] for c in step["collectives"]) for n in ("places", "count"))
        gathers = sum(c["places"] for c in step["collectives"] if c["kind"] == "all-gather")
        bound = step["bound_seconds"]
        rows.append([
            run.config, f"{run.topology}, {mesh}", step["name"], step["size"],
            *(_gib(step["held"].get(part)) for part in ("parameters", "optimiser", "cache")),
            _gib(step["temporaries"]), f"{_gib(step['device_bytes'])} of {_gib(limit)}",
            "fits" if step["fits"] else f"**too big by {_gib(over)}**",
            _number(step["flops"], 1e12), _number(step["bytes_accessed"], 1e9),
            f"{places} ({gathers}), {count}" if step["fits"] else "",
            _number(_sent(step), 1e9) if step["fits"] else "",
            "" if bound is None else _bound(bound),
        ])  # fmt: skip
    rows += [
        [run.config, run.topology, name, *[""] * 6, "not compiled"] for name in found["skipped"]
    ]
    return rows


FIT_HEADERS = [
    "configuration", "topology, mesh", "step", "rows x tokens", "parameters", "optimiser", "cache",
    "temporaries", "needs", "verdict", "TFLOP", "GB accessed", "collectives (all-gathers), run",
    "GB sent",
    "bound",
]  # fmt: skip


def scaling_rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Per-chip figures by number of chips, and their ratio to the first."""
    rows: list[list[str]] = []
    first: tuple[float, float] | None = None
    for plan in found:
        [step] = plan["steps"]
        chips = 1
        for n in plan["mesh"].values():
            chips *= n
        if step["flops"] is None or not step["fits"]:
            rows.append([str(chips), step["size"], "does not fit"])
            continue
        moved = float(sum(c["bytes"] * c["count"] for c in step["collectives"]))
        first = first or (step["flops"], moved)
        rows.append([
            str(chips), step["size"], _number(step["flops"], 1e12),
            f"{step['flops'] / first[0]:.3f}", _number(moved, 1e9), f"{moved / first[1]:.3f}",
            _gib(step["device_bytes"]),
        ])  # fmt: skip
    return rows


SCALING_HEADERS = [
    "chips", "rows x tokens", "TFLOP a chip", "ratio", "GB of collectives' results a chip", "ratio",
    "needs GiB",
]  # fmt: skip


EFFORT_HEADERS = [
    "configuration", "topology", "needs quick", "needs", "TFLOP quick", "TFLOP",
    "GB accessed quick", "GB accessed", "GB sent quick", "GB sent",
]  # fmt: skip


def effort_row(run: Run, *steps: dict[str, Any]) -> list[str]:
    """The same step at the compiler's least effort and as a run compiles it."""
    row = [run.config, run.topology]
    for of in (
        lambda step: _gib(step["device_bytes"]),
        lambda step: _number(step["flops"], 1e12),
        lambda step: _number(step["bytes_accessed"], 1e9),
        lambda step: _number(_sent(step), 1e9),
    ):
        row += map(of, steps)
    return row


def page(
    fits: list[list[str]],
    efforts: list[list[str]],
    scaling: list[list[str]],
    versions: dict[str, str],
) -> str:
    """The whole document."""
    names = ", ".join(f"{name} {number}" for name, number in versions.items())
    text = f"""# Plans

What the TPU compiler says about the configurations of `configs/`: made by
`python scripts/make_plans.py --results FOLDER`, which calls `trinityx plan`, on a machine without a
TPU ({platform.machine()}, Python {platform.python_version()}, {names}). Nothing here was timed.

All sizes are GiB on one device. *Parameters*, *optimiser* and *cache* count the values of the
arguments; *temporaries* and *needs* (arguments, outputs, temporaries and code) are the compiler's,
against the memory it lets a program use. TFLOP and GB accessed are the compiler's estimates for
one device and one step, taken from one and two unrolled layers, compiled without collective matmul
(gathers that a loop hides behind their product), whose loops it counts once; to them come the FLOPs
of the attention kernels, which declare none. *Collectives* are counted in the
program's text, the all-gathers among them in brackets, and as they run: a layer's run once a
layer. *GB sent* is what each device must send for them in a ring's algorithm. *Bound* is a roofline
estimate: no step can be faster than this at the chip's published peaks, and none was shown to be as
fast. A decode step is one token of every row.

These are compiled with `--quick`, at the compiler's least effort: what that changes is in the
second table.

{_table(FIT_HEADERS, fits)}
"""
    if efforts:
        text += f"""
## Least and full effort

`train-experts` with `--quick` and without.

{_table(EFFORT_HEADERS, efforts)}
"""
    if scaling:
        text += f"""
## Weak scaling

`train-experts` of `configs/llama2_7b.yaml` with tensor 2 and all other chips on fsdp, three rows of
2,048 tokens for each pair of chips. FLOPs and bytes a chip were meant to stay within 10%. Bytes are
those of the collectives' results; of a gather's result over n chips a ring sends (n - 1) / n, which
grows from a half to nearly all of it. On 16 and 64 chips the compiler turns some gathers into loops
of permutes (collective matmul), which move a little more.

{_table(SCALING_HEADERS, scaling)}
"""
    return text


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [
        headers,
        ["---"] * len(headers),
        *(row + [""] * (len(headers) - len(row)) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sent(step: dict[str, Any]) -> float:
    return sum(c["sent_bytes"] for c in step["collectives"])


def _bound(bound: dict[str, float]) -> str:
    kinds = {name: bound[name] for name in ("compute", "memory", "links")}
    return f"{1e3 * bound['total']:.1f} ms, {max(kinds, key=lambda name: kinds[name])}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GiB:.2f}"


def _number(value: float | None, unit: float) -> str:
    """Three digits, never as a power of ten."""
    return "" if value is None else f"{float(f'{value / unit:.3g}'):,g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder for the runs' JSON")
    parser.add_argument("--cached", action="store_true", help="only what the folder holds")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)

    def wanted(runs: list[Run]) -> list[Run]:
        return [r for r in runs if not options.cached or (options.results / r.file).exists()]

    fits = [(run, result(run, options.results)) for run in wanted(FITS)]
    scaling = [result(run, options.results) for run in wanted(SCALING)]
    efforts = []
    for run in wanted(FULL):
        [full] = result(run, options.results)["steps"]
        home = result(Run(run.config, run.topology), options.results)
        quick = next(step for step in home["steps"] if step["name"] == full["name"])
        efforts.append(effort_row(run, quick, full))
    if not fits:
        raise SystemExit(f"no results in {options.results}; leave out --cached to make them")
    rows = [row for run, found in fits for row in fit_rows(run, found)]
    text = page(rows, efforts, scaling_rows(scaling), fits[0][1]["versions"])
    (ROOT / "docs" / "plans.md").write_text(text)


if __name__ == "__main__":
    main()
