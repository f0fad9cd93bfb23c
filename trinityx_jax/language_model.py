"""A model to use: `from_pretrained` for Hugging Face folders, `from_run` for finished runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trinityx_jax.config import MeshConfig, ModelConfig
from trinityx_jax.data.codec import check_vocabulary
from trinityx_jax.data.frame import CHAT
from trinityx_jax.data.hf_codec import load_hf_codec
from trinityx_jax.data.ids_only import TOKENIZERS, IdsOnly
from trinityx_jax.errors import UsageError
from trinityx_jax.inference import generate as generation
from trinityx_jax.inference.packing import Question
from trinityx_jax.inference.sampling import Chooser, chooser
from trinityx_jax.inference.score import OptionScores, score_options
from trinityx_jax.inference.setup import Setup
from trinityx_jax.io import experts as expert_files
from trinityx_jax.io.export import export, read_export
from trinityx_jax.io.folder import new_folder, read_json
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.io.hf_save import save_checkpoint
from trinityx_jax.io.hub import local_folder
from trinityx_jax.io.mixtral import is_mixtral, load_mixtral, mixtral_configs, save_mixtral
from trinityx_jax.models.families import model_config
from trinityx_jax.models.parameters import Architecture, Parameters, architecture
from trinityx_jax.models.router import Mixture, Routing
from trinityx_jax.run import open_run
from trinityx_jax.sharding import make_mesh
from trinityx_jax.stages.context import open_context
from trinityx_jax.stages.export import calibration
from trinityx_jax.stages.texts import TEXT_FILES, run_files, text_files

EXPERTS = "experts"  # subfolder of a saved model that holds its export


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """Parameters on a mesh with everything to use them: call it, `generate`, `score`, save it.

    `files` are the tokenizer's and generation's files, name -> contents or a file to copy;
    `calibration` says how the router was calibrated, where the model has experts.
    """

    name: str
    setup: Setup
    parameters: Parameters
    files: Mapping[str, bytes | Path]
    calibration: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.setup.arch.config

    @property
    def default_routing(self) -> str:
        """The calibrated mixture; the backbone where there are no experts."""
        return "backbone" if self.setup.arch.mocae is None else "mixture"

    def __call__(
        self, tokens_bl: jax.Array | np.ndarray, *, attention_mask_bl=None, routing: str = ""
    ) -> jax.Array:
        """(B, L) int32 tokens to (B, L, V) float32 next-token logits.

        `attention_mask_bl` is 0 at padding, on either side; logits there mean nothing. Positions
        count from the first real token.
        """
        tokens_bl = jnp.asarray(tokens_bl, jnp.int32)
        mask = jnp.ones_like(tokens_bl) if attention_mask_bl is None else attention_mask_bl
        how = self.setup.routing(routing or self.default_routing, len(tokens_bl))
        with jax.set_mesh(self.setup.mesh):
            return _logits(self.setup.arch, self.parameters, tokens_bl, jnp.asarray(mask), how)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        routing: str = "",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """The answer to each prompt, in the template; greedy at temperature 0.

        `on_text` gets (prompt's index, new text) as it is written. Errors as `inference.generate`.
        """
        if isinstance(prompts, str):
            raise UsageError("generate: prompts are a list of texts, not one text")
        codec = self.setup.codec
        answers = self.answers(
            [codec.prompt(text, example_id=str(i)) for i, text in enumerate(prompts)],
            routing=routing,
            max_new_tokens=max_new_tokens,
            chooser=chooser(temperature, top_k, top_p),
            seed=seed,
            on_text=on_text,
        )
        return [codec.decode(answer.ids) for answer in answers]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        routing: str = "",
        max_new_tokens: int = 128,
        chooser: Chooser | None = None,
        seed: int = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[generation.Answer]:
        """`generate` from token ids to token ids, each answer with whether it came to its end."""
        return generation.generate(
            self.setup,
            self.parameters,
            prompts,
            routing or self.default_routing,
            max_new_tokens=max_new_tokens,
            chooser=chooser,
            seed=seed,
            watch=_as_text(self.setup.codec.decode, on_text) if on_text else None,
        )

    def questions(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[Question]:
        """Token ids of (prompt, options) pairs; errors as `question`."""
        return [self.question(*item, name=str(i)) for i, item in enumerate(items)]

    def question(self, prompt: str, options: Sequence[str], *, name: str) -> Question:
        """Token ids of a prompt and its options.

        Raises DataError, with the row's name, for a prompt or an option without tokens and for what
        does not fit the context.
        """
        question = Question(*self.setup.codec.encode_options(prompt, options, example_id=name))
        question.check(self.config.max_position_embeddings, f"row {name}")
        return question

    def score(
        self, questions: Sequence[Question], routings: Sequence[str] = ()
    ) -> dict[str, OptionScores]:
        """Log-likelihood of every option under each routing; see `inference.score`."""
        names = list(dict.fromkeys(routings or [self.default_routing]))
        return score_options(self.setup, self.parameters, questions, names)

    def with_experts(self, folder: str | Path) -> LanguageModel:
        """This backbone with the experts and router of an export (`trinityx export`).

        Raises DataError for a damaged export and for one made for another backbone's shape.
        """
        if self.setup.arch.mocae is not None:
            raise UsageError(f"{self.name} has experts already")
        adapters, gates = read_export(folder)
        mesh = self.setup.mesh
        arch, new = expert_files.attach(self.setup.arch, adapters, gates, mesh)
        mixture = Mixture(gates.top_k, gates.gamma_mode)
        return dataclasses.replace(
            self,
            setup=dataclasses.replace(self.setup, arch=arch, mixture=mixture),
            parameters=arch.adopt(self.parameters, self.setup.arch, mesh) | new,
            calibration=gates.calibration,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        max_shard_bytes: int = 5_000_000_000,
        overwrite: bool = False,
    ) -> Path:
        """A Hugging Face folder that `from_pretrained` and transformers read; whole or not at all.

        Experts go to its subfolder experts/, as `trinityx export` writes them: transformers then
        loads the backbone, peft each expert, and `from_pretrained` the whole mixture. Complete FFNs
        as experts (`mocae.expert: ffn`) make the folder a Mixtral's.
        """
        mocae = self.setup.arch.mocae
        if mocae is not None and mocae.expert == "ffn":
            return self.save_mixtral(folder, max_shard_bytes=max_shard_bytes, overwrite=overwrite)
        apart = self.setup.arch.unstack(self.parameters)
        backbone = {name: apart[name] for name in architecture(self.config).unrolled().shapes}
        save = partial(
            save_checkpoint,
            config=self.config,
            parameters=backbone,
            max_shard_bytes=max_shard_bytes,
            extra_files=self.files,
        )
        if mocae is None:
            return save(folder, overwrite=overwrite)
        if jax.process_count() > 1:
            raise UsageError("a model with experts is saved by one process: load it with one")
        with new_folder(folder, _entries(Path(folder)), overwrite=overwrite) as work:
            for path in sorted(save(work / "backbone").iterdir()):
                path.rename(work / path.name)
            (work / "backbone").rmdir()
            export(
                work / EXPERTS,
                expert_files.adapters(self.setup.arch, self.parameters),
                expert_files.gating(self.setup.arch, self.parameters, self.name, self.calibration),
                scale=mocae.scale,
                extra=self.setup.codec.describe(),
            )
        return Path(folder)

    def save_mixtral(
        self,
        folder: str | Path,
        *,
        max_shard_bytes: int = 5_000_000_000,
        overwrite: bool = False,
    ) -> Path:
        """The mixture as a Mixtral, which transformers and servers run without our code.

        Every expert becomes a complete FFN. Raises UsageError for what a Mixtral cannot say.
        """
        return save_mixtral(
            folder,
            self.setup.arch,
            self.parameters,
            max_shard_bytes=max_shard_bytes,
            extra_files=self.files,
            overwrite=overwrite,
        )


def from_pretrained(
    folder_or_hub_id: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    template: str = "{prompt}",
    batch_size: int = 8,
    scan_layers: bool = False,
) -> LanguageModel:
    """The model of a Hugging Face folder or hub id, sharded over `mesh` (default: all devices).

    Args:
      dtype: float32, bfloat16 or float16; None keeps the checkpoint's.
      revision: branch, tag or commit of a hub id.
      template: text around a prompt, with {prompt} once, or "chat" for the folder's own.
      batch_size: most rows that `generate` and `score` handle at once.
      scan_layers: compile one layer for all, which takes a deep model a fraction of the time.

    A folder that `save_pretrained` wrote brings its experts; one without a tokenizer works on token
    ids alone. Raises UsageError and DataError in one line for what is missing, damaged or not
    supported.
    """
    _check_batch_size(batch_size)
    if template != CHAT and template.count("{prompt}") != 1:
        raise UsageError(f"template {template!r}: it must hold {{prompt}} once, or be {CHAT}")
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    folder = local_folder(folder_or_hub_id, revision)
    name = str(folder_or_hub_id)
    # Weights may be many gigabytes: everything else is checked before they are read.
    path = folder / "config.json"
    hf = read_json(path, "give the folder of a model")
    shape = mixtral_configs(hf, str(path))[0] if is_mixtral(hf) else model_config(hf, str(path))
    if any((folder / file).is_file() for file in TOKENIZERS):
        codec = load_hf_codec(folder, template, source=name, revision=revision)
    else:
        codec = IdsOnly(folder, name, revision)
    check_vocabulary(codec, shape.vocab_size, name)
    if is_mixtral(hf):
        config, mocae, parameters = load_mixtral(folder, mesh, dtype)
    else:
        (config, parameters), mocae = load_checkpoint(folder, mesh, dtype=dtype), None
    arch = architecture(dataclasses.replace(config, scan_layers=scan_layers), mocae)
    setup = Setup(
        arch=arch,
        codec=codec,
        max_length=config.max_position_embeddings,
        batch_size=batch_size,
        mesh=mesh,
        mixture=Mixture(mocae.top_k if mocae else 0),
    )
    model = LanguageModel(name, setup, arch.stack(parameters, mesh), text_files(folder))
    return model.with_experts(folder / EXPERTS) if (folder / EXPERTS).is_dir() else model


def from_run(directory: str | Path, *, batch_size: int = 8) -> LanguageModel:
    """The calibrated mixture of a finished run. Raises DataError naming a stage still to be run."""
    _check_batch_size(batch_size)
    run = open_run(Path(directory), Path(directory) / "config.yaml", [], "quickstart")
    run.result("calibrate-router")  # before any rows are prepared
    context = open_context(run)
    return LanguageModel(
        str(directory),
        dataclasses.replace(context.inference, batch_size=batch_size),
        context.calibrated(),
        run_files(context),
        calibration(context),
    )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least 1")


@partial(jax.jit, static_argnums=0)
def _logits(
    arch: Architecture, parameters: Parameters, tokens, mask, routing: Routing | None
) -> jax.Array:
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    model = arch.merge(parameters)
    return model(tokens, routing, positions_bl=positions, segment_ids_bl=mask).logits


def _entries(folder: Path) -> set[str]:
    """Names that a saved model may hold; weights come in files of any number."""
    old = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    weights = {name for name in old if name.startswith("model") and ".safetensors" in name}
    return {"config.json", EXPERTS, *TEXT_FILES, *weights}


def _as_text(
    decode: Callable[[Sequence[int]], str], on_text: Callable[[int, str], None]
) -> generation.Watch:
    """A watcher of tokens that hands on text; unfinished characters wait for their rest."""
    ids: dict[int, list[int]] = {}
    shown: dict[int, int] = {}

    def watch(row: int, new: list[int]) -> None:
        mine = ids.setdefault(row, [])
        mine.extend(new)
        text = decode(mine).rstrip("\N{REPLACEMENT CHARACTER}")
        if len(text) > shown.get(row, 0):
            on_text(row, text[shown.get(row, 0) :])
            shown[row] = len(text)

    return watch
