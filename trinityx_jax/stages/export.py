"""Stage `export`: one PEFT directory per objective and the router's gating weights."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from trinityx_jax.distributed import first_alone
from trinityx_jax.io.experts import adapters, gating
from trinityx_jax.io.export import export as write_export
from trinityx_jax.io.mixtral import save_mixtral
from trinityx_jax.run import Run
from trinityx_jax.stages.context import Context, open_context
from trinityx_jax.stages.texts import run_files


def export(run: Run) -> dict[str, Any]:
    """Writes export/ in the run folder: adapters and gates, every tensor read back and compared;
    or, where the experts are complete FFNs, a Mixtral checkpoint."""
    context = open_context(run)
    parameters = context.calibrated()
    directory = run.directory / "export"
    if run.config.mocae.expert == "ffn":
        files = run_files(context)
        save_mixtral(directory, context.mocae, parameters, extra_files=files, overwrite=run.resumed)
    else:
        write = partial(
            write_export,
            directory,
            adapters(context.mocae, parameters),
            gating(
                context.mocae,
                parameters,
                run.config.backbone or "checkpoints/pretrain",  # in the run folder
                calibration(context),
            ),
            scale=run.config.mocae.scale,
            extra={"seed": run.config.seed, **context.codec.describe()},
            overwrite=run.resumed,
        )
        first_alone(write, "export")
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def calibration(context: Context) -> dict[str, Any]:
    """How the temperatures were fitted."""
    found = context.run.result("calibrate-router")
    return {
        "method": found["method"],
        "dataset": context.run.config.data.source,
        "n": found["fitted_on"]["tokens"],
        "date": datetime.now(UTC).date().isoformat(),
        "nll_before": found["before"]["nll"],
        "nll_after": found["after"]["nll"],
    }
