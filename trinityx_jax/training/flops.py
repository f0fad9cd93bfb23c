"""Model FLOPs on paper: the matrix products that the mathematics of a training step asks for.

A product of (m, k) and (k, n) is 2 m k n FLOPs; elementwise work, norms, softmax and the embedding
look-up are not counted, nor is what rematerialisation or E complete FFNs (`fusion: plain`) do
again. Attention counts the keys that a query of an unpacked row may see.

A forward pass through y = x W is one product, its backward pass two: dx and dW. A frozen W needs
no dW, and nothing below the first trained layer needs dx. PASSES says how often each part of a
layer is computed in a step; `at` is the first layer with experts. The head, behind everything, is
frozen with the backbone: 2.
"""

from __future__ import annotations

from typing import Literal

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.models.transformer import has_experts

Trained = Literal["backbone", "experts", "router"]

# Times (below `at`, at it, above it) that a step computes each part of a layer.
PASSES: dict[Trained, dict[str, tuple[int, int, int]]] = {
    "backbone": dict.fromkeys(("projections", "scores", "in", "out"), (3, 3, 3)),
    "experts": {
        "projections": (1, 1, 2),
        "scores": (1, 1, 3),
        "in": (1, 1, 2),
        "out": (1, 2, 2),
        "in A": (0, 2, 3),
        "in B": (0, 3, 3),
        "out AB": (0, 3, 3),
        "experts in": (0, 2, 3),
        "experts out": (0, 3, 3),
        "router": (0, 0, 0),  # nobody looks at the gate
    },
    "router": {
        "projections": (1, 1, 2),
        "scores": (1, 1, 3),
        "in": (1, 1, 2),
        "out": (1, 2, 2),
        "in A": (0, 1, 2),
        "in B": (0, 1, 2),
        "out AB": (0, 2, 2),
        "experts in": (0, 1, 2),  # complete FFNs are weighed behind their last product
        "experts out": (0, 1, 2),
        "router": (0, 2, 3),
    },
}


def training_flops(
    config: ModelConfig,
    mocae: MoCaEConfig | None,
    trained: Trained,
    length: int,
    *,
    causal: bool = True,
) -> float:
    """FLOPs of one training step for each position of rows of `length`, forward and backward.

    The mixture runs all experts (`expert: ffn`: the top k), expert training one a row.
    `causal=False` counts every pair of positions in attention, as a program without a mask-aware
    kernel computes them.
    """
    own = [layer for layer in range(config.num_hidden_layers) if has_experts(mocae, layer)]
    total = (3 if trained == "backbone" else 2) * head_flops(config)
    for layer in range(config.num_hidden_layers):
        experts = 0 if layer not in own else 1 if trained == "experts" else None
        parts = layer_flops(config, mocae, length, layer, experts=experts, causal=causal)
        place = (layer >= own[0]) + (layer > own[0]) if own else 0
        total += sum(PASSES[trained][part][place] * flops for part, flops in parts.items())
    return total


def forward_flops(
    config: ModelConfig,
    mocae: MoCaEConfig | None,
    length: int,
    *,
    experts: int | None = None,
    causal: bool = True,
) -> float:
    """FLOPs of one forward pass, head included, for each position of rows of `length`.

    `experts` run for each position: None for those of the mixture, 1 for a forced one, 0 for the
    backbone alone.
    """
    own = [layer for layer in range(config.num_hidden_layers) if has_experts(mocae, layer)]
    return head_flops(config) + sum(
        flops
        for layer in range(config.num_hidden_layers)
        for flops in layer_flops(
            config, mocae, length, layer, experts=experts if layer in own else 0, causal=causal
        ).values()
    )


def layer_flops(
    config: ModelConfig,
    mocae: MoCaEConfig | None,
    length: int,
    layer: int,
    *,
    experts: int | None,
    causal: bool,
) -> dict[str, float]:
    """Forward FLOPs of a layer's parts for each position; `experts` as in `forward_flops`."""
    c = config
    D, F, d = c.hidden_size, c.intermediate_size, c.head_dim
    H, G = c.num_attention_heads, c.num_key_value_heads
    keys = mean_keys(length, c.window(layer)) if causal else length
    parts: dict[str, float] = {
        "projections": 2 * D * (2 * H * d + 2 * G * d),
        "scores": 2 * 2 * H * d * keys,
        "in": 2 * 2 * D * F,
        "out": 2 * F * D,
    }
    if mocae is None or experts == 0:
        return parts
    E = len(mocae.objectives)
    parts["router"] = 2 * D * E
    if mocae.expert == "ffn":
        n = experts or mocae.top_k or E
        return parts | {"experts in": n * parts.pop("in"), "experts out": n * parts.pop("out")}
    n, r = experts or E, mocae.rank
    return parts | {
        "in A": n * 2 * 2 * D * r,
        "in B": n * 2 * 2 * r * F,
        "out AB": n * 2 * (F * r + r * D),
    }


def head_flops(config: ModelConfig) -> float:
    """Of the next-token logits, for each position."""
    return 2 * config.hidden_size * config.vocab_size


def mean_keys(length: int, window: int) -> float:
    """Keys that a query sees on average over a row, causally and within `window` (0: no window)."""
    width = min(window or length, length)
    return (width * (width + 1) / 2 + (length - width) * width) / length
