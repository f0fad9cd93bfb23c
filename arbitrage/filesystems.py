"""Where score tables lie: local paths and URIs of every file system that pyarrow opens.

`s3://`, `gs://`, `abfs://`, `hdfs://` and `file://` work where pyarrow was built with them;
credentials come from the environment, as pyarrow documents for each.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from arbitrage.errors import DataError, UsageError, one_line
from arbitrage.io import atomic_path

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BROKEN = (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError)


@dataclass(frozen=True)
class Place:
    """A file or folder: its name as given, and its path inside a file system (None: local)."""

    name: str
    path: str
    filesystem: Any = None

    @property
    def base(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_gzip(self) -> bool:
        """Whether the suffix says that the content is compressed with gzip."""
        return self.base.endswith(".gz")

    def kind(self) -> str:
        """'file', 'folder' or 'missing'; DataError where the file system gives no answer."""
        with reading("file"):
            info = self._filesystem.get_file_info(self.path)
        kinds = {fs.FileType.NotFound: "missing", fs.FileType.Directory: "folder"}
        return kinds.get(info.type, "file")

    def children(self) -> list[Place]:
        """What a folder holds, sorted by name; names starting with '.' or '_' are left out."""
        with reading("folder"):
            found = self._filesystem.get_file_info(fs.FileSelector(self.path))
        bases = sorted(info.base_name for info in found if info.base_name[:1] not in ("", ".", "_"))
        return [Place(f"{self.name.rstrip('/')}/{base}", self._under(base), self.filesystem)
                for base in bases]  # fmt: skip

    def open(self, memory_map: bool = False) -> Any:
        """The bytes of the file, as a pyarrow file that can seek."""
        if self.filesystem is not None:
            return self.filesystem.open_input_file(self.path)
        # An empty file cannot be mapped.
        if memory_map and os.path.getsize(self.path):
            return pa.memory_map(self.path)
        return pa.OSFile(self.path)

    @contextmanager
    def binary(self) -> Iterator[Any]:
        """The decompressed bytes as a Python binary file, whose lines can be iterated."""
        with self.open() as file:
            yield gzip.GzipFile(fileobj=file) if self.is_gzip else io.BufferedReader(file)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """The decompressed bytes as a pyarrow stream."""
        with self.open() as file:
            yield pa.CompressedInputStream(file, "gzip") if self.is_gzip else file

    def _under(self, base: str) -> str:
        return f"{self.path.rstrip('/')}/{base}"

    @property
    def _filesystem(self) -> Any:
        return fs.LocalFileSystem() if self.filesystem is None else self.filesystem


def locate(path: str | os.PathLike | Place) -> Place:
    """The place a local path or a URI means.

    Raises UsageError for a URI pyarrow has no file system for, DataError where one does not answer.
    """
    if isinstance(path, Place):
        return path
    name = os.fsdecode(path)
    if not _URI.match(name):
        return Place(name, name)
    try:
        filesystem, inner = _from_uri(name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
        raise UsageError(
            f"{name}: this pyarrow has no file system for the URI ({_reason(error)}); use a local "
            "path, file://, s3://, gs:// or hdfs://"
        ) from error
    except OSError as error:
        raise DataError(f"{name}: the file system does not answer: {_reason(error)}") from error
    return Place(name, inner, None if isinstance(filesystem, fs.LocalFileSystem) else filesystem)


def _from_uri(uri: str) -> tuple[Any, str]:
    return fs.FileSystem.from_uri(uri)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts `name: ` before the message of a DataError or UsageError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}", error.row) from error.__cause__
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error.__cause__


def naming_part(part: Place, whole: Place) -> AbstractContextManager[None]:
    """`naming` for one file of a folder; nothing for the place itself."""
    return nullcontext() if part is whole else naming(part.base)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns the ways in which a file can be unreadable into one DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except _BROKEN as error:
        raise DataError(f"not a readable {what}, or cut short: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line: a failing file system may tell a long story."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text.strip().split("\n")[0])[:300]


@contextmanager
def open_output(path: str | os.PathLike | Place, overwrite: bool = False) -> Iterator[Any]:
    """A pyarrow output file that appears at `path` whole, when the block succeeds, or not at all.

    On a remote file system the content goes to a temporary key beside the target, which is then
    moved there (a copy inside the store for S3, which allows 5 GB for one).

    Raises UsageError for an existing target without `overwrite`, DataError where it cannot write.
    """
    place = locate(path)
    if place.filesystem is None:
        with atomic_path(place.path, overwrite) as temporary, pa.OSFile(str(temporary), "wb") as to:
            yield to
        return
    with naming(f"cannot write {place.name}"):
        _check_remote(place, overwrite)
    folder = place.path.rpartition("/")[0]
    temporary = f"{folder}/.{place.base[:64]}.{secrets.token_hex(4)}.tmp".lstrip("/")
    try:
        with _remote_stream(place.filesystem, temporary) as to:
            yield to
        with naming(f"cannot write {place.name}"):
            _check_remote(place, overwrite)  # somebody else may have written it since
        _move(place.filesystem, temporary, place.path)
    except BaseException as error:
        _delete(place.filesystem, temporary)
        if isinstance(error, (OSError, pa.ArrowException)):
            raise DataError(f"cannot write {place.name}: {_reason(error)}") from error
        raise


def _check_remote(place: Place, overwrite: bool) -> None:
    kind = place.kind()
    if kind == "folder":
        raise DataError("it is a folder; remove it or choose another name")
    if kind == "file" and not overwrite:
        raise UsageError("it already exists: pass --overwrite to replace it")


def _remote_stream(filesystem: Any, path: str) -> Any:
    try:
        return filesystem.open_output_stream(path)
    except FileNotFoundError:  # object stores have no folders to miss
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        return filesystem.open_output_stream(path)


def _move(filesystem: Any, source: str, target: str) -> None:
    try:
        filesystem.move(source, target)
    except OSError:
        # HDFS does not rename onto an existing file: move the old one aside first.
        if filesystem.get_file_info(target).type != fs.FileType.File:
            raise
        aside = f"{source}.old"
        filesystem.move(target, aside)
        try:
            filesystem.move(source, target)
        except OSError:
            filesystem.move(aside, target)
            raise
        _delete(filesystem, aside)


def _delete(filesystem: Any, path: str) -> None:
    try:
        filesystem.delete_file(path)
    except (OSError, pa.ArrowException):  # it was never made
        pass


def sha256_place(path: str | os.PathLike | Place) -> str:
    """SHA-256 of a file's bytes; of a folder: of the lines `<sha256>  <name>` of its files."""
    place = locate(path)
    with naming(place.name):
        if place.kind() != "folder":
            with reading("file"), place.open() as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        files = [child for child in place.children() if child.kind() == "file"]
    lines = "".join(f"{sha256_place(child)}  {child.base}\n" for child in files)
    return hashlib.sha256(lines.encode()).hexdigest()
