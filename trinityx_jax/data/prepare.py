"""From a data configuration to data sets on disk that are read by row: `prepare`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trinityx_jax.config import OBJECTIVES, DataConfig
from trinityx_jax.data.alpaca import Alpaca
from trinityx_jax.data.builder import PRETRAIN_SPLITS, ExampleBuilder, Rows, read, write
from trinityx_jax.data.download import download_all, sha256_of
from trinityx_jax.data.examples import SPLITS, Example
from trinityx_jax.data.microworld import Microworld
from trinityx_jax.data.microworld_builder import MicroworldBuilder
from trinityx_jax.data.safety_pairs import SafetyPairs
from trinityx_jax.data.sources import local_files
from trinityx_jax.data.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_sha256,
    train_tokenizer,
)
from trinityx_jax.data.truthful_qa import TruthfulQa
from trinityx_jax.data.user_files import FilesBuilder
from trinityx_jax.data.user_rows import UserFiles, user_files
from trinityx_jax.errors import DataError

FORMAT = 3  # raise it when rows, features or the tokenizer change for the same configuration
_HHH = {"helpful": Alpaca, "harmless": SafetyPairs, "honest": TruthfulQa}
_MANIFEST = "prepared.json"


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Prepared data. `verify` judges a free answer exactly and exists for the microworld only."""

    directory: Path
    manifest: Mapping[str, Any]
    verify: Callable[[Example, str], bool] | None
    tables: Mapping[tuple[str, str], Rows]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer trained on the corpus; UsageError where the backbone brings its own."""
        return load_tokenizer(self.directory)

    def rows(self, objective: str, split: str) -> Rows:
        """Random access to the rows of an objective and split of SPLITS; reads from disk."""
        return self.tables[objective, split]

    def pretrain(self, split: str = "train") -> Rows:
        """The base model's corpus, "train" or "validation"."""
        return self.tables["pretrain", split]

    def describe(self) -> dict[str, Any]:
        """Row counts by objective and split, licences, and counts of rows left out, by reason."""
        return dict(self.manifest)


def prepare(
    config: DataConfig,
    directory: Path,
    objectives: Sequence[str] = OBJECTIVES,
    *,
    own_tokenizer: bool = True,
    progress: bool = False,
) -> Datasets:
    """Builds, or finds already built, the data of `config` for `objectives` below `directory`.

    `own_tokenizer`: with a tokenizer trained on the corpus; else rows alone, whatever the template.

    The folder's name carries a fingerprint of the configuration and of the input files, and it
    appears by one rename when all is written: another configuration gets another folder, and a
    killed run leaves only a `.preparing-*` folder that nobody reads. Raises UsageError for missing
    input files and DataError for damaged ones or a failed download.
    """
    directory = Path(directory)
    wanted = _Wanted(
        config, tuple(objectives), _input_files(config, directory, objectives, progress=progress)
    )
    target = directory / f"{config.source}-{_fingerprint(wanted, own_tokenizer)}"
    if not (target / _MANIFEST).is_file():
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".preparing-", dir=directory))
        try:
            _build(wanted, work, own_tokenizer=own_tokenizer, progress=progress)
            _put(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return _open(wanted, target)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What to prepare, from which files by name."""

    config: DataConfig
    objectives: tuple[str, ...]
    files: Mapping[str, Path]


def _input_files(
    config: DataConfig, directory: Path, objectives: Sequence[str], *, progress: bool
) -> dict[str, Path]:
    if config.source == "microworld":
        return {}
    if config.source == "files":
        return user_files(config.data_dir or ".", objectives)
    if config.data_dir is not None:
        return local_files(config.data_dir)
    return download_all(directory / "downloads", progress=progress)


def _fingerprint(wanted: _Wanted, own_tokenizer: bool) -> str:
    config = wanted.config
    relevant: dict[str, Any] = {"format": FORMAT, "source": config.source, "seed": config.seed}
    relevant["objectives"] = wanted.objectives
    if config.source == "microworld":
        relevant["rows"] = [config.train_rows, config.held_out_rows, config.pretrain_rows]
        tokenizer = {"template": config.template}  # its words are in the vocabulary
    else:
        relevant["files"] = {name: sha256_of(path) for name, path in sorted(wanted.files.items())}
        tokenizer = {"vocab_size": config.vocab_size}
    relevant |= tokenizer if own_tokenizer else {"tokenizer": None}
    text = json.dumps(relevant, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _world(config: DataConfig) -> Microworld:
    return Microworld(
        seed=config.seed,
        n_train=config.train_rows,
        n_held_out=config.held_out_rows,
        n_pretrain=config.pretrain_rows,
    )


def _builders(wanted: _Wanted, root: Path) -> dict[str, ExampleBuilder]:
    """One builder an objective; the microworld's corpus has its own."""
    config, files, data_dir = wanted.config, wanted.files, str(root / "tfds")
    if config.source == "microworld":
        world = _world(config)
        names = (*wanted.objectives, "pretrain")
        return {n: MicroworldBuilder(world=world, config=n, data_dir=data_dir) for n in names}
    if config.source == "files":
        source = UserFiles(files)
        return {
            objective: FilesBuilder(
                objective=objective,
                source=source,
                seed=config.seed,
                data_dir=f"{data_dir}/{objective}",
            )
            for objective in wanted.objectives
        }
    return {
        objective: _HHH[objective](files=files, seed=config.seed, data_dir=data_dir)
        for objective in wanted.objectives
    }


def _build(wanted: _Wanted, root: Path, *, own_tokenizer: bool, progress: bool) -> None:
    config, builders = wanted.config, _builders(wanted, root)
    for builder in builders.values():
        write(builder, progress=progress)
    rows = _sources(builders)
    tokenizer = _trained(config, rows["pretrain", "train"]) if own_tokenizer else None
    if tokenizer is not None:
        save_tokenizer(tokenizer, root)
    manifest = {
        "source": config.source,
        "rows": {o: {s: len(rows[o, s]) for s in SPLITS} for o in wanted.objectives},
        "pretrain": {s: len(rows["pretrain", s]) for s in PRETRAIN_SPLITS},
        "tokenizer": tokenizer
        and {
            "vocab_size": tokenizer.get_vocab_size(),
            "sha256": tokenizer_sha256(tokenizer),
        },
        "licences": {name: builder.licence for name, builder in builders.items()},
        "left_out": {
            name: dict(getattr(builder, "dropped", {})) for name, builder in builders.items()
        },
    }
    (root / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _trained(config: DataConfig, corpus: Rows) -> Tokenizer:
    vocabulary = _world(config).vocabulary() if config.source == "microworld" else None
    texts = (text for row in corpus for text in (row.prompt, row.response))
    return train_tokenizer(config, texts, vocabulary)


def _sources(builders: Mapping[str, ExampleBuilder]) -> dict[tuple[str, str], Rows]:
    objectives = [name for name in builders if name != "pretrain"]
    rows = {(o, split): read([builders[o]], split) for o in objectives for split in SPLITS}
    for split, name in PRETRAIN_SPLITS.items():
        with_corpus = [builder for builder in builders.values() if name in builder.splits]
        rows["pretrain", split] = read(with_corpus, name)
    return rows


def _put(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError as e:
        # Another process was faster: its data is the same.
        if not (target / _MANIFEST).is_file():
            raise DataError(f"cannot create {target} ({e.strerror}); remove it and retry") from e


def _open(wanted: _Wanted, target: Path) -> Datasets:
    config = wanted.config
    try:
        tables = _sources(_builders(wanted, target))
    except (AssertionError, ValueError, OSError, NotImplementedError) as e:  # TFDS: files missing
        raise DataError(f"{target}: damaged; delete the folder and run again") from e
    return Datasets(
        directory=target,
        manifest=json.loads((target / _MANIFEST).read_text()),
        verify=_world(config).verify if config.source == "microworld" else None,
        tables=tables,
    )
