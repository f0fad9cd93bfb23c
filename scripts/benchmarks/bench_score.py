"""Option scoring with the prompt read once for all options, against one sequence at a time.

    pip install "trinityx-jax[test]"
    python scripts/benchmarks/bench_score.py

The three ways give the same log-likelihoods of the same random Llama in float32: packed questions,
one compiled pass for each option, and `transformers` for each option. The last two are timed on
`--one-by-one` questions and their time is scaled to all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_generate import add_shape, load, random_llama
from timing import best_times, environment, print_table

from trinityx_jax.inference.packing import Question
from trinityx_jax.inference.score import score_options
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import Parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_shape(parser)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=100)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    print(environment("torch", "transformers"))
    reference = random_llama(options)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        plain, mixed, parameters = load(Path(folder), options.rank)
    questions = draw(options.questions, options.prompt, options.vocabulary)
    few = questions[: options.one_by_one]
    backbone = {name: parameters[name] for name in plain.arch.shapes}
    plain, mixed = (dataclasses.replace(x, batch_size=options.batch) for x in (plain, mixed))

    def packed(setup: Setup, held: Parameters, *routings: str) -> np.ndarray:
        return score_options(setup, held, questions, routings)[routings[0]].log_likelihood

    tasks = {
        "transformers, one by one": lambda: by_transformers(reference, few),
        "one by one": lambda: one_by_one(plain, backbone, few),
        "packed": lambda: packed(plain, backbone, "backbone"),
        "packed, mixture of 3": lambda: packed(mixed, parameters, "mixture"),
        "packed, 1 expert": lambda: packed(mixed, parameters, "helpful"),
        "packed, 2 experts in one pass": lambda: packed(mixed, parameters, "helpful", "harmless"),
    }
    want, got = tasks["transformers, one by one"](), tasks["packed"]()[: len(few)]
    print(f"largest difference from transformers: {np.abs(want - got).max():.1e} nats")
    seconds = best_times(tasks, options.repeats)
    for name in list(tasks)[:2]:
        seconds[name] *= len(questions) / len(few)
    rows = [
        [name, f"{s:.2f}", f"{len(questions) / s:.0f}", f"{seconds['one by one'] / s:.2f}"]
        for name, s in seconds.items()
    ]
    print_table(["what", "seconds", "questions/s", "x one by one"], rows)


def draw(n: int, prompt: int, vocabulary: int) -> list[Question]:
    """Questions with a prompt of this many tokens and four options of 4 to 12."""
    rng = np.random.default_rng(0)
    return [
        Question(
            rng.integers(3, vocabulary, prompt).tolist(),
            [rng.integers(3, vocabulary, rng.integers(4, 13)).tolist() for _ in range(4)],
        )
        for _ in range(n)
    ]


def one_by_one(setup: Setup, parameters: Parameters, questions: list[Question]) -> np.ndarray:
    """A pass for each option, padded to one length so that it is compiled once."""
    alone = dataclasses.replace(setup, batch_size=1)
    single = [Question(q.prompt, [option]) for q in questions for option in q.options]
    found = score_options(alone, parameters, single, ["backbone"])["backbone"]
    return found.log_likelihood.reshape(len(questions), -1)


def by_transformers(model, questions: list[Question]) -> np.ndarray:
    """The same by `transformers`, without padding."""
    found = []
    for prompt, choices in questions:
        for option in choices:
            ids = torch.tensor([[*prompt, *option]])
            with torch.no_grad():
                logits = model(ids[:, :-1], logits_to_keep=len(option)).logits[0]
            log_p = logits.log_softmax(-1)
            found.append(float(log_p[torch.arange(len(option)), ids[0, -len(option) :]].sum()))
    return np.array(found).reshape(len(questions), -1)


if __name__ == "__main__":
    main()
