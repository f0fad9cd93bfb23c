"""The backbone's shape without its weights: from a folder on this machine, or from `model`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trinityx_jax.config import Config
from trinityx_jax.errors import UsageError
from trinityx_jax.stages.backbone import HfBackbone


def with_shape(config: Config) -> Config:
    """`config` with the full shape of its backbone in `model`. Nothing is downloaded.

    Raises UsageError where neither says the size of the vocabulary, and for a `model` that differs
    from the folder's config.json.
    """
    name = config.backbone
    if name is not None and (Path(name) / "config.json").is_file():
        model = HfBackbone(Path(name), name).model_config(config)
        return dataclasses.replace(config, model=model)
    if not config.model.vocab_size:
        raise UsageError(
            "config model.vocab_size=0 takes a tokenizer's or a checkpoint's; plan reads neither "
            "from the network: write the backbone's shape into `model`, or name its local folder"
        )
    return config
