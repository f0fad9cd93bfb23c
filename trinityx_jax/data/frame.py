"""What stands around a prompt: a template of the user's own, or a model's chat template."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from arbitrage.errors import one_line
from trinityx_jax.errors import DataError, UsageError

CHAT = "chat"  # data.template: the folder's chat template
_MARK = "\ue000prompt\ue001"  # private characters, so that no template holds it


@dataclasses.dataclass(frozen=True)
class Frame:
    """The text before and after a prompt.

    `chat`: the frame is complete, with its special tokens, and an answer follows it at once. Else
    the tokenizer adds its own, and white space separates the answer. `trims`: the chat template
    strips the prompt.
    """

    name: str
    before: str
    after: str
    chat: bool = False
    trims: bool = False

    def fill(self, prompt: str) -> tuple[str, int, int]:
        """The text, and where in it the prompt begins and ends."""
        prompt = prompt.strip() if self.trims else prompt
        start = len(self.before)
        return self.before + prompt + self.after, start, start + len(prompt)


def text_frame(template: str) -> Frame:
    """Frame of a template that holds {prompt} once."""
    before, _, after = template.partition("{prompt}")
    return Frame(template, before, after)


def chat_frame(folder: Path) -> Frame:
    """One user turn and the beginning of the answer, as the folder's chat template renders them.

    Rendered once, around a mark: a template that tells the date tells today's to every row. Raises
    UsageError where transformers or the chat template is missing, DataError where the template does
    something else with a prompt than to insert it.
    """
    tokenizer = auto_tokenizer(folder, f"data.template={CHAT}")
    if not tokenizer.chat_template:
        raise UsageError(
            f"data.template={CHAT}: {folder} has no chat template; write a template with {{prompt}}"
        )
    padded = f" \n{_MARK}\n "
    text, spaced = (_render(tokenizer, folder, prompt) for prompt in (_MARK, padded))
    before, _, after = text.partition(_MARK)
    trims = {before + padded + after: False, text: True}
    if text.count(_MARK) != 1 or spaced not in trims:
        raise DataError(
            f"data.template={CHAT}: the chat template of {folder} does not simply insert the "
            "prompt; write a template with {prompt}"
        )
    return Frame(CHAT, before, after, chat=True, trims=trims[spaced])


def auto_tokenizer(folder: Path, wanted_by: str) -> Any:
    """transformers' tokenizer of a folder, without network and without the folder's own code."""
    try:
        from transformers import AutoTokenizer
    except ImportError as e:
        raise UsageError(f'{wanted_by} needs transformers; pip install "trinityx-jax[hf]"') from e
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as e:  # whatever a damaged or foreign file makes the library raise
        raise DataError(
            f"tokenizer of {folder}: transformers cannot read it ({one_line(str(e))})"
        ) from e


def _render(tokenizer: Any, folder: Path, prompt: str) -> str:
    turn = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as e:  # Jinja's errors, and those that templates raise themselves
        raise DataError(f"chat template of {folder}: {one_line(str(e))}; write a template") from e
