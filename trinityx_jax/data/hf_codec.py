"""Codec of a Hugging Face folder: its tokenizer, special tokens and, if wanted, chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from arbitrage.errors import one_line
from trinityx_jax.data.codec import Codec
from trinityx_jax.data.frame import CHAT, Frame, auto_tokenizer, chat_frame, text_frame
from trinityx_jax.data.special_ids import SpecialIds, special_ids
from trinityx_jax.data.tokenizer import tokenizer_sha256
from trinityx_jax.errors import DataError, UsageError


class HfCodec(Codec):
    """Prompt and answer are tokenised together; options are scored without an end marker.

    The answer's ids are those of the joint text behind as many ids as the prompt has alone
    (lm-evaluation-harness' convention), whether or not the joint ids begin with the prompt's. As
    there, white space at the prompt's end belongs to the answer, and one space stands in for it;
    a chat template is followed by the answer at once. Before a text come the ids that the
    tokenizer's post-processor puts there, or BOS where it puts none and `add_bos_token` asks for
    it (older tokenizer.json files leave that to transformers); ids that it puts behind do not
    come, and a chat template has all that it needs.

    Special tokens are recognised in the template only: what looks like one in a row's own text is
    cut in two, so that it stays text.
    """

    ends_options = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: SpecialIds,
        frame: Frame,
        *,
        source: str,
        revision: str | None = None,
    ):
        tokenizer.no_truncation()  # some files carry the limits of their training
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        self.tokenizer, self.special, self.frame = tokenizer, special, frame
        self.source, self.revision = source, revision
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id, self.eos_id = special.pad_id, special.eos_id
        self.stop_ids = special.stop_ids
        names = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        longest_first = sorted((n for n in names if len(n) > 1), key=len, reverse=True)
        self._special = re.compile(f"(?=({'|'.join(map(re.escape, longest_first)) or '(?!)'}))")
        before = self._ids(frame.before.rstrip() if not frame.chat else frame.before, ())
        prefix = [] if frame.chat else _prefix(tokenizer, special)
        self._prefix = [] if before[: len(prefix)] == prefix else prefix
        self.head = (*self._prefix, *before)

    def decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(ids)
        return text if self.frame.chat else text.removeprefix(" ")  # what separates it

    def describe(self) -> dict[str, Any]:
        special = self.special
        return {
            "template": self.frame.name,
            "rendered": self.frame.fill("{prompt}")[0],
            "tokenizer": self.source,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "revision": self.revision,
            "vocab_size": self.vocab_size,
            "bos_id": special.bos_id,
            "eos_id": special.eos_id,
            "pad_id": special.pad_id,
            "stop_ids": list(special.stop_ids),
        }

    def _prompt_ids(self, prompt: str) -> list[int]:
        text, start, end = self.frame.fill(prompt)
        if not self.frame.chat:
            text = text.rstrip()
        return self._prefix + self._ids(text, self._cuts(text, start, end))

    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        if not answer:
            return []
        text, start, end = self.frame.fill(prompt)
        cuts = self._cuts(text, start, end)
        if not self.frame.chat and text == text.rstrip() and answer == answer.lstrip():
            text += " "
        joint = text + answer
        cuts += self._cuts(joint, len(text), len(joint))
        return (self._prefix + self._ids(joint, cuts))[len(prompt_ids) :]

    def _cuts(self, text: str, start: int, end: int) -> list[int]:
        """Places that break every special token which text[start:end] holds or takes part in."""
        return [
            match.start() + 1
            for match in self._special.finditer(text)
            if match.start() < end and match.end(1) > start
        ]

    def _ids(self, text: str, cuts: Sequence[int]) -> list[int]:
        ends = [*cuts, len(text)]
        pieces = [text[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
        encode = self.tokenizer.encode
        return [i for piece in pieces for i in encode(piece, add_special_tokens=False).ids]


def load_hf_codec(
    folder: Path, template: str, *, source: str | None = None, revision: str | None = None
) -> HfCodec:
    """Codec of the tokenizer in `folder`; `template` holds {prompt} once, or is "chat".

    tokenizer.json is read as it stands. Only where there is none, and for chat templates,
    transformers is needed. `source` and `revision` are what `describe` tells, by default the
    folder. Raises UsageError for a folder without a tokenizer or chat template and DataError for
    damaged files.
    """
    tokenizer = _tokenizer(folder)
    frame = chat_frame(folder) if template == CHAT else text_frame(template)
    special = special_ids(folder, tokenizer)
    return HfCodec(tokenizer, special, frame, source=source or str(folder), revision=revision)


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises bare Exception for bad JSON
            raise DataError(
                f"tokenizer {path}: damaged ({one_line(str(e))}); download it again"
            ) from e
    if not (folder / "tokenizer.model").is_file():
        raise UsageError(f"{folder}: neither tokenizer.json nor tokenizer.model; add one")
    try:
        import sentencepiece  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UsageError(
            f'{folder}/tokenizer.model needs sentencepiece; pip install "trinityx-jax[hf]"'
        ) from e
    backend = getattr(
        auto_tokenizer(folder, f"{folder}/tokenizer.model"), "backend_tokenizer", None
    )
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"{folder}/tokenizer.model cannot be converted; save the tokenizer as tokenizer.json"
        )
    return backend


def _prefix(tokenizer: Tokenizer, special: SpecialIds) -> list[int]:
    """Ids that come before every text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    added = encoding.special_tokens_mask
    prefix = encoding.ids[: added.index(0) if 0 in added else 0]
    if not prefix and special.adds_bos and special.bos_id is not None:
        return [special.bos_id]
    return prefix
