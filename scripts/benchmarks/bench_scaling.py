"""Weak scaling of the expert stage's step on paper: what a chip computes and sends, 4 to 256 chips.

    pip install "trinityx-jax[tpu]"
    python scripts/benchmarks/bench_scaling.py

The TPU compiler plans one step on slices of growing size: fsdp grows with the chips, tensor stays
2, and every chip keeps its number of rows. Nothing runs. `sent` is the least that a ring's
algorithm sends a step; ratios are to the smallest slice.
"""

from __future__ import annotations

import argparse

from timing import environment, print_table

from trinityx_jax import config as cfg
from trinityx_jax.plan.topology import prepare

TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
TENSOR = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=2816)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1, help="of each objective, for 2 chips")
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    options = parser.parse_args()
    prepare()
    from trinityx_jax.plan.plan import make_plan

    print(environment("flax", "libtpu"))
    found = []
    for topology in options.topologies:
        chips = _chips(topology)
        plan = make_plan(configuration(options, chips), topology, ["train-experts"])
        (step,) = plan.steps
        assert step.flops is not None
        sent = sum(collective.wire_bytes for collective in step.collectives)
        found.append((topology, chips, step.flops, sent, step.device_bytes))
    first = found[0]
    rows = [
        [
            topology,
            str(chips),
            f"{flops / 1e9:.2f}",
            f"{flops / first[2]:.2f}",
            f"{sent / 1e6:.1f}",
            f"{sent / first[3]:.2f}",
            f"{memory / 1e6:.0f}",
        ]
        for topology, chips, flops, sent, memory in found
    ]
    print_table(["slice", "chips", "GFLOP a chip", "x", "MB sent", "x", "MB a chip"], rows)


def configuration(options: argparse.Namespace, chips: int) -> cfg.Config:
    """The same model and rows a chip on any number of chips."""
    return cfg.from_dict(
        cfg.Config,
        {
            "model": {
                "vocab_size": 8192,
                "hidden_size": options.hidden,
                "intermediate_size": options.ffn,
                "num_hidden_layers": options.layers,
                "num_attention_heads": options.hidden // 64,
                "num_key_value_heads": options.hidden // 64,
                "head_dim": 64,
                "dtype": "bfloat16",
                "param_dtype": "bfloat16",
                "remat": "layers",
            },
            "mocae": {"rank": 16, "lora_alpha": 32.0},
            "data": {"max_length": options.length},
            "mesh": {"data": 1, "fsdp": chips // TENSOR, "tensor": TENSOR},
            "experts": {"batch_size": options.rows * chips // TENSOR},
        },
    )


def _chips(topology: str) -> int:
    width, height = topology.partition(":")[2].split("x")
    return int(width) * int(height)


if __name__ == "__main__":
    main()
