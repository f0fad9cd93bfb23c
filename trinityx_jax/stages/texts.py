"""The text files that travel with a saved model: its tokenizer's and those of generation."""

from __future__ import annotations

import json
from pathlib import Path

from trinityx_jax.data.tokenizer import SPECIAL_TOKENS
from trinityx_jax.io.folder import read_json
from trinityx_jax.io.hf_save import GENERATION, TOKEN_IDS
from trinityx_jax.stages.backbone import HfBackbone
from trinityx_jax.stages.context import Context

# Everything a tokenizer or transformers may look for beside the weights.
TEXT_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def text_files(folder: Path) -> dict[str, bytes | Path]:
    """Name -> path of the tokenizer's and generation's files in a folder.

    Where only config.json knows the special ids, they become the generation's file.
    """
    files: dict[str, bytes | Path] = {
        name: folder / name for name in TEXT_FILES if (folder / name).is_file()
    }
    if GENERATION not in files:
        config = read_json(folder / "config.json", "give the folder of a model")
        ids = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
        if ids:
            files[GENERATION] = json.dumps(ids).encode()
    return files


def run_files(context: Context) -> dict[str, bytes | Path]:
    """`text_files` of a run: the backbone's, or those that say the same of our own tokenizer."""
    if isinstance(context.given, HfBackbone):
        return text_files(context.given.folder)
    kinds = ("pad", "bos", "eos", "unk")
    tokens = {f"{kind}_token": token for kind, token in zip(kinds, SPECIAL_TOKENS, strict=True)}
    ids = {f"{kind}_token_id": i for i, kind in enumerate(kinds[:3])}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **tokens}
    return {
        "tokenizer.json": context.data.directory / "tokenizer.json",
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "generation_config.json": json.dumps(ids, indent=2).encode(),
    }
