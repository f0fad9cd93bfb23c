"""What the backward pass keeps of a layer, and what it computes again (`model.remat`)."""

from __future__ import annotations

from collections.abc import Callable

import jax

# none: everything that differentiation reads. dots: results of the projections, not attention's
# weights nor what is elementwise. layers: only each layer's input.
# The activations of the experts are kept by none of them (`mix.py`).
POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(layer: Callable, policy: str, *, scanned: bool) -> Callable:
    """`layer`, keeping for its backward pass what the policy of this name says."""
    if POLICIES[policy] is None:
        return layer
    # In a scan XLA cannot merge the second computation with the first one: no guard is needed.
    return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=not scanned)
