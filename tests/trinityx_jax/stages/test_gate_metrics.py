"""What the router stage logs of the gate, against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from trinityx_jax.alignment import losses
from trinityx_jax.config import MoCaEConfig
from trinityx_jax.models.expert_parallel import capacity
from trinityx_jax.stages.router import dropped_choices, gate_metrics

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


def test_choices_without_a_place_are_counted_in_all_layers():
    devices, k, factor = 2, 2, 0.5
    mesh = jax.sharding.AbstractMesh((1, 1, 1, devices), ("data", "fsdp", "tensor", "expert"))
    mocae = MoCaEConfig(expert="ffn", dispatch="all_to_all", capacity_factor=factor)
    with jax.sharding.use_abstract_mesh(mesh):
        got = dropped_choices(jnp.asarray(Z, jnp.float32), mocae, k)
    T = B * L // devices
    most, wanted = capacity(T, k, E, factor), 0
    for z_te in Z.reshape(N * devices, T, E):  # what one device has of one layer
        chosen = np.argsort(-z_te, axis=-1)[:, :k]
        wanted += sum(max(0, (chosen == e).sum() - most) for e in range(E))
    assert got == wanted > 0
