"""A model as data: its static structure, and its parameters as a flat dict {dotted name: array}.

Training, checkpoints and export all speak this dict; names are those of a Llama checkpoint with
flax's leaf names (`layers.0.mlp.gate_proj.kernel`). A model with scanned layers holds the arrays of
a run of layers as one, layers first (`stacks.0.mlp.gate_proj.kernel`); `stack` and `unstack` lead
from one form to the other. Files of other formats are read and written layer by layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from trinityx_jax.config import MoCaEConfig, ModelConfig
from trinityx_jax.models.expert_ffn import ExpertKernel
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.transformer import Transformer, has_experts, layer_runs
from trinityx_jax.sharding import leaf_name, state_shardings

Parameters = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static argument of jit
class Architecture:
    """Everything of a Transformer but its arrays.

    `kinds` maps each name to its flax.nnx variable type: Param for the backbone, TaskVector,
    RouterWeight, Temperature, Importance for MoCaE.
    """

    config: ModelConfig
    mocae: MoCaEConfig | None
    graphdef: Any
    treedef: Any
    shapes: dict[str, jax.ShapeDtypeStruct]
    kinds: dict[str, type]

    def init(self, key: jax.Array, mesh: Mesh, *kinds: type) -> Parameters:
        """Freshly drawn parameters of `kinds` (default all), created in place on the mesh.

        A parameter's value does not depend on which others are asked for.
        """
        wanted = self.only(self.shapes, *kinds) if kinds else self.shapes

        def draw(key: jax.Array) -> Parameters:
            state = nnx.state(Transformer(self.config, self.mocae, rngs=nnx.Rngs(key)))
            drawn = dict(zip(self.shapes, jax.tree.leaves(state), strict=True))
            return {name: drawn[name] for name in wanted}

        return jax.jit(draw, out_shardings=state_shardings(wanted, mesh))(key)

    def abstract(self, mesh: Mesh, *kinds: type) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the parameters of `kinds` (default all)."""
        wanted = self.only(self.shapes, *kinds) if kinds else self.shapes
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for (name, x), sharding in zip(
                wanted.items(), state_shardings(wanted, mesh).values(), strict=True
            )
        }

    def merge(self, *parts: Mapping[str, jax.Array]) -> Transformer:
        """The callable model from parameter dicts that together hold every name once."""
        flat = {name: value for part in parts for name, value in part.items()}
        return nnx.merge(self.graphdef, self.treedef.unflatten(flat[name] for name in self.shapes))

    @property
    def expert_kind(self) -> type:
        """The variable type of what an expert is made of."""
        complete = self.mocae is not None and self.mocae.expert == "ffn"
        return ExpertKernel if complete else TaskVector

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Which layers are mixtures of experts."""
        return tuple(i for i in range(self.config.num_hidden_layers) if has_experts(self.mocae, i))

    def layers_of(self, name: str) -> range:
        """The layers whose values a parameter `layers.3....` or `stacks.0....` holds."""
        form, number = name.split(".")[:2]
        if form == "layers":
            return range(int(number), int(number) + 1)
        return layer_runs(self.config, self.mocae)[int(number)]

    def scanned(self) -> Architecture:
        """The same model with its layers stacked."""
        return architecture(dataclasses.replace(self.config, scan_layers=True), self.mocae)

    def unrolled(self) -> Architecture:
        """The same model with its layers apart."""
        return architecture(dataclasses.replace(self.config, scan_layers=False), self.mocae)

    def stack(self, parameters: dict[str, Any], mesh: Mesh) -> Parameters:
        """Parameters by layer in this architecture's own form; takes them out of `parameters`.

        Of jax's arrays that are stacked, one at a time exists twice; NumPy's go to the mesh.
        """
        shardings = state_shardings(self.shapes, mesh)
        stacked = {}
        for name in self.shapes:
            parts = [_in_layer(name, i) for i in self._layers(name)] or [name]
            if parts[0] not in parameters:
                continue
            arrays = [parameters.pop(part) for part in parts]
            if isinstance(arrays[0], np.ndarray):
                whole = arrays[0] if parts == [name] else np.stack(arrays)
                stacked[name] = jax.device_put(whole, shardings[name])
            elif parts == [name]:
                stacked[name] = arrays[0]
            else:
                stacked[name] = jax.jit(_stacked, out_shardings=shardings[name])(*arrays)
        return stacked

    def unstack(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of this architecture's form by layer, as `unrolled` has them; jax's arrays or
        NumPy's, which are not copied."""
        apart = {}
        for name, x in parameters.items():
            parts = {_in_layer(name, i): x[j] for j, i in enumerate(self._layers(name))}
            apart |= parts or {name: x}
        return apart

    def adopt(self, parameters: Mapping[str, Any], arch: Architecture, mesh: Mesh) -> Parameters:
        """Parameters in the form of `arch`, of the same layers, in this architecture's form."""
        ours, theirs = (
            layer_runs(a.config, a.mocae) if a.config.scan_layers else None for a in (self, arch)
        )
        if ours == theirs:
            return dict(parameters)
        return self.stack(arch.unstack(parameters), mesh)

    def copied(
        self, parameters: Mapping[str, jax.Array], arch: Architecture, mesh: Mesh
    ) -> Parameters:
        """Parameters of the backbone `arch` in this form, every complete FFN a copy of its own."""
        apart, unrolled = arch.unstack(parameters), self.unrolled()
        shardings = state_shardings(unrolled.shapes, mesh)
        for name in unrolled.only(unrolled.shapes, ExpertKernel):
            E = unrolled.shapes[name].shape[0]
            repeat = jax.jit(_repeated, static_argnums=1, out_shardings=shardings[name])
            apart[name] = repeat(apart.pop(name.replace(".experts.", ".")), E)
        return self.stack(apart, mesh)

    def _layers(self, name: str) -> range:
        return self.layers_of(name) if name.startswith("stacks.") else range(0)

    def only(self, parameters: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
        """The parameters whose variable type is one of `kinds`."""
        return {n: x for n, x in parameters.items() if issubclass(self.kinds[n], kinds)}


@functools.cache  # one object per configuration, so that jit compiles once for all its users
def architecture(config: ModelConfig, mocae: MoCaEConfig | None = None) -> Architecture:
    """Structure and shapes, without allocating a single array."""
    model = nnx.eval_shape(lambda: Transformer(config, mocae, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    variables = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    names = [leaf_name(path) for path, _ in leaves]
    return Architecture(
        config,
        mocae,
        graphdef,
        treedef,
        {
            n: jax.ShapeDtypeStruct(x.shape, x.dtype)
            for n, (_, x) in zip(names, leaves, strict=True)
        },
        {n: type(v) for n, v in zip(names, variables, strict=True)},
    )


def count(parameters: Mapping[str, Any]) -> int:
    """Number of scalars."""
    return sum(x.size for x in parameters.values())


def by_expert_layer(arch: Architecture, kind: type, values: jax.Array) -> Parameters:
    """Parameters of one kind from (M, ...) values of the M layers with experts."""
    at = {layer: i for i, layer in enumerate(arch.expert_layers)}
    found = {}
    for name in arch.only(arch.shapes, kind):
        rows = values[jnp.array([at[layer] for layer in arch.layers_of(name)])]
        found[name] = rows if name.startswith("stacks.") else rows[0]
    return found


def layer_of(name: str) -> int:
    """Index of the layer that a parameter `layers.3....` belongs to."""
    return int(name.split(".")[1])


def _in_layer(name: str, layer: int) -> str:
    return f"layers.{layer}.{name.split('.', 2)[2]}"


def _repeated(kernel: jax.Array, E: int) -> jax.Array:
    return jnp.repeat(kernel[None], E, axis=0)


def _stacked(*arrays: jax.Array) -> jax.Array:
    return jnp.stack(arrays)
