"""What stays the same over all of a model's inference: structure, layout and mesh."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from trinityx_jax.config import OBJECTIVES
from trinityx_jax.data.codec import Codec
from trinityx_jax.errors import UsageError
from trinityx_jax.inference.routings import routing_by_name
from trinityx_jax.models.parameters import Architecture
from trinityx_jax.models.router import Mixture, Routing

ROUTINGS = ("mixture", "uniform", *OBJECTIVES)


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

    def routing(self, name: str, rows: int) -> Routing | None:
        """The routing of this name for a batch of `rows` rows; a model without experts has none.

        Raises UsageError for an unknown name and for an expert of a model without experts.
        """
        if self.arch.mocae is None:
            if name != "backbone":
                raise UsageError(f"routing {name!r}: this model has no experts, only its backbone")
            return None
        return routing_by_name(name, rows, self.mixture)
