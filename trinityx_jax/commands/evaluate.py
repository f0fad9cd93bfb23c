"""`trinityx eval`: tasks of lm-evaluation-harness on any model, under any routing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arbitrage.errors import one_line
from arbitrage.io import check_output, write_json
from trinityx_jax.commands.opening import ModelOptions, check_routings, open_model, record
from trinityx_jax.errors import DataError, UsageError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# Resamples for the standard errors that have no formula; the harness' 100000 take minutes.
BOOTSTRAP = 1000
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Run tasks of lm-evaluation-harness, which writes the prompts itself."""

    tasks: tuple[str, ...]
    """Names of tasks, groups or tags; * stands for anything."""
    include_path: Path | None = None
    """Folder with task files of your own."""
    routing: str | None = None
    """mixture, top1, uniform, backbone, an objective or negated-OBJECTIVE (default: mixture, or
    backbone where there are no experts)."""
    num_fewshot: int | None = None
    """Examples before each question (default: the task's)."""
    limit: int | None = None
    """Only the first rows of each task."""
    apply_chat_template: bool = False
    """Render each prompt with the model's chat template."""
    output: Path | None = None
    """File for the results, as JSON."""
    log_samples: bool = False
    """Write samples_TASK.jsonl beside the output, which `arbitrage` reads."""
    overwrite: bool = False
    """Replace files of an earlier evaluation."""
    seed: int | None = None
    """Seed of few-shot examples and sampled answers (default: the harness' own seeds)."""


def run(options: Options) -> None:
    """Prints the harness' table and writes the files that were asked for.

    Raises UsageError for bad options, unknown tasks and a missing lm-eval, DataError for tasks
    whose data cannot be loaded; and the errors of `open_model` and `HarnessModel`.
    """
    _check(options)
    # Its resampling forks, and a fork of a process with JAX's threads may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from trinityx_jax.evaluation.harness import HarnessModel
    from trinityx_jax.evaluation.harness_files import results_tree, write_samples

    manager = TaskManager(include_path=options.include_path and str(options.include_path))
    names = _names(options, manager)
    model = open_model(options)
    harness = HarnessModel(model, options.routing or "", options.seed or 0)
    template = harness.chat_template(options.apply_chat_template)
    tasks = _load(manager, names)
    samples = _sample_files(options, tasks)
    results: Any = simple_evaluate(
        model=harness,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        log_samples=options.log_samples,
        bootstrap_iters=BOOTSTRAP,
        **({} if options.seed is None else dict.fromkeys(_SEEDS, options.seed)),
    )
    for task, path in samples.items():
        write_samples(path, results["samples"][task], overwrite=options.overwrite)
    if options.output is not None:
        about = {**record(options, model), "routing": harness.routing, "chat_template": template}
        write_json(options.output, {**about, **results_tree(results)}, options.overwrite)
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))


def _check(options: Options) -> None:
    """Raises UsageError for what can be told ahead of long work."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError('eval needs lm-evaluation-harness; pip install "trinityx-jax[eval]"')
    if not options.tasks:
        raise UsageError("--tasks: name one or more; `lm-eval ls tasks` lists them")
    if options.template is not None:
        raise UsageError(
            "--template: the harness writes the prompts; leave it out, or use --apply-chat-template"
        )
    if options.include_path is not None and not options.include_path.is_dir():
        raise UsageError(f"--include-path {options.include_path}: no such folder")
    for name, least in (("limit", 1), ("num_fewshot", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least {least}")
    if options.log_samples and options.output is None:
        raise UsageError("--log-samples: give --output too; the samples go beside it")
    if options.routing:
        check_routings(options, [options.routing])
    if options.output is not None:
        check_output(options.output, options.overwrite)


def _names(options: Options, manager: TaskManager) -> list[str]:
    """The tasks, groups and tags that the patterns name, each once."""
    found: dict[str, None] = {}
    for pattern in options.tasks:
        names = manager.match_tasks([pattern])
        if not names:
            raise UsageError(
                f"--tasks {pattern}: lm-eval knows no such task; `lm-eval ls tasks` lists them, "
                "--include-path adds your own"
            )
        found |= dict.fromkeys(names)
    return list(found)


def _load(manager: TaskManager, names: Sequence[str]) -> list[Any]:
    """The tasks and groups with their data."""
    items: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as e:  # whatever data sets, their files and a task's own code raise
            raise DataError(f"task {name}: cannot be loaded ({one_line(str(e))})") from e
        for task_name, task in loaded["tasks"].items():
            for flag, what in (
                ("UNSAFE_CODE", "runs code of the model's"),
                ("MULTIMODAL", "has images"),
            ):
                if getattr(task, flag, False):
                    raise UsageError(f"task {task_name}: it {what}, which eval does not do")
        group = loaded.get("groups", {}).get(name)
        items += [group] if group is not None else loaded["tasks"].values()
    return items


def _sample_files(options: Options, tasks: Sequence[Any]) -> dict[str, Path]:
    """Task -> file of its samples; UsageError where one exists."""
    if options.output is None or not options.log_samples:
        return {}
    names = [
        task.task_name
        for item in tasks
        for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])
    ]
    return {
        name: check_output(options.output.parent / f"samples_{name}.jsonl", options.overwrite)
        for name in names
    }
