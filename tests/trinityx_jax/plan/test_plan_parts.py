"""The parts of a plan that need no compiler: names, refusals, extrapolation, shapes, verdicts."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from trinityx_jax import config as cfg
from trinityx_jax.chips import CHIPS
from trinityx_jax.data.examples import Example
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.pipeline import training_batches
from trinityx_jax.data.preferences import preference_batches
from trinityx_jax.data.tokenizer import train_tokenizer
from trinityx_jax.errors import UsageError
from trinityx_jax.plan import topology
from trinityx_jax.plan.collectives import Collective
from trinityx_jax.plan.compiling import TooBig, refusal_of
from trinityx_jax.plan.layers import extrapolate
from trinityx_jax.plan.plan import Plan, StepPlan
from trinityx_jax.plan.programs import pair_batch, train_experts, training_batch
from trinityx_jax.plan.report import to_dict, to_text, verdict
from trinityx_jax.plan.roofline import bound
from trinityx_jax.plan.shape import with_shape
from trinityx_jax.sharding import make_mesh

GiB = 1 << 30


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "v6e:8x8", "v4:2x2x2"])
def test_topologies_have_a_chip(name):
    assert topology.topology_chip(name).name == name.partition(":")[0]


@pytest.mark.parametrize("name", ["", "v5e", "v9:2x2", "v5e:2x2x2", "v5p:4x4", "h100:2x2", "v5e:4"])
def test_an_unknown_topology_names_the_known_forms(name):
    with pytest.raises(UsageError, match=r"known forms are v5e:4x4, v6e:8x8, v5p:2x2x4"):
        topology.topology_chip(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'trinityx-jax\[tpu\]'"):
        topology.prepare()


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (32.00G) exceeds available HBM (15.75G).", TooBig(32 * GiB, 63 * GiB // 4)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.50T of 31.25G hbm. "
         "Exceeded hbm capacity by 1.47T.", TooBig(3 * GiB * 512, 125 * GiB // 4)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
        ("INTERNAL: exceeds available HBM", None),
    ],
)  # fmt: skip
def test_refusals(message, want):
    assert refusal_of(message) == want


def with_layers(n: int, windows: tuple[int, ...] = (), experts: tuple[int, ...] = ()):
    base = cfg.Config(experts=cfg.ExpertTrainConfig(accumulate=4))
    model = dataclasses.replace(base.model, num_hidden_layers=n, windows=windows)
    mocae = dataclasses.replace(base.mocae, layers=experts)
    return dataclasses.replace(base, model=model, mocae=mocae)


def cost(config: cfg.Config) -> np.ndarray:
    """Seven for the head, and by layer 10 with experts, 3 without, its window on top."""
    assert config.experts.accumulate == 1
    n, layers = config.model.num_hidden_layers, config.mocae.layers
    own = [10 if not layers or i in layers else 3 for i in range(n)]
    return np.array([[7 + sum(own) + sum(config.model.window(i) for i in range(n))]])


@pytest.mark.parametrize(
    ("config", "compiled"),
    [
        (with_layers(1), 1),
        (with_layers(32), 2),
        (with_layers(4, windows=(5, 0, 5, 0)), 3),
        (with_layers(5, experts=(1, 3)), 3),
        (with_layers(5, windows=(5, 0, 0, 5, 0), experts=(1, 3)), 4),
    ],
)
def test_depth_from_one_and_two_unrolled_layers(config, compiled):
    seen = []

    def measured(small: cfg.Config) -> np.ndarray:
        assert not small.model.scan_layers and small.model.num_hidden_layers <= 2
        seen.append(small)
        return cost(small)

    total = extrapolate(measured, config)
    whole = dataclasses.replace(config, experts=dataclasses.replace(config.experts, accumulate=1))
    assert total is not None and total.tolist() == cost(whole).tolist()
    assert len(seen) == compiled


def test_no_cost_where_not_even_one_layer_fits():
    assert extrapolate(lambda small: None, with_layers(3)) is None


@pytest.mark.parametrize(
    ("real", "planned"),
    [
        (training_batches, partial(training_batch, stage="experts")),
        (preference_batches, pair_batch),
    ],
    ids=["sft", "dpo"],
)
def test_a_batch_has_the_pipelines_fields(tiny_config, real, planned):
    """Else the plan would be of a step that no stage runs."""
    codec = OwnCodec(train_tokenizer(cfg.DataConfig(), [], ["a", "b"]), "{prompt} =")
    row = Example("r", "helpful", "kind", "a b", "b", rejected="a")
    objectives = tiny_config.mocae.objectives
    batch = next(real(
        {objective: [row] * 9 for objective in objectives}, codec,
        max_length=tiny_config.data.max_length, batch_size=tiny_config.experts.batch_size, seed=0,
    ))  # fmt: skip
    mesh = make_mesh(cfg.MeshConfig(1), jax.devices()[:1])
    shapes = planned(tiny_config, mesh=mesh)
    assert {k: (x.shape, x.dtype) for k, x in shapes.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }


def test_a_batch_that_the_mesh_does_not_divide(tiny_config):
    mesh: Any = jax.sharding.AbstractMesh((1, 5, 1, 1), ("data", "fsdp", "tensor", "expert"))
    config = dataclasses.replace(
        tiny_config, model=dataclasses.replace(tiny_config.model, vocab_size=10)
    )
    with pytest.raises(
        UsageError, match=r"experts.batch_size x objectives is 12 rows.* multiple of 5"
    ):
        train_experts(config, mesh)


@pytest.mark.parametrize("expert", ["low_rank", "ffn"])
def test_the_experts_of_either_kind_are_trained(tiny_config, expert):
    """What has optimiser state: the experts alone, two moments in float32 of each number."""
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, vocab_size=512),
        mocae=dataclasses.replace(tiny_config.mocae, expert=expert),
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = train_experts(config, mesh)
    with jax.set_mesh(mesh):
        program.lower()
    model, mocae = config.model, config.mocae
    D, F, E, r = model.hidden_size, model.intermediate_size, len(mocae.objectives), mocae.rank
    numbers = 3 * D * F if expert == "ffn" else 3 * (D + F) * r
    moments = 2 * 4 * model.num_hidden_layers * E * numbers
    assert program.held["optimiser"] == pytest.approx(moments, rel=0.01)


def test_a_shape_without_a_vocabulary_names_both_remedies(tiny_config):
    with pytest.raises(UsageError, match=r"vocab_size=0 .* into `model`, or name its local folder"):
        with_shape(tiny_config)


def test_a_local_folder_brings_its_shape(tiny_config, pretrained):
    folder = pretrained("llama")
    config = dataclasses.replace(
        tiny_config, backbone=str(folder), model=cfg.ModelConfig(dtype="bfloat16")
    )
    model = with_shape(config).model
    assert model.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert model.dtype == "bfloat16"


STEP = StepPlan(
    "score", "8 x 96", {"parameters": 3 * GiB, "batch": 4096}, 5 * GiB, True, GiB, 0, 0, 4 * GiB,
    flops=197e12, bytes_accessed=2 * 819e9,
    collectives=[Collective("all-gather", ("bf16[2,3]",), 4 * 10**11, 4, 1, 1)],
)  # fmt: skip
PLAN = Plan(
    "v5e:4x4", next(c for c in CHIPS if c.name == "v5e"), {"fsdp": 4, "tensor": 4}, 16 * GiB,
    {"jax": "1"}, False, [STEP], [],
)  # fmt: skip
BIG = dataclasses.replace(
    STEP, name="prefill", fits=False, device_bytes=20 * GiB, temporaries=None, outputs=None,
    code=None, peak=None, flops=None, bytes_accessed=None, collectives=[],
)  # fmt: skip


def test_the_bound_is_the_slowest_of_three():
    found = bound(STEP, PLAN.chip)
    assert found is not None
    assert (found.compute, found.memory, found.links) == pytest.approx((1.0, 2.0, 1.5))
    assert (found.seconds, found.limited_by) == (found.memory, "memory")
    assert bound(BIG, PLAN.chip) is None


def test_the_report_of_a_plan_that_fits():
    text = to_text(PLAN)
    assert text.splitlines()[-1] == "fits: needs 5.00 of 16.00 GiB a device"
    assert "not speeds" in text and "all-gather" in text
    tree = json.loads(json.dumps(to_dict(PLAN)))
    assert tree["fits"] and tree["flops"] == 197e12 and tree["device_bytes"] == 5 * GiB
    assert tree["collectives"][0]["step"] == "score" and tree["collectives"][0]["count"] == 1


def test_the_report_of_a_plan_that_does_not_fit():
    plan = dataclasses.replace(PLAN, steps=[STEP, BIG], skipped=["decode"])
    assert verdict(plan) == (
        "does not fit: prefill by 4.00 GiB (needs 20.00 of 16.00 GiB a device); "
        "not compiled: decode"
    )
    tree = to_dict(plan)
    assert not tree["fits"] and tree["flops"] is None and tree["device_bytes"] == 20 * GiB
    assert to_text(plan).splitlines()[-1] == verdict(plan)


@pytest.mark.parametrize("name", ["llama2_7b", "mistral_7b", "gemma_7b", "deepseek_7b", "qwen3_8b"])
def test_shipped_shapes_are_whole(name):
    """Billions of parameters, from the shapes alone, as the models' names promise."""
    from trinityx_jax.models.parameters import architecture, count

    config = cfg.load(Path(cfg.preset(name)))
    billions = {"llama2_7b": 6.738, "mistral_7b": 7.242, "gemma_7b": 8.538, "deepseek_7b": 6.910,
                "qwen3_8b": 8.191}  # fmt: skip
    assert count(architecture(config.model).shapes) / 1e9 == pytest.approx(billions[name], abs=1e-3)
