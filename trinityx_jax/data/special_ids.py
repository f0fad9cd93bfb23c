"""Which ids of a Hugging Face folder begin, end and pad a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from arbitrage.io import read_json
from trinityx_jax.errors import DataError

_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_ID_FILES = ("generation_config.json", "config.json")


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """`stop_ids` begin with `eos_id`; `adds_bos`: the folder asks for BOS before every text."""

    bos_id: int | None
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    adds_bos: bool


def special_ids(folder: Path, tokenizer: Tokenizer) -> SpecialIds:
    """The ids, from the tokenizer's files first, then from the model's.

    An answer stops at the tokenizer's EOS and at every eos_token_id of generation_config.json, or
    of config.json where that has none. Without a padding token, EOS pads: padding is masked. Raises
    DataError for damaged files and where nothing says what ends a text.
    """
    tokens = _files(folder, _TOKEN_FILES)

    def token_ids(kind: str) -> list[int]:
        names = [_token(file.get(f"{kind}_token")) for file in tokens]
        ids = [tokenizer.token_to_id(name) for name in names if name]
        return [i for i in ids if i is not None]

    stop_ids = tuple(dict.fromkeys([*token_ids("eos")[:1], *model_ids(folder, "eos")]))
    if not stop_ids:
        raise DataError(
            f"tokenizer of {folder}: no end-of-text token; name an eos_token in {_TOKEN_FILES[0]}"
        )
    bos, pad = ([*token_ids(kind), *model_ids(folder, kind)] for kind in ("bos", "pad"))
    return SpecialIds(
        bos_id=bos[0] if bos else None,
        eos_id=stop_ids[0],
        pad_id=pad[0] if pad else stop_ids[0],
        stop_ids=stop_ids,
        adds_bos=tokens[0].get("add_bos_token") is True,
    )


def model_ids(folder: Path, kind: str) -> list[int]:
    """The model's own bos, eos or pad ids, as generation_config.json or config.json lists them."""
    found = (_ids(file, f"{kind}_token_id", folder) for file in _files(folder, _ID_FILES))
    return next((ids for ids in found if ids), [])


def _files(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    return [read_json(folder / name) if (folder / name).exists() else {} for name in names]


def _token(value: Any) -> str | None:
    """A token's text: older files hold the text itself, newer ones an object with `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _ids(file: Mapping[str, Any], key: str, folder: Path) -> list[int]:
    value = file.get(key)
    values: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
    ids = [i for i in values if isinstance(i, int) and not isinstance(i, bool)]
    if len(ids) != len(list(values)):
        raise DataError(f"{folder}: {key} must be an id or a list of ids, not {value!r}")
    return [i for i in ids if i >= 0]  # Llama's old configurations write -1 for "none"
