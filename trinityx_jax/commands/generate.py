"""`trinityx generate`: answers to prompts, streamed, printed or written as JSON lines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arbitrage.io import atomic_path, check_output, sha256_file
from trinityx_jax.commands.lines import Prompt, read_prompts
from trinityx_jax.commands.opening import ModelOptions, check_routings, open_model, record
from trinityx_jax.errors import UsageError

if TYPE_CHECKING:
    from trinityx_jax.inference.generate import Answer
    from trinityx_jax.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Answers of a model to prompts."""

    prompt: tuple[str, ...] = ()
    """Texts to answer."""
    prompts: Path | None = None
    """JSON lines with `prompt` and, optionally, `id`."""
    routing: str = ""
    """Which experts answer (default: mixture; backbone where there are none)."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the most likely token; above, tokens are drawn."""
    top_k: int = 0
    """Draw from so many most likely tokens (0: all)."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    seed: int = 0
    """Of the draws."""
    stream: bool = False
    """Print one prompt's answer as it is written, as on a terminal."""
    output: Path | None = None
    """JSON lines to write, with OUTPUT.manifest.json beside them."""
    overwrite: bool = False
    """Replace an existing output."""


def run(options: Options) -> None:
    """Answers every prompt; the last line on stderr tells the programs compiled and the speed."""
    from trinityx_jax.inference.sampling import chooser

    prompts = _prompts(options)
    choice = chooser(options.temperature, options.top_k, options.top_p)
    check_routings(options, [options.routing] if options.routing else [])
    streamed = _is_streamed(options, len(prompts))
    manifest = _manifest_path(options.output) if options.output else None
    for path in filter(None, (options.output, manifest)):
        check_output(path, options.overwrite)
    model = open_model(options)
    ids = _encode(model, prompts, options.max_new_tokens)
    start = time.perf_counter()
    answers = model.answers(
        ids,
        routing=options.routing,
        max_new_tokens=options.max_new_tokens,
        chooser=choice,
        seed=options.seed,
        on_text=_show if streamed else None,
    )
    seconds = time.perf_counter() - start
    if options.output:
        _write(options, model, prompts, answers)
    elif streamed:
        print()
    else:
        _print(model, prompts, answers)
    print(_closing(answers, seconds), file=sys.stderr)


def _prompts(options: Options) -> list[Prompt]:
    if bool(options.prompt) == (options.prompts is not None):
        raise UsageError("give either --prompt TEXT or --prompts FILE")
    if options.prompts is not None:
        return read_prompts(options.prompts)
    for i, text in enumerate(options.prompt):
        if not text.strip():
            raise UsageError(f"--prompt: prompt {i} is empty; give it text")
    return [Prompt(str(i), text, f"prompt {i}") for i, text in enumerate(options.prompt)]


def _is_streamed(options: Options, count: int) -> bool:
    if options.stream and (count != 1 or options.output):
        raise UsageError("--stream takes one prompt and no --output")
    return count == 1 and not options.output and (options.stream or sys.stdout.isatty())


def _encode(model: LanguageModel, prompts: list[Prompt], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts. Raises DataError naming a prompt too long for its answer."""
    from trinityx_jax.data.codec import check_length

    room = model.config.max_position_embeddings - max_new_tokens
    ids = []
    for prompt in prompts:
        ids.append(model.setup.codec.prompt(prompt.text, example_id=prompt.id))
        if room > 0:  # else no prompt is to blame
            check_length(ids[-1], room, f"{prompt.where}, before its answer,")
    return ids


def _show(row: int, text: str) -> None:
    del row
    print(text, end="", flush=True)


def _print(model: LanguageModel, prompts: list[Prompt], answers: list[Answer]) -> None:
    for prompt, answer in zip(prompts, answers, strict=True):
        first = prompt.text.strip().splitlines()[0]
        print(f"> {first}\n{model.setup.codec.decode(answer.ids)}\n")


def _manifest_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.manifest.json")


def _write(
    options: Options, model: LanguageModel, prompts: list[Prompt], answers: list[Answer]
) -> None:
    assert options.output is not None
    routing = options.routing or model.default_routing
    with contextlib.ExitStack() as stack:
        lines, manifest = (
            stack.enter_context(atomic_path(path, options.overwrite))
            for path in (options.output, _manifest_path(options.output))
        )
        with lines.open("w", encoding="utf-8") as file:
            for prompt, answer in zip(prompts, answers, strict=True):
                row = {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "answer": model.setup.codec.decode(answer.ids),
                    "routing": routing,
                    "finished": bool(answer.finished),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        about = _about(options, model, routing, sha256_file(lines))
        manifest.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{len(answers)} answers in {options.output}")


def _about(options: Options, model: LanguageModel, routing: str, sha256: str) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return {
        **record(options, model),
        "routing": routing,
        "sampling": {name: getattr(options, name) for name in names},
        "sha256": sha256,
    }


def _closing(answers: list[Answer], seconds: float) -> str:
    from trinityx_jax.inference.programs import compiled

    tokens = sum(len(answer.ids) for answer in answers)
    programs = compiled()
    return (
        f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} a second), "
        f"{len(programs)} programs compiled: {'; '.join(programs)}"
    )
