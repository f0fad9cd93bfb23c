"""Text to token ids and back: the one object that knows template, tokenizer and special tokens."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from trinityx_jax.errors import DataError


class Codec(abc.ABC):
    """A prompt template over a tokenizer; see `OwnCodec` and `HfCodec`.

    `vocab_size` is the largest id the tokenizer can give, plus one. `stop_ids` end an answer.
    `head` are the ids before the user's text: a prompt that is cut keeps them. `ends_options` says
    whether an answer option carries the end marker when it is scored; answers to learn from always
    do.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    head: tuple[int, ...]
    ends_options: bool

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids, without special tokens."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Template, tokenizer, revision and special ids, of JSON types: for every manifest."""

    @abc.abstractmethod
    def _prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the template around the prompt."""

    @abc.abstractmethod
    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        """Ids of the answer behind this prompt, without an end marker."""

    def prompt(
        self, text: str, max_length: int | None = None, *, example_id: str = "(unnamed)"
    ) -> list[int]:
        """Ids of the template with the prompt filled in.

        With `max_length`, at most that many ids: `head` and the END of the rest, since the question
        and the template's last words matter most. Raises DataError for a prompt without tokens.
        """
        ids = self._prompt_ids(text)
        if not ids:
            raise DataError(f"row {example_id}: the prompt has no tokens; remove the row")
        return ids if max_length is None else self._keep_end(ids, max_length)

    def encode(
        self,
        prompt: str,
        response: str,
        *,
        max_length: int | None = None,
        example_id: str = "(unnamed)",
    ) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids with the end marker); the model reads them one after the other.

        With `max_length`, too long a pair is cut as `shorten` describes. Raises DataError for a
        prompt or a response without tokens.
        """
        prompt_ids = self.prompt(prompt, example_id=example_id)
        response_ids = self._answer_ids(prompt, prompt_ids, response)
        if not response_ids:
            raise DataError(f"row {example_id}: an answer has no tokens; remove the row")
        response_ids = [*response_ids, self.eos_id]
        if max_length is None:
            return prompt_ids, response_ids
        return self.shorten(prompt_ids, response_ids, max_length)

    def shorten(
        self, prompt_ids: list[int], response_ids: list[int], max_length: int
    ) -> tuple[list[int], list[int]]:
        """The pair cut to `max_length` ids together; as it is if it fits.

        First the prompt loses its beginning, down to half of `max_length`, then the response its
        end (the end marker with it, so that the model does not learn to stop there).
        """
        if len(prompt_ids) + len(response_ids) > max_length:
            room = max(max_length - len(response_ids), max_length // 2, 1)
            prompt_ids = self._keep_end(prompt_ids, room)
        return prompt_ids, response_ids[: max_length - len(prompt_ids)]

    def encode_options(
        self,
        prompt: str,
        options: Sequence[str],
        *,
        max_length: int | None = None,
        example_id: str = "(unnamed)",
    ) -> tuple[list[int], list[list[int]]]:
        """(prompt ids, ids of every option); each option is scored behind the SAME prompt.

        With `max_length`, the prompt makes room for the longest option, by the rule of `shorten`.
        Raises DataError for a prompt or an option without tokens.
        """
        prompt_ids = self.prompt(prompt, example_id=example_id)
        option_ids = []
        for k, option in enumerate(options):
            ids = self._answer_ids(prompt, prompt_ids, option)
            if not ids:
                raise DataError(
                    f"row {example_id}: option {k} has no tokens; remove the option or the row"
                )
            option_ids.append([*ids, self.eos_id] if self.ends_options else ids)
        if max_length is None:
            return prompt_ids, option_ids
        longest = max(option_ids, key=len, default=[])
        prompt_ids, _ = self.shorten(prompt_ids, longest, max_length)
        return prompt_ids, [ids[: max_length - len(prompt_ids)] for ids in option_ids]

    def _keep_end(self, ids: list[int], length: int) -> list[int]:
        if len(ids) <= length:
            return ids
        kept = min(len(self.head), (length + 1) // 2)
        return [*ids[:kept], *ids[len(ids) - length + kept :]]


def check_length(ids: Sequence[int], max_length: int, name: str) -> None:
    """Raises DataError where the ids of a user's prompt do not fit the context of `max_length`."""
    if len(ids) > max_length:
        raise DataError(
            f"{name} has {len(ids)} tokens, the context holds {max_length}; shorten the prompt"
        )


def check_vocabulary(codec: Codec, vocab_size: int, where: str) -> None:
    """Raises DataError where the tokenizer gives ids that a model of `vocab_size` rows lacks.

    More rows than ids are fine: checkpoints round their vocabulary up.
    """
    if codec.vocab_size > vocab_size:
        raise DataError(
            f"{where}: the tokenizer gives ids up to {codec.vocab_size - 1}, the model knows "
            f"{vocab_size}; use the tokenizer that the model was trained with"
        )
