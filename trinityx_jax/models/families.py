"""The Hugging Face families this backbone can be: what their config.json and tensors say.

Everything that differs between families is a row of FAMILIES; everything else is shared. Defaults
of absent keys are those of transformers' configuration classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from trinityx_jax.config import ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.hf_config import (
    COUNT,
    FLAG,
    NAME,
    NAMES,
    REQUIRED,
    SCALE,
    SIZE,
    Kind,
    read,
    read_rope,
    write_rope,
)


class HFTensor(NamedTuple):
    """Name of a tensor in a checkpoint, and whether it is our array transposed."""

    name: str
    transposed: bool


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    `defaults` holds the keys its config.json has beyond the shared ones, with the values for absent
    keys. `fixed` holds the ModelConfig fields that are the same in all its checkpoints. `slides`
    says from the values of config.json whether layer i has the sliding window. `activations` are
    names of activations that mean something else here than in other families.
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slides: Callable[[Mapping[str, Any], int], bool] = lambda values, i: False
    activations: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Key of config.json -> what it must be.
_KINDS: dict[str, Kind] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE.or_null(),
    "head_dim": SIZE.or_null(),
    "max_position_embeddings": SIZE,
    "rms_norm_eps": SCALE,
    "tie_word_embeddings": FLAG,
    "hidden_act": NAME.or_null(),
    "hidden_activation": NAME.or_null(),
    "attention_bias": FLAG,
    "query_pre_attn_scalar": SCALE,
    "attn_logit_softcapping": SCALE.or_null(),
    "final_logit_softcapping": SCALE.or_null(),
    "sliding_window": COUNT.or_null(),
    "use_sliding_window": FLAG,
    "max_window_layers": COUNT,
    "layer_types": NAMES.or_null(),
}

# Key of config.json -> fields of ModelConfig that take its value.
_FIELDS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("intermediate_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "max_position_embeddings": ("max_position_embeddings",),
    "rms_norm_eps": ("rms_norm_eps",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "attention_bias": ("qkv_bias", "o_bias"),
    "query_pre_attn_scalar": ("query_scale",),
    "attn_logit_softcapping": ("attention_softcap",),
    "final_logit_softcapping": ("logit_softcap",),
}

# Keys that every family has; the sizes have no default.
_SHARED = {
    "vocab_size": REQUIRED,
    "hidden_size": REQUIRED,
    "intermediate_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}

# Options that change the function and that this package does not have -> values that are harmless.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "mlp_bias": (None, False),
    "use_bidirectional_attention": (None, False),
    "use_mrope": (None, False),
    "is_encoder_decoder": (None, False),
    "per_layer_config": (None,),
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation")
_DTYPES = ("float32", "bfloat16", "float16")

_GEMMA = {
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "attention_bias": False,
}
_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def _from_max_window_layers(values: Mapping[str, Any], i: int) -> bool:
    return values["use_sliding_window"] and i >= values["max_window_layers"]


FAMILIES: dict[str, Family] = {
    "llama": Family(  # DeepSeek-LLM and Llama 3.x, too
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048, "attention_bias": False},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
        slides=lambda values, i: values["sliding_window"] is not None,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        _GEMMA,
        fixed={"scale_embeddings": True, "norm_offset": 1.0},
        activations={"gelu": "gelu_tanh"},  # the first releases meant the approximation
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {
            **_GEMMA,
            "num_key_value_heads": 4,
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
            "layer_types": None,
        },
        fixed={"scale_embeddings": True, "norm_offset": 1.0, "post_norms": True},
        slides=lambda values, i: i % 2 == 0,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _QWEN,
        fixed={"qkv_bias": True},
        slides=_from_max_window_layers,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**_QWEN, "head_dim": 128, "attention_bias": False},
        fixed={"qk_norm": True},
        slides=_from_max_window_layers,
    ),
}

# Our name -> checkpoint's name, transposed, and the ModelConfig option it belongs to ("": always).
_GLOBAL = (
    ("embed_tokens.embedding", "model.embed_tokens.weight", False),
    ("norm.scale", "model.norm.weight", False),
)
_HEAD = ("lm_head.kernel", "lm_head.weight", True)
_LAYER = (
    ("input_layernorm.scale", "input_layernorm.weight", False, ""),
    ("post_attention_layernorm.scale", "post_attention_layernorm.weight", False, ""),
    ("pre_feedforward_layernorm.scale", "pre_feedforward_layernorm.weight", False, "post_norms"),
    ("post_feedforward_layernorm.scale", "post_feedforward_layernorm.weight", False, "post_norms"),
    ("self_attn.q_proj.kernel", "self_attn.q_proj.weight", True, ""),
    ("self_attn.k_proj.kernel", "self_attn.k_proj.weight", True, ""),
    ("self_attn.v_proj.kernel", "self_attn.v_proj.weight", True, ""),
    ("self_attn.o_proj.kernel", "self_attn.o_proj.weight", True, ""),
    ("self_attn.q_proj.bias", "self_attn.q_proj.bias", False, "qkv_bias"),
    ("self_attn.k_proj.bias", "self_attn.k_proj.bias", False, "qkv_bias"),
    ("self_attn.v_proj.bias", "self_attn.v_proj.bias", False, "qkv_bias"),
    ("self_attn.o_proj.bias", "self_attn.o_proj.bias", False, "o_bias"),
    ("self_attn.q_norm.scale", "self_attn.q_norm.weight", False, "qk_norm"),
    ("self_attn.k_norm.scale", "self_attn.k_norm.weight", False, "qk_norm"),
    ("mlp.gate_proj.kernel", "mlp.gate_proj.weight", True, ""),
    ("mlp.up_proj.kernel", "mlp.up_proj.weight", True, ""),
    ("mlp.down_proj.kernel", "mlp.down_proj.weight", True, ""),
)


def tensors(config: ModelConfig) -> dict[str, HFTensor]:
    """Our parameter name -> tensor of the checkpoint, for every parameter of the backbone."""
    names = {ours: HFTensor(theirs, turned) for ours, theirs, turned in _GLOBAL}
    for i in range(config.num_hidden_layers):
        for ours, theirs, turned, option in _LAYER:
            if not option or getattr(config, option):
                names[f"layers.{i}.{ours}"] = HFTensor(f"model.layers.{i}.{theirs}", turned)
    if not config.tie_word_embeddings:
        names[_HEAD[0]] = HFTensor(*_HEAD[1:])
    return names


def model_config(hf: Mapping[str, Any], where: str) -> ModelConfig:
    """ModelConfig of a config.json's contents; `where` names the file in errors.

    Raises DataError in one line for an architecture or option that is not supported, and for a
    missing or unusable value. An option that would change the model's function is never ignored.
    """
    name = _family_name(hf, where)
    family = FAMILIES[name]
    for key, harmless in _REFUSED.items():
        if hf.get(key) not in harmless:
            raise DataError(
                f"{where}: {key}={_short(hf[key])} is not supported; use a checkpoint without it"
            )
    defaults = {**_SHARED, **family.defaults}
    v = {key: read(hf, key, _KINDS[key], where, default) for key, default in defaults.items()}
    fields = {field: v[key] for key in v if key in _FIELDS for field in _FIELDS[key]}
    fields |= {
        "num_key_value_heads": v["num_key_value_heads"] or v["num_attention_heads"],
        "head_dim": v["head_dim"] or _split(v, where),
        "rms_norm_eps": float(v["rms_norm_eps"]),
    }
    for field in ("query_scale", "attention_softcap", "logit_softcap"):
        fields[field] = float(fields.get(field) or 0.0)
    heads, groups = v["num_attention_heads"], fields["num_key_value_heads"]
    if heads % groups:
        raise DataError(f"{where}: num_key_value_heads={groups} does not divide {heads} heads")
    if fields["head_dim"] % 2:
        raise DataError(f"{where}: head_dim={fields['head_dim']} is odd; rotary needs an even one")
    theta, scaling = read_rope({**defaults, **hf}, where)
    dtype = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise DataError(f"{where}: dtype={dtype!r} is not supported; use {', '.join(_DTYPES)}")
    return _canonical(
        ModelConfig(
            family=name,  # pyright: ignore[reportArgumentType]
            **fields,
            **family.fixed,
            rope_theta=theta,
            rope_scaling=scaling,
            hidden_act=_activation(family, v, where),  # pyright: ignore[reportArgumentType]
            windows=_windows(family, v, hf, where),
            dtype=dtype,
            param_dtype=dtype,
        )
    )


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Contents of a config.json for transformers 5 and older versions; `dtype` is the parameters'.

    Token ids are null: a model does not know them. Raises UsageError naming the fields that the
    family has no option for.
    """
    family = FAMILIES[config.family]
    sliding = [config.window(i) for i in range(config.num_hidden_layers)]
    window = max(sliding)
    scale = float(config.query_scale or config.head_dim)
    act = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.hidden_act)
    values = {
        **{key: getattr(config, fields[0]) for key, fields in _FIELDS.items()},
        "query_pre_attn_scalar": int(scale) if scale.is_integer() else scale,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "hidden_act": act,
        "hidden_activation": act,
        "sliding_window": window or None,
        "use_sliding_window": window > 0,
        "max_window_layers": next((i for i, w in enumerate(sliding) if w), len(sliding)),
        "layer_types": ["sliding_attention" if w else "full_attention" for w in sliding],
    }
    hf = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{key: values[key] for key in {**_SHARED, **family.defaults}},
        **write_rope(config.rope_theta, config.rope_scaling),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,
    }
    _check_expressed(config, model_config(hf, f"a {config.family} config.json"))
    return hf


def _family_name(hf: Mapping[str, Any], where: str) -> str:
    supported = ", ".join(family.architecture for family in FAMILIES.values())
    architectures = read(hf, "architectures", NAMES.or_null(), where, None)
    name = read(hf, "model_type", NAME, where)
    if name in FAMILIES and (architectures or [FAMILIES[name].architecture]) == [
        FAMILIES[name].architecture
    ]:
        return name
    given = " ".join(architectures or []) or f"of model_type {name!r}"
    raise DataError(f"{where}: architecture {given} is not supported; supported are {supported}")


def _split(v: Mapping[str, Any], where: str) -> int:
    width, heads = v["hidden_size"], v["num_attention_heads"]
    if width % heads:
        raise DataError(
            f"{where}: no head_dim, and {heads} heads do not divide hidden_size={width}"
        )
    return width // heads


def _activation(family: Family, v: Mapping[str, Any], where: str) -> str:
    names = {**_ACTIVATIONS, **family.activations}
    given = {key: v[key] for key in _ACTIVATION_KEYS if v.get(key) is not None}
    if not given:
        raise DataError(f"{where}: hidden_act must be one of {', '.join(names)}")
    for key, name in given.items():
        if name not in names:
            raise DataError(
                f"{where}: {key}={name!r} is not supported; supported are {', '.join(names)}"
            )
    found = {names[name] for name in given.values()}
    if len(found) > 1:
        raise DataError(f"{where}: {' and '.join(given)} disagree; keep the one that holds")
    return found.pop()


def _windows(
    family: Family, v: Mapping[str, Any], hf: Mapping[str, Any], where: str
) -> tuple[int, ...]:
    layers = v["num_hidden_layers"]
    slides = [family.slides(v, i) for i in range(layers)]
    kinds = read(hf, "layer_types", NAMES.or_null(), where, None)
    if kinds is not None:
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise DataError(
                f"{where}: layer_types must name full_attention or sliding_attention for each of "
                f"the {layers} layers"
            )
        listed = [kind == "sliding_attention" for kind in kinds]
        if "layer_types" not in v and listed != slides:
            raise DataError(f"{where}: layer_types is no option of {family.architecture}")
        slides = listed
    window: int = (v.get("sliding_window") or 0) * v.get("use_sliding_window", True)
    if any(slides) and not window:
        raise DataError(f"{where}: layers with sliding attention, but no sliding_window in use")
    return tuple(window if slide else 0 for slide in slides) if any(slides) else ()


def _canonical(config: ModelConfig) -> ModelConfig:
    """The same function in one spelling: 0 for a query scale of head_dim, () for no windows."""
    return dataclasses.replace(
        config,
        query_scale=0.0 if config.query_scale == config.head_dim else config.query_scale,
        windows=config.windows if any(config.windows) else (),
        dtype=config.param_dtype,
        scan_layers=ModelConfig.scan_layers,  # how it is run; no checkpoint says that
        remat=ModelConfig.remat,
    )


def _check_expressed(config: ModelConfig, got: ModelConfig) -> None:
    want = _canonical(config)
    for field in dataclasses.fields(ModelConfig):
        value = getattr(want, field.name)
        if value != getattr(got, field.name):
            raise UsageError(
                f"config model.{field.name}={value!r}: a {config.family} checkpoint cannot say "
                f"that; it would be read as {getattr(got, field.name)!r}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
