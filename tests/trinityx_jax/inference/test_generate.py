"""Generation with a cache against full forward passes, token by token."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.config import OBJECTIVES, MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.inference import programs
from trinityx_jax.inference.generate import generate
from trinityx_jax.inference.routings import routing_names
from trinityx_jax.inference.sampling import Sample
from trinityx_jax.inference.setup import Setup
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.models.parameters import Parameters, architecture
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import make_mesh

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [3, 1, 4, 1, 5], [2] * 20]


def make_setup(arch, stop_ids=(), batch_size=4) -> Setup:
    codec: Any = SimpleNamespace(stop_ids=tuple(stop_ids), pad_id=0)
    mesh = make_mesh(MeshConfig())
    context = arch.config.max_position_embeddings
    return Setup(arch, codec, context, batch_size, mesh, Mixture())


def wide(parameters: Parameters) -> Parameters:
    """The same names with values that make every expert, layer and token count."""
    keys = jax.random.split(jax.random.key(3), len(parameters))
    return {
        name: x if x.ndim < 2 else 0.3 * jax.random.normal(key, x.shape, x.dtype)
        for (name, x), key in zip(parameters.items(), keys, strict=True)
    }


@pytest.fixture(scope="module")
def model():
    arch = architecture(CONFIG, MoCaEConfig(rank=4))
    setup = make_setup(arch)
    return setup, wide(arch.init(jax.random.key(0), setup.mesh))


def full_passes(setup, parameters, prompt, routing, steps, stops=()) -> list[int]:
    """Greedy ids, one full forward pass each."""
    forward = jax.jit(lambda t, r: setup.arch.merge(parameters)(t, r).logits[0])
    ids = list(prompt)
    for _ in range(steps):
        padded = np.zeros((1, 48), np.int32)
        padded[0, : len(ids)] = ids
        new = int(forward(padded, setup.routing(routing, 1))[len(ids) - 1].argmax())
        if new in stops:
            break
        ids.append(new)
    return ids[len(prompt) :]


@pytest.mark.parametrize("routing", ["mixture", "top1", "uniform", "backbone", "negated-harmless"])
def test_equals_full_passes_under_any_routing(model, routing):
    setup, parameters = model
    got = generate(setup, parameters, PROMPTS, routing, max_new_tokens=6)
    for prompt, answer in zip(PROMPTS, got, strict=True):
        assert answer.ids == full_passes(setup, parameters, prompt, routing, 6)
        assert not answer.finished


def test_routings_give_different_answers(model):
    setup, parameters = model
    answers = {
        name: tuple(map(str, generate(setup, parameters, PROMPTS, name, max_new_tokens=6)))
        for name in routing_names()
    }
    assert len(set(answers.values())) == len(routing_names())


def test_a_negated_expert_has_the_opposite_task_vector(model):
    setup, parameters = model
    flipped = {n: -x if n.endswith(".B") else x for n, x in parameters.items()}
    for name in OBJECTIVES:
        want = generate(setup, flipped, PROMPTS, name, max_new_tokens=5)
        assert generate(setup, parameters, PROMPTS, f"negated-{name}", max_new_tokens=5) == want


def test_every_family_decodes_as_it_reads(pretrained_case):
    """Prefill and cached steps of padded rows choose what full passes choose."""
    mesh = make_mesh(MeshConfig())
    config, parameters = load_checkpoint(pretrained_case, mesh, dtype="float32")
    setup = make_setup(architecture(config))
    got = generate(setup, parameters, PROMPTS, "backbone", max_new_tokens=8)
    for prompt, answer in zip(PROMPTS, got, strict=True):
        assert answer.ids == full_passes(setup, parameters, prompt, "backbone", 8)


def test_stops_at_stop_tokens(model):
    setup, parameters = model
    free = generate(setup, parameters, PROMPTS, "mixture", max_new_tokens=12)
    stops = (free[1].ids[3], free[2].ids[5])
    stopping = dataclasses.replace(setup, codec=make_setup(setup.arch, stops).codec)
    got = generate(stopping, parameters, PROMPTS, "mixture", max_new_tokens=12)
    for before, after in zip(free, got, strict=True):
        end = next((i for i, t in enumerate(before.ids) if t in stops), None)
        assert after.ids == before.ids[:end]
        assert after.finished == (end is not None)


def test_a_batch_ends_with_its_last_row(model, monkeypatch):
    """All rows stop at once, so the compiled loop must not run to the limit."""
    from trinityx_jax.inference import generate as module

    setup, parameters = model
    first = generate(setup, parameters, [[5], [5]], "mixture", max_new_tokens=1)[0].ids
    stopping = dataclasses.replace(setup, codec=make_setup(setup.arch, range(61)).codec)
    counts = []
    inner = module.prefill

    def spy(*args, **kwargs):
        state = inner(*args, **kwargs)
        counts.append((int(state.count), np.asarray(state.done_b).all()))
        return state

    monkeypatch.setattr(module, "prefill", spy)
    monkeypatch.setattr(module, "decode", lambda *a, **k: pytest.fail("a finished batch went on"))
    got = generate(stopping, parameters, [[5], [5], [6]], "mixture", max_new_tokens=9)
    assert first and counts == [(1, True)]
    assert all(answer.ids == [] and answer.finished for answer in got)


def test_loop_leaves_early(model):
    setup, parameters = model
    from trinityx_jax.inference.decode import decode, prefill
    from trinityx_jax.inference.sampling import Greedy

    row = generate(setup, parameters, [[5]], "mixture", max_new_tokens=8)[0].ids
    stop = next(t for t in row if row.index(t) == max(row.index(u) for u in row))
    stops = jnp.array([stop])
    how = setup.routing("mixture", 1)
    state = prefill(
        setup.arch, parameters, jnp.array([[5]]), jnp.zeros(1, int), jnp.zeros(1, bool),
        jax.random.split(jax.random.key(0), 1), how, Greedy(), stops, room=16,
    )  # fmt: skip
    done = decode(setup.arch, parameters, state, how, Greedy(), stops, jnp.int32(16))
    assert int(done.count) == row.index(stop) + 1 < 16


def test_watch_sees_every_token_and_may_stop(model):
    setup, parameters = model
    plain = generate(setup, parameters, PROMPTS, "mixture", max_new_tokens=7)
    seen: dict[int, list[int]] = {}
    for every in (1, 3):
        seen = {i: [] for i in range(4)}
        got = generate(
            setup, parameters, PROMPTS, "mixture", max_new_tokens=7, watch_every=every,
            watch=lambda i, ids, seen=seen: seen[i].extend(ids),
        )  # fmt: skip
        assert got == plain and seen == {i: a.ids for i, a in enumerate(plain)}
    seen = {i: [] for i in range(4)}

    def enough(i, ids):
        seen[i].extend(ids)
        return i == 2 and len(seen[i]) >= 3

    got = generate(setup, parameters, PROMPTS, "mixture", max_new_tokens=7, watch=enough)
    assert got[2] == (plain[2].ids[:3], True)
    assert [got[i] for i in (0, 1, 3)] == [plain[i] for i in (0, 1, 3)]


def test_draws_depend_on_seed_and_index_alone(model):
    setup, parameters = model
    how = {"max_new_tokens": 8, "chooser": Sample(1.5)}
    one = generate(setup, parameters, PROMPTS, "mixture", seed=1, **how)
    alone = dataclasses.replace(setup, batch_size=1)
    assert generate(alone, parameters, PROMPTS, "mixture", seed=1, **how) == one
    assert generate(setup, parameters, PROMPTS, "mixture", seed=2, **how) != one
    same = generate(setup, parameters, [PROMPTS[3]] * 3, "mixture", seed=1, **how)
    assert len({tuple(a.ids) for a in same}) == 3


def test_programs_are_few(model):
    """20 prompt lengths and 3 batch sizes: two programs for each pair of buckets at most."""
    setup, parameters = model
    before = len(programs.compiled())
    for n in range(5, 25):
        generate(setup, parameters, [[5] * n] * (1 + n % 3), "helpful", max_new_tokens=3)
    new = programs.compiled()[before:]
    assert len(new) == len(set(new)) <= 2 * 2 * 3  # 16, 24 tokens; 1, 2, 4 rows


def test_users_mistakes(model):
    setup, parameters = model

    def of(prompts, routing="mixture", setup=setup, steps=4):
        return generate(setup, parameters, prompts, routing, max_new_tokens=steps)

    with pytest.raises(DataError, match=r"prompt 1 has no tokens"):
        of([[1], []])
    with pytest.raises(DataError, match=r"prompt 0.* has 61 tokens, the context holds 60"):
        of([[1] * 61])
    with pytest.raises(UsageError, match="max_new_tokens=64: the model's context is 64"):
        of([[1]], steps=64)
    with pytest.raises(UsageError, match="max_new_tokens=0: at least 1"):
        of([[1]], steps=0)
    with pytest.raises(UsageError, match=r"routing 'helpfull': allowed are mixture, top1"):
        of([[1]], "helpfull")
    dense = make_setup(architecture(CONFIG))
    with pytest.raises(UsageError, match="routing 'mixture': this model has no experts"):
        of([[1]], setup=dense)
    assert of([]) == []
