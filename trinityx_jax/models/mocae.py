"""MoCaE: the exact mixture of E low-rank experts at the matrix cost of one dense FFN.

Expert e is the base FFN moved along its task vector, We_m = W_m + s A_e,m B_e,m for m in gate, up,
down. E_e is nonlinear, so task vectors cannot be averaged; but the base products are shared and the
down projection is linear, hence

    g0 = x Wg ; u0 = x Wu
    a_e = act(g0 + s x Ag_e Bg_e) * (u0 + s x Au_e Bu_e)
    y = sum_e w_e E_e(x) = (sum_e w_e a_e) Wd + s sum_e w_e (a_e Ad_e) Bd_e

with three full-size matrix products whatever E is (`mix.py` has the second line). Letters: B batch,
L sequence, T = B L tokens, D model width, F FFN width, E experts, r rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.models.ffn import FFN
from trinityx_jax.models.mix import mix
from trinityx_jax.models.router import Backbone, Forced, Router, Routing
from trinityx_jax.sharding import constrain


class TaskVector(nnx.Variable):
    """A low-rank factor of an expert; trained in the expert stage."""


class LowRank(nnx.Module):
    """A (E, in, r) and B (E, r, out) of one projection; B starts at zero, and with it the move.

    `axes` are the logical axes of in and out that stay split while they are used.
    """

    def __init__(self, shape: tuple[int, int, int, int], axes: tuple, rngs: nnx.Rngs):
        E, inner, r, outer = shape
        self.axes = axes
        drawn = jax.random.normal(rngs.params(), (E, inner, r))
        self.A = TaskVector(inner**-0.5 * drawn)
        self.B = TaskVector(jnp.zeros((E, r, outer)))

    def factors(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """A and B, each gathered once from where fsdp keeps it; gradients are summed in float32."""
        A_eir = constrain(self.A[...], None, self.axes[0], None)
        B_ero = constrain(self.B[...], None, None, self.axes[1])
        return A_eir.astype(dtype), B_ero.astype(dtype)

    def rows(self, x_bli: jax.Array, expert_b: jax.Array) -> jax.Array:
        """x A_e B_e with each row's own expert e: (B, L, in) to (B, L, out)."""
        A_eir, B_ero = self.factors(x_bli.dtype)
        A_bir = constrain(A_eir[expert_b], "batch", self.axes[0], None)
        B_bro = constrain(B_ero[expert_b], "batch", None, self.axes[1])
        return x_bli @ A_bir @ B_bro


class TaskVectors(nnx.Module):
    """The task vectors of all experts in one layer."""

    def __init__(self, config: ModelConfig, E: int, r: int, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.gate = LowRank((E, D, r, F), (None, "ffn"), rngs)
        self.up = LowRank((E, D, r, F), (None, "ffn"), rngs)
        self.down = LowRank((E, F, r, D), ("ffn", None), rngs)


class MoCaE(FFN):
    """An FFN with task vectors and a router; its base weights keep the FFN's names."""

    def __init__(self, config: ModelConfig, mocae: MoCaEConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        E = len(mocae.objectives)
        self.scale = mocae.scale
        self.task_vectors = TaskVectors(config, E, mocae.rank, rngs)
        self.router = Router(config.hidden_size, E, rngs)

    def __call__(self, x_bld: jax.Array, routing: Routing) -> tuple[jax.Array, jax.Array]:
        """(B, L, D) to the routed output (B, L, D) and the gate logits z (B, L, E) float32.

        A `Forced` routing with n experts for each row gives n copies of the rows, (n B, L, D).
        """
        logits_ble = self.router(x_bld)
        match routing:
            case Backbone():
                return self.base(x_bld), logits_ble
            case Forced():
                y_bld = self._forced(x_bld, routing)
                return y_bld, jnp.tile(logits_ble, (len(y_bld) // len(x_bld), 1, 1))
            case _:
                return self._mixture(x_bld, routing.weights(logits_ble, self.router)), logits_ble

    def _mixture(self, x_bld: jax.Array, w_ble: jax.Array) -> jax.Array:
        """y = (sum_e w_e a_e) Wd + s sum_e w_e (a_e Ad_e) Bd_e."""
        x_td = x_bld.reshape(-1, x_bld.shape[-1])
        w_te = w_ble.reshape(len(x_td), -1)
        tv = self.task_vectors
        (Ag, Bg), (Au, Bu), (Ad, Bd) = (
            pair.factors(x_td.dtype) for pair in (tv.gate, tv.up, tv.down)
        )
        with jax.named_scope("shared_base"):
            g0_tf, u0_tf = self.gate_proj(x_td), self.up_proj(x_td)
        with jax.named_scope("experts"):
            # Gate and up of all experts read x in one product.
            A_der = self.scale * jnp.concatenate([Ag, Au]).swapaxes(0, 1)
            p_ter = (x_td @ A_der.reshape(len(A_der), -1)).reshape(len(x_td), *A_der.shape[1:])
            pg_etr, pu_etr = jnp.split(p_ter.swapaxes(0, 1), 2)
            mixed_tf, q_etr = mix(self.act, g0_tf, u0_tf, pg_etr, pu_etr, w_te, Bg, Bu, Ad)
        with jax.named_scope("combine"):
            q_etr = (self.scale * q_etr).astype(x_td.dtype)
            y_td = self.down_proj(mixed_tf) + jnp.einsum("etr,erd->td", q_etr, Bd)
        return y_td.reshape(x_bld.shape)

    def _forced(self, x_bld: jax.Array, routing: Forced) -> jax.Array:
        """E_e(x) with each row's own expert: one expert's low-rank products per row."""
        copies = (len(routing.expert_b) // len(x_bld), 1, 1)
        s, tv = self.scale * routing.coefficients(x_bld.dtype), self.task_vectors
        with jax.named_scope("shared_base"):
            g0, u0 = self.gate_proj(x_bld), self.up_proj(x_bld)
        with jax.named_scope("experts"):
            g0, u0, x_bld = (jnp.tile(x, copies) for x in (g0, u0, x_bld))
            gate = g0 + s * tv.gate.rows(x_bld, routing.expert_b)
            up = u0 + s * tv.up.rows(x_bld, routing.expert_b)
            a_blf = self.act(gate) * up
        with jax.named_scope("combine"):
            return self.down_proj(a_blf) + s * tv.down.rows(a_blf, routing.expert_b)


class PlainMoCaE(MoCaE):
    """The same mixture as E complete FFNs: H3Fusion's shape and cost, and the layer's reference."""

    def _mixture(self, x_bld: jax.Array, w_ble: jax.Array) -> jax.Array:
        y_bld = jnp.zeros_like(x_bld)
        for e in range(w_ble.shape[-1]):
            gate, up, down = (
                kernel[...] + self.scale * (pair.A[e] @ pair.B[e]).astype(kernel.dtype)
                for kernel, pair in (
                    (self.gate_proj.kernel, self.task_vectors.gate),
                    (self.up_proj.kernel, self.task_vectors.up),
                    (self.down_proj.kernel, self.task_vectors.down),
                )
            )
            gate, up, down = (kernel.astype(x_bld.dtype) for kernel in (gate, up, down))
            y_e = (self.act(x_bld @ gate) * (x_bld @ up)) @ down
            y_bld = y_bld + w_ble[..., e, None].astype(y_e.dtype) * y_e
        return y_bld
