"""Texts as they stand, without a template of ours, to token ids and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from arbitrage.io import read_json
from trinityx_jax.data.codec import Codec
from trinityx_jax.data.frame import text_frame
from trinityx_jax.data.hf_codec import HfCodec
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.errors import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class PlainText:
    """A tokenizer under lm-evaluation-harness' conventions.

    `prefix` are the ids before every text, `start_id` stands for an empty context. Special tokens
    in a text are recognised: chat templates write them.
    """

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    start_id: int
    eos_id: int

    def encode(self, text: str, prefixed: bool | None = None) -> list[int]:
        """Token ids; None leaves the prefix out where the text brings the start token itself."""
        if prefixed is None:
            prefixed = not text.startswith(self.token(self.start_id))
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*self.prefix, *ids] if prefixed else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens."""
        return self.tokenizer.decode(ids)

    def token(self, token_id: int) -> str:
        """Text of one token, also of a special one."""
        return self.tokenizer.decode([token_id], skip_special_tokens=False)


def plain_text(codec: Codec, files: Mapping[str, Path]) -> PlainText:
    """The tokenizer of a codec; `files` are those beside a Hugging Face model, name -> path.

    Raises UsageError for a codec of another kind, DataError for damaged files.
    """
    if isinstance(codec, HfCodec):
        bare = HfCodec(codec.tokenizer, codec.special, text_frame("{prompt}"), source=codec.source)
        bos_id = _bos_id(codec, files)
        return PlainText(
            codec.tokenizer, bare.head, codec.eos_id if bos_id is None else bos_id, codec.eos_id
        )
    if isinstance(codec, OwnCodec):
        return PlainText(codec.tokenizer, codec.head, codec.head[0], codec.eos_id)
    raise UsageError(f"a {type(codec).__name__} has no tokenizer for texts as they stand")


def _bos_id(codec: HfCodec, files: Mapping[str, Path]) -> int | None:
    """BOS as the tokenizer's own files name it: config.json may name one that no text begins with,
    which transformers' tokenizers and the harness do not see."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        said: dict[str, Any] = read_json(files[name]) if name in files else {}
        if "bos_token" in said:
            token = said["bos_token"]
            token = token.get("content") if isinstance(token, dict) else token
            return codec.tokenizer.token_to_id(token) if isinstance(token, str) else None
    return codec.special.bos_id
