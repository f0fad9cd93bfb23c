"""One row of any data set, and its form as TFDS features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# train: experts and router; validation: temperatures; calibration: the conformal threshold;
# test: everything that is reported.
SPLITS = ("train", "validation", "calibration", "test")


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and the wanted response; held-out rows also carry answer options.

    `options[label]` is the right answer. Rows that are only trained on have options () and
    label -1. `rejected`, where it is not empty, is a worse response: the row is a preference pair.
    `kind` names the task or source inside the objective.
    """

    example_id: str
    objective: str
    kind: str
    prompt: str
    response: str
    options: tuple[str, ...] = ()
    label: int = -1
    rejected: str = ""

    def to_features(self, *, options: bool = True) -> dict[str, Any]:
        """Plain dict for TFDS, whose Sequence feature wants a list; on request without options,
        label and rejected response."""
        features = dict(vars(self))  # dataclasses.asdict copies deeply: 10 times slower
        features["options"] = list(self.options)
        if not options:
            del features["options"], features["label"], features["rejected"]
        return features

    @classmethod
    def from_features(cls, features: Mapping[str, Any]) -> Example:
        """Example from decoded TFDS features, where strings come back as UTF-8 bytes."""
        return cls(
            example_id=_text(features["example_id"]),
            objective=_text(features["objective"]),
            kind=_text(features["kind"]),
            prompt=_text(features["prompt"]),
            response=_text(features["response"]),
            options=tuple(_text(option) for option in features.get("options", ())),
            label=int(features.get("label", -1)),
            rejected=_text(features.get("rejected", "")),
        )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
