"""The programs of a real run, called with shapes alone: the stages' own functions and no arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from trinityx_jax.alignment.dpo import dpo_loss
from trinityx_jax.config import Config, TrainConfig
from trinityx_jax.errors import UsageError
from trinityx_jax.inference.decode import decode, prefill
from trinityx_jax.inference.sampling import Greedy
from trinityx_jax.inference.score import _score
from trinityx_jax.models.parameters import Architecture, architecture
from trinityx_jax.models.router import Mixture, RouterWeight
from trinityx_jax.sharding import sharding, state_shardings, ways
from trinityx_jax.stages.experts import expert_loss
from trinityx_jax.stages.router import router_loss
from trinityx_jax.training.masters import masters, narrowed
from trinityx_jax.training.step import Loss, clip_by_expert_norm, make_optimizer, make_step

Abstract = jax.ShapeDtypeStruct

# A scored question: that many options, and so many tokens of them to predict.
OPTIONS, PREDICTIONS = 4, 64


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted call: `lower` traces it for the mesh's devices, under `jax.set_mesh`.

    `size` is rows x tokens. `held` is what its arguments take on each device by part, in bytes of
    their values. `then` makes the program that goes on from this one's outputs, laid out as the
    compiler chose.
    """

    name: str
    size: str
    held: Mapping[str, int]
    lower: Callable[[], jax.stages.Lowered]
    then: Callable[[jax.stages.Compiled], Program] | None = None


def train_experts(config: Config, mesh: Mesh) -> Program:
    """A step of the experts stage, all objectives in one batch."""
    arch, train = architecture(config.model, config.mocae), config.experts
    if train.loss == "dpo":
        loss, batch = dpo_loss(arch, beta=train.beta), pair_batch(config, mesh)
    else:
        loss, batch = expert_loss(arch), training_batch(config, "experts", mesh)
    optimizer = make_optimizer(train, clip_by_expert_norm(train.clip_norm))
    return _training("train-experts", train, mesh, arch, arch.expert_kind, loss, optimizer, batch)


def train_router(config: Config, mesh: Mesh) -> Program:
    """A step of the router stage."""
    arch, train = architecture(config.model, config.mocae), config.router
    loss = router_loss(arch, config.router_loss, _mixture(config))
    batch = training_batch(config, "router", mesh)
    optimizer = make_optimizer(train)
    return _training("train-router", train, mesh, arch, RouterWeight, loss, optimizer, batch)


def score(config: Config, mesh: Mesh) -> Program:
    """Options of `score.batch_size` questions that fill `data.max_length`, under the mixture."""
    arch = architecture(config.model, config.mocae)
    rows, length = config.score.batch_size, config.data.max_length
    fields = dict.fromkeys(("tokens", "positions", "segments"), length)
    fields |= dict.fromkeys(("place", "target", "option"), PREDICTIONS)
    shapes = {name: ((rows, n), jnp.int32) for name, n in fields.items()}
    batch = _split_rows("score.batch_size", shapes, mesh)
    parameters = arch.abstract(mesh)
    return Program(
        "score",
        f"{rows} x {length}",
        {"parameters": device_bytes(parameters), "batch": device_bytes(batch)},
        lambda: _score.lower(arch, parameters, batch, _mixture(config), OPTIONS),
    )


def generate(config: Config, mesh: Mesh) -> Program:
    """`score.batch_size` prompts of half of `data.max_length`, and then answers as long."""
    arch = architecture(config.model, config.mocae)
    rows, prompt = config.score.batch_size, config.data.max_length // 2
    parameters = arch.abstract(mesh)
    shapes = {
        "tokens_bp": ((rows, prompt), jnp.int32),
        "start_b": ((rows,), jnp.int32),
        "idle_b": ((rows,), jnp.bool_),
        "key_b": ((rows,), jax.eval_shape(jax.random.key, 0).dtype),
    }
    batch = _split_rows("score.batch_size", shapes, mesh)
    stops, limit = Abstract((1,), jnp.int32), Abstract((), jnp.int32)
    how = {"routing": _mixture(config), "chooser": Greedy(), "stop_ids": stops}
    arguments = {**batch, **how, "room": config.data.max_length - prompt}
    held = {"parameters": device_bytes(parameters)}

    def then(compiled: jax.stages.Compiled) -> Program:
        shapes = prefill.eval_shape(arch, parameters, **arguments)
        state = _laid_out(shapes, compiled.output_shardings)
        return Program(
            "decode",
            f"{rows} x 1",
            held | {"cache": device_bytes(state)},
            lambda: decode.lower(arch, parameters, state, *how.values(), limit),
        )

    return Program(
        "prefill",
        f"{rows} x {prompt}",
        held | {"batch": device_bytes(batch)},
        lambda: prefill.lower(arch, parameters, **arguments),
        then,
    )


# What --step names -> its first program.
STEPS: dict[str, Callable[[Config, Mesh], Program]] = {
    "train-experts": train_experts,
    "train-router": train_router,
    "score": score,
    "decode": generate,
}


def training_batch(
    config: Config, stage: Literal["experts", "router"], mesh: Mesh
) -> dict[str, Abstract]:
    """Shapes, dtypes and shardings of a batch of `data.pipeline.training_batches`."""
    fields = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32)
    row = (config.data.max_length,)
    return _batch(config, stage, mesh, row, {**fields, "loss_mask": jnp.float32})


def pair_batch(config: Config, mesh: Mesh) -> dict[str, Abstract]:
    """The same of `data.preferences.preference_batches`, for the experts."""
    fields = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32}
    return _batch(config, "experts", mesh, (2, config.data.max_length), fields)


def device_bytes(tree: Any) -> int:
    """Bytes of an abstract tree's values on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _training(
    name: str,
    train: TrainConfig,
    mesh: Mesh,
    arch: Architecture,
    kind: type,
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: dict[str, Abstract],
) -> Program:
    """As `stages.fit` and `training.loop` put a step together."""
    held = arch.abstract(mesh, kind)
    frozen = {n: x for n, x in arch.abstract(mesh).items() if n not in held}
    trainable = _state(jax.eval_shape(masters, held), mesh)
    opt_state = _state(jax.eval_shape(optimizer.init, trainable), mesh)
    step = make_step(
        narrowed(loss, held), optimizer, (trainable, opt_state), mesh, train.accumulate
    )
    return Program(
        name,
        "{} x {}".format(math.prod(batch["tokens"].shape[:-1]), batch["tokens"].shape[-1]),
        {
            "parameters": device_bytes((trainable, frozen)),
            "optimiser": device_bytes(opt_state),
            "batch": device_bytes(batch),
        },
        lambda: step.lower(trainable, opt_state, frozen, batch),
    )


def _batch(
    config: Config, stage: str, mesh: Mesh, row: tuple[int, ...], fields: dict[str, Any]
) -> dict[str, Abstract]:
    rows = getattr(config, stage).batch_size * len(config.mocae.objectives)
    shapes = {name: ((rows, *row), dtype) for name, dtype in fields.items()}
    shapes |= dict.fromkeys(("objective", "index"), ((rows,), jnp.int32))
    return _split_rows(f"{stage}.batch_size x objectives", shapes, mesh)


def _mixture(config: Config) -> Mixture:
    return Mixture(config.mocae.top_k, config.mocae.gamma)


def _state(shapes: Any, mesh: Mesh) -> Any:
    return _laid_out(shapes, state_shardings(shapes, mesh))


def _laid_out(shapes: Any, layouts: Any) -> Any:
    return jax.tree.map(
        lambda x, layout: Abstract(x.shape, x.dtype, sharding=layout), shapes, layouts
    )


def _split_rows(
    name: str, shapes: Mapping[str, tuple[tuple[int, ...], Any]], mesh: Mesh
) -> dict[str, Abstract]:
    """Arrays of these shapes and dtypes, split over the batch axes; `name` is the rows' number."""
    parts = ways(mesh, "batch")
    for shape, _ in shapes.values():
        if shape[0] % parts:
            raise UsageError(
                f"config {name} is {shape[0]} rows, which cannot be split over {parts} devices "
                f"(mesh axes data x fsdp); use a multiple of {parts} or a smaller mesh"
            )
    layout = sharding(mesh, "batch")
    return {key: Abstract(*of, sharding=layout) for key, of in shapes.items()}
