"""The count on paper against XLA's count of the compiled step of an unrolled model."""

import dataclasses

import jax
import pytest

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig, RouterLossConfig
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Mixture, RouterWeight
from trinityx_jax.sharding import make_mesh
from trinityx_jax.stages.experts import expert_loss
from trinityx_jax.stages.pretrain import language_model_loss
from trinityx_jax.stages.router import router_loss
from trinityx_jax.training.flops import forward_flops, mean_keys, training_flops

B, L = 2, 64
MODEL = ModelConfig(
    vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=128, scan_layers=False,
)  # fmt: skip
MOCAE = MoCaEConfig(rank=64, layers=(1, 2))
BATCH = {
    **{name: jax.ShapeDtypeStruct((B, L), "int32")
       for name in ("tokens", "targets", "segment_ids", "positions")},
    "loss_mask": jax.ShapeDtypeStruct((B, L), "float32"),
    "objective": jax.ShapeDtypeStruct((B,), "int32"),
}  # fmt: skip
STAGES = {
    "backbone": (None, None, language_model_loss),
    "experts": (MOCAE, TaskVector, expert_loss),
    "router": (MOCAE, RouterWeight, lambda arch: router_loss(arch, RouterLossConfig(), Mixture())),
}


@pytest.mark.optimised
@pytest.mark.parametrize("trained", STAGES)
def test_the_count_on_paper_is_the_compilers(trained):
    """Within 5 %: the compiler counts elementwise work, too, and the keys behind the mask."""
    mocae, kind, make = STAGES[trained]
    arch = architecture(MODEL, mocae)
    shapes = arch.abstract(make_mesh(MeshConfig(data=1)))
    trainable = shapes if kind is None else arch.only(shapes, kind)
    frozen = {name: x for name, x in shapes.items() if name not in trainable}
    loss = make(arch)

    def of(trainable, frozen, batch):
        return jax.value_and_grad(loss.part, has_aux=True)(trainable, frozen, loss.weigh(batch))

    lowered = jax.jit(of).lower(trainable, frozen, BATCH)
    costs = lowered.compile(
        compiler_options={"xla_backend_optimization_level": "0"}
    ).cost_analysis()
    want = B * L * training_flops(MODEL, mocae, trained, L, causal=False)
    assert costs is not None
    assert costs["flops"] == pytest.approx(want, rel=0.05)


@pytest.mark.optimised
def test_a_forward_pass_by_hand():
    model = dataclasses.replace(MODEL, num_hidden_layers=2, windows=(0, 16))
    keys = sum(min(i + 1, 16) for i in range(L)) / L + sum(i + 1 for i in range(L)) / L
    projections = 512 * 512 + 2 * 512 * 256 + 512 * 512
    dense = 2 * (2 * (projections + 3 * 512 * 1024) + 2 * 512 * keys + 512 * 512)
    assert forward_flops(model, None, L) == pytest.approx(dense)
    pair = 64 * (512 + 1024)
    mocae = dataclasses.replace(MOCAE, layers=(1,))
    for experts, n in ((None, 3), (1, 1)):
        extra = 2 * (3 * n * pair + 512 * 3)
        assert forward_flops(model, mocae, L, experts=experts) == pytest.approx(dense + extra)
    assert forward_flops(model, mocae, L, experts=0) == pytest.approx(dense)


@pytest.mark.optimised
def test_complete_experts_multiply_the_ffn():
    mocae = MoCaEConfig(expert="ffn", top_k=2)
    extra = forward_flops(MODEL, mocae, L) - forward_flops(MODEL, None, L)
    assert extra == pytest.approx(3 * 2 * (3 * 512 * 1024 + 512 * 3))


@pytest.mark.optimised
def test_trained_complete_experts_by_hand():
    """One layer: its attention forward only, its expert's products with dW and, of Wd, dx."""
    model, mocae = dataclasses.replace(MODEL, num_hidden_layers=1), MoCaEConfig(expert="ffn")
    attention = 512 * 512 + 2 * 512 * 256 + 512 * 512 + 2 * 512 * mean_keys(L, 0)
    products = attention + (2 * 2 + 3) * 512 * 1024 + 2 * 512 * 512
    assert training_flops(model, mocae, "experts", L) == pytest.approx(2 * products)


@pytest.mark.optimised
def test_keys_within_a_window():
    assert mean_keys(4, 0) == 2.5
    assert mean_keys(4, 2) == (1 + 2 + 2 + 2) / 4
    assert mean_keys(4, 9) == 2.5
