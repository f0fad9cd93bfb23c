"""Helpful: Alpaca instructions and answers (Taori et al. 2023; CC BY-NC 4.0)."""

from __future__ import annotations

from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.hhh_builder import HhhBuilder, Table
from trinityx_jax.data.raw_rows import read_rows
from trinityx_jax.data.safety_pairs import pair_splits, read_pairs
from trinityx_jax.data.sources import SOURCES
from trinityx_jax.data.splits import by_hash, normalise
from trinityx_jax.data.truthful_qa import question_splits

SHARES = {"train": 0.8, "validation": 0.05, "calibration": 0.075, "test": 0.075}
_PACKED = {"prompt": str, "response": str}
_OFFICIAL = {"instruction": str, "input": str, "output": str}


class Alpaca(HhhBuilder):
    """Split by the normalised prompt; held-out rows choose among answers to other prompts.

    A prompt that is also a TruthfulQA question or a PKU prompt is only ever trained on, and left
    out where it is held out there.
    """

    name = "alpaca"
    objective = "helpful"
    licence = SOURCES["helpful"].licence
    homepage = "https://github.com/tatsu-lab/stanford_alpaca"
    about = "Alpaca instructions; held-out rows have three answers of other prompts as distractors."

    def table(self) -> Table:
        elsewhere = self._elsewhere()
        pairs: dict[str, dict[str, tuple[str, str]]] = {split: {} for split in SPLITS}
        for row in read_rows(self.files["helpful"], [_PACKED, _OFFICIAL]):
            prompt, response = _pair(row)
            key = normalise(prompt)
            split = by_hash(self.seed, "alpaca", key, SHARES)
            if key in elsewhere:
                split = "train"
            if not response.strip():
                self.dropped["empty answer"] += 1
            elif elsewhere.get(key, "train") != "train":
                self.dropped["prompt held out by another objective"] += 1
            elif key in pairs[split]:
                self.dropped["repeated prompt"] += 1
            else:
                pairs[split][key] = (prompt, response)
        table: Table = {
            split: self.with_distractors("alpaca", split, list(pairs[split].values()))
            for split in SPLITS[1:]
        }
        table["train"] = [self.example("alpaca", *pair) for pair in pairs["train"].values()]
        for split in ("train", "validation"):
            table[f"pretrain_{split}"] = self.pretraining("alpaca", pairs[split].values())
        return table

    def _elsewhere(self) -> dict[str, str]:
        """Split of every prompt of the other two objectives."""
        pairs = pair_splits([row.prompt for row in read_pairs(self.files)], self.files, self.seed)
        splits = {normalise(prompt): split for prompt, split in pairs.items()}
        return splits | question_splits(self.files, self.seed)


def _pair(row: dict[str, str]) -> tuple[str, str]:
    if "prompt" in row:
        return row["prompt"], row["response"]
    given = f"\n{row['input']}" if row["input"] else ""
    return row["instruction"] + given, row["output"]
