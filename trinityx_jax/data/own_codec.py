"""Codec of the tokenizers that this project trains: <bos> prompt, answer <eos>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from trinityx_jax.data.codec import Codec
from trinityx_jax.data.tokenizer import BOS, EOS, PAD, tokenizer_sha256


class OwnCodec(Codec):
    """Prompt and answer are tokenised apart; options are scored with their <eos>.

    `template` holds {prompt} once.
    """

    pad_id, eos_id, stop_ids, head = PAD, EOS, (EOS,), (BOS,)
    ends_options = True

    def __init__(self, tokenizer: Tokenizer, template: str):
        self.tokenizer, self.template = tokenizer, template
        self.vocab_size = tokenizer.get_vocab_size()

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def describe(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "tokenizer": "own",
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "revision": None,
            "vocab_size": self.vocab_size,
            "bos_id": BOS,
            "eos_id": EOS,
            "pad_id": PAD,
            "stop_ids": [EOS],
        }

    def _prompt_ids(self, prompt: str) -> list[int]:
        # replace, not format: a prompt may hold braces.
        return [BOS, *self.tokenizer.encode(self.template.replace("{prompt}", prompt)).ids]

    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        return self.tokenizer.encode(answer).ids
