"""Option scores against one sequence at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trinityx_jax.inference.gates import collect_gates
from trinityx_jax.inference.routings import compared
from trinityx_jax.inference.score import option_scores
from trinityx_jax.stages.context import open_context


@pytest.fixture(scope="module")
def setting(tiny_run):
    context = open_context(tiny_run)
    rows = [context.data.rows(o, "test")[i] for o in ("helpful", "honest") for i in range(4)]
    return context, context.calibrated(), rows


def test_option_scores(setting):
    context, parameters, rows = setting
    got = option_scores(dataclasses.replace(context.inference, batch_size=3), parameters, rows)
    model = context.mocae.merge(parameters)
    routing = functools.partial(context.inference.routing, rows=1)
    log_softmax = jax.jit(lambda t, r: jax.nn.log_softmax(model(t, r).logits[0]))
    for name in ("mixture", "honest"):
        assert got[name].shape == (len(rows), 4)
        for i in (0, 5):
            for k, option in enumerate(rows[i].options):
                prompt, response = context.codec.encode(rows[i].prompt, option)
                ids = np.array([*prompt, *response])
                padded = np.zeros((1, 40), int)
                padded[0, : len(ids) - 1] = ids[:-1]
                log_p = log_softmax(jnp.asarray(padded), routing(name))
                positions = np.arange(len(prompt) - 1, len(ids) - 1)
                want = np.asarray(log_p)[positions, ids[1:][positions]].mean()
                np.testing.assert_allclose(got[name][i, k], want, rtol=1e-4)
    assert tuple(got) == compared()


def test_rows_with_fewer_options_are_minus_infinity(setting):
    context, parameters, rows = setting
    short = dataclasses.replace(rows[0], options=rows[0].options[:2])
    got = option_scores(context.inference, parameters, [short, rows[1]], ["uniform"])["uniform"]
    assert np.isinf(got[0, 2:]).all() and np.isfinite(got[0, :2]).all()
    assert np.isfinite(got[1]).all()


def test_gates_count_no_padding(setting):
    context, parameters, rows = setting
    gates = collect_gates(context.inference, parameters, rows)
    lengths = [sum(map(len, context.codec.encode(row.prompt, row.response))) - 1 for row in rows]
    assert gates.logits.shape == (2, sum(lengths), 3)
    assert np.bincount(gates.objective, minlength=3).tolist() == [
        sum(lengths[:4]), 0, sum(lengths[4:]),
    ]  # fmt: skip
