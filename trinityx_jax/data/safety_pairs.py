"""Harmless: PKU-SafeRLHF pairs of one safe and one unsafe answer (Ji et al. 2024; CC BY-NC 4.0).

The text of these rows is harmful: nothing here prints or quotes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.hhh_builder import HhhBuilder, Table
from trinityx_jax.data.raw_rows import read_rows, read_split
from trinityx_jax.data.sources import SOURCES
from trinityx_jax.data.splits import SHARES, by_hash, carve_validation, normalise, uniform
from trinityx_jax.errors import DataError

_PACKED = {"prompt": str, "chosen": str, "rejected": str}
_OFFICIAL = {
    "prompt": str,
    "response_0": str,
    "response_1": str,
    "is_response_0_safe": bool,
    "is_response_1_safe": bool,
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """`chosen` is labelled safe and `rejected` unsafe; which one helps more is not known."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(files: Mapping[str, Path]) -> list[Pair]:
    """Every pair of the file; of the official file, those with exactly one safe answer."""
    pairs = []
    for row in read_rows(files["harmless"], [_PACKED, _OFFICIAL]):
        if "chosen" in row:
            pairs.append(Pair(row["prompt"], row["chosen"], row["rejected"]))
        elif row["is_response_0_safe"] != row["is_response_1_safe"]:
            answers = [row["response_0"], row["response_1"]]
            if row["is_response_1_safe"]:
                answers.reverse()
            pairs.append(Pair(row["prompt"], *answers))
    return pairs


def pair_splits(prompts: Iterable[str], files: Mapping[str, Path], seed: int) -> dict[str, str]:
    """Prompt -> split: of the split file (validation carved out of its train), else by hash.

    The split file's keys are the SHA-1 of the prompt as stored. Raises DataError for a prompt that
    it lacks, naming the hash only.
    """
    given = read_split(files["harmless_split"], SHARES) if "harmless_split" in files else None
    splits = {}
    for prompt in dict.fromkeys(prompts):
        key = normalise(prompt)
        if given is None:
            split = by_hash(seed, "pku", key)
        else:
            digest = hashlib.sha1(prompt.encode("utf-8")).hexdigest()
            if digest not in given:
                raise DataError(
                    f"{files['harmless_split']}: no split for the prompt with SHA-1 {digest}; "
                    "remove the split file to split by hash instead"
                )
            split = given[digest]
        splits[prompt] = carve_validation(split, seed, "pku", key)
    return splits


def consistent(pairs: Iterable[Pair], dropped: Counter[str]) -> list[Pair]:
    """Distinct pairs none of whose answers is safe in one row and unsafe in another."""
    pairs = list(pairs)
    safe, unsafe = defaultdict(set), defaultdict(set)
    for pair in pairs:
        safe[pair.prompt].add(pair.chosen)
        unsafe[pair.prompt].add(pair.rejected)
    kept = []
    for pair in dict.fromkeys(pairs):
        both = safe[pair.prompt] & unsafe[pair.prompt]
        if not (pair.chosen.strip() and pair.rejected.strip()):
            dropped["empty answer"] += 1
        elif pair.chosen in both or pair.rejected in both:
            dropped["contradictory labels"] += 1
        else:
            kept.append(pair)
    dropped["repeated pair"] += len(pairs) - len(set(pairs))
    return kept


class SafetyPairs(HhhBuilder):
    """Trains on the safe answers; held-out rows choose between safe and unsafe, one a prompt.

    Every row is a preference pair, too. The corpus holds both answers.
    """

    name = "safety_pairs"
    objective = "harmless"
    licence = SOURCES["harmless"].licence
    homepage = "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF"
    about = "PKU-SafeRLHF: pairs of a safe and an unsafe answer. The text is harmful."

    def table(self) -> Table:
        pairs = consistent(read_pairs(self.files), self.dropped)
        splits = pair_splits([pair.prompt for pair in pairs], self.files, self.seed)
        # In hash order, so that "the first pair of a prompt" is a random one.
        pairs.sort(key=lambda pair: uniform(self.seed, "pku pair", repr(pair)))
        table: Table = {split: [] for split in SPLITS}
        seen: set[tuple[str, ...]] = set()
        corpus: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
        for pair in pairs:
            split = splits[pair.prompt]
            if split in corpus:
                corpus[split] += [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
            key = (pair.prompt, pair.chosen) if split == "train" else (normalise(pair.prompt),)
            if key in seen:
                self.dropped["further pair of a prompt or answer"] += 1
                continue
            seen.add(key)
            row = self.example(
                "pku", pair.prompt, pair.chosen, [pair.rejected], rejected=pair.rejected
            )
            table[split].append(row)
        for split, texts in corpus.items():
            table[f"pretrain_{split}"] = self.pretraining("pku", texts)
        return table
