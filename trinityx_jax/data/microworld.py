"""A small world whose truth is known: rows for every objective and split, made from a seed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from trinityx_jax.data import world_tasks as tasks
from trinityx_jax.data import world_words as words
from trinityx_jax.data.examples import SPLITS, Example
from trinityx_jax.data.world_answers import answers, is_right
from trinityx_jax.data.world_corpus import corpus
from trinityx_jax.data.world_facts import Facts, make_facts
from trinityx_jax.errors import UsageError

KINDS = {
    "helpful": (*tasks.TASKS, "request"),
    "harmless": ("forbidden", "lookalike"),
    "honest": ("known", "unknown", "false_premise"),
}
_HELD_OUT = SPLITS[1:]


@dataclasses.dataclass(frozen=True)
class Microworld:
    """The world of one seed. Sizes are rows per objective, and per held-out split.

    Splits share no prompt, by construction: held-out prompts of a kind are cut from one list in
    hash order (so validation, calibration and test are exchangeable), and train takes the rest.
    Requests are split by (verb, thing), whatever the wording. Facts and unknown names asked in
    training are other ones than those held out. Held-out prompts never repeat; train may repeat.
    """

    seed: int = 0
    n_train: int = 2000
    n_held_out: int = 400
    n_pretrain: int = 20_000

    def vocabulary(self) -> list[str]:
        """Every word that any row can hold, once each."""
        return words.vocabulary()

    def rows(self, objective: str, split: str) -> list[Example]:
        """The rows of an objective and split, in random order; the kinds have equal shares.

        Raises UsageError where `n_held_out` exceeds the different prompts of a kind.
        """
        total = self.n_train if split == "train" else self.n_held_out
        kinds = KINDS[objective]
        rng = self._rng(f"rows {objective} {split}")
        chosen = []
        for kind, count in zip(kinds, _shares(total, len(kinds)), strict=True):
            pool = self._prompts(kind, split)
            order = [i for _ in range(-(-count // len(pool))) for i in rng.permutation(len(pool))]
            chosen += [(kind, pool[i]) for i in order[:count]]
        chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        return [
            self._example(f"{objective}-{split}-{i:06d}", objective, kind, prompt, rng)
            for i, (kind, prompt) in enumerate(chosen)
        ]

    def pretrain_rows(self, split: str = "train") -> list[Example]:
        """The base model's corpus: "train" (`n_pretrain` rows) or "validation" (a twentieth)."""
        count = self.n_pretrain if split == "train" else max(1, self.n_pretrain // 20)
        unseen = {
            prompt for kind in tasks.TASKS for held in _HELD_OUT
            for prompt in self._prompts(kind, held)
        }  # fmt: skip
        rows = corpus(self._rng(f"pretrain {split}"), self.facts, count, unseen)
        return [
            Example(f"pretrain-{split}-{i:06d}", "pretrain", kind, prompt, response)
            for i, (kind, prompt, response) in enumerate(rows)
        ]

    def verify(self, example: Example, response_text: str) -> bool:
        """True where a free answer is right in this world (see `world_answers.is_right`)."""
        return is_right(example.kind, example.prompt, self.facts, response_text)

    @functools.cached_property
    def facts(self) -> Facts:
        """The knowledge base of this seed."""
        return make_facts(self._rng("facts"))

    @functools.cached_property
    def _cuts(self) -> dict[str, dict[str, list[str]]]:
        return {kind: self._cut(kind) for kinds in KINDS.values() for kind in kinds}

    def _prompts(self, kind: str, split: str) -> list[str]:
        return self._cuts[kind][split]

    def _cut(self, kind: str) -> dict[str, list[str]]:
        """Different prompts of each split, of one kind."""
        kinds = next(kinds for kinds in KINDS.values() if kind in kinds)
        count = _shares(self.n_held_out, len(kinds))[kinds.index(kind)]
        held = self._order(self._canonical(kind, "held"))
        rest = self._canonical(kind, "train")
        room = len(held) - (0 if rest else 1)  # train needs one at least
        if count * len(_HELD_OUT) > room:
            raise UsageError(
                f"data.held_out_rows={self.n_held_out}: the microworld has only "
                f"{room // len(_HELD_OUT)} different {kind!r} prompts a split; ask for fewer rows"
            )
        cuts = {
            split: self._word(kind, held[i * count : (i + 1) * count], every=False)
            for i, split in enumerate(_HELD_OUT)
        }
        train = self._order(rest) if rest else held[count * len(_HELD_OUT) :]
        return cuts | {"train": self._word(kind, train, every=True)}

    def _canonical(self, kind: str, side: str) -> list[str]:
        """Prompts without their wording; none for "train" means: what the held-out splits leave."""
        facts = self.facts
        if kind == "known":
            return _asked(facts.asked if side == "train" else facts.kept)
        if kind == "unknown":
            names = facts.unknown_train if side == "train" else facts.unknown_kept
            return _asked(itertools.product(words.VALUES, names))
        if kind == "false_premise":
            return [
                f"why is the {attribute} of {entity} {claim}"
                for attribute, entity in (facts.asked if side == "train" else facts.kept)
                for claim in words.VALUES[attribute]
                if claim != facts.value[attribute, entity]
            ]
        if side == "train":
            return []
        if kind in tasks.TASKS:
            return self._task_pool(kind)
        pairs = {
            "request": [(words.KIND_VERBS, words.HARMLESS)],
            "forbidden": [(words.HARM_VERBS, words.PROTECTED)],
            "lookalike": [
                (words.HARM_VERBS, words.HARMLESS),
                (words.KIND_VERBS, words.PROTECTED),
            ],
        }[kind]
        return [f"{verb} the {thing}" for v, t in pairs for verb in v for thing in t]

    def _task_pool(self, kind: str) -> list[str]:
        wanted = (self.n_train + len(_HELD_OUT) * self.n_held_out) // len(KINDS["helpful"])
        rng = self._rng(f"pool {kind}")
        pool: dict[str, None] = {}
        for _ in range(4 * wanted + 100):  # addition has few prompts: stop trying some time
            pool[tasks.draw(kind, rng)] = None
            if len(pool) > wanted + len(_HELD_OUT) + 1:
                break
        return list(pool)

    def _word(self, kind: str, canonical: Sequence[str], *, every: bool) -> list[str]:
        """Adds the wording: every wording in train, one a (verb, thing) pair elsewhere."""
        if kind not in ("request", "forbidden", "lookalike"):
            return list(canonical)
        if every:
            return [f"{how} {pair}" for pair in canonical for how in words.HOW_TO]
        return [
            f"{words.HOW_TO[self._hash('wording ' + pair) % len(words.HOW_TO)]} {pair}"
            for pair in canonical
        ]

    def _order(self, items: Iterable[str]) -> list[str]:
        return sorted(items, key=lambda item: (self._hash(item), item))

    def _hash(self, text: str) -> int:
        digest = hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _example(
        self, example_id: str, objective: str, kind: str, prompt: str, rng: np.random.Generator
    ) -> Example:
        options = answers(kind, prompt, self.facts, rng)
        order = rng.permutation(len(options))
        return Example(
            example_id=example_id,
            objective=objective,
            kind=kind,
            prompt=prompt,
            response=options[0],
            options=tuple(options[i] for i in order),
            label=int(np.flatnonzero(order == 0)[0]),
            rejected=options[1],  # what tempts most; see `answers`
        )


def _asked(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"{asking} the {attribute} of {entity}"
        for attribute, entity in facts
        for asking in words.ASKING
    ]


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` nearly equal integers, the first ones larger."""
    return [total // parts + (i < total % parts) for i in range(parts)]
