"""The dense gated feed-forward network f0 of the frozen backbone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import ModelConfig

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Linear(nnx.Linear):
    """Projection with kernel (in, out), computed in the model's dtype."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        use_bias: bool = False,
    ):
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            kernel_init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., in) to (..., out), over one flat token axis: XLA's CPU backend transposes the
        operands of a weight gradient that contracts two axes."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class FFN(nnx.Module):
    """f0(x) = (act(x Wg) * (x Wu)) Wd, named as Llama's `mlp` (Shazeer 2020, SwiGLU, GeGLU)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.act = ACTIVATIONS[config.hidden_act]
        self.gate_proj = Linear(D, F, config, rngs)
        self.up_proj = Linear(D, F, config, rngs)
        self.down_proj = Linear(F, D, config, rngs)

    def __call__(
        self, x_bld: jax.Array, routing: object = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """(B, L, D) to (B, L, D), and no gate logits."""
        del routing  # there is one way only
        return self.base(x_bld), None

    def base(self, x_bld: jax.Array) -> jax.Array:
        """f0(x)."""
        return self.down_proj(self.act(self.gate_proj(x_bld)) * self.up_proj(x_bld))
