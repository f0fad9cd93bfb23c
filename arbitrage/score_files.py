"""Score tables in files: which format a file has, and the reader for it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence

from arbitrage.batch_files import read_batch
from arbitrage.csv_files import read_csv
from arbitrage.errors import DataError, UsageError
from arbitrage.filesystems import Place, locate, naming, reading
from arbitrage.jsonl_files import read_jsonl
from arbitrage.lm_eval_files import SAMPLES, read_lm_eval
from arbitrage.numpy_files import read_numpy
from arbitrage.option_order import shuffle_options as shuffled
from arbitrage.parquet_files import SUFFIXES as PARTS
from arbitrage.parquet_files import read_parquet, write_parquet
from arbitrage.scores import ScoreTable

FORMATS = ("parquet", "lm-eval", "jsonl", "csv", "numpy", "openai-batch")
READERS = {
    "parquet": read_parquet,
    "lm-eval": read_lm_eval,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "numpy": read_numpy,
    "openai-batch": read_batch,
}
# Which argument belongs to which formats.
ARGUMENTS = {
    "columns": ("parquet", "lm-eval", "jsonl", "csv", "numpy"),
    "filter_name": ("lm-eval",),
    "normalise": ("lm-eval",),
    "options": ("openai-batch",),
    "on_error": ("openai-batch",),
}
SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".npy": "numpy",
    ".npz": "numpy",
}
LINES = (".jsonl", ".jsonl.gz", ".json", ".ndjson")
MAGIC = ((b"PAR1", "parquet"), (b"\x93NUMPY", "numpy"), (b"PK\x03\x04", "numpy"))
PEEK_BYTES = 1 << 20


def read_table(
    path: str | os.PathLike | Place,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    filter_name: str | None = None,
    normalise: str | None = None,
    options: int | str | Sequence[str] | None = None,
    on_error: str | None = None,
    shuffle_options: int | None = None,
) -> ScoreTable:
    """The score table in a file or folder, local or at a URI (`s3://`, `gs://`, `hdfs://` ...).

    Args:
      columns: the file's own column names by field, `{"scores": "logits"}`.
      format: one of `FORMATS`; default: what `detect_format` finds.
      filter_name, normalise: see `lm_eval_files.read_lm_eval`.
      options, on_error: see `batch_files.read_batch`.
      shuffle_options: a seed: each row's options in an order that depends on the seed and the
        question id alone (see `option_order`), for data whose right answer always comes first.

    The readers say what each format may hold: `parquet_files`, `jsonl_files`, `csv_files`,
    `numpy_files`, `lm_eval_files`, `batch_files`.

    Raises:
      UsageError: an argument or a column does not fit; the message says which would.
      DataError: the file is not readable, or a row is not valid; the message names the first one,
        in text formats by its line.
    """
    place = locate(path)
    given = {"columns": columns or None, "filter_name": filter_name, "normalise": normalise,
             "options": options, "on_error": on_error}  # fmt: skip
    with naming(place.name):
        found = _detect(place) if format is None else format
        if found not in FORMATS:
            raise UsageError(f"format {found!r} is not one of {', '.join(FORMATS)}")
        if place.kind() == "missing":
            raise DataError("no such file")
        arguments = {name: value for name, value in given.items() if value is not None}
        for name in arguments:
            if found not in ARGUMENTS[name]:
                raise UsageError(
                    f"{name}= is for {', '.join(ARGUMENTS[name])}; this file is read as {found}"
                )
        if place.kind() == "folder" and found not in ("parquet", "lm-eval"):
            raise DataError(f"it is a folder: the format {found} is read from one file")
        table = READERS[found](place, **arguments)
        return table if shuffle_options is None else shuffled(table, shuffle_options)


def write_table(
    table: ScoreTable, path: str | os.PathLike | Place, *, overwrite: bool = False
) -> None:
    """Writes the table as one Parquet file, whole or not at all; see `parquet_files`."""
    write_parquet(table, path, overwrite=overwrite)


def detect_format(path: str | os.PathLike | Place) -> str:
    """The format of a file or folder, one of `FORMATS`, from its suffix or else its first bytes.

    JSON lines are told apart by the fields of the first one. Raises UsageError listing the
    formats, DataError for a missing file.
    """
    place = locate(path)
    with naming(place.name):
        return _detect(place)


def _detect(place: Place) -> str:
    kind = place.kind()
    if kind == "missing":
        raise DataError("no such file")
    if kind == "folder":
        return _folder_format(place)
    for suffix, format in SUFFIXES.items():
        if place.base.lower().endswith(suffix):
            return format
    start = _first_bytes(place)
    for magic, format in MAGIC:
        if start.startswith(magic):
            return format
    is_lines = place.base.lower().endswith(LINES)
    if is_lines or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _lines_format(start)
    raise UsageError(
        f"neither its name nor its content says what it is: pass format=, one of "
        f"{', '.join(FORMATS)}"
    )


def _folder_format(place: Place) -> str:
    names = [child.base for child in place.children()]
    samples = any(SAMPLES.fullmatch(name) for name in names)
    parts = any(name.endswith(PARTS) for name in names)
    if samples and parts:
        raise UsageError("it is a folder with .parquet and samples_*.jsonl files: pass format=")
    if not samples and not parts:
        raise DataError("it is a folder without .parquet or samples_*.jsonl files")
    return "lm-eval" if samples else "parquet"


def _first_bytes(place: Place) -> bytes:
    with reading("file"), place.open() as file:
        start = file.read(PEEK_BYTES)
    if not start.startswith(b"\x1f\x8b"):
        return start
    with reading("gzip file"):  # cut in the middle, it still gives its beginning
        return zlib.decompressobj(wbits=31).decompress(start, PEEK_BYTES)


def _lines_format(start: bytes) -> str:
    line = next((line for line in start.splitlines() if line.strip()), b"")
    try:
        first = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        # Too long for the first bytes, or broken: the names alone must do.
        first = {name for name in ("filtered_resps", "doc_id", "custom_id", "response", "error")
                 if b'"%s"' % name.encode() in line}  # fmt: skip
    if not isinstance(first, dict | set):
        return "jsonl"
    if "filtered_resps" in first and "doc_id" in first:
        return "lm-eval"
    if "custom_id" in first and ("response" in first or "error" in first):
        return "openai-batch"
    return "jsonl"
