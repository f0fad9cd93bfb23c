"""The backbone against Llama's formulas in NumPy float64, and its packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.special import softmax as scipy_softmax

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.models.parameters import architecture, count
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import make_mesh

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    scan_layers=False,
)


@pytest.fixture(scope="module")
def backbone():
    return architecture(CONFIG).init(jax.random.key(0), make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 31, size=(3, 9))


@jax.jit
def forward(backbone, tokens, positions=None, segments=None):
    model = architecture(CONFIG).merge(backbone)
    return model(tokens, positions_bl=positions, segment_ids_bl=segments).logits


def reference_logits(backbone, tokens):
    """Llama, one sequence and one head at a time, in float64."""
    p = {name: np.asarray(x, np.float64) for name, x in backbone.items()}
    H, G, d = 4, 2, 6

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.rms_norm_eps) * scale

    def turn(x):  # (L, d), Hugging Face's rotate_half
        half = d // 2
        angle = np.arange(len(x))[:, None] / CONFIG.rope_theta ** (np.arange(half) * 2 / d)
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def attend(x, w):
        q, k, v = (x @ p[f"{w}.self_attn.{name}_proj.kernel"] for name in "qkv")
        heads = []
        for h in range(H):
            g = h // (H // G)
            q_h = turn(q[:, h * d : (h + 1) * d])
            k_h = turn(k[:, g * d : (g + 1) * d])
            scores = q_h @ k_h.T / np.sqrt(d)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            heads.append(scipy_softmax(scores, axis=1) @ v[:, g * d : (g + 1) * d])
        return np.concatenate(heads, axis=1) @ p[f"{w}.self_attn.o_proj.kernel"]

    out = []
    for row in tokens:
        x = p["embed_tokens.embedding"][row]
        for i in range(CONFIG.num_hidden_layers):
            w = f"layers.{i}"
            x = x + attend(norm(x, p[f"{w}.input_layernorm.scale"]), w)
            h = norm(x, p[f"{w}.post_attention_layernorm.scale"])
            gate = h @ p[f"{w}.mlp.gate_proj.kernel"]
            act = gate * expit(gate) * (h @ p[f"{w}.mlp.up_proj.kernel"])
            x = x + act @ p[f"{w}.mlp.down_proj.kernel"]
        out.append(norm(x, p["norm.scale"]) @ p["lm_head.kernel"])
    return np.stack(out)


def test_logits_equal_the_reference(backbone, tokens):
    got = forward(backbone, tokens)
    want = reference_logits(backbone, tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_packed_segments_do_not_see_each_other(backbone, tokens):
    """Three sequences packed in one row give the logits they give alone."""
    lengths = [4, 2, 3]
    row = np.concatenate([tokens[i, :n] for i, n in enumerate(lengths)])
    segments = np.repeat([1, 2, 3], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    tile = np.ones((3, 1), int)  # the shape that the other tests compiled
    packed = forward(backbone, row * tile, positions * tile, segments * tile)[0]
    alone = forward(backbone, tokens)
    start = 0
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(packed[start : start + n], alone[i, :n], rtol=1e-4, atol=1e-6)
        start += n


def test_padding_at_the_end_changes_nothing(backbone, tokens):
    padded = tokens.copy()
    padded[:, 5:] = 0
    np.testing.assert_allclose(
        forward(backbone, padded)[:, :5], forward(backbone, tokens)[:, :5], rtol=1e-5, atol=1e-6
    )


def test_names_and_shapes_follow_llama():
    arch = architecture(CONFIG)
    assert arch.shapes["layers.1.self_attn.k_proj.kernel"].shape == (16, 12)
    assert arch.shapes["layers.0.mlp.down_proj.kernel"].shape == (24, 16)
    assert {name.split(".", 2)[2] for name in arch.shapes if name.startswith("layers.0")} == {
        "input_layernorm.scale",
        "post_attention_layernorm.scale",
        *(f"self_attn.{p}_proj.kernel" for p in "qkvo"),
        *(f"mlp.{p}_proj.kernel" for p in ("gate", "up", "down")),
    }


def test_a_new_mixture_equals_its_backbone(backbone, tokens):
    """Zero task vectors: the mixture gives the backbone's logits."""
    mixed = architecture(CONFIG, MoCaEConfig(rank=2))
    parameters = mixed.init(jax.random.key(1), make_mesh(MeshConfig())) | backbone
    got = jax.jit(lambda p, t: mixed.merge(p)(t, Mixture()))(parameters, tokens)
    np.testing.assert_allclose(got.logits, forward(backbone, tokens), rtol=1e-5, atol=1e-6)
    assert got.gate_logits.shape == (2, 3, 9, 3)
    assert count(mixed.shapes) > count(architecture(CONFIG).shapes)
