"""A training step of three experts, and of their router, beside one adapter in PEFT.

    pip install "trinityx-jax[test,bench]"
    python scripts/benchmarks/bench_train.py

The same random Llama, the same tokens, float32, AdamW, every target counted. PEFT trains one LoRA
adapter of the FFN's three projections; we train three, each on its own rows of the batch, with one
clipping each, and then the router on the mixture of all three; with the layers in one scan, as a
run has them, and unrolled (`model.scan_layers: false`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from bench_generate import add_shape, random_llama
from peft import LoraConfig, get_peft_model
from timing import best_times, environment, print_table

from trinityx_jax.config import ExpertTrainConfig, MeshConfig, MoCaEConfig, RouterLossConfig
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Importance, Mixture, RouterWeight, Temperature
from trinityx_jax.sharding import make_mesh, shard_batch
from trinityx_jax.stages.experts import expert_loss
from trinityx_jax.stages.router import router_loss
from trinityx_jax.training.step import clip_by_expert_norm, make_optimizer, make_step

TRAIN = ExpertTrainConfig(steps=1000, learning_rate=1e-3, clip_norm=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_shape(parser)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="steps in one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=["scanned", "unrolled"])
    options = parser.parse_args()
    print(environment("flax", "torch", "transformers", "peft"))
    tokens = np.random.default_rng(0).integers(
        4, options.vocabulary, (options.rows, options.length + 1)
    )
    reference = random_llama(options)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        ours = our_steps(Path(folder), tokens, options)
    steps = {"transformers + PEFT, 1 adapter": peft_step(reference, tokens, options)} | ours
    tasks = {
        name: lambda step=step: [step() for _ in range(options.steps)]
        for name, step in steps.items()
    }
    best = best_times(tasks, options.repeats)
    count = options.steps * options.rows * options.length
    theirs = next(iter(best.values()))
    rows = [
        [
            name,
            f"{seconds / options.steps:.3f}",
            f"{count / seconds:.0f}",
            f"{theirs / seconds:.2f}",
        ]
        for name, seconds in best.items()
    ]
    print_table(["what", "seconds a step", "tokens/s", "x PEFT"], rows)
    products = gate_products(options)
    flops = 2 * options.rows * options.length * options.hidden * options.ffn
    rates = [f"{name} {flops / s / 1e9:.0f}" for name, s in best_times(products, 10).items()]
    print(f"the gate's matrix product alone, GFLOP/s: {', '.join(rates)}")


def gate_products(options: argparse.Namespace) -> dict[str, Callable]:
    """The same matrix product in both libraries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.rows * options.length, options.hidden), np.float32)
    W = rng.standard_normal((options.hidden, options.ffn), np.float32)
    theirs, ours = (torch.from_numpy(x), torch.from_numpy(W)), (jnp.asarray(x), jnp.asarray(W))
    product = jax.jit(jnp.matmul)
    return {
        "torch": lambda: theirs[0] @ theirs[1],
        "XLA": lambda: product(*ours).block_until_ready(),
    }


def peft_step(model, tokens: np.ndarray, options: argparse.Namespace) -> Callable[[], float]:
    """One step of PEFT's, on all rows."""
    targets = ["gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets)
    model = get_peft_model(model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=TRAIN.learning_rate, betas=(0.9, 0.95))
    inputs = torch.tensor(tokens[:, :-1])
    labels = torch.tensor(tokens[:, 1:])

    def step() -> float:
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, TRAIN.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_steps(folder: Path, tokens: np.ndarray, options: argparse.Namespace) -> dict[str, Callable]:
    """One step of each of our stages, through the stages' own functions, in each form."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config, loaded = load_checkpoint(folder, mesh)
    mocae = MoCaEConfig(rank=options.rank, lora_alpha=2.0 * options.rank)
    arch = architecture(config, mocae)
    E = len(mocae.objectives)
    batch = {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "loss_mask": np.ones((options.rows, options.length), np.float32),
        "segment_ids": np.ones((options.rows, options.length), np.int32),
        "positions": np.tile(np.arange(options.length, dtype=np.int32), (options.rows, 1)),
        "objective": np.sort(np.arange(options.rows, dtype=np.int32) % E),
    }
    backbone = dict(loaded)
    steps = {}
    for form in options.forms:
        unrolled = form == "unrolled"
        arch = arch.unrolled() if unrolled else arch.scanned()
        held = backbone if unrolled else arch.stack(dict(backbone), mesh)
        drawn = arch.init(
            jax.random.key(0), mesh, TaskVector, RouterWeight, Temperature, Importance
        )
        parameters = held | drawn
        stages = {
            f"{E} experts": (TaskVector, expert_loss(arch), clip_by_expert_norm(TRAIN.clip_norm)),
            "their router": (RouterWeight, router_loss(arch, RouterLossConfig(), Mixture()), None),
        }
        for name, (kind, loss, clip) in stages.items():
            trainable = {n: jnp.copy(x) for n, x in arch.only(parameters, kind).items()}
            frozen = {n: x for n, x in parameters.items() if n not in trainable}
            optimizer = make_optimizer(TRAIN, clip)
            state = (trainable, optimizer.init(trainable))
            step = make_step(loss, optimizer, state, mesh)
            steps[f"{name}, {form}"] = Stepper(step, state, frozen, shard_batch(batch, mesh))
    return steps


class Stepper:
    """Calls a step with the state that it left behind; waits for it."""

    def __init__(self, step, state, frozen, batch):
        self._step, self._state, self._rest = step, state, (frozen, batch)

    def __call__(self) -> float:
        *self._state, metrics = self._step(*self._state, *self._rest)
        return float(metrics["loss"])


if __name__ == "__main__":
    main()
