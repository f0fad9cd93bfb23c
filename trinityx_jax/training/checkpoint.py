"""Orbax checkpoints of a training stage: trainable parameters, optimiser state, data position."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from arbitrage.errors import one_line
from trinityx_jax.errors import DataError
from trinityx_jax.models.parameters import Parameters
from trinityx_jax.sharding import leaf_name


class Snapshot(NamedTuple):
    """What a checkpoint holds; `position` is the data iterator's state."""

    step: int
    parameters: Parameters
    opt_state: Any
    position: str


class Checkpoints:
    """The newest two checkpoints of one stage below `directory`; a context manager.

    Orbax writes to a temporary name and renames, so that a killed save is never read back. What it
    renamed may still be damaged later, or be a file that never reached the disk: then the one
    before is read, with a warning.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.resolve()),
            # Its annotations and its protocol's name two classes of one shape.
            preservation_policy=cast(Any, ocp.training.preservation_policies.LatestN(2)),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self._checkpointer.close()  # waits for a save in flight

    def save(self, snapshot: Snapshot) -> None:
        """Begins to write, once the save before is done; the arrays may be donated at once."""
        self.wait()
        items = {
            "parameters": snapshot.parameters,
            "opt_state": _flat(snapshot.opt_state),
            "data": {"position": snapshot.position},
        }
        self._checkpointer.save_checkpointables_async(snapshot.step, items, force=True)

    def wait(self) -> None:
        """Until the last save is on disk."""
        self._checkpointer.wait()

    def restore(self, parameters: Mapping[str, Any], opt_state: Any) -> Snapshot | None:
        """The newest good checkpoint in the shapes, dtypes and shardings of the arguments, if any.

        Damaged ones that are newer are deleted, with a warning: the run goes on from before them.
        Raises DataError naming the first array whose name or shape differs, or if all are damaged.
        """

        def read(step: int) -> Snapshot:
            flat = self._read(step, {"parameters": parameters, "opt_state": _flat(opt_state)})
            data = self._checkpointer.load_checkpointables(step, {"data": None})["data"]
            state = [flat["opt_state"][name] for name in _flat(opt_state)]
            state = jax.tree.unflatten(jax.tree.structure(opt_state), state)
            return Snapshot(step, flat["parameters"], state, data["position"])

        snapshot, damaged = self._newest_good(read)
        for step in damaged:
            self._checkpointer.delete(step)
        return snapshot

    def restore_parameters(self, parameters: Mapping[str, Any]) -> Parameters | None:
        """Only the parameters of the newest good checkpoint, if any; deletes nothing."""
        like = {"parameters": parameters}
        return self._newest_good(lambda step: self._read(step, like)["parameters"])[0]

    def _newest_good(self, read: Callable[[int], Any]) -> tuple[Any, list[int]]:
        """What `read` makes of the newest step that it can read, and the newer, damaged ones."""
        damaged: list[int] = []
        reason = ""
        for step in reversed([checkpoint.step for checkpoint in self._checkpointer.checkpoints]):
            try:
                got, fine = read(step), True
            except DataError:
                raise
            except Exception as error:  # whatever the storage layers below Orbax raise
                got, fine, reason = None, False, reason or one_line(str(error))[:200]
            if not everywhere(fine):
                damaged.append(step)
                continue
            if damaged:
                warnings.warn(
                    f"checkpoint {self.directory / str(damaged[0])} is damaged ({reason}); "
                    f"going on from {self.directory / str(step)}",
                    stacklevel=2,
                )
            return got, damaged
        if damaged:
            raise DataError(
                f"every checkpoint in {self.directory} is damaged ({reason}); restore the folder "
                "from a copy, or run the stage again with --overwrite"
            )
        return None, []

    def _read(self, step: int, like: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        for item, arrays in like.items():
            if saved.get(item) is None:
                raise OSError(f"{item} is missing or incomplete")
            self._check(saved[item], arrays)
        abstract = {
            item: {name: _abstract(x) for name, x in arrays.items()}
            for item, arrays in like.items()
        }
        return self._checkpointer.load_checkpointables(step, abstract)

    def _check(self, saved: Any, wanted: Mapping[str, Any]) -> None:
        for name in [*wanted, *saved]:
            shapes = [str(tuple(x[name].shape)) if name in x else "absent" for x in (saved, wanted)]
            if shapes[0] != shapes[1]:
                raise DataError(
                    f"checkpoint {self.directory}: {name} is {shapes[0]}, this configuration needs "
                    f"{shapes[1]}; use the configuration it was made with, or another --run"
                )


def load_parameters(directory: Path, like: Mapping[str, Any]) -> Parameters:
    """Parameters of the newest checkpoint below `directory`, shaped and sharded as `like`.

    Raises DataError if there is none or it does not fit.
    """
    parameters = None
    if directory.is_dir():
        with Checkpoints(directory) as checkpoints:
            parameters = checkpoints.restore_parameters(like)
    if parameters is None:
        raise DataError(f"no checkpoint in {directory}; run the stage that writes it")
    return parameters


def everywhere(fine: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(np.array(fine)).all())


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves of an optimiser state by name; moments carry their place before the parameter's."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
