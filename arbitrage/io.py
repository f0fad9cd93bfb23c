"""Files: outputs that appear whole or not at all, JSON in and out, and file hashes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arbitrage.errors import DataError, UsageError, one_line


def check_output(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """`path` as a Path, once it is clear that it may be written. Call it before long work.

    Raises:
      UsageError: the target exists and `overwrite` is false.
      DataError: the folder it would lie in is a file or cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} already exists: pass --overwrite to replace it")
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f"cannot write {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"cannot write {path}: no permission to write in {folder}")
    return path


@contextmanager
def atomic_path(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` when the block succeeds.

    The block creates the temporary path, as a file or as a folder; its suffix is that of `path`.
    Missing parent folders are made. When the block fails, what it wrote and the folders made for
    it are removed and an older `path` is left as it was.

    Raises:
      UsageError: the target exists and `overwrite` is false.
      DataError: the target cannot be written.
    """
    path = check_output(path, overwrite)
    made = _make_parents(path)
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        check_output(path, overwrite)  # somebody else may have written it since
        _publish(temporary, path)
    except BaseException as error:
        _remove(temporary)
        for folder in reversed(made):
            try:
                folder.rmdir()
            except OSError:  # no longer empty: it now belongs to somebody else
                break
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            reason = (error.strerror or str(error)).replace(str(temporary), str(path))
            raise DataError(f"cannot write {path}: {one_line(reason)}") from error
        raise


def _make_parents(path: Path) -> list[Path]:
    missing = [folder for folder in path.parents if not os.path.lexists(folder)][::-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    return missing


def _publish(temporary: Path, path: Path) -> None:
    if path.is_dir() != temporary.is_dir() and os.path.lexists(path):
        kind = "folder" if path.is_dir() else "file"
        raise DataError(f"cannot write {path}: it is a {kind}; remove it or choose another name")
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder cannot be replaced in one step: move the old one aside first.
    aside = path.with_name(f".{path.name[:64]}.{secrets.token_hex(4)}.old")
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Mapping[str, Any], overwrite: bool = False):
    """Writes `content` as indented UTF-8 JSON; non-finite numbers are refused (ValueError)."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError when it is not one, or not readable."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not valid: expected a JSON object at the top")
    return content


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal.

    For a folder or a URI see `arbitrage.filesystems.sha256_place`.
    """
    if "://" in os.fsdecode(path) or os.path.isdir(path):
        from arbitrage.filesystems import sha256_place

        return sha256_place(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
