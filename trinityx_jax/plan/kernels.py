"""FLOPs of JAX's splash attention, which declares none (`models/attention_tpu.py`)."""

from __future__ import annotations

import re

from jax.sharding import AbstractMesh, Mesh

from trinityx_jax.config import ModelConfig
from trinityx_jax.plan.hlo import visits
from trinityx_jax.sharding import ways
from trinityx_jax.training.flops import mean_keys

# Matrix products of a pair of tiles: q k and p v; q k, do v and ds k; q k, do v, p do and ds q.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_CALL = re.compile(r"%?splash_mha_(fwd|dq|dkv)[\w.]* = (.*?) custom-call\(")
_ROWS = re.compile(r"\[(\d+),\d+,(\d+),(\d+)\]")  # (B, heads, L, d)


def attention_flops(text: str, config: ModelConfig, mesh: Mesh | AbstractMesh) -> float:
    """FLOPs of the attention kernels in a compiled program's text, on one device.

    Of L^2 pairs of tokens, those are counted that a causal mask and the layers' windows leave.
    """
    heads = config.num_attention_heads // ways(mesh, "heads")
    windows = [config.window(i) for i in range(config.num_hidden_layers)]
    total = 0.0
    for visit in visits(text):
        for line in visit.lines:
            call = _CALL.search(line)
            if call is None:
                continue
            rows = _ROWS.search(call[2])
            assert rows is not None, line[:200]
            B, L, d = map(int, rows.groups())
            # The layers' mean: the text does not say which layer a call is of.
            pairs = L * sum(mean_keys(L, window) for window in windows) / len(windows)
            total += visit.times * _PRODUCTS[call[1]] * 2 * B * heads * pairs * d
    return total
