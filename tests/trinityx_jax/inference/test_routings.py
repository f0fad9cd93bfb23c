"""Routings by name, for whatever objectives a model's experts have."""

import itertools

import jax
import numpy as np
import pytest

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.inference.routings import compared, forced, routing_by_name, routing_names
from trinityx_jax.inference.score import passes
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Forced, Mixture
from trinityx_jax.sharding import make_mesh

NAMES = ("kind", "brief", "polite", "true")
SHAPE = ModelConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
)  # fmt: skip


def test_every_objective_has_its_routing_and_its_reverse():
    for e, name in enumerate(NAMES):
        for prefix, sign in (("", 1), ("negated-", -1)):
            routing = routing_by_name(prefix + name, 2, Mixture(), NAMES)
            assert isinstance(routing, Forced)
            np.testing.assert_array_equal(routing.expert_b, [e, e])
            signs = 1.0 if routing.coefficient_b is None else routing.coefficient_b
            np.testing.assert_array_equal(np.broadcast_to(signs, 2), [sign, sign])
    together = forced(["true", "negated-brief"], 2, NAMES)
    np.testing.assert_array_equal(together.expert_b, [3, 3, 1, 1])
    np.testing.assert_array_equal(together.coefficient_b, [1, 1, -1, -1])
    assert len(routing_names(NAMES)) == 12 and compared(NAMES)[2:] == NAMES


def test_jit_can_tell_every_two_routings_apart():
    """jit chooses a program by equality, after a hash that differs almost always."""
    names = ("mixture", "top1", "uniform", "backbone", "kind", "negated-kind")
    kinds = [jax.tree.structure(routing_by_name(name, 2, Mixture(), NAMES)) for name in names]
    assert all(a != b for a, b in itertools.combinations(kinds, 2))


def test_another_model_s_objective_is_no_routing():
    with pytest.raises(UsageError, match=r"'helpful': allowed are mixture, .*negated-true"):
        routing_by_name("helpful", 1, Mixture(), NAMES)


def test_forced_routings_share_a_pass():
    routings = ["mixture", "brief", "backbone", "negated-kind"]
    assert passes(routings, NAMES) == [["mixture"], ["backbone"], ["brief", "negated-kind"]]


def setup(mocae):
    codec = None  # never asked here
    mesh = make_mesh(MeshConfig())
    return Setup(architecture(SHAPE, mocae), codec, 8, 2, mesh, Mixture())  # pyright: ignore[reportArgumentType]


def test_a_setup_knows_its_model_s_objectives():
    model = setup(MoCaEConfig(objectives=NAMES, rank=2))
    assert model.objectives == NAMES and model.routings == ("mixture", "uniform", *NAMES)
    assert model.routing("polite", 1).expert_b[0] == 2  # pyright: ignore
    dense = setup(None)
    assert dense.objectives == () and dense.routing("backbone", 1) is None
    with pytest.raises(UsageError, match="no experts"):
        dense.routing("kind", 1)


def test_complete_ffns_have_no_backbone_and_nothing_to_reverse():
    model = setup(MoCaEConfig(objectives=NAMES, expert="ffn"))
    for name in ("backbone", "negated-kind"):
        with pytest.raises(UsageError, match=f"{name!r}: this model's experts are complete FFNs"):
            model.routing(name, 1)
    assert isinstance(model.routing("kind", 1), Forced)
