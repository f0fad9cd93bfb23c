"""A run folder: its configuration, which stages are finished, and what each of them found.

    config.yaml  metrics.jsonl  summary.json  policy.json  evaluation.json  report.html
    data/  checkpoints/<stage>/  stages/<stage>.json  scores/*.parquet  export/
    on request: tensorboard/<stage>/  wandb/  profile/<stage>/

A stage is finished when stages/<stage>.json holds its result; that file is written last.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arbitrage.io import atomic_path, check_output, read_json, write_json
from trinityx_jax import config as cfg
from trinityx_jax.distributed import first, first_alone
from trinityx_jax.errors import DataError, UsageError

# In order; each stage is redone when one of the configuration sections behind it changes.
STAGES: dict[str, tuple[str, ...]] = {
    "pretrain": ("seed", "backbone", "backbone_revision", "model", "data", "pretrain"),
    "train-experts": ("mocae", "experts"),
    "train-router": ("router", "router_loss"),
    "calibrate-router": ("calibration",),
    "score": ("score",),
    "arbitrage-calibrate": ("arbitrage",),
    "arbitrage-evaluate": (),
    "export": (),
    "report": (),
}

# What a stage writes besides its checkpoints and its result.
OUTPUTS: dict[str, str] = {
    "score": "scores",
    "arbitrage-calibrate": "policy.json",
    "arbitrage-evaluate": "evaluation.json",
    "export": "export",
    "report": "report.html",
}

# Stages that read and write small files alone: one process of a job is enough.
ONE_PROCESS = ("arbitrage-calibrate", "arbitrage-evaluate", "report")

Work = Callable[["Run"], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder and the configuration to work in it with."""

    directory: Path
    config: cfg.Config
    resumed: bool = False  # this stage was begun before, so its partial outputs are ours to replace
    profile: bool = False  # training stages leave a trace in profile/<stage>

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    def checkpoints(self, stage: str) -> Path:
        return self.directory / "checkpoints" / stage

    def scores(self, routing: str, split: str) -> Path:
        return self.directory / "scores" / f"{routing}-{split}.parquet"

    def finished(self, stage: str) -> bool:
        return self._record(stage).exists()

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage returned. DataError names the stage to run first."""
        if not self.finished(stage):
            raise DataError(
                f"{self.directory} has no finished stage {stage!r}; run `{hint(stage)}`"
            )
        return read_json(self._record(stage))["result"]

    def summary(self) -> dict[str, Any]:
        """Results of all finished stages, in order."""
        done = [stage for stage in STAGES if self.finished(stage)]
        return {"stages": {stage: self.result(stage) for stage in done}}

    def do(self, stage: str, work: Work, *, overwrite: bool = False) -> dict[str, Any]:
        """Result of `work(run)`, recorded with its seconds; at once if the stage is finished.

        Raises UsageError when the folder holds this stage, finished or not, made with another
        configuration. `overwrite` discards it and every later stage first.
        """
        record = self._record(stage)
        marker = record.with_suffix(".started.json")
        wanted = self._sections(stage)
        if not overwrite:
            for path in (record, marker):
                if path.exists():
                    _same(read_json(path)["config"], wanted, stage, self.directory)
            if self.finished(stage):
                return self.result(stage)
        resumed = overwrite or marker.exists()

        def begin() -> None:
            if overwrite:
                self.discard(stage)
            check_output(marker, overwrite=True)
            with atomic_path(self.directory / "config.yaml", overwrite=True) as temporary:
                temporary.write_text(cfg.dump(self.config))
            write_json(marker, {"config": wanted}, overwrite=True)

        def end() -> None:
            write_json(record, {"config": wanted, "result": result}, overwrite=True)
            write_json(self.directory / "summary.json", self.summary(), overwrite=True)

        first_alone(begin, f"begin {stage}")
        start = time.perf_counter()
        result: dict[str, Any] = {}
        try:
            if first() or stage not in ONE_PROCESS:
                result = work(dataclasses.replace(self, resumed=resumed))
        except UsageError:
            if not resumed:
                marker.unlink(missing_ok=True)
            raise
        result = {"seconds": round(time.perf_counter() - start, 2), **result}
        first_alone(end, f"end {stage}")
        return result if first() else self.result(stage)

    def _record(self, stage: str) -> Path:
        return self.directory / "stages" / f"{stage}.json"

    def _sections(self, stage: str) -> dict[str, Any]:
        """The configuration this stage depends on: its own sections and those before it."""
        tree = cfg.to_dict(self.config)
        names = list(STAGES)
        upstream = names[: names.index(stage) + 1]
        return {section: tree[section] for name in upstream for section in STAGES[name]}

    def discard(self, stage: str) -> None:
        """Forgets this stage and all later ones, with their checkpoints and outputs."""
        names = list(STAGES)
        for later in reversed(names[names.index(stage) :]):  # the last first: never a gap
            record = self._record(later)
            record.unlink(missing_ok=True)
            record.with_suffix(".started.json").unlink(missing_ok=True)
            _remove(self.checkpoints(later))
            if later in OUTPUTS:
                _remove(self.directory / OUTPUTS[later])


def open_run(directory: Path, config_path: Path | None, overrides: list[str], default: str) -> Run:
    """Run with the given configuration file, else the folder's own, else the preset `default`."""
    own = directory / "config.yaml"
    path = config_path or (own if own.exists() else cfg.preset(default))
    return Run(directory, cfg.load(path, overrides))


def hint(stage: str) -> str:
    """The command that runs a stage."""
    program, _, command = stage.partition("-")
    return f"arbitrage {command}" if program == "arbitrage" else f"trinityx {stage}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same(made: Any, wanted: Any, stage: str, directory: Path) -> None:
    if made != wanted:
        keys = ", ".join(sorted(set(_differences(made, wanted))))
        raise UsageError(
            f"{directory} holds stage {stage!r} made with another configuration ({keys}); pass "
            "--overwrite to redo it and what follows, or name another --run"
        )


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [
            d for k in keys for d in _differences(a.get(k), b.get(k), f"{where}.{k}".strip("."))
        ]
    return [] if a == b else [where]
