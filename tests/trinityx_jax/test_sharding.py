"""The sharding table: every parameter has a row, and every misfit is told before tracing."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh, state_shardings

CONFIG = ModelConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
AXES = ("data", "fsdp", "tensor", "expert")


def abstract_mesh(*sizes):
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4)


def test_every_parameter_has_a_row():
    arch = architecture(CONFIG, MoCaEConfig(rank=2)).unrolled()
    specs = {n: s.spec for n, s in state_shardings(arch.shapes, abstract_mesh(1, 2, 2, 1)).items()}
    assert set(specs) == set(arch.shapes)
    assert specs["layers.0.mlp.gate_proj.kernel"] == P("fsdp", "tensor")
    assert specs["layers.0.mlp.task_vectors.down.A"] == P(None, "tensor", None)
    stacked = state_shardings(arch.scanned().shapes, abstract_mesh(1, 2, 2, 1))
    assert stacked["stacks.0.mlp.gate_proj.kernel"].spec == P(None, "fsdp", "tensor")
    assert specs["embed_tokens.embedding"] == P("tensor", "fsdp")


def test_an_unknown_parameter_is_an_error():
    shapes = {"layers.0.mystery": jax.ShapeDtypeStruct((4,), np.float32)}
    with pytest.raises(UsageError, match=r"no row .* fits layers\.0\.mystery \(4,\)"):
        state_shardings(shapes, abstract_mesh(1, 1, 1, 1))


def test_a_dimension_that_does_not_divide_is_named():
    arch = architecture(CONFIG, MoCaEConfig(rank=2))
    with pytest.raises(UsageError, match=r"dimension 16 \(embed\) .* 3 devices"):
        state_shardings(arch.shapes, abstract_mesh(1, 3, 1, 1))


def test_the_mesh_must_use_all_devices():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": len(jax.devices()), "fsdp": 1,
                                                   "tensor": 1, "expert": 1}  # fmt: skip
    with pytest.raises(UsageError, match=r"does not use all .* set one axis to -1"):
        make_mesh(MeshConfig(data=64, fsdp=1))


SHARDED_STEP = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, numpy as np
from trinityx_jax.config import MeshConfig, MoCaEConfig, ModelConfig
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import architecture
from trinityx_jax.models.router import Mixture
from trinityx_jax.sharding import make_mesh, shard_batch
from trinityx_jax.errors import UsageError
config = ModelConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
arch = architecture(config, MoCaEConfig(rank=2))
tokens = np.random.default_rng(0).integers(0, 32, (8, 6)).astype(np.int32)
def run(mesh_config):
    mesh = make_mesh(mesh_config)
    parameters = arch.init(jax.random.key(0), mesh)
    noise = jax.random.normal(jax.random.key(1), (64,))
    for name, x in arch.only(parameters, TaskVector).items():
        parameters[name] = x + noise[: x.shape[-1]]
    batch = shard_batch({"tokens": tokens}, mesh)
    loss = lambda p, b: (arch.merge(p)(b["tokens"], Mixture(top_k=2)).logits ** 2).mean()
    value, grad = jax.jit(jax.value_and_grad(loss))(parameters, batch)
    return float(value), {n: np.asarray(g) for n, g in grad.items()}
want, want_grad = run(MeshConfig(data=8))
for data, fsdp, tensor in ((2, 2, 2), (1, 8, 1)):
    got, grad = run(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name, g in grad.items():
        want_g = want_grad[name]
        atol = 1e-4 * np.abs(want_g).max()
        np.testing.assert_allclose(g, want_g, rtol=1e-3, atol=atol, err_msg=name)
try:
    shard_batch({"tokens": tokens[:6]}, make_mesh(MeshConfig()))
except UsageError as error:
    print(error)
"""


def test_every_mesh_gives_the_same_loss_and_gradient():
    """Eight simulated devices, in a process of their own: the count is fixed once JAX starts."""
    result = subprocess.run(
        [sys.executable, "-c", SHARDED_STEP], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "a batch of 6 rows cannot be split over 8 devices" in result.stdout
