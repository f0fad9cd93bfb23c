"""What the TPU compiler makes of a small model: run once, in a process of its own (plan_probe.py).

Its environment and its library must not reach the tests' own process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trinityx_jax import config as cfg
from trinityx_jax.training.flops import forward_flops, training_flops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU compiler, libtpu, is not installed (extra tpu)",
    ),
]
ROOT = Path(__file__).resolve().parents[3]
# No size is a multiple of L but those that count tokens, and only the rank is 8.
L, R, LAYERS = 96, 8, 4
D, F, TENSOR = 256, 640, 2
SMALL = f"""
model: {{vocab_size: 1024, hidden_size: {D}, intermediate_size: {F}, num_hidden_layers: {LAYERS},
  num_attention_heads: 4, num_key_value_heads: 4, head_dim: 64, dtype: bfloat16,
  param_dtype: bfloat16}}
mocae: {{rank: {R}}}
data: {{max_length: {L}}}
mesh: {{data: 1, fsdp: 2, tensor: {TENSOR}}}
experts: {{batch_size: 4}}
score: {{batch_size: 8}}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def tiled(small) -> cfg.Config:
    """Two layers, on one device, whose attention the kernels take."""
    config = cfg.load(small)
    model = dataclasses.replace(
        config.model,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        scan_layers=False,
    )
    return dataclasses.replace(
        config, model=model, mesh=cfg.MeshConfig(1), data=cfg.DataConfig(max_length=1024)
    )


@pytest.fixture(scope="module")
def found(small, tiled) -> dict[str, Any]:
    other = small.with_name("tiled.yaml")
    other.write_text(cfg.dump(tiled))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("plan_probe.py"), small, other],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr, "libtpu's complaints reach the user"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def scored(found) -> dict[str, Any]:
    status, text = found["scored"]
    assert status == 0
    return json.loads(text)


def moved(collectives: list[dict[str, Any]], *, experts: bool) -> int:
    """Elements of the weights that a layer's collectives bring to a device."""
    moves = ("all-gather", "all-to-all", "collective-permute")
    total = 0
    for c in collectives:
        for shape in c["shapes"]:
            dims = [int(d) for d in shape.partition("[")[2].strip("]").split(",") if d]
            tokens = any(d % L == 0 for d in dims)
            if c["kind"] in moves and c["trips"] == LAYERS and not tokens:
                total += c["places"] * math.prod(dims) * ((R in dims) == experts)
    return total


# A layer's weights as a device needs them, split by heads or F alone.
BASE = (3 * D * F + 4 * D * D) // TENSOR
EXPERTS = 3 * 3 * D * R  # A of gate and up, B of down; no device lacks any of the others


@pytest.mark.parametrize(("step", "passes"), [("scored", 1), ("train", 2)])
@pytest.mark.parametrize(("weights", "size"), [("base", BASE), ("experts", EXPERTS)])
def test_weights_reach_a_device_once_a_pass_and_layer(found, scored, step, passes, weights, size):
    collectives = scored["collectives"] if step == "scored" else found["train"]
    assert 0 < moved(collectives, experts=weights == "experts") <= passes * size


def test_a_larger_mesh_needs_less_of_a_device(found, scored):
    assert found["wider"] < 0.75 * scored["steps"][0]["peak"]


def test_compiled_flops_are_those_on_paper(found, small):
    config = cfg.load(small)
    one = dataclasses.replace(config.model, num_hidden_layers=1)
    tokens = 3 * config.experts.batch_size * L
    paper = tokens * training_flops(one, config.mocae, "experts", L, causal=False)
    assert found["layer"] == pytest.approx(paper, rel=0.05)


def test_the_flops_of_attention_kernels_are_counted(found, tiled):
    length = tiled.data.max_length
    alone = dataclasses.replace(tiled.model, windows=(1, 1))  # attention to oneself: next to none
    paper, rest = (
        training_flops(model, tiled.mocae, "experts", length) for model in (tiled.model, alone)
    )
    attention = paper - rest
    assert attention > 0.1 * paper
    # Products of queries, keys and values in the first layer, which needs no gradient, and in the
    # second: 2 and 2 + 4 on paper. The kernels' backward pass forms three of them anew.
    kernels = attention * (2 + 2 + 7) / (2 + 2 + 4)
    tokens = 3 * tiled.experts.batch_size * length
    assert found["tiled"] == pytest.approx(tokens * (rest + kernels), rel=0.05)


def test_four_devices_share_the_work_of_all_layers(scored, small):
    """What is done twice, or a layer that is counted once, would show."""
    config = cfg.load(small)
    paper = config.score.batch_size * L * forward_flops(config.model, config.mocae, L, causal=False)
    assert 4 * scored["flops"] == pytest.approx(paper, rel=0.1)


def test_the_json_object(scored):
    assert scored["fits"] is True
    assert 0 < scored["device_bytes"] < scored["device_limit_bytes"] < 16 << 30
    [step] = scored["steps"]
    assert (step["name"], step["size"]) == ("score", f"8 x {L}")
    assert step["flops"] == scored["flops"] and step["bytes_accessed"] == scored["bytes_accessed"]
    bound = step["bound_seconds"]
    assert bound["compute"] == pytest.approx(step["flops"] / scored["chip"]["peak_flops"])
    assert bound["total"] == max(bound["compute"], bound["memory"], bound["links"])
    assert {c["step"] for c in scored["collectives"]} == {"score"}


def test_the_least_effort_counts_the_same_work(found, scored):
    status, text = found["quick"]
    quick = json.loads(text)
    assert status == 0 and quick["quick"] and not scored["quick"]
    assert quick["flops"] == pytest.approx(scored["flops"], rel=1e-2)
    assert 0.5 < quick["device_bytes"] / scored["device_bytes"] < 2


def test_what_does_not_fit_is_a_verdict(found):
    status, text = found["huge"]
    words = text.splitlines()[-1]
    assert status == 0 and words.startswith("does not fit: score by ")
    over, needed, limit = (float(word) for word in words.replace("(", " ").split() if "." in word)
    assert over == pytest.approx(needed - limit, abs=0.02)
    # Embedding and head alone: 2 x 2^26 x 256 bfloat16 over 4 devices are 16 GiB.
    assert needed > 16 and limit < 16
