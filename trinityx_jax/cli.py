"""The `trinityx` command: one subcommand per stage, `quickstart` for all, and uses of any model.

Exit status 0; 2 for bad usage, 1 for failed work, each with one line on stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
import yaml

from arbitrage.errors import UsageError, run_cli
from trinityx_jax import __version__, distributed
from trinityx_jax.commands import evaluate, generate, plan, save
from trinityx_jax.commands import score as any_score
from trinityx_jax.run import STAGES, Run, open_run

DOCS = {
    "pretrain": "Train a small backbone from scratch, or check the one that `backbone` names.",
    "train-experts": "Train one low-rank task vector per objective over the frozen backbone.",
    "train-router": "Train the per-token router on the mixture of the frozen experts.",
    "calibrate-router": "Fit the router's and the answers' temperatures on held-out rows.",
    "score": "Write a table of option scores for every routing: of a run, or with --model of any.",
    "export": "Write the gating weights and one PEFT directory per objective.",
    "report": "Write report.html.",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every stage."""

    run: Path | None = None
    """Run folder (default runs/quickstart; with --data-dir runs/real_data)."""
    config: Path | None = None
    """YAML file; default is the run folder's own config.yaml, else the shipped preset."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Override one configuration key, as in --set experts.steps=100."""
    data_dir: Path | None = None
    """Folder with the real data sets; selects the preset real_data."""
    overwrite: bool = False
    """Redo this stage and everything after it."""
    profile: bool = False
    """Write a profiler trace of training steps 3 to 5 to profile/<stage> of the run, for xprof."""
    distributed: bool = False
    """Join the other processes of this job: TPU pod, Slurm, Kubernetes, or the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""

    def open(self) -> Run:
        """The run these options name; joins its job first."""
        if self.distributed:
            distributed.start()
        preset = "quickstart" if self.data_dir is None else "real_data"
        overrides = list(self.set)
        if self.data_dir is not None:
            if not self.data_dir.is_dir():
                raise UsageError(
                    f"--data-dir {self.data_dir}: no such folder; name an existing one"
                )
            overrides.append(f"data.data_dir={yaml.safe_dump(str(self.data_dir.resolve()))}")
        run = open_run(self.run or Path("runs") / preset, self.config, overrides, preset)
        return dataclasses.replace(run, profile=self.profile)


Arguments = tyro.conf.OmitArgPrefixes[Options]
# The commands that use any model: options, work, and what --help says.
USES: dict[str, tuple[type, Callable, str]] = {
    "generate": (generate.Options, generate.run, "Answer prompts with any model."),
    "eval": (evaluate.Options, evaluate.run, "Run lm-evaluation-harness tasks on any model."),
    "save": (save.Options, save.run, "Write any model as a Hugging Face folder or a Mixtral."),
    "plan": (plan.Options, plan.run, "Say whether a TPU topology fits a configuration, and why."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"trinityx {__version__}")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save there
    return run_cli(lambda: _parse(arguments)())


def _parse(arguments: Sequence[str]) -> Callable[[], None]:
    """The subcommand with its options, ready to run; UsageError for a bad command line."""
    commands: dict[str, Callable] = {"quickstart": _quickstart_command}
    commands |= {stage: _stage_command(stage) for stage in STAGES if stage in DOCS}
    commands["score"] = _score_command(commands["score"])
    commands |= {name: _use_command(*use) for name, use in USES.items()}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="trinityx",
                description="Mixtures of calibrated experts in JAX. The conformal stages between "
                "`score` and `export` are commands of their own: arbitrage calibrate, arbitrage "
                "evaluate.",
                args=arguments,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[─-╿]", " ", complaint.getvalue()).split()  # without tyro's frame
        raise UsageError(" ".join(words)) from None


def _quickstart_command(options: Arguments) -> Callable[[], None]:
    """Run every stage in order; finished ones are not run again."""

    def command() -> None:
        from trinityx_jax.quickstart import quickstart
        from trinityx_jax.summary import summary_text

        run = options.open()
        results = quickstart(run, overwrite=options.overwrite, heading=_heading)
        print(summary_text(run.directory, results))

    return command


def _stage_command(stage: str) -> Callable[[Arguments], Callable[[], None]]:
    def parse(options: Arguments) -> Callable[[], None]:
        def command() -> None:
            from trinityx_jax.quickstart import WORK  # jax and flax load only when needed
            from trinityx_jax.summary import stage_text

            run = options.open()
            if run.finished(stage) and not options.overwrite:
                _heading(f"{stage} was finished before; --overwrite runs it again")
            result = run.do(stage, WORK[stage], overwrite=options.overwrite)
            print(stage_text(stage, result))

        return command

    parse.__doc__ = DOCS[stage]
    return parse


def _score_command(stage: Callable[[Options], Callable[[], None]]) -> Callable:
    """The stage `score` of a run, or with --model the scores of any model."""

    def parse(
        run: Arguments, model: tyro.conf.OmitArgPrefixes[any_score.Options]
    ) -> Callable[[], None]:
        if not any_score.given(model):
            return stage(run)
        for field in dataclasses.fields(run):
            if field.name != "overwrite" and getattr(run, field.name) != field.default:
                name = field.name.replace("_", "-")
                raise UsageError(f"--{name} is for the score of a run; leave it out with --model")
        return lambda: any_score.run(model, overwrite=run.overwrite)

    parse.__doc__ = DOCS["score"]
    return parse


def _use_command(options_type: type, run: Callable, doc: str) -> Callable:
    def parse(options) -> Callable[[], None]:
        return lambda: run(options)

    parse.__annotations__["options"] = tyro.conf.OmitArgPrefixes[options_type]
    parse.__doc__ = doc
    return parse


def _heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)
