"""Mixtral's layout: transformers and this package give the same logits, in both directions."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.mixtral import load_mixtral, mixtral_configs, save_mixtral
from trinityx_jax.language_model import from_pretrained
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import make_mesh

TOKENS = np.arange(24).reshape(2, 12) * 7 % 64
TINY = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
)  # fmt: skip
LOW_RANK = MoCaEConfig(rank=2, lora_alpha=4.0)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Mixtral that transformers wrote, with weights wide enough to show any mistake."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=5, pad_token_id=None,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(parameter + 0.3 * noise if "norm" in name else 0.2 * noise)
    folder = tmp_path_factory.mktemp("mixtral") / "checkpoint"
    model.save_pretrained(folder)
    return folder


def mixture_of(mocae):
    """Low-rank experts with large moves, uneven temperatures and importances."""
    arch = architecture(TINY, mocae)
    draw = np.random.default_rng(0)
    parameters = {n: 0.3 * draw.normal(size=x.shape) for n, x in arch.shapes.items()}
    uneven = {"temperature": [0.25, 0.5, 1.0], "gamma": [0.5, 1.5, 1.0], "scale": [0.8]}
    for name in parameters:
        leaf = name.rsplit(".", 1)[1]
        if leaf in uneven:
            parameters[name] = np.broadcast_to(uneven[leaf], parameters[name].shape)
    return arch, {name: jnp.asarray(x, jnp.float32) for name, x in parameters.items()}


def ours(arch, parameters):
    @jax.jit
    def call(parameters):
        routing = Mixture(arch.mocae.top_k, arch.mocae.gamma)
        return arch.merge(parameters)(jnp.asarray(TOKENS), routing).logits

    return np.asarray(call(parameters))


def theirs(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert type(model).__name__ == "MixtralForCausalLM"
    with torch.no_grad():
        return model(torch.asarray(TOKENS)).logits.numpy()


def same(got, want):
    np.testing.assert_allclose(got, want, atol=2e-4)
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_an_import_gives_the_logits_of_transformers(checkpoint, mesh):
    config, mocae, parameters = load_mixtral(checkpoint, mesh)
    assert (config.family, config.windows, config.rope_theta) == ("mistral", (5, 5), 1e6)
    assert (mocae.expert, mocae.top_k) == ("ffn", 2)
    assert mocae.objectives == ("expert0", "expert1", "expert2", "expert3")
    arch = architecture(config, mocae)
    assert {n: x.shape for n, x in parameters.items()} == {
        n: x.shape for n, x in arch.shapes.items()
    }
    want = theirs(checkpoint)
    assert np.ptp(want) > 1
    same(ours(arch, parameters), want)


def test_an_import_is_read_slice_by_slice_in_its_dtype(checkpoint, mesh):
    _, _, parameters = load_mixtral(checkpoint, mesh, dtype="bfloat16", names=tuple("abcd"))
    on_disk = load_file(checkpoint / "model.safetensors")
    assert not any("gate_up_proj" in name for name in on_disk)  # transformers 5 fuses in memory
    for projection, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        got = parameters[f"layers.1.mlp.experts.{projection}_proj.kernel"]
        assert got.dtype == jnp.bfloat16
        for e in range(4):
            want = on_disk[f"model.layers.1.block_sparse_moe.experts.{e}.{w}.weight"].T
            np.testing.assert_array_equal(got[e], want.astype(jnp.bfloat16))
    assert parameters["layers.0.mlp.router.kernel"].dtype == jnp.float32


def test_the_round_trip_changes_nothing(checkpoint, mesh, tmp_path):
    config, mocae, parameters = load_mixtral(checkpoint, mesh, names=tuple("abcd"))
    folder = tmp_path / "saved"
    save_mixtral(folder, architecture(config, mocae), parameters, max_shard_bytes=40_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    again = load_mixtral(folder, mesh)
    assert again[:2] == (config, mocae)  # the names, too
    for name, x in parameters.items():
        np.testing.assert_array_equal(again[2][name], x)


@pytest.mark.parametrize("change", [{}, {"top_k": 1, "gamma": "output"}])
def test_an_export_of_low_rank_experts_is_the_same_mixture(mesh, tmp_path, change):
    arch, parameters = mixture_of(dataclasses.replace(LOW_RANK, **change))
    folder = save_mixtral(tmp_path / "saved", arch, parameters)
    contents = json.loads((folder / "config.json").read_text())
    assert contents["num_experts_per_tok"] == (change.get("top_k") or 3)
    want = theirs(folder)
    same(ours(arch, parameters), want)
    _, mocae, loaded = load_mixtral(folder, mesh)
    assert mocae == MoCaEConfig(expert="ffn", top_k=change.get("top_k", 0))
    router = "layers.1.mlp.router.kernel"
    gate = np.asarray(arch.unstack(parameters)[router]) / [0.25, 0.5, 1.0]
    np.testing.assert_allclose(loaded[router], gate, rtol=1e-6)


def test_the_model_of_a_folder(checkpoint, mesh, tmp_path):
    model = from_pretrained(checkpoint, mesh=mesh, scan_layers=True)
    assert model.default_routing == "mixture" and model.setup.mixture == Mixture(2)
    same(np.asarray(model(TOKENS)), theirs(checkpoint))
    alone = np.asarray(model(TOKENS, routing="expert2"))
    assert np.abs(alone - np.asarray(model(TOKENS, routing="expert1"))).max() > 0.1
    with pytest.raises(UsageError, match="routing 'backbone'"):
        model(TOKENS, routing="backbone")
    folder = model.save_pretrained(tmp_path / "saved")
    want = load_file(checkpoint / "model.safetensors")
    got = load_file(folder / "model.safetensors")
    assert set(got) == set(want)
    for name, x in want.items():
        assert got[name].tobytes() == x.tobytes(), name


def test_what_a_mixtral_cannot_say_is_refused(tmp_path):
    _, parameters = mixture_of(LOW_RANK)

    def refused(told, config=TINY, mocae=LOW_RANK):
        with pytest.raises(UsageError, match=told):
            save_mixtral(tmp_path / "saved", architecture(config, mocae), parameters)
        assert not (tmp_path / "saved").exists()

    change = dataclasses.replace
    refused("gamma: logit is a bias of the gate", mocae=change(LOW_RANK, gamma="logit"))
    refused("every layer must have experts", mocae=change(LOW_RANK, layers=(1,)))
    with pytest.raises(UsageError, match="every layer must have experts"):
        save_mixtral(tmp_path / "saved", architecture(TINY), parameters)
    refused(r"export as Mixtral: .*qkv_bias=True", config=change(TINY, qkv_bias=True))


def test_faults_of_a_config(checkpoint):
    hf = json.loads((checkpoint / "config.json").read_text())

    def fault(error, told, names=(), **changed):
        with pytest.raises(error, match=told):
            mixtral_configs({**hf, **changed}, "config.json", names)

    fault(DataError, "MixtralForSequence.* is not supported", architectures=["MixtralForSequence"])
    fault(DataError, "num_experts_per_tok=5 of num_local_experts=4", num_experts_per_tok=5)
    fault(DataError, "num_local_experts='4' must be a positive", num_local_experts="4")
    fault(UsageError, "4 experts need as many different names, not .'a', 'b'.", names=("a", "b"))
    assert mixtral_configs({**hf, "num_experts_per_tok": 4}, "config.json")[1].top_k == 0


def test_a_missing_expert_is_named(checkpoint, mesh, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    arrays = load_file(folder / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    del arrays[name]
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=f"missing: {name}"):
        load_mixtral(folder, mesh)
