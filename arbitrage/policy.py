"""The routing policy: its file, and the decision it makes at serving time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from arbitrage.candidates import array_namespace, gaps
from arbitrage.errors import DataError, UsageError
from arbitrage.io import read_json, write_json
from arbitrage.losses import LOSS_FORMS, loss_by_name
from arbitrage.selection import Number, exact_number

SCHEMA_VERSION = 2
TRANSFORMS = ("none", "softmax")
# Whether each method has a delta.
METHODS = {
    "crc": False,
    "crc_weighted": False,
    "hoeffding_bentkus": True,
    "binomial": True,
    "wsr": True,
}
PER_ALPHA = ("alphas", "thresholds", "feasible", "empirical_risk", "guardian_rate")


class Route(NamedTuple):
    """candidates: (..., K) bool, C_lambda; defer: (...) bool, whether the Guardian is asked."""

    candidates: Any
    defer: Any


def route(primary, threshold, mask=None) -> Route:
    """The candidate set {a : gap_a <= threshold} and whether it holds more than one option.

    Args:
      primary: (..., K) Primary scores, with the same transform as in calibration.
      threshold: scalar, or (...) one for each row; +inf keeps the full menu, and so does NaN.
      mask: (..., K) bool, true at valid options; None if all are. Each row needs one.

    Pure: NumPy or JAX arrays, also under `jax.jit` and `jax.vmap`. A row with a NaN or infinite
    score is deferred with its full menu.
    """
    xp = array_namespace(primary, threshold, mask)
    return _route_gaps(gaps(xp.asarray(primary), mask), threshold, mask)


def _route_gaps(gap, threshold, mask) -> Route:
    xp = array_namespace(gap, threshold, mask)
    valid = xp.broadcast_to(xp.asarray(True if mask is None else mask, dtype=bool), gap.shape)
    # "not above" rather than "at most": a NaN threshold must not let the Primary act alone.
    limit = xp.asarray(threshold, dtype=xp.float32)
    limit = limit[..., None] if limit.ndim else limit
    candidates = valid & ~(gap > limit)
    return Route(candidates, xp.sum(candidates, axis=-1) > 1)


def choose(primary, guardian, threshold, mask=None, *, full_menu: bool = False):
    """The deployed option of each row, (...) int: the Primary's top if it acts alone, else the
    Guardian's best among the candidates, or among all options with `full_menu` (the variant CA*).
    Ties take the lowest index. Arguments as in `route`.
    """
    xp = array_namespace(primary, guardian, threshold, mask)
    gap = gaps(xp.asarray(primary), mask)
    candidates, defer = _route_gaps(gap, threshold, mask)
    own = xp.argmin(gap, axis=-1)
    scores = xp.asarray(guardian, dtype=xp.float32)
    shown = gap < xp.float32(np.inf) if full_menu else candidates
    asked = xp.argmax(xp.where(shown, scores, -xp.float32(np.inf)), axis=-1)
    return xp.where(defer, asked, own)


@dataclass(frozen=True)
class Policy:
    """Calibrated thresholds and what they were calibrated on; one JSON file.

    Fields (tuples have one entry per alpha):
      alphas, thresholds, feasible, empirical_risk: as in `Calibration`.
      guardian_rate: share of the calibration rows that each threshold defers, or None.
      bound, n, quantum: as in `Calibration`.
      transform: "none" or "softmax", applied to both tables' scores first.
      calibration_sha256: SHA-256 of the "primary" and "guardian" calibration files.
      metadata: metadata of the "primary" and "guardian" tables.
      created: time in UTC, ISO 8601.
      software: name and version of what made it.
      loss: name of the loss family; "full_menu" shows a deferred row's whole menu to the Guardian.
      method, delta: what was promised (`METHODS`), and its probability of error or None.
      guarantee: the promise in words, as in `Calibration`.
      group_thresholds: per group name one threshold for each alpha; empty without groups. A row of
        another group is always deferred.
      schema_version: fixed in this version.
    """

    alphas: tuple[float, ...]
    thresholds: tuple[float, ...]
    feasible: tuple[bool, ...]
    empirical_risk: tuple[float | None, ...]
    guardian_rate: tuple[float | None, ...]
    bound: float
    n: int
    quantum: float
    transform: str
    calibration_sha256: Mapping[str, str]
    metadata: Mapping[str, Mapping[str, str]]
    created: str
    software: str
    guarantee: str
    loss: str = "guardian_shortfall"
    method: str = "crc"
    delta: float | None = None
    group_thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def threshold(self, alpha: Number) -> np.float32:
        """The threshold of one of the calibrated alphas; UsageError, listing them, for another."""
        wanted = float(exact_number(alpha, "alpha"))
        if wanted not in self.alphas:
            known = ", ".join(f"{level:g}" for level in self.alphas)
            raise UsageError(f"alpha = {alpha} was not calibrated; this policy holds {known}")
        return np.float32(self.thresholds[self.alphas.index(wanted)])

    def row_threshold(self, alpha: Number, group=None) -> np.ndarray | np.float32:
        """The threshold at one alpha: a scalar, or (N,) for a policy with groups.

        `group` is (N,) str, each row's group. Raises UsageError where the policy needs it.
        """
        everywhere = self.threshold(alpha)
        if not self.group_thresholds:
            return everywhere
        if group is None:
            raise UsageError("this policy has a threshold for each group: give the rows' groups")
        at = self.alphas.index(float(exact_number(alpha, "alpha")))
        names, codes = np.unique(np.asarray(group).astype(np.str_), return_inverse=True)
        never = (math.inf,) * len(self.alphas)
        limits = [self.group_thresholds.get(str(name), never)[at] for name in names]
        return np.array(limits, dtype=np.float32)[codes]

    @property
    def full_menu(self) -> bool:
        """Whether the Guardian is shown all options of a deferred row, not only the candidates."""
        return loss_by_name(self.loss).full_menu

    def to_json(self) -> dict[str, Any]:
        """A JSON object; infinite thresholds are the string "inf"."""
        content = asdict(self)
        content |= {name: list(content[name]) for name in PER_ALPHA}
        content["thresholds"] = _without_inf(self.thresholds)
        content["group_thresholds"] = {
            name: _without_inf(limits) for name, limits in self.group_thresholds.items()
        }
        first = ("schema_version", "method", "loss")
        return {name: content[name] for name in first} | content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = "policy") -> Policy:
        """The policy in a JSON object. Raises DataError naming the field that is missing or bad."""
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{source}: schema_version {version!r} is not known; this version reads "
                f"{SCHEMA_VERSION}: calibrate again, or use the software that made the file"
            )
        for name in cls.__dataclass_fields__:
            if name not in content:
                raise DataError(f"{source}: field {name!r} is missing")
        values = {name: content[name] for name in cls.__dataclass_fields__}
        _check_fields(values, source)
        values["thresholds"] = _with_inf(values["thresholds"])
        values["group_thresholds"] = {
            name: tuple(_with_inf(limits)) for name, limits in values["group_thresholds"].items()
        }
        for name in PER_ALPHA:
            kind = bool if name == "feasible" else float
            values[name] = tuple(None if v is None else kind(v) for v in values[name])
        return cls(**values)

    def write(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_json(), overwrite)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Policy:
        """Reads the JSON file. Raises DataError in one line when it is not a policy."""
        return cls.from_json(read_json(path), str(Path(path)))


def _without_inf(thresholds) -> list:
    return ["inf" if math.isinf(t) else t for t in thresholds]


def _with_inf(thresholds) -> list[float]:
    return [math.inf if t == "inf" else float(t) for t in thresholds]


def _is_loss(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(loss_by_name(name))
    except UsageError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_fields(values: Mapping[str, Any], source: str) -> None:
    def check(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            raise DataError(f"{source}: field {name!r} must be {wanted}, not {values[name]!r:.80}")

    check("method", values["method"] in METHODS, f"one of {', '.join(METHODS)}")
    delta, needed = values["delta"], METHODS[values["method"]]
    ok = _is_number(delta) and 0 < delta < 1 if needed else delta is None
    check("delta", ok, "a number between 0 and 1" if needed else "null")
    check("loss", _is_loss(values["loss"]), f"one of {', '.join(LOSS_FORMS)}")
    check("transform", values["transform"] in TRANSFORMS, f"one of {', '.join(TRANSFORMS)}")
    n = values["n"]
    check("n", isinstance(n, int) and not isinstance(n, bool) and n > 0, "a positive integer")
    for name in ("bound", "quantum"):
        check(name, _is_number(values[name]) and values[name] > 0, "a positive number")
    for name in ("calibration_sha256", "metadata"):
        check(name, isinstance(values[name], dict), "an object")
    for name in ("created", "software", "guarantee"):
        check(name, isinstance(values[name], str), "a string")
    count = len(values["alphas"]) if isinstance(values["alphas"], list) else 0
    for name in PER_ALPHA:
        ok = isinstance(values[name], list) and len(values[name]) == count > 0
        check(name, ok, "a list with one entry per alpha")
    limits = {"alphas": values["bound"], "empirical_risk": values["bound"], "guardian_rate": 1}
    for name, limit in limits.items():
        given = [value for value in values[name] if name == "alphas" or value is not None]
        ok = all(_is_number(value) and 0 <= value <= limit for value in given)
        check(name, ok, f"numbers from 0 to {limit:g}")
    check("feasible", all(isinstance(ok, bool) for ok in values["feasible"]), "true or false each")
    for threshold, feasible in zip(values["thresholds"], values["feasible"], strict=True):
        # An infeasible alpha with a finite threshold would let the Primary act without cover.
        ok = _is_number(threshold) and threshold >= 0 if feasible else threshold == "inf"
        check("thresholds", ok, 'numbers >= 0, and "inf" exactly where feasible is false')
    groups = values["group_thresholds"]
    ok = isinstance(groups, dict) and all(
        isinstance(limits, list)
        and len(limits) == count
        and all(t == "inf" or (_is_number(t) and t >= 0) for t in limits)
        for limits in groups.values()
    )
    check("group_thresholds", ok, "an object of lists with one threshold per alpha")
