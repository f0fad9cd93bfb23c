"""Values of a config.json: checked one by one, and rotary scaling in both of its spellings.

transformers 5 writes `rope_parameters` with the base frequency inside, older versions `rope_theta`
beside `rope_scaling`. Both are read, and both are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from trinityx_jax.config import RopeScaling
from trinityx_jax.errors import DataError

REQUIRED = object()  # as a default: the key must be there


class Kind(NamedTuple):
    """What a value must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.words} or null", lambda x: x is None or self.fits(x))


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: Any) -> bool:
    return _whole(x) or (isinstance(x, float) and math.isfinite(x))


SIZE = Kind("a positive whole number", lambda x: _whole(x) and x > 0)
COUNT = Kind("a whole number, 0 or more", lambda x: _whole(x) and x >= 0)
SCALE = Kind("a positive number", lambda x: _number(x) and x > 0)
FLAG = Kind("true or false", lambda x: isinstance(x, bool))
NAME = Kind("a text", lambda x: isinstance(x, str))
NAMES = Kind("a list of texts", lambda x: isinstance(x, list) and all(map(NAME.fits, x)))
TABLE = Kind("an object", lambda x: isinstance(x, dict))

_FACTOR = {"factor": SCALE}
_ORIGINAL = {"original_max_position_embeddings": SIZE.or_null()}
_SCALINGS: dict[str, dict[str, Kind]] = {
    "default": {},
    "linear": _FACTOR,
    "llama3": {**_FACTOR, **_ORIGINAL, "low_freq_factor": SCALE, "high_freq_factor": SCALE},
    "yarn": {
        "factor": SCALE.or_null(),
        **_ORIGINAL,
        "beta_fast": SCALE.or_null(),
        "beta_slow": SCALE.or_null(),
        "attention_factor": SCALE.or_null(),
        "mscale": SCALE.or_null(),
        "mscale_all_dim": SCALE.or_null(),
    },
}
# Keys of any scaling that are read elsewhere, or may only hold the value that changes nothing.
_BESIDE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate"}


def read(hf: Mapping[str, Any], key: str, kind: Kind, where: str, default: Any = REQUIRED) -> Any:
    """hf[key], or `default` when absent. Raises DataError naming the key and what it must be."""
    value = hf.get(key, default)
    if value is REQUIRED:
        raise DataError(f"{where}: no {key!r}, which must be {kind.words}")
    if not kind.fits(value):
        raise DataError(f"{where}: {key}={value!r} must be {kind.words}")
    return value


def read_rope(hf: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(base frequency, scaling or None) as transformers 5 reads them.

    A non-empty `rope_scaling` wins over `rope_parameters`, a `rope_theta` inside either over one
    beside it. Raises DataError for kinds of scaling and keys that this package does not have.
    """
    name = next((key for key in ("rope_scaling", "rope_parameters") if hf.get(key)), "")
    rope: Mapping[str, Any] = read(hf, name, TABLE, where) if name else {}
    theta = float(read({**hf, **rope}, "rope_theta", SCALE, where, 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise DataError(
            f"{where}: rope type {kind!r} is not supported; supported are {', '.join(_SCALINGS)}"
        )
    for key, value in rope.items():
        harmless = key in _BESIDE and (key != "truncate" or value is True)
        if key not in _SCALINGS[kind] and not harmless:
            raise DataError(f"{where}: {name}.{key}={value!r} is not supported with rope {kind!r}")
    factor = {**hf, **rope}.get("partial_rotary_factor")
    if factor not in (None, 1):
        raise DataError(f"{where}: partial_rotary_factor={factor!r} is not supported; only 1 is")
    if kind == "default":
        return theta, None
    values = {
        key: read(rope, key, of, f"{where}: in {name}", None if of.fits(None) else REQUIRED)
        for key, of in _SCALINGS[kind].items()
    }
    if "original_max_position_embeddings" in values:
        top = read(hf, "original_max_position_embeddings", SIZE.or_null(), where, None)
        length = read(hf, "max_position_embeddings", SIZE, where)
        stated = values.pop("original_max_position_embeddings")
        original = top or stated or length
        if kind == "yarn":
            values = _yarn(values, length / original)
        elif values["high_freq_factor"] <= values["low_freq_factor"]:
            raise DataError(f"{where}: {name}.high_freq_factor must exceed low_freq_factor")
    else:
        original = 0
    fields: dict[str, Any] = {key: float(value) for key, value in values.items()}
    fields |= {"kind": kind, "original_max_position_embeddings": original}
    return theta, RopeScaling(**fields)


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys of config.json that give `theta` and `scaling` to transformers 5 and older ones."""
    if scaling is None:
        new = {"rope_type": "default"}
        old = None
    else:
        keys = [key for key in _SCALINGS[scaling.kind] if hasattr(scaling, key)]
        new = {"rope_type": scaling.kind, **{key: getattr(scaling, key) for key in keys}}
        # Versions before 4.43 know `type` only, and want nothing but a factor beside it.
        old = {"type" if key == "rope_type" else key: x for key, x in new.items()}
        old = old if scaling.kind == "linear" else new
    return {
        "rope_theta": theta,
        "rope_scaling": old,
        "rope_parameters": {**new, "rope_theta": theta},
    }


def _yarn(values: dict[str, Any], ratio: float) -> dict[str, Any]:
    """YaRN's values with those left open filled in as transformers does (Peng et al. 2023)."""
    factor = values["factor"] or ratio
    mscale, mscale_all = values.pop("mscale"), values.pop("mscale_all_dim")

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = values["attention_factor"]
    if attention is None:
        attention = temperature(1.0)
        if mscale and mscale_all:
            attention = temperature(mscale) / temperature(mscale_all)
    return {
        **values,
        "factor": factor,
        "beta_fast": values["beta_fast"] or 32.0,
        "beta_slow": values["beta_slow"] or 1.0,
        "attention_factor": attention,
    }
