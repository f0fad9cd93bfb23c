"""Which model a command works on: the options that all of them share, and opening it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trinityx_jax.errors import UsageError

if TYPE_CHECKING:
    from trinityx_jax.language_model import LanguageModel

TEMPLATE = "{prompt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model and how its texts are laid out."""

    model: str
    """Run folder, Hugging Face folder, or org/name of the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    experts: Path | None = None
    """Folder of `trinityx export`, to put onto a Hugging Face backbone."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of a Hugging Face backbone's parameters (default: the checkpoint's own)."""
    template: str | None = None
    """Text with {prompt} in it, or chat for the folder's own (default {prompt}); a run has one."""
    batch_size: int = 8
    """Most rows of a batch."""


def is_run(model: str) -> bool:
    """Whether a model's name is that of a run folder."""
    return (Path(model) / "stages").is_dir()


def check_routings(options: ModelOptions, names: Sequence[str]) -> None:
    """Raises UsageError for a routing that the model does not have, ahead of loading it.

    Where its small files do not tell its experts, opening it will.
    """
    from trinityx_jax.inference.routings import check_name

    experts = experts_of(options) if names else None
    if experts is not None:
        for name in names:
            check_name(name, experts)


def experts_of(options: ModelOptions) -> tuple[str, ...] | None:
    """Names of the model's experts, if a run's configuration or an export says them."""
    from trinityx_jax import config
    from trinityx_jax.io.router import read_router
    from trinityx_jax.language_model import EXPERTS

    if is_run(options.model):
        return config.load(Path(options.model) / "config.yaml").mocae.objectives
    folder = Path(options.model) / EXPERTS if options.experts is None else options.experts
    return read_router(folder / "router").expert_names if folder.is_dir() else None


def open_model(options: ModelOptions) -> LanguageModel:
    """The model with its tokenizer, on all devices.

    Raises UsageError for options that do not go with the kind of model, and the errors of
    `from_run` and `from_pretrained`.
    """
    from trinityx_jax.language_model import from_pretrained, from_run

    if is_run(options.model):
        for name in ("revision", "experts", "dtype", "template"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name}: the run {options.model} has its own; leave it out, or give a "
                    "Hugging Face folder as --model"
                )
        return from_run(options.model, batch_size=options.batch_size)
    model = from_pretrained(
        options.model,
        dtype=options.dtype,
        revision=options.revision,
        template=TEMPLATE if options.template is None else options.template,
        batch_size=options.batch_size,
    )
    return model if options.experts is None else model.with_experts(options.experts)


def record(options: ModelOptions, model: LanguageModel) -> dict[str, Any]:
    """Which model, tokenizer and template made an output, of JSON types: for its manifest."""
    from trinityx_jax.io.manifest import versions

    return {
        "model": options.model,
        "revision": options.revision,
        "experts": None if options.experts is None else str(options.experts),
        "dtype": model.config.param_dtype,
        "codec": model.setup.codec.describe(),
        "versions": versions(),
    }
