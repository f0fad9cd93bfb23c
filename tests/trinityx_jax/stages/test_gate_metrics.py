"""What the router stage logs of the gate, against loops over tokens."""

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from trinityx_jax.alignment import losses
from trinityx_jax.stages.router import gate_metrics

RNG = np.random.default_rng(0)
N, B, L, E = 2, 6, 5, 3
Z = RNG.normal(size=(N, B, L, E)) * 2
REAL = (RNG.random((B, L)) < 0.7).astype(np.float32)
OBJECTIVE = np.array([0, 2, 1, 1, 0, 0])


def test_load_entropy_and_accuracy_by_layer_and_objective():
    real, objective = jnp.asarray(REAL), jnp.asarray(OBJECTIVE)
    got = gate_metrics(
        jnp.asarray(Z, jnp.float32),
        {
            "objective": objective,
            "gate_weight": losses.token_weights(real),
            "own_gate_weight": losses.objective_weights(real, objective, E),
        },
    )
    alpha = softmax(Z, axis=-1)
    tokens = [(b, t) for b in range(B) for t in range(L) if REAL[b, t]]
    rights = []
    for n in range(N):
        load = np.mean([alpha[n, b, t] for b, t in tokens], axis=0)
        np.testing.assert_allclose(got["load"][n], load, rtol=1e-5)
        for o in range(E):
            own = [alpha[n, b, t] for b, t in tokens if OBJECTIVE[b] == o]
            entropy = np.mean([-(p * np.log(p)).sum() for p in own])
            right = [p.argmax() == o for p in own]
            np.testing.assert_allclose(got["own_entropy"][n, o], entropy, rtol=1e-5)
            np.testing.assert_allclose(got["own_accuracy"][n, o], np.mean(right), rtol=1e-5)
            rights += right
    np.testing.assert_allclose(got["gate_accuracy"], np.mean(rights), rtol=1e-5)
