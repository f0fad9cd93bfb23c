"""Greedy generation by `transformers` and by this package, side by side, on one random Llama.

    pip install "trinityx-jax[test]"
    python scripts/benchmarks/bench_generate.py

Both read the same checkpoint in float32 and write the same number of tokens behind the same
prompts; times are of whole calls, prompt included. The mixture has three experts, all active.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from timing import best_times, environment, print_table

from trinityx_jax.config import DataConfig, MeshConfig, MoCaEConfig
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.tokenizer import train_tokenizer
from trinityx_jax.inference.generate import generate
from trinityx_jax.inference.setup import Setup
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Importance, Mixture, RouterWeight, Temperature
from trinityx_jax.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_shape(parser)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(environment("torch", "transformers"))
    reference = random_llama(options)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        plain, mixed, parameters = load(Path(folder), options.rank)
    rows = []
    for batch in options.batch:
        rows += compare(reference, plain, mixed, parameters, batch, options)
    headers = ["batch", "what", "seconds", "tokens/s", "x transformers", "x backbone's time"]
    print_table(headers, rows)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Options for the model's shape."""
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=16)


def random_llama(options: argparse.Namespace):
    """A `transformers` model of that shape with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        vocab_size=options.vocabulary,
    )
    return transformers.LlamaForCausalLM(config).eval()


def load(folder: Path, rank: int):
    """(backbone, mixture, parameters): the checkpoint, with and without random experts."""
    mesh = make_mesh(MeshConfig())
    config, parameters = load_checkpoint(folder, mesh)
    codec = OwnCodec(train_tokenizer(DataConfig(), [], ["word"]), "{prompt}")
    codec.stop_ids = (config.vocab_size,)  # never written: every answer has its full length
    arch = architecture(config, MoCaEConfig(rank=rank))
    experts = arch.init(jax.random.key(0), mesh, TaskVector, RouterWeight, Temperature, Importance)
    experts = {n: x + 0.01 if n.endswith(".B") else x for n, x in experts.items()}
    plain = Setup(architecture(config), codec, 0, 1, mesh, Mixture())
    return plain, dataclasses.replace(plain, arch=arch), {**parameters, **experts}


def compare(reference, plain, mixed, parameters, batch, options) -> list[list[str]]:
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, options.vocabulary, (batch, options.prompt))
    tokens = torch.tensor(prompts)
    backbone = {name: parameters[name] for name in plain.arch.shapes}

    def peer():
        with torch.no_grad():
            return reference.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens,
                pad_token_id=0,
            )

    def ours(setup, held, routing):
        return generate(
            dataclasses.replace(setup, batch_size=batch),
            held,
            prompts.tolist(),
            routing,
            max_new_tokens=options.new_tokens,
        )

    tasks = {
        "transformers": peer,
        "backbone": lambda: ours(plain, backbone, "backbone"),
        "one expert": lambda: ours(mixed, parameters, "helpful"),
        "mixture of 3": lambda: ours(mixed, parameters, "mixture"),
    }
    found = [answer.ids for answer in tasks["backbone"]()]
    same = np.array(found) == peer()[:, options.prompt :].numpy()
    print(f"batch {batch}: {same.mean():.1%} of the backbone's tokens are transformers' own")
    seconds = best_times(tasks, options.repeats)
    return [
        [
            str(batch),
            name,
            f"{s:.3f}",
            f"{batch * options.new_tokens / s:.0f}",
            f"{seconds['transformers'] / s:.2f}",
            f"{s / seconds['backbone']:.2f}",
        ]
        for name, s in seconds.items()
    ]


if __name__ == "__main__":
    main()
