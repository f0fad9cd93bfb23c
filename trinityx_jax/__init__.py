"""Mixtures of calibrated experts (TrinityX, MoCaE) in JAX and flax.nnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trinityx_jax.language_model import LanguageModel, from_pretrained, from_run

__version__ = "0.1.0"
__all__ = ["LanguageModel", "from_pretrained", "from_run"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: the command line starts without jax."""
    if name in __all__:
        from trinityx_jax import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
