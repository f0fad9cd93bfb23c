"""What every model stage starts from: rows, mesh, architecture, and the parameters so far."""

from __future__ import annotations

import dataclasses
import functools
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from trinityx_jax.alignment.task_vectors import importances
from trinityx_jax.config import ModelConfig
from trinityx_jax.data.codec import Codec, check_vocabulary
from trinityx_jax.data.examples import Example
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.prepare import Datasets, prepare
from trinityx_jax.distributed import first_alone
from trinityx_jax.inference.setup import Setup
from trinityx_jax.models.mocae import TaskVector
from trinityx_jax.models.parameters import Architecture, Parameters, architecture, by_expert_layer
from trinityx_jax.models.router import Importance, Mixture, RouterWeight, Temperature
from trinityx_jax.run import Run
from trinityx_jax.sharding import make_mesh
from trinityx_jax.stages.backbone import HfBackbone, find_backbone
from trinityx_jax.training.checkpoint import load_parameters


@dataclasses.dataclass(frozen=True)
class Context:
    """One run's data and model structure, built once and shared by its stages."""

    run: Run
    data: Datasets
    mesh: Mesh
    given: HfBackbone | Path | None  # what `backbone` names: a folder of Hugging Face's or ours

    @functools.cached_property
    def codec(self) -> Codec:
        """How prompts and answers become token ids: the backbone's own way, if it has one."""
        if isinstance(self.given, HfBackbone):
            return self.given.codec(self.run.config)
        return OwnCodec(self.data.tokenizer, self.run.config.data.template)

    @functools.cached_property
    def model_config(self) -> ModelConfig:
        """The backbone's shape, or the configured one; a vocabulary of 0 takes the tokenizer's."""
        if isinstance(self.given, HfBackbone):
            model = self.given.model_config(self.run.config)
        else:
            model = self.run.config.model
            size = model.vocab_size or self.codec.vocab_size
            model = dataclasses.replace(model, vocab_size=size)
        check_vocabulary(self.codec, model.vocab_size, self.run.config.backbone or "config model")
        return model

    @functools.cached_property
    def backbone(self) -> Architecture:
        return architecture(self.model_config)

    @functools.cached_property
    def mocae(self) -> Architecture:
        return architecture(self.model_config, self.run.config.mocae)

    @property
    def mixture(self) -> Mixture:
        return Mixture(self.run.config.mocae.top_k, self.run.config.mocae.gamma)

    @functools.cached_property
    def inference(self) -> Setup:
        """How this run scores and answers."""
        config = self.run.config
        return Setup(
            arch=self.mocae,
            codec=self.codec,
            max_length=config.data.max_length,
            batch_size=config.score.batch_size,
            mesh=self.mesh,
            mixture=self.mixture,
        )

    def held_out(self, split: str) -> list[Example]:
        """All objectives' rows of a held-out split."""
        objectives = self.run.config.mocae.objectives
        return [row for objective in objectives for row in self.data.rows(objective, split)]

    def key(self, name: str) -> jax.Array:
        """The run's random key for one named purpose."""
        return jax.random.fold_in(jax.random.key(self.run.config.seed), zlib.crc32(name.encode()))

    def read_backbone(self) -> Parameters:
        """The backbone's parameters, from its checkpoint; DataError where they do not fit."""
        if isinstance(self.given, HfBackbone):
            return self.backbone.stack(self.given.parameters(self.run.config, self.mesh), self.mesh)
        folder = self.given or self.run.checkpoints("pretrain")
        return load_parameters(folder, self.backbone.abstract(self.mesh))

    def fresh(self) -> Parameters:
        """Backbone from its checkpoint, new experts and router: task vectors that move nothing, or
        complete FFNs that are copies of the backbone's."""
        new = self._new(RouterWeight, Temperature, Importance)
        if self.mocae.expert_kind is TaskVector:
            return self._backbone() | new | self._new(TaskVector)
        self.run.result("pretrain")
        return self.mocae.copied(self.read_backbone(), self.backbone, self.mesh) | new

    def with_experts(self) -> Parameters:
        """`fresh`, with trained experts and the importances gamma of task vectors."""
        shapes = self.mocae.shapes  # complete FFNs leave no place for the backbone's
        parameters = {
            **{name: x for name, x in self._backbone().items() if name in shapes},
            **self._trained("train-experts", self.mocae.expert_kind),
            **self._new(RouterWeight, Temperature, Importance),
        }
        if self.run.config.mocae.gamma == "none":
            return parameters
        objectives = self.run.config.mocae.objectives
        gamma = importances(self.mocae.only(parameters, TaskVector), objectives)
        layers = len(self.mocae.expert_layers)
        return parameters | by_expert_layer(self.mocae, Importance, jnp.tile(gamma, (layers, 1)))

    def with_router(self) -> Parameters:
        """`with_experts`, with the trained router at temperature 1."""
        return self.with_experts() | self._trained("train-router", RouterWeight)

    def calibrated(self) -> Parameters:
        """The finished model: `with_router`, with the fitted temperatures."""
        parameters = self.with_router()
        return self.with_temperature(parameters, self.run.result("calibrate-router")["temperature"])

    def with_temperature(self, parameters: Parameters, temperature_ne) -> Parameters:
        """`parameters` with tau of every layer with experts: (M, E)."""
        return parameters | by_expert_layer(
            self.mocae, Temperature, jnp.asarray(temperature_ne, jnp.float32)
        )

    def _new(self, *kinds: type) -> Parameters:
        return self.mocae.init(self.key("mocae"), self.mesh, *kinds)

    def _backbone(self) -> Parameters:
        self.run.result("pretrain")
        return self.mocae.adopt(self.read_backbone(), self.backbone, self.mesh)

    def _trained(self, stage: str, kind: type) -> Parameters:
        self.run.result(stage)  # a stage that is not finished has no parameters to offer
        return load_parameters(self.run.checkpoints(stage), self.mocae.abstract(self.mesh, kind))


def open_context(run: Run) -> Context:
    """Finds the backbone, prepares the rows (once a run folder) and the mesh."""
    given = find_backbone(run.config)

    def rows() -> Datasets:
        return prepare(
            run.config.data,
            run.directory / "data",
            run.config.mocae.objectives,
            own_tokenizer=not isinstance(given, HfBackbone),
            progress=sys.stderr.isatty(),
        )

    first_alone(rows, "data")  # one process writes them, all read
    return Context(run, rows(), make_mesh(run.config.mesh), given)
