"""TFDS without TensorFlow: the features, splits and order that all our builders share."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds

from trinityx_jax.data.examples import SPLITS, Example

# The base model's corpus travels with the objective's rows, as two further splits.
PRETRAIN_SPLITS = {"train": "pretrain_train", "validation": "pretrain_validation"}


class ExampleBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes `Example` rows as array_record, in the order of `rows(split)`.

    Subclasses give `splits`, `rows(split)`, `licence`, `homepage` and `about`. TFDS would shuffle
    by key; the rows come in a fixed, already random order instead, so row i means the same row
    everywhere.
    """

    VERSION = tfds.core.Version("1.0.0")
    skip_registration = True
    # TFDS 4.9.10 looks its checksum file up beside the code by way of importlib_resources, which
    # it does not install on Python >= 3.9; we have no such file.
    code_path = None  # pyright: ignore[reportAssignmentType]
    splits: Sequence[str] = (*SPLITS, *PRETRAIN_SPLITS.values())
    licence = ""
    homepage = ""
    about = ""
    has_options = True  # False leaves their columns out, which saves a third of the writing time

    def rows(self, split: str) -> list[Example]:
        """All rows of a split."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        columns: dict[str, Any] = {
            name: tfds.features.Text()
            for name in ("example_id", "objective", "kind", "prompt", "response")
        }
        if self.has_options:
            columns["options"] = tfds.features.Sequence(tfds.features.Text())
            columns["label"] = np.int32
            columns["rejected"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about,
            homepage=self.homepage,
            license=self.licence,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(columns),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # sources.py downloads: pinned revisions, plain urllib, no TensorFlow
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        # Keys in writing order: with shuffling off, TFDS wants them ascending.
        for i, example in enumerate(self.rows(split)):
            yield i, example.to_features(options=self.has_options)


class Rows(Sequence[Example]):
    """TFDS random-access sources, one after the other, as a sequence of `Example`.

    Rows are read from disk at each access; slices and iteration read in bulk.
    """

    def __init__(self, *sources: Any):
        self._sources = sources
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self._bulk(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._bulk(range(index % len(self), index % len(self) + 1))[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def _bulk(self, wanted: Sequence[int]) -> list[Example]:
        found: list[Example] = []
        for at, group in itertools.groupby(
            wanted, key=lambda index: bisect.bisect_right(self._ends, index)
        ):
            start = self._ends[at - 1] if at else 0
            local = [index - start for index in group]
            found += map(Example.from_features, self._sources[at].__getitems__(local))
        return found


def write(builder: ExampleBuilder, *, progress: bool) -> None:
    """Generates every split of the builder into its data_dir as array_record files."""
    if not progress:
        tfds.disable_progress_bar()
    try:
        # TFDS announces itself on standard output, where our commands print results.
        with contextlib.redirect_stdout(io.StringIO()):
            skip = tfds.download.ComputeStatsMode.SKIP
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(compute_stats=skip, num_shards=1),
                file_format="array_record",
            )
    finally:
        if not progress:
            tfds.enable_progress_bar()


def read(builders: Iterable[ExampleBuilder], split: str) -> Rows:
    """Random access to a split that `write` has made, of one builder after the other."""
    sources = []
    for builder in builders:
        # TFDS decorates the method in a way that hides its parameters from type checkers.
        sources.append(builder.as_data_source(split=split))  # pyright: ignore[reportCallIssue]
    return Rows(*sources)
