"""One run's configuration: frozen dataclasses, YAML in and out, and every check in one place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from trinityx_jax.errors import UsageError

OBJECTIVES = ("helpful", "harmless", "honest")
# Names that are no objective's: those of routings, score tables and the corpus.
RESERVED = ("mixture", "top1", "uniform", "backbone", "guardian", "pretrain")
NEGATED = "negated-"  # before an objective: its task vector reversed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts, in Hugging Face's terms.

    linear: every frequency divided by `factor` (Chen et al. 2023). llama3: only the slow ones, with
    a smooth step between the two frequency factors (Llama 3.1). yarn: by wavelength between the two
    betas, with the attention's temperature `attention_factor` (Peng et al. 2023).
    """

    kind: Literal["linear", "llama3", "yarn"] = "linear"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Backbone shape, in Hugging Face's terms. `vocab_size: 0` takes the tokenizer's.

    `models/families.py` says which architecture has which of the options. `dtype` is what layers
    compute in; norms, softmax, router and logits are float32 whatever it is.
    """

    family: Literal["llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"] = "llama"
    vocab_size: int = 0
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    hidden_act: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    tie_word_embeddings: bool = False
    scale_embeddings: bool = False  # times sqrt(D)
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head
    norm_offset: float = 0.0  # norms multiply by offset + scale; Gemma 1
    post_norms: bool = False  # norms behind attention and FFN, too
    query_scale: float = 0.0  # queries are divided by its root; 0 takes head_dim
    attention_softcap: float = 0.0  # 0: none
    logit_softcap: float = 0.0
    windows: tuple[int, ...] = ()  # sliding window of each layer, 0 for none; () for none anywhere
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    param_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    scan_layers: bool = True  # one compiled layer for all; False unrolls them
    remat: Literal["none", "dots", "layers"] = "none"  # what is computed again: models/remat.py

    def window(self, layer: int) -> int:
        """Sliding window of a layer in tokens, 0 for full attention."""
        return self.windows[layer] if self.windows else 0


@dataclasses.dataclass(frozen=True)
class MoCaEConfig:
    """Shape of the mixture of calibrated experts, one for each of `objectives`.

    `expert: low_rank` moves the base FFN by a task vector of rank r; `ffn` gives every expert an
    FFN of its own (Mixtral's and H3Fusion's shape). `fusion: shared` computes the exact mixture of
    low-rank experts at the matrix cost of one FFN, `plain` as E complete FFNs. Over an
    `expert` mesh axis, complete FFNs of which each token takes `top_k` see all tokens and sum their
    parts (`psum`), or are sent theirs (`all_to_all`), each at most `capacity_factor` times its even
    share.
    """

    objectives: tuple[str, ...] = OBJECTIVES
    layers: tuple[int, ...] = ()  # which have experts; () for all
    expert: Literal["low_rank", "ffn"] = "low_rank"
    fusion: Literal["shared", "plain"] = "shared"
    rank: int = 8
    lora_alpha: float = 16.0
    top_k: int = 0  # 0 mixes all experts
    gamma: Literal["none", "output", "logit"] = "none"
    dispatch: Literal["psum", "all_to_all"] = "psum"
    capacity_factor: float = 2.0

    @property
    def scale(self) -> float:
        """s = lora_alpha / r."""
        return self.lora_alpha / self.rank


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and how they are laid out.

    `source: microworld` generates its rows from `seed`; `source: hhh` reads Alpaca, PKU-SafeRLHF
    and TruthfulQA from `data_dir`, or downloads them from their official places when it is null.
    Both know the objectives helpful, harmless and honest; `source: files` reads any others from
    `data_dir`/<objective>.jsonl (data/user_files.py says what a line holds).
    """

    source: Literal["microworld", "hhh", "files"] = "microworld"
    data_dir: str | None = None
    seed: int = 0
    train_rows: int = 2000  # per objective; microworld only
    held_out_rows: int = 400  # per objective and held-out split; microworld only
    pretrain_rows: int = 20_000  # microworld only
    vocab_size: int = 4096  # byte-pair tokenizer; hhh and files only
    template: str = "{prompt} ="  # or chat: the Hugging Face backbone's own
    max_length: int = 64  # tokens a packed row


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1 for all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    slices: int = 1  # TPU slices (or GPU clusters) that `data` spans; the slow network joins them


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training stage; `batch_size` counts packed rows a step, of each objective.

    `mix` weighs the objectives' shares of a batch, () for equal ones. `accumulate` splits a step
    into that many passes, one after the other. `max_bad_steps` non-finite steps in a row stop it.
    """

    steps: int = 100
    accumulate: int = 1
    mix: tuple[float, ...] = ()
    max_bad_steps: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 50


@dataclasses.dataclass(frozen=True)
class ExpertTrainConfig(TrainConfig):
    """`loss: sft` learns the responses, `dpo` prefers chosen over rejected ones (Rafailov et al.
    2023); `beta` is the latter's weight of the reference."""

    loss: Literal["sft", "dpo"] = "sft"
    beta: float = 0.1


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go beside metrics.jsonl; `wandb` names a project."""

    tensorboard: bool = False
    wandb: str | None = None


@dataclasses.dataclass(frozen=True)
class RouterLossConfig:
    """Coefficients of the router's loss, each added as written (signs in alignment/losses.py)."""

    gate: float = 1.0
    balance: float = 0.01
    z: float = 1e-4
    entropy: float = 0.0
    kl: float = 0.0


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Post-hoc fit of the router's temperature on the validation split."""

    method: Literal["temperature", "vector"] = "temperature"
    bins: int = 15


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Option scoring, and greedy answers for the exact verifiers (0 rows: none)."""

    batch_size: int = 64
    verify_rows: int = 60  # per objective


@dataclasses.dataclass(frozen=True)
class ArbitrageConfig:
    """Risk levels to certify; decimal strings, so that 0.1 means one tenth."""

    alphas: tuple[str, ...] = ("0.05", "0.1", "0.2")
    bound: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole run.

    `backbone` names what to start from instead of pretraining: the checkpoint folder of a finished
    pretrain stage, a Hugging Face folder, or an org/name on its hub, at `backbone_revision`. A
    Hugging Face backbone brings its shape, tokenizer and special tokens; of `model`, `dtype`,
    `param_dtype`, `scan_layers` and `remat` may then be chosen, and other keys only repeat what the
    checkpoint has (for `plan`, which downloads nothing): layers compute in `dtype`, and the
    parameters keep the checkpoint's type unless `param_dtype` narrows it.
    """

    seed: int = 0
    backbone: str | None = None
    backbone_revision: str | None = None
    model: ModelConfig = ModelConfig()
    mocae: MoCaEConfig = MoCaEConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    pretrain: TrainConfig = TrainConfig()
    experts: ExpertTrainConfig = ExpertTrainConfig()
    router: TrainConfig = TrainConfig()
    router_loss: RouterLossConfig = RouterLossConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    score: ScoreConfig = ScoreConfig()
    arbitrage: ArbitrageConfig = ArbitrageConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        _check(self)


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Config from a YAML file (defaults where it is silent) and `section.key=value` overrides.

    Raises UsageError for a missing file, bad YAML, an unknown key or a value of another type.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text())
        except OSError as e:
            raise UsageError(f"config {path}: {e.strerror}; give an existing YAML file") from e
        except yaml.YAMLError as e:
            raise UsageError(f"config {path}: not YAML ({' '.join(str(e).split())})") from e
    tree = {} if tree is None else tree
    if overrides and not isinstance(tree, dict):
        raise UsageError(f"config {path} must be a mapping of keys")
    for override in overrides:
        _set(tree, override)
    return from_dict(Config, tree)


def dump(config: Config) -> str:
    """YAML text that `load` reads back to an equal Config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain tree of dicts, lists and scalars."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (
            (f.name, to_dict(v) if dataclasses.is_dataclass(v) else v)
            for f in dataclasses.fields(config)
            for v in [getattr(config, f.name)]
        )
    }


def preset(name: str) -> Path:
    """Path of a configuration that ships with the package (`configs/<name>.yaml`)."""
    here = Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):  # wheel, then source checkout
        if (folder / f"{name}.yaml").exists():
            return folder / f"{name}.yaml"
    raise UsageError(f"no preset config named {name!r}; pass --config FILE")


def from_dict(cls: type, tree: Any, where: str = "") -> Any:
    """Dataclass `cls` from a plain tree; every key must be known and every value of its type."""
    if not isinstance(tree, dict):
        raise UsageError(f"config section {where or 'top level'!r} must be a mapping of keys")
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            full = f"{where}.{near[0]}" if near and where else "".join(near)
            hint = f"did you mean {full!r}?" if near else f"known keys: {', '.join(hints)}"
            raise UsageError(f"unknown config key {name!r}; {hint}")
        kwargs[key] = _convert(hints[key], value, name)
    return cls(**kwargs)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, name)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        raise UsageError(f"config {name}={value!r}: allowed are {list(typing.get_args(hint))}")
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if typing.get_args(hint)[0] is str:  # decimals such as 0.1 keep their text
            return tuple(str(item) for item in items)
        return tuple(_convert(typing.get_args(hint)[0], item, name) for item in items)
    allowed = typing.get_args(hint) if origin is types.UnionType else (hint,)
    section = next((t for t in allowed if dataclasses.is_dataclass(t)), None)
    if section is not None and value is not None:
        return from_dict(typing.cast(type, section), value, name)
    if float in allowed and isinstance(value, int | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as text
            value = float(value)
        except ValueError:
            pass
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        want = " or ".join("null" if t is types.NoneType else t.__name__ for t in allowed)
        raise UsageError(f"config {name}={value!r}: expected {want}")
    return value


def _set(tree: dict, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override!r}: write section.key=value")
    *sections, key = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {override!r}: {section!r} is not a section")
    try:
        tree[key] = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"--set {override!r}: not YAML; quote the value") from e


_POSITIVE = (
    "steps", "batch_size", "accumulate", "max_bad_steps", "learning_rate", "checkpoint_every",
    "clip_norm",
)  # fmt: skip


def _check(c: Config) -> None:
    m = c.model
    positive = {
        "model.hidden_size": m.hidden_size,
        "model.intermediate_size": m.intermediate_size,
        "model.num_hidden_layers": m.num_hidden_layers,
        "model.num_attention_heads": m.num_attention_heads,
        "model.num_key_value_heads": m.num_key_value_heads,
        "mocae.rank": c.mocae.rank,
        "mocae.capacity_factor": c.mocae.capacity_factor,
        "data.train_rows": c.data.train_rows,
        "data.held_out_rows": c.data.held_out_rows,
        "data.pretrain_rows": c.data.pretrain_rows,
        "data.max_length": c.data.max_length,
        "calibration.bins": c.calibration.bins,
        "score.batch_size": c.score.batch_size,
        "arbitrage.bound": c.arbitrage.bound,
    }
    for stage in ("pretrain", "experts", "router"):
        train = getattr(c, stage)
        for key in _POSITIVE:
            positive[f"{stage}.{key}"] = getattr(train, key)
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"config {name}={value}: must be positive")
    if m.num_attention_heads % m.num_key_value_heads:
        raise UsageError(
            f"config model.num_key_value_heads={m.num_key_value_heads} must divide "
            f"model.num_attention_heads={m.num_attention_heads}"
        )
    if m.head_dim <= 0 or m.head_dim % 2:
        raise UsageError(f"config model.head_dim={m.head_dim}: rotary embedding needs an even size")
    _check_objectives(c)
    if c.data.template != "chat" and c.data.template.count("{prompt}") != 1:
        raise UsageError(
            f"config data.template={c.data.template!r} must hold {{prompt}} once, or be chat"
        )
    if c.backbone_revision is not None and c.backbone is None:
        raise UsageError("config backbone_revision is for a Hugging Face backbone; name one")
    for alpha in c.arbitrage.alphas:
        try:
            inside = 0 < float(alpha) < c.arbitrage.bound
        except ValueError:
            inside = False
        if not inside:
            raise UsageError(
                f"config arbitrage.alphas: {alpha!r} must be a number inside "
                f"(0, bound={c.arbitrage.bound:g})"
            )
    sizes = dataclasses.astuple(c.mesh)
    if sizes.count(-1) > 1 or any(size != -1 and size < 1 for size in sizes):
        raise UsageError("config mesh: axis sizes are positive, and at most one is -1")
    if c.mesh.slices < 1:
        raise UsageError(f"config mesh.slices={c.mesh.slices}: at least 1")


def _check_objectives(c: Config) -> None:
    names = c.mocae.objectives
    if not names or len(set(names)) < len(names):
        raise UsageError(f"config mocae.objectives={list(names)}: one or more, each once")
    for name in names:
        # A name becomes a routing's, a file's and an adapter folder's.
        if name in RESERVED or name.startswith(NEGATED) or not _NAME.fullmatch(name):
            raise UsageError(
                f"config mocae.objectives: {name!r} must be letters, digits, '_', '-' and '.', not "
                f"begin with {NEGATED!r}, and be none of {', '.join(RESERVED)}"
            )
        if c.data.source != "files" and name not in OBJECTIVES:
            raise UsageError(
                f"config mocae.objectives: data.source={c.data.source} has no rows for {name!r}, "
                f"only for {', '.join(OBJECTIVES)}; use data.source: files"
            )
    if c.data.source == "files" and c.data.data_dir is None:
        raise UsageError("config data.source=files: name the folder of the files in data.data_dir")
    if not 0 <= c.mocae.top_k <= len(names):
        raise UsageError(
            f"config mocae.top_k={c.mocae.top_k}: from 1 to {len(names)} experts, or 0 for all"
        )
    if c.experts.loss == "dpo" and (c.mocae.expert != "low_rank" or c.experts.beta <= 0):
        raise UsageError(
            f"config experts.loss=dpo with mocae.expert={c.mocae.expert} and "
            f"experts.beta={c.experts.beta:g}: it takes low_rank experts, whose reference is the "
            "backbone, and a positive beta"
        )
    if c.pretrain.mix:
        raise UsageError("config pretrain.mix: the corpus has no objectives to mix; leave it out")
    for stage in ("experts", "router"):
        mix = getattr(c, stage).mix
        if mix and (len(mix) != len(names) or not all(0 < weight < math.inf for weight in mix)):
            raise UsageError(
                f"config {stage}.mix={list(mix)}: one positive weight for each of {list(names)}"
            )
