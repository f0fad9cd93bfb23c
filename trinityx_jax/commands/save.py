"""`trinityx save`: any model as a Hugging Face folder, or its mixture as a Mixtral."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from arbitrage.io import check_output
from trinityx_jax.commands.opening import ModelOptions, open_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """A model as files for transformers, PEFT and servers."""

    output: Path
    """Folder to write."""
    format: Literal["huggingface", "mixtral"] = "huggingface"
    """huggingface: the backbone, with its experts as adapters beside it. mixtral: every expert as a
    complete FFN, which needs no code of ours and E times the memory."""
    overwrite: bool = False
    """Replace an existing folder."""


def run(options: Options) -> None:
    """Writes the folder, whole or not at all, and says where it is."""
    check_output(options.output, options.overwrite)
    model = open_model(options)
    save = model.save_mixtral if options.format == "mixtral" else model.save_pretrained
    save(options.output, overwrite=options.overwrite)
    print(f"{options.output}: {options.model} as {options.format}")
