"""Named arrays in a safetensors file: written, read back and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from trinityx_jax.errors import DataError


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and checks, one after another, that the file gives the same bits back.

    The header says `format: pt`, which transformers and peft ask for. bfloat16 is ml_dtypes'.
    Raises DataError naming the tensor that came back different; the file is then removed.
    """
    # safetensors 0.8.0 writes the wrong order for arrays that are not C-contiguous
    # (huggingface/safetensors issue 825), and exports transpose every kernel.
    ready = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(ready, path, metadata={"format": "pt"})
        with safe_open(path, "numpy") as file:
            if set(file.keys()) != set(tensors):
                raise DataError(f"{path.name}: tensors were lost or added between write and read")
            for name, array in ready.items():
                check_equal(path.name, {name: array}, {name: file.get_tensor(name)})
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file. Raises DataError for a missing or damaged file."""
    try:
        return load_file(path)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file; export the run again") from e
    except (OSError, SafetensorError, TypeError, KeyError) as e:
        reason = " ".join(str(e).split())
        raise DataError(f"{path}: not a readable safetensors file ({reason})") from e


def check_equal(where: str, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
    """Raises DataError unless both hold the same names, shapes, types and bits."""
    for name in sorted(set(want) ^ set(got)):
        raise DataError(f"{where}: tensor {name!r} was lost or added between write and read")
    for name, array in want.items():
        same = array.shape == got[name].shape and array.dtype == got[name].dtype
        # Bits, not values: -0.0 and 0.0 must stay apart.
        if not same or array.tobytes() != got[name].tobytes():
            raise DataError(f"{where}: tensor {name!r} reads back different from what was written")


def require_float32(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """`array` itself when it is finite float32 of that shape (None: any size), else DataError."""
    array = np.asarray(array)
    fits = len(array.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{name}: shape {array.shape}, expected ({sizes})")
    if array.dtype != np.float32:
        raise DataError(f"{name}: {array.dtype}, expected float32; convert it first")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: holds values that are not finite; the training diverged")
    return array
