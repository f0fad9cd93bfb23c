"""What stays the same over all of a model's inference: structure, layout and mesh."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from trinityx_jax.config import NEGATED
from trinityx_jax.data.codec import Codec
from trinityx_jax.errors import UsageError
from trinityx_jax.inference.routings import compared, routing_by_name
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Mixture, Routing


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """Everything of inference but the parameters and the rows.

    `max_length` is the context in tokens, `batch_size` the most rows of a batch, `mixture` the
    routing that the router's weights are for.
    """

    arch: Architecture
    codec: Codec
    max_length: int
    batch_size: int
    mesh: Mesh
    mixture: Mixture

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the model's experts are for, in their order; none without experts."""
        return () if self.arch.mocae is None else self.arch.mocae.objectives

    @property
    def routings(self) -> tuple[str, ...]:
        """The routings that a run compares."""
        return compared(self.objectives)

    def routing(self, name: str, rows: int) -> Routing | None:
        """The routing of this name for a batch of `rows` rows; a model without experts has none.

        Raises UsageError for an unknown name, for an expert of a model without experts, and for
        what complete FFNs as experts have not: a backbone and task vectors to reverse.
        """
        if self.arch.mocae is None:
            if name != "backbone":
                raise UsageError(f"routing {name!r}: this model has no experts, only its backbone")
            return None
        if self.arch.mocae.expert == "ffn" and (name == "backbone" or name.startswith(NEGATED)):
            raise UsageError(
                f"routing {name!r}: this model's experts are complete FFNs (mocae.expert: ffn), "
                "which move no backbone; choose an expert, mixture, top1 or uniform"
            )
        return routing_by_name(name, rows, self.mixture, self.objectives)
