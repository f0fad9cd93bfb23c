"""FLOPs of attention kernels, from lines as the TPU compiler writes them."""

from __future__ import annotations

import pytest
from jax.sharding import AbstractMesh

from trinityx_jax.config import ModelConfig
from trinityx_jax.plan.kernels import attention_flops

B, L, H, d = 3, 512, 4, 128
CALL = (
    "  %splash_mha_{} = (f32[3,512,128]{{2,1,0}}, bf16[3,2,512,128]{{3,2,1,0:T(8,128)(2,1)}}) "
    'custom-call(%q), custom_call_target="tpu_custom_call"\n'
)


def config(*windows: int) -> ModelConfig:
    return ModelConfig(
        num_hidden_layers=len(windows), num_attention_heads=H, head_dim=d, windows=windows
    )


def program(*kernels: str) -> str:
    calls = "".join(map(CALL.format, kernels))
    return f"HloModule m\n\nENTRY %main (q: f32[8]) -> f32[8] {{\n{calls}  ROOT %q.1 = f32[8]\n}}\n"


def pairs(window: int) -> int:
    """Of tokens that see each other, one by one."""
    return sum(min(i + 1, window or L) for i in range(L))


@pytest.mark.parametrize(
    ("kernel", "products"),
    [("fwd_segmented_residuals.3", 2), ("fwd_no_residuals", 2), ("dq.1", 3), ("dkv_segmented", 4)],
)
@pytest.mark.parametrize("windows", [(0,), (64,), (1, 0), (512, 600)])
def test_products_of_the_pairs_that_see_each_other(kernel, products, windows):
    found = attention_flops(program(kernel), config(*windows), mesh())
    mean = sum(map(pairs, windows)) / len(windows)
    assert found == products * 2 * B * H * mean * d


def test_calls_add_up_and_heads_are_shared_out():
    both = attention_flops(program("fwd.1", "dq.1"), config(0), mesh(tensor=2))
    alone = attention_flops(program("fwd.1"), config(0), mesh())
    assert both == pytest.approx((2 + 3) / 2 * alone / 2)


def test_other_kernels_declare_their_own():
    text = program("fwd.1").replace("splash_mha_fwd", "mixture")
    assert attention_flops(text, config(0), mesh()) == 0


def mesh(tensor: int = 1) -> AbstractMesh:
    return AbstractMesh((2, tensor), ("fsdp", "tensor"))
