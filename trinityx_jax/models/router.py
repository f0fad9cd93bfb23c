"""The calibrated per-token router: which expert answers, and with which weight.

A routing says how the gate logits become mixing weights; every routing is a small pytree with one
method, `weights`, so that jit sees its kind statically and its arrays as data. Those without arrays
are registered as static: of two dataclasses with no children, jax 0.10.2 takes the tree structures
for equal, and jit would now and then run one routing's program for another.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx


class RouterWeight(nnx.Variable):
    """Trained in the router stage."""


class Temperature(nnx.Variable):
    """Fitted after training, on held-out rows."""


class Importance(nnx.Variable):
    """gamma, set from the finished task vectors."""


class Router(nnx.Module):
    """z = x R in float32: R (D, E), no bias, so that it folds into a Mixtral gate."""

    def __init__(self, hidden_size: int, num_experts: int, rngs: nnx.Rngs):
        shape = (hidden_size, num_experts)
        self.kernel = RouterWeight(0.02 * jax.random.normal(rngs.params(), shape))
        self.temperature = Temperature(jnp.ones(num_experts))
        self.gamma = Importance(jnp.ones(num_experts))

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        """Gate logits z (B, L, E) float32, before the temperature."""
        with jax.named_scope("router"):
            # bf16 rounding flips near-ties between experts, so upcast first.
            return x_bld.astype(jnp.float32) @ self.kernel[...]


class Routing(Protocol):
    """How gate logits become mixing weights."""

    def weights(self, logits_ble: jax.Array, router: Router) -> jax.Array:
        """Mixing weights w (B, L, E) float32 from gate logits z (B, L, E)."""
        ...


def keep_top_k(weights_ble: jax.Array, k: int) -> jax.Array:
    """The k largest weights of each token, renormalised over them (ties: lowest index wins)."""
    _, index = jax.lax.top_k(weights_ble, k)
    kept = jax.nn.one_hot(index, weights_ble.shape[-1], dtype=weights_ble.dtype).sum(axis=-2)
    kept = kept * weights_ble
    return kept / kept.sum(axis=-1, keepdims=True)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mixture:
    """The calibrated mixture: alpha = softmax(z / tau); `top_k` 0 mixes all experts.

    tau holds one value per expert, all equal for the plain temperature, one each for vector
    scaling. `gamma` none: w = alpha. output: w_e = gamma_e alpha_e (sums to 1 only for gamma = 1).
    logit: w = softmax(z / tau + log gamma), a convex combination. Top-k chooses by alpha, under
    `logit` by w.
    """

    top_k: int = 0
    gamma: Literal["none", "output", "logit"] = "none"

    def weights(self, logits_ble: jax.Array, router: Router) -> jax.Array:
        z = logits_ble / router.temperature[...]
        if self.gamma == "logit":
            z = z + jnp.log(router.gamma[...])
        w = jax.nn.softmax(z, axis=-1)
        if self.top_k:
            w = keep_top_k(w, self.top_k)
        return w * router.gamma[...] if self.gamma == "output" else w


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every expert with weight 1 / E: the mixture without a router."""

    def weights(self, logits_ble: jax.Array, router: Router) -> jax.Array:
        return jnp.full(logits_ble.shape, 1 / logits_ble.shape[-1], jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forced:
    """One known expert per row: `expert_b` (B,) int32. Costs one expert, not E.

    `coefficient_b` (B,) scales the row's task vector, T -> c T: -1 is its negation. None: 1.
    """

    expert_b: jax.Array
    coefficient_b: jax.Array | None = None

    def weights(self, logits_ble: jax.Array, router: Router) -> jax.Array:
        one_hot = jax.nn.one_hot(self.expert_b, logits_ble.shape[-1], dtype=jnp.float32)
        return jnp.broadcast_to(one_hot[:, None, :], logits_ble.shape)

    def coefficients(self, dtype: jnp.dtype) -> jax.Array | float:
        """c, broadcastable to (B, L, D)."""
        if self.coefficient_b is None:
            return 1.0
        return self.coefficient_b.astype(dtype)[:, None, None]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Backbone:
    """No expert at all: the frozen FFN alone."""

    def weights(self, logits_ble: jax.Array, router: Router) -> jax.Array:
        return jnp.zeros_like(logits_ble)
