"""Resident parameters of a mixture against its backbone's, for each way to hold the experts.

    python scripts/benchmarks/bench_parameters.py --config configs/llama2_7b.yaml --rank 64

Counted from the models' shapes; nothing is allocated. Task vectors are float32, as they are trained
and served; complete FFNs have the backbone's dtype.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from timing import environment, print_table

from trinityx_jax import config as cfg
from trinityx_jax.models.parameters import architecture

LLAMA = Path(__file__).resolve().parents[2] / "configs" / "llama2_7b.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=LLAMA)
    parser.add_argument("--rank", type=int, default=64)
    options = parser.parse_args()
    config = cfg.load(options.config)
    low_rank = dataclasses.replace(config.mocae, rank=options.rank)
    E = len(low_rank.objectives)
    forms = {
        "backbone": None,
        f"{E} experts of rank {options.rank}": low_rank,
        f"{E} complete FFNs": dataclasses.replace(low_rank, expert="ffn"),
    }
    print(environment("flax"))
    held = {
        name: architecture(config.model, mocae).shapes.values() for name, mocae in forms.items()
    }
    counts = {name: sum(math.prod(x.shape) for x in xs) for name, xs in held.items()}
    sizes = {
        name: sum(math.prod(x.shape) * x.dtype.itemsize for x in xs) for name, xs in held.items()
    }
    rows = [
        [
            name,
            f"{counts[name] / 1e6:,.1f}",
            f"{counts[name] / counts['backbone']:.3f}",
            f"{sizes[name] / 1e9:.2f}",
            f"{sizes[name] / sizes['backbone']:.3f}",
        ]
        for name in forms
    ]
    print_table(["model", "million parameters", "x", "GB", "x"], rows)


if __name__ == "__main__":
    main()
