"""Every family against transformers' own model: logits under padding, and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trinityx_jax.config import MeshConfig
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.models.families import tensors
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh

LENGTHS = (13, 9, 6)


@pytest.fixture(scope="module")
def batch():
    """Three texts padded on the right, and the same three padded on the left."""
    draw = np.random.default_rng(0)
    width = max(LENGTHS)
    real = np.zeros((2 * len(LENGTHS), width), np.int32)
    tokens = draw.integers(0, 320, real.shape, np.int32)
    for row, n in enumerate(LENGTHS):
        real[row, :n] = 1
        real[len(LENGTHS) + row, width - n :] = 1
        tokens[len(LENGTHS) + row, width - n :] = tokens[row, :n]
    return {"tokens": tokens, "real": real, "positions": np.maximum(real.cumsum(1) - 1, 0)}


def torch_answers(folder, batch):
    """(logits, {checkpoint name: gradient}) of transformers in eager float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    tokens, real, positions = (
        torch.tensor(batch[key]).long() for key in ("tokens", "real", "positions")
    )
    logits = model(tokens, attention_mask=real, position_ids=positions, use_cache=False).logits
    counts = (real[:, :-1] * real[:, 1:]).bool()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][counts], tokens[:, 1:][counts])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().numpy(), {name: g.numpy() for name, g in gradients.items()}


def our_answers(folder, batch):
    config, parameters = load_checkpoint(folder, make_mesh(MeshConfig()))
    assert config.dtype == config.param_dtype == "float32"
    tokens, real = jnp.asarray(batch["tokens"]), jnp.asarray(batch["real"])

    def loss(parameters):
        logits = (
            architecture(config)
            .merge(parameters)(tokens, positions_bl=batch["positions"], segment_ids_bl=real)
            .logits
        )
        counts = real[:, :-1] * real[:, 1:]
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return (each * counts).sum() / counts.sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    named = {}
    for name, (hf_name, transposed) in tensors(config).items():
        gradient = np.asarray(gradients[name])
        named[hf_name] = gradient.T if transposed else gradient
    return np.asarray(logits), named


def test_logits_and_gradients_equal_transformers(pretrained_case, batch):
    want, want_gradients = torch_answers(pretrained_case, batch)
    got, got_gradients = our_answers(pretrained_case, batch)
    real = batch["real"].astype(bool)
    want, got = want[real], got[real]
    assert np.abs(want).max() > 1, "the logits are too small to show a mistake"
    assert np.abs(want - got).max() <= 2e-4
    np.testing.assert_array_equal(want.argmax(-1), got.argmax(-1))
    assert set(got_gradients) == set(want_gradients)
    for name, gradient in want_gradients.items():
        atol = 1e-4 * np.abs(gradient).max()
        np.testing.assert_allclose(
            got_gradients[name], gradient, rtol=0, atol=atol, err_msg=f"gradient of {name}"
        )
