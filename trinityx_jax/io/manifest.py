"""manifest.json: what a folder holds, byte for byte, and what made it."""

from __future__ import annotations

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from arbitrage.io import sha256_file
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import read_json, write_json

NAME = "manifest.json"
SCHEMA_VERSION = 1
_PACKAGES = ("trinityx-jax", "jax", "jaxlib", "flax", "numpy", "safetensors")


def write_manifest(
    directory: str | Path, extra: dict[str, Any], *, overwrite: bool = False
) -> Path:
    """Writes manifest.json: SHA-256 and byte size of every file below `directory`, library
    versions, creation time in UTC, and `extra`'s keys beside them.

    Raises UsageError when it exists already or `extra` uses one of its own keys, DataError for
    links and other things that are not plain files.
    """
    folder = Path(directory)
    tree = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "files": {
            name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for name, path in _files(folder).items()
        },
    }
    for key in extra:
        if key in tree:
            raise UsageError(f"manifest key {key!r} is its own; rename yours")
    return write_json(folder / NAME, {**tree, **extra}, overwrite=overwrite)


def verify_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest, after checking every file against it.

    Raises DataError naming the first missing, changed or unknown file, in order of names.
    """
    folder = Path(directory)
    manifest = read_json(folder / NAME, "export the run again")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{folder / NAME}: schema_version {manifest.get('schema_version')!r}, this version "
            f"reads {SCHEMA_VERSION}"
        )
    want, have = manifest.get("files"), _files(folder)
    if not isinstance(want, dict):
        raise DataError(f"{folder / NAME}: lists no files; export the run again")
    # Only names found on disk are opened, so a forged manifest cannot point elsewhere.
    for name in sorted(set(want) | set(have)):
        if name not in have:
            raise DataError(f"{folder}: {name} is missing; export the run again")
        if name not in want:
            raise DataError(f"{folder}: {name} is not in {NAME}; remove it or export again")
        entry = {"sha256": sha256_file(have[name]), "bytes": have[name].stat().st_size}
        if want[name] != entry:
            raise DataError(f"{folder}: {name} has changed since it was written; export again")
    return manifest


def _files(folder: Path) -> dict[str, Path]:
    """Relative POSIX path -> file, sorted, without the manifest itself."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{folder}: {name} is not a plain file; a manifest cannot vouch for it")
        if path.is_file() and name != NAME:
            found[name] = path
    return found


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = None
    return found
