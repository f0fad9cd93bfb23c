"""Options that share their prompt score as if each stood alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinityx_jax.config import MeshConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.inference import score
from trinityx_jax.inference.packing import Question, packed_batches
from trinityx_jax.inference.score import option_lengths, passes, score_options
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh

IDS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
QUESTIONS = st.lists(
    st.builds(Question, IDS, st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=12
)


@given(QUESTIONS, st.integers(1, 5))
def test_every_option_is_predicted_once_from_its_own_tokens(questions, batch_size):
    seen = []
    for index, batch in packed_batches(questions, batch_size):
        assert len(batch["tokens"]) == batch_size
        for row, i in enumerate(index):
            prompt, options = questions[i]
            b = {key: value[row] for key, value in batch.items()}
            for k, option in enumerate(options):
                # What the model may see of option k, in order: the prompt and its own tokens.
                own = (b["segments"] == 1) | (b["segments"] == k + 2)
                assert b["tokens"][own].tolist() == [*prompt, *option[:-1]]
                assert b["positions"][own].tolist() == list(range(own.sum()))
                mine = b["option"] == k
                assert b["target"][mine].tolist() == list(option)
                # Token j is predicted where token j - 1 was read.
                before = b["positions"][b["place"][mine]]
                assert before.tolist() == [len(prompt) - 1 + j for j in range(len(option))]
                assert own[b["place"][mine]].all()
            assert (b["option"] >= 0).sum() == questions[i].predicted
            seen.append(i)
        assert (batch["option"][len(index) :] == -1).all()
    assert sorted(seen) == list(range(len(questions)))


@pytest.mark.parametrize("count", [7, 4000])
def test_batches_are_full_and_of_few_shapes(count):
    """Every shape is compiled once for every pass."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 40, (count, 6))
    questions = [Question([1] * P, [[1] * n for n in rest[: 1 + P % 5]]) for P, *rest in sizes]
    shapes = [
        (len(index), batch["tokens"].shape, batch["place"].shape)
        for index, batch in packed_batches(questions, 8)
    ]
    assert [n for n, *_ in shapes] == [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    lengths = {tokens for _, tokens, _ in shapes}
    assert len(lengths) <= 13 and len(set(shapes)) <= 3 * len(lengths)


def one_by_one(arch, parameters, question, routing):
    """(log-likelihood, greedy) of each option, each in a full pass of its own."""
    forward = jax.jit(lambda t, r: jax.nn.log_softmax(arch.merge(parameters)(t, r).logits[0]))
    for option in question.options:
        ids = np.array([*question.prompt, *option])
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(ids)] = ids
        log_p = np.asarray(forward(padded, routing))
        at = np.arange(len(question.prompt), len(ids))
        yield log_p[at - 1, ids[at]].sum(), (log_p[at - 1].argmax(-1) == ids[at]).all()


def some_questions(rng, n=7):
    return [
        Question(
            rng.integers(1, 60, rng.integers(1, 20)).tolist(),
            [rng.integers(1, 60, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 5))],
        )
        for _ in range(n)
    ]


def check(setup, parameters, questions, routings):
    got = score_options(setup, parameters, questions, routings)
    lengths = option_lengths(questions)
    for name in routings:
        total, greedy = got[name]
        assert np.isneginf(total[lengths == 0]).all() and not greedy[lengths == 0].any()
        for i, question in enumerate(questions):
            assert lengths[i, : len(question.options)].tolist() == list(map(len, question.options))
            want = list(one_by_one(setup.arch, parameters, question, setup.routing(name, 1)))
            for k, (log_p, is_greedy) in enumerate(want):
                np.testing.assert_allclose(total[i, k], log_p, rtol=2e-5, atol=1e-4)
                assert greedy[i, k] == is_greedy


@pytest.fixture(scope="module")
def mocae():
    from test_generate import CONFIG, MoCaEConfig, make_setup, wide

    arch = architecture(CONFIG, MoCaEConfig(rank=4))
    setup = make_setup(arch)
    return setup, wide(arch.init(jax.random.key(0), setup.mesh))


def test_equals_one_by_one_under_every_routing(mocae):
    questions = some_questions(np.random.default_rng(0))
    # The greedy answer of one question is among its options, and marked.
    setup, parameters = mocae
    forward = setup.arch.merge(parameters)
    first = forward(jnp.array([questions[0].prompt]), setup.routing("harmless", 1)).logits[0, -1]
    questions[0] = Question(questions[0].prompt, [[int(first.argmax())], [1, 2]])
    assert score_options(setup, parameters, questions[:1], ["harmless"])["harmless"].greedy[0, 0]
    check(setup, parameters, questions, ["mixture", "helpful", "negated-honest", "harmless"])


def test_every_family(pretrained_case):
    from test_generate import make_setup

    config, parameters = load_checkpoint(pretrained_case, make_mesh(MeshConfig()), dtype="float32")
    questions = some_questions(np.random.default_rng(1), 4)
    check(make_setup(architecture(config)), parameters, questions, ["backbone"])


def test_forced_routings_share_one_pass(mocae, monkeypatch):
    assert passes(["mixture", "helpful", "uniform", "negated-honest"]) == [
        ["mixture"], ["uniform"], ["helpful", "negated-honest"],
    ]  # fmt: skip
    assert passes(["backbone"]) == [["backbone"]]
    setup, parameters = mocae
    calls = []
    inner = score._score
    monkeypatch.setattr(score, "_score", lambda *a: calls.append(a) or inner(*a))
    questions = some_questions(np.random.default_rng(2), 2)
    both = score_options(setup, parameters, questions[:1], ["helpful", "harmless"])
    assert len(calls) == 1
    for name in both:
        alone = score_options(setup, parameters, questions[:1], [name])[name]
        np.testing.assert_allclose(both[name].log_likelihood, alone.log_likelihood, rtol=1e-5)


@pytest.mark.optimised
def test_the_shared_part_is_computed_once(mocae):
    """Two experts in one pass cost less than two passes by what precedes the first expert."""
    setup, parameters = mocae
    arch, parameters = setup.arch.unrolled(), setup.arch.unstack(parameters)  # scanned, tiled first
    batch = next(packed_batches(some_questions(np.random.default_rng(3), 3), 3))[1]
    batch = {k: jnp.asarray(v) for k, v in batch.items()}

    def flops(routing):
        compiled = score._score.lower(arch, parameters, batch, routing, 4).compile()
        cost: dict = compiled.cost_analysis()  # pyright: ignore[reportAssignmentType]
        return cost["flops"]

    from trinityx_jax.inference.routings import forced

    tokens, c = batch["tokens"].size, arch.config
    once = flops(forced(["helpful"], 3))
    twice = flops(forced(["helpful", "harmless"], 3))
    projections = 2 * c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * 2)
    shared = tokens * (projections + 4 * c.hidden_size * c.intermediate_size)
    assert twice <= 2 * once - shared


def test_no_questions(mocae):
    setup, parameters = mocae
    assert score_options(setup, parameters, [], ["mixture"])["mixture"].greedy.shape == (0, 0)


def test_experts_of_a_dense_model_are_refused():
    from test_generate import CONFIG, make_setup

    dense = make_setup(architecture(CONFIG))
    questions = some_questions(np.random.default_rng(4), 1)
    with pytest.raises(UsageError, match="routing 'helpful': this model has no experts"):
        score_options(dense, {}, questions, ["helpful", "harmless"])
