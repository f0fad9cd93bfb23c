"""The backbone that a configuration names: a Hugging Face checkpoint, or one of our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from arbitrage.io import read_json
from trinityx_jax.config import Config, ModelConfig
from trinityx_jax.data.frame import CHAT
from trinityx_jax.data.hf_codec import HfCodec, load_hf_codec
from trinityx_jax.errors import UsageError
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.io.hub import local_folder
from trinityx_jax.models.families import model_config
from trinityx_jax.models.parameters import Parameters

# What `model` may choose beside a Hugging Face backbone; its other keys may repeat what that has.
_OURS = ("dtype", "param_dtype", "scan_layers", "remat")


@dataclasses.dataclass(frozen=True)
class HfBackbone:
    """A folder with config.json, safetensors and tokenizer; `name` is what the user calls it."""

    folder: Path
    name: str
    revision: str | None = None

    def codec(self, config: Config) -> HfCodec:
        """Its tokenizer in the configured template."""
        return load_hf_codec(
            self.folder, config.data.template, source=self.name, revision=self.revision
        )

    def model_config(self, config: Config) -> ModelConfig:
        """Its shape, with the configured dtypes.

        UsageError for a `model` that says another shape, and a context longer than it takes.
        """
        path = self.folder / "config.json"
        model = model_config(read_json(path), str(path))
        for field in dataclasses.fields(ModelConfig):
            given, has = getattr(config.model, field.name), getattr(model, field.name)
            if field.name not in _OURS and given not in (field.default, has):
                raise UsageError(
                    f"config model.{field.name}: the backbone {self.name} has {has!r}, not "
                    f"{given!r}; leave it out (--set model={{}} empties the section)"
                )
        if config.data.max_length > model.max_position_embeddings:
            raise UsageError(
                f"config data.max_length={config.data.max_length}: {self.name} takes at most "
                f"{model.max_position_embeddings} tokens"
            )
        param_dtype = _narrowed(config) or model.param_dtype
        chosen = {name: getattr(config.model, name) for name in _OURS}
        return dataclasses.replace(model, **chosen | {"param_dtype": param_dtype})

    def parameters(self, config: Config, mesh: Mesh) -> Parameters:
        """Its parameters, laid out over the mesh; errors as `load_checkpoint`."""
        return load_checkpoint(self.folder, mesh, dtype=_narrowed(config))[1]


def find_backbone(config: Config) -> HfBackbone | Path | None:
    """What `backbone` names: a folder with config.json, a checkpoint folder of ours, a hub id.

    Raises UsageError for keys that do not go with what it is, and the errors of `local_folder`.
    """
    name = config.backbone
    if name is None or (Path(name).is_dir() and not (Path(name) / "config.json").is_file()):
        _check_own(config)
        return None if name is None else Path(name)
    folder = local_folder(name, config.backbone_revision)
    return HfBackbone(folder, name, config.backbone_revision)


def _check_own(config: Config) -> None:
    if config.data.template == CHAT:
        raise UsageError(
            f"config data.template={CHAT} takes a Hugging Face backbone; write a template with "
            "{prompt}"
        )
    if config.backbone_revision is not None:
        raise UsageError("config backbone_revision is for an org/name of the Hugging Face hub")


def _narrowed(config: Config) -> str | None:
    """The type to convert a checkpoint's parameters to; they are never widened."""
    wanted = config.model.param_dtype
    return None if wanted == "float32" else wanted
