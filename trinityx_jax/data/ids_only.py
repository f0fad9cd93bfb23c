"""The codec of a model folder without a tokenizer: token ids in and out, and no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trinityx_jax.data.codec import Codec
from trinityx_jax.data.special_ids import model_ids
from trinityx_jax.errors import UsageError

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


class IdsOnly(Codec):
    """Knows where an answer stops; every use of text is a UsageError with the remedy."""

    ends_options = False
    head = ()
    vocab_size = 0  # it gives no ids

    def __init__(self, folder: Path, source: str, revision: str | None = None):
        self.source, self.revision = source, revision
        self.stop_ids = tuple(model_ids(folder, "eos"))
        self.eos_id = self.stop_ids[0] if self.stop_ids else 0
        self.pad_id = 0

    def decode(self, ids: Sequence[int]) -> str:
        self._refuse()

    def describe(self) -> dict[str, Any]:
        return {
            "template": None,
            "tokenizer": None,
            "revision": self.revision,
            "stop_ids": list(self.stop_ids),
        }

    def _prompt_ids(self, prompt: str) -> list[int]:
        self._refuse()

    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"{self.source} has no tokenizer: add {' or '.join(TOKENIZERS)}, or work with token ids"
        )
