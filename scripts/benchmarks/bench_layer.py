"""The MoCaE layer beside a dense FFN and beside three complete FFNs: time here, or cost on a TPU.

    python scripts/benchmarks/bench_layer.py                          # times on this machine
    python scripts/benchmarks/bench_layer.py --compile v5e:2x2 \\
        --hidden 4096 --ffn 11008 --tokens 8192 --dtype bfloat16      # the TPU compiler's figures

One layer, one device, three experts that are all active. Backward passes differentiate with respect
to the input and what is trained: nothing of the dense FFN, the task vectors of the others, whose
backbone is frozen. With --compile nothing runs: FLOPs, bytes and temporaries are the compiler's,
with those that the Pallas kernels declare; it needs the extra `tpu`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from trinityx_jax.plan.topology import prepare, topology_devices


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", help="TPU topology, such as v5e:2x2")
    options = parser.parse_args()
    if options.compile:
        prepare()
        compiled(options)
    else:
        timed(options)


def programs(options: argparse.Namespace) -> dict[str, tuple[Callable, Callable, Any]]:
    """{name: (forward, forward and backward, shapes of the parameters)}; both take (x, parameters).

    The backward pass sends a cotangent of x's shape, which is x again.
    """
    import jax
    from flax import nnx

    from trinityx_jax.config import MoCaEConfig, ModelConfig
    from trinityx_jax.models.ffn import FFN
    from trinityx_jax.models.mocae import MoCaE, PlainMoCaE, TaskVector
    from trinityx_jax.models.router import Mixture

    config = ModelConfig(
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        dtype=options.dtype,
        param_dtype=options.dtype,
    )
    names = tuple(f"expert{e}" for e in range(options.experts))
    mocae = MoCaEConfig(objectives=names, rank=options.rank, lora_alpha=float(options.rank))
    makers = {
        "dense FFN": lambda rngs: FFN(config, rngs),
        "mixture, shared": lambda rngs: MoCaE(config, mocae, rngs),
        "mixture, plain": lambda rngs: PlainMoCaE(config, mocae, rngs),
    }
    found = {}
    for name, make in makers.items():
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        graphdef, trained, frozen = nnx.split(module, TaskVector, ...)

        def forward(x, parts, graphdef=graphdef):
            return nnx.merge(graphdef, *parts)(x, Mixture())[0]

        def both(x, parts, forward=forward):
            y, back = jax.vjp(lambda x, moved: forward(x, (moved, parts[1])), x, parts[0])
            return y, back(x)

        found[name] = (forward, both, (trained, frozen))
    return found


def timed(options: argparse.Namespace) -> None:
    """Best of interleaved repeats."""
    import jax
    from timing import best_times, environment, print_table

    print(environment("flax"))
    x = jax.random.normal(jax.random.key(0), (1, options.tokens, options.hidden), options.dtype)
    tasks = {}
    for name, (forward, both, shapes) in programs(options).items():
        leaves, treedef = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [
            (0.02 * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        parts = jax.tree.unflatten(treedef, drawn)
        for what, function in (("forward", forward), ("forward + backward", both)):
            run = jax.jit(function)
            tasks[f"{name}: {what}"] = partial(_wait, run, x, parts)
    best = best_times(tasks, options.repeats)
    rows = []
    for task, seconds in best.items():
        name, what = task.split(": ")
        ratios = (seconds / best[f"{other}: {what}"] for other in ("dense FFN", "mixture, plain"))
        rows.append([name, what, f"{1e3 * seconds:.2f}", *(f"{ratio:.2f}" for ratio in ratios)])
    print_table(["layer", "pass", "ms", "x dense", "x plain"], rows)


def _wait(run: Callable, *arguments: Any) -> None:
    import jax

    jax.block_until_ready(run(*arguments))


def compiled(options: argparse.Namespace) -> None:
    """What the compiler says of each program on one device of the topology."""
    import jax
    from jax.sharding import SingleDeviceSharding
    from timing import environment, print_table

    device = topology_devices(options.compile)[0]
    print(environment("flax", "libtpu") + f"; compiled for {device.device_kind}")
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1, options.tokens, options.hidden), options.dtype, sharding=place)
    costs = {}
    for name, (forward, both, shapes) in programs(options).items():
        parts = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
        )
        for what, function in (("forward", forward), ("forward + backward", both)):
            program = jax.jit(function).lower(x, parts).compile()
            cost, memory = program.cost_analysis(), program.memory_analysis()
            assert cost and memory
            costs[name, what] = (
                cost["flops"] / 1e9,
                cost["bytes accessed"] / 1e9,
                memory.temp_size_in_bytes / 1e6,
            )
    rows = []
    for (name, what), values in costs.items():
        cells = []
        for value, dense in zip(values, costs["dense FFN", what], strict=True):
            cells += [f"{value:.1f}" if value > 100 else f"{value:.2f}", f"{value / dense:.2f}"]
        rows.append([name, what, *cells])
    print_table(["layer", "pass", "GFLOP", "x", "GB moved", "x", "MB temporary", "x"], rows)


if __name__ == "__main__":
    main()
