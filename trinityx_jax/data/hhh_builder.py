"""What the builders of real data share: options, order, counts of dropped rows."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trinityx_jax.data.builder import ExampleBuilder
from trinityx_jax.data.examples import Example
from trinityx_jax.data.splits import uniform
from trinityx_jax.errors import DataError

Table = dict[str, list[Example]]
_WINDOW = 24  # wrong answers come from this many answers of nearest length


class HhhBuilder(ExampleBuilder):
    """Reads `files` (see sources.py) once and serves every split from memory while writing.

    `dropped` counts what was left out, by reason.
    """

    objective = ""

    def __init__(
        self,
        *,
        files: Mapping[str, Path],
        seed: int = 0,
        **kwargs: Any,
    ):
        self.files = dict(files)
        self.seed = seed
        self.dropped: Counter[str] = Counter()
        super().__init__(**kwargs)

    def table(self) -> Table:
        """All rows by split, in any order; counts what it leaves out in `self.dropped`."""
        raise NotImplementedError

    def rows(self, split: str) -> list[Example]:
        return self._ordered.get(split, [])

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.rows(split):  # TFDS would fail with an assertion
            raise DataError(
                f"objective {self.objective!r}: no {split} rows in the input; give more rows"
            )
        return super()._generate_examples(split)

    @functools.cached_property
    def _ordered(self) -> Table:
        return {
            split: sorted(
                rows, key=lambda row: (uniform(self.seed, "order", row.example_id), row.example_id)
            )
            for split, rows in self.table().items()
        }

    def example(
        self,
        kind: str,
        prompt: str,
        response: str,
        wrong: Sequence[str] | None = None,
        rejected: str = "",
    ) -> Example:
        """A row whose id is a hash of its text; `wrong` answers make shuffled options."""
        text = "\0".join([self.objective, kind, prompt, response, *(wrong or ())])
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        example_id = f"{self.objective}-{kind}-{key}"
        if wrong is None:
            return Example(example_id, self.objective, kind, prompt, response)
        # The files put the right answer first: without the shuffle, position would give it away.
        options = [response, *wrong]
        order = self.rng("options", example_id).permutation(len(options))
        return Example(
            example_id, self.objective, kind, prompt, response,
            options=tuple(options[i] for i in order), label=int(np.flatnonzero(order == 0)[0]),
            rejected=rejected,
        )  # fmt: skip

    def with_distractors(
        self, kind: str, split: str, pairs: Sequence[tuple[str, str]]
    ) -> list[Example]:
        """Rows of distinct prompts and their answers, each with three answers to other prompts."""
        # Similar length, or "the longest answer" would be a cue.
        ranked = sorted(pairs, key=lambda pair: (len(pair[1]), pair))
        rows = []
        for i, (prompt, response) in enumerate(ranked):
            start = max(0, min(i - _WINDOW // 2, len(ranked) - _WINDOW))
            near = [answer for _, answer in ranked[start : start + _WINDOW] if answer != response]
            near = list(dict.fromkeys(near))
            picks = self.rng(f"distractors {split}", prompt).permutation(len(near))[:3]
            if len(picks) < 3:
                self.dropped["too few other answers for options"] += 1
                continue
            rows.append(self.example(kind, prompt, response, [near[j] for j in picks]))
        return rows

    def pretraining(self, kind: str, pairs: Iterable[tuple[str, str]]) -> list[Example]:
        """Corpus rows of distinct (prompt, response) pairs."""
        return [
            Example(**{**vars(self.example(kind, prompt, response)), "objective": "pretrain"})
            for prompt, response in dict.fromkeys(pairs)
        ]

    def rng(self, purpose: str, key: str) -> np.random.Generator:
        """Generator that depends on the seed, the purpose and the key alone."""
        return np.random.default_rng(int(uniform(self.seed, purpose, key) * 2**53))
