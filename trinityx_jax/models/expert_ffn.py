"""A mixture of E complete FFNs behind one router: the shape of Mixtral (Jiang et al. 2024) and
H3Fusion, E times the parameters and, when all are mixed, E times the work of one FFN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.models.expert_parallel import Dispatch, mix_all, mix_chosen
from trinityx_jax.models.ffn import ACTIVATIONS
from trinityx_jax.models.grouped import Weights
from trinityx_jax.models.router import Backbone, Forced, Mixture, Router, Routing


class ExpertKernel(nnx.Param):
    """A projection of complete FFNs; trained in the expert stage."""


class Kernels(nnx.Module):
    """One projection of all experts: kernel (E, in, out)."""

    def __init__(self, E: int, in_features: int, out_features: int, dtype: str, rngs: nnx.Rngs):
        shape = (E, in_features, out_features)
        drawn = in_features**-0.5 * jax.random.normal(rngs.params(), shape)
        self.kernel = ExpertKernel(drawn.astype(dtype))


class Experts(nnx.Module):
    """The projections of E complete FFNs."""

    def __init__(self, config: ModelConfig, E: int, rngs: nnx.Rngs):
        D, F, dtype = config.hidden_size, config.intermediate_size, config.param_dtype
        self.gate_proj = Kernels(E, D, F, dtype, rngs)
        self.up_proj = Kernels(E, D, F, dtype, rngs)
        self.down_proj = Kernels(E, F, D, dtype, rngs)

    def weights(self, dtype: jnp.dtype) -> Weights:
        """Kernels in the dtype of the computation, before anything gathers them."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        return Weights(*(projection.kernel[...].astype(dtype) for projection in projections))


class ExpertFFN(nnx.Module):
    """y = sum_e w_e E_e(x), E_e a complete FFN; all experts, or the k of each token."""

    def __init__(self, config: ModelConfig, mocae: MoCaEConfig, rngs: nnx.Rngs):
        E = len(mocae.objectives)
        self.act = ACTIVATIONS[config.hidden_act]
        self.dispatch: Dispatch = mocae.dispatch
        self.capacity_factor = mocae.capacity_factor
        self.experts = Experts(config, E, rngs)
        self.router = Router(config.hidden_size, E, rngs)

    def __call__(self, x_bld: jax.Array, routing: Routing) -> tuple[jax.Array, jax.Array]:
        """(B, L, D) to the routed output (B, L, D) and the gate logits z (B, L, E) float32.

        A `Forced` routing with n experts for each row gives n copies of the rows, (n B, L, D).
        Raises UsageError for what only task vectors have: a backbone without experts, and a
        coefficient.
        """
        check_routing(routing)
        logits_ble = self.router(x_bld)
        if isinstance(routing, Forced):
            copies = (len(routing.expert_b) // len(x_bld), 1, 1)
            x_bld, logits_ble = jnp.tile(x_bld, copies), jnp.tile(logits_ble, copies)
        E = logits_ble.shape[-1]
        weight_te = routing.weights(logits_ble, self.router).reshape(-1, E)
        x_td, w = x_bld.reshape(-1, x_bld.shape[-1]), self.experts.weights(x_bld.dtype)
        k = experts_per_token(routing, E)
        with jax.named_scope("experts"):
            if k == E:
                y_td = mix_all(self.act, w, x_td, weight_te)
            else:
                weight_tk, index_tk = jax.lax.top_k(weight_te, k)
                # Rows of one objective share an expert: a capacity would leave most of them out.
                dispatch = "psum" if isinstance(routing, Forced) else self.dispatch
                y_td = mix_chosen(
                    self.act,
                    w,
                    x_td,
                    index_tk,
                    weight_tk,
                    dispatch=dispatch,
                    capacity_factor=self.capacity_factor,
                )
        return y_td.reshape(x_bld.shape), logits_ble


def experts_per_token(routing: Routing, E: int) -> int:
    """How many of the E weights can differ from zero."""
    match routing:
        case Forced():
            return 1
        case Mixture(top_k=k) if k:
            return k
        case _:
            return E


def check_routing(routing: Routing) -> None:
    """Raises UsageError for a routing that complete FFNs do not have."""
    if isinstance(routing, Backbone):
        raise UsageError(
            "routing backbone: with mocae.expert: ffn there is no FFN but the experts'; "
            "choose mixture, uniform or an objective"
        )
    if isinstance(routing, Forced) and routing.coefficient_b is not None:
        raise UsageError(
            "a forced routing with coefficients scales task vectors, and complete FFNs "
            "(mocae.expert: ffn) have none; leave coefficient_b out"
        )
