"""TFDS builder of users' own rows: `data.source: files`, one file an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from trinityx_jax.data.examples import SPLITS, Example
from trinityx_jax.data.hhh_builder import HhhBuilder, Table
from trinityx_jax.data.splits import SHARES, by_hash, carve_validation, normalise
from trinityx_jax.data.user_rows import UserFiles, UserRow

_KIND = "file"


class FilesBuilder(HhhBuilder):
    """Rows of one objective of `source`; user_rows.py says what a line holds.

    Splits: the row's own, else by hash of its prompt, the same for every objective. Held-out rows
    have one prompt each. What they choose among: the options given, else the chosen and the
    rejected response, else the response and three responses to other prompts. The corpus holds
    both responses of a pair, as it does for the safety pairs. Each objective needs a data_dir of
    its own.
    """

    name = "user_files"
    licence = "the user's own"
    about = "Rows of a user's own file."

    def __init__(self, *, objective: str, source: UserFiles, **kwargs: Any):
        self.objective, self.source = objective, source
        super().__init__(files=source.paths, **kwargs)

    def table(self) -> Table:
        table: Table = {split: [] for split in SPLITS}
        corpus: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
        plain: dict[str, dict[str, UserRow]] = {split: {} for split in SPLITS[1:]}
        seen: set[tuple[str, ...]] = set()
        for row in self.source.rows[self.objective]:
            split = row.split or self._split(row.prompt)
            if split in corpus:
                answers = (row.response, row.rejected) if row.rejected else (row.response,)
                corpus[split] += [(row.prompt, answer) for answer in answers]
            held_out = split != "train"
            key = (row.prompt, row.response, row.rejected)
            key = (normalise(row.prompt),) if held_out else key
            if key in seen:
                self.dropped[
                    "further row of a held-out prompt" if held_out else "repeated row"
                ] += 1
                continue
            seen.add(key)
            if held_out and not row.options and not row.rejected:
                plain[split][row.prompt] = row
            else:
                table[split].append(self._example(row))
        for split, rows in plain.items():
            pairs = [(row.prompt, row.response) for row in rows.values()]
            table[split] += [
                _named(made, rows[made.prompt])
                for made in self.with_distractors(_KIND, split, pairs)
            ]
        for split, texts in corpus.items():
            table[f"pretrain_{split}"] = self.pretraining(_KIND, texts)
        return table

    def _split(self, prompt: str) -> str:
        key = normalise(prompt)
        return carve_validation(by_hash(self.seed, "files", key, SHARES), self.seed, "files", key)

    def _example(self, row: UserRow) -> Example:
        wrong: Sequence[str] | None = [row.rejected] if row.rejected else None
        made = self.example(_KIND, row.prompt, row.response, wrong, rejected=row.rejected)
        if row.options:  # in the user's order, with the user's label
            made = dataclasses.replace(made, options=row.options, label=row.label)
        return _named(made, row)


def _named(example: Example, row: UserRow) -> Example:
    """With the user's id; tables of several objectives are joined by id, so it names its own."""
    if not row.id:
        return example
    return dataclasses.replace(example, example_id=f"{example.objective}-{row.id}")
