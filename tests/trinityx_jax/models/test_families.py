"""config.json in and out: transformers' own configurations are the reference."""

import dataclasses
import json

import pytest

from trinityx_jax.config import ModelConfig, RopeScaling
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.folder import read_json
from trinityx_jax.models.families import FAMILIES, hf_config, model_config, tensors
from trinityx_jax.models.parameters import architecture

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}
LLAMA = {**SIZES, "model_type": "llama", "max_position_embeddings": 512}
MISTRAL = {**SIZES, "model_type": "mistral"}
QWEN2 = {**SIZES, "model_type": "qwen2"}
GEMMA = {**SIZES, "model_type": "gemma"}


def read(hf):
    return model_config(hf, "config.json")


def old_style(hf):
    """The same configuration as transformers 4 wrote it."""
    hf = dict(hf)
    rope = dict(hf.pop("rope_parameters"))
    hf["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    hf["rope_scaling"] = None if rope["type"] == "default" else rope
    hf["torch_dtype"] = hf.pop("dtype")
    return hf


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_take_transformers_defaults(family):
    auto = pytest.importorskip("transformers").AutoConfig
    full = json.loads(auto.for_model(family, **SIZES).to_json_string(use_diff=False))
    assert read({**SIZES, "model_type": family}) == read(full | {"architectures": None})


def test_both_spellings_of_a_config_are_read(pretrained_case):
    hf = read_json(pretrained_case / "config.json", "")
    old = old_style(hf)
    assert "rope_parameters" not in old and "dtype" not in old
    assert read(old) == read(hf)


def test_what_is_written_is_read_by_transformers(pretrained_case, tmp_path):
    """transformers reads ours as the original, with either spelling alone."""
    auto = pytest.importorskip("transformers").AutoConfig
    config = read(read_json(pretrained_case / "config.json", ""))
    ours = hf_config(config)
    want = auto.from_pretrained(pretrained_case).to_dict()
    keys = {*FAMILIES[config.family].defaults, *SIZES, "rms_norm_eps", "tie_word_embeddings"}
    keys |= {"rope_parameters", "dtype", "architectures", "model_type"} & set(want)
    for left_out in ({"rope_parameters", "dtype"}, {"rope_theta", "rope_scaling", "torch_dtype"}):
        (tmp_path / "config.json").write_text(
            json.dumps({key: value for key, value in ours.items() if key not in left_out})
        )
        got = auto.from_pretrained(tmp_path).to_dict()
        for key in keys & set(want) - {"max_window_layers"}:  # layer_types says the same
            if key == "rope_parameters":  # ours spells out what transformers computes
                assert want[key].items() <= got[key].items()
            else:
                assert got[key] == want[key], key


def test_the_shapes_have_a_tensor_each(pretrained_case):
    config = read(read_json(pretrained_case / "config.json", ""))
    names = tensors(config)
    assert set(names) == set(architecture(config).unrolled().shapes)
    assert len({tensor.name for tensor in names.values()}) == len(names)


@pytest.mark.parametrize(
    "keys",
    [
        {"factor": 4.0},
        {"factor": 4.0, "attention_factor": 0.7},
        {"factor": 4.0, "mscale": 1.0},
        {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
        {"factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 8, "beta_slow": 2},
        {"factor": None},
    ],
)
def test_yarn_is_completed_as_transformers_does(keys):
    rope = pytest.importorskip("transformers").modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"]
    pytest.importorskip("torch")
    from transformers import LlamaConfig

    from trinityx_jax.models.rope import frequencies

    keys = {"rope_type": "yarn", "original_max_position_embeddings": 64, "rope_theta": 1e4} | keys
    hf = {**LLAMA, "head_dim": 16, "rope_parameters": keys}
    config = read(hf)
    want, factor = rope(LlamaConfig(**{k: v for k, v in hf.items() if k != "model_type"}))
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)
    assert frequencies(config) == pytest.approx(want.numpy(), rel=1e-5)


def test_family_details():
    assert read({**GEMMA, "hidden_act": "gelu"}).hidden_act == "gelu_tanh"
    assert read({**LLAMA, "hidden_act": "gelu"}).hidden_act == "gelu"
    assert read({**MISTRAL, "sliding_window": None}).windows == ()
    assert read({**MISTRAL, "sliding_window": 7}).windows == (7,) * 4
    assert read({**QWEN2, "sliding_window": 7}).windows == ()
    listed = {"use_sliding_window": True, "sliding_window": 7}
    assert read({**QWEN2, **listed, "max_window_layers": 3}).windows == (0, 0, 0, 7)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read({**QWEN2, **listed, "layer_types": kinds}).windows == (7, 0, 7, 0)
    assert read({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}}).rope_scaling == (
        RopeScaling(kind="linear", factor=2.0)
    )
    assert read({**LLAMA, "torch_dtype": "bfloat16"}).param_dtype == "bfloat16"


UNSUITABLE = {
    "another architecture": (
        {**LLAMA, "architectures": ["LlamaForSequenceClassification"]},
        r"architecture LlamaForSequenceClassification is not supported; supported are LlamaForC",
    ),
    "another model": ({**LLAMA, "model_type": "gpt2"}, r"model_type 'gpt2' is not supported"),
    "no model": (SIZES, r"no 'model_type'"),
    "no size": ({**LLAMA, "vocab_size": None}, r"vocab_size=None must be a positive whole"),
    "missing size": (
        {key: x for key, x in LLAMA.items() if key != "hidden_size"},
        r"no 'hidden_size', which must be a positive whole number",
    ),
    "text as size": ({**LLAMA, "num_hidden_layers": "4"}, r"num_hidden_layers='4' must be"),
    "true as size": ({**LLAMA, "num_hidden_layers": True}, r"num_hidden_layers=True must be"),
    "quantised": (
        {**LLAMA, "quantization_config": {"bits": 4}},
        r'quantization_config={"bits": 4} is not supported',
    ),
    "mlp bias": ({**LLAMA, "mlp_bias": True}, r"mlp_bias=true is not supported"),
    "both directions": ({**GEMMA, "use_bidirectional_attention": True}, r"use_bidirectional"),
    "activation": ({**LLAMA, "hidden_act": "relu"}, r"hidden_act='relu' is not supported; "),
    "two activations": (
        {**GEMMA, "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"},
        r"hidden_act and hidden_activation disagree",
    ),
    "heads": ({**LLAMA, "num_key_value_heads": 5}, r"num_key_value_heads=5 does not divide 32"),
    "width": ({**LLAMA, "hidden_size": 65}, r"32 heads do not divide hidden_size=65"),
    "odd heads": ({**LLAMA, "head_dim": 3}, r"head_dim=3 is odd"),
    "rope type": (
        {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        r"rope type 'dynamic' is not supported; supported are default, linear, llama3, yarn",
    ),
    "rope key": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0, "surprise": 1}},
        r"rope_scaling.surprise=1 is not supported with rope 'linear'",
    ),
    "no factor": (
        {**LLAMA, "rope_scaling": {"rope_type": "linear"}},
        r"in rope_scaling: no 'factor', which must be a positive number",
    ),
    "rope a layer type": (
        {**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
        r"rope_parameters.full_attention=.* is not supported",
    ),
    "no ramp": (
        {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 1.0}},
        r"high_freq_factor must exceed low_freq_factor",
    ),
    "truncation": (
        {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
        r"rope_scaling.truncate=False is not supported",
    ),
    "partial": ({**LLAMA, "partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5 is not"),
    "no window": (
        {**QWEN2, "layer_types": ["sliding_attention"] * 4},
        r"layers with sliding attention, but no sliding_window in use",
    ),
    "layers": ({**QWEN2, "layer_types": ["full_attention"]}, r"for each of the 4 layers"),
    "layer kind": ({**QWEN2, "layer_types": ["chunked_attention"] * 4}, r"layer_types must name"),
    "layer types": (
        {**MISTRAL, "sliding_window": 7, "layer_types": ["full_attention"] * 4},
        r"layer_types is no option of MistralForCausalLM",
    ),
    "dtype": ({**LLAMA, "dtype": "float64"}, r"dtype='float64' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
def test_what_cannot_be_honoured_is_refused(case):
    hf, told = UNSUITABLE[case]
    with pytest.raises(DataError, match=told) as caught:
        read(hf)
    assert str(caught.value).startswith("config.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("qk_norm", True),
        ("norm_offset", 1.0),
        ("windows", (4, 0)),
        ("logit_softcap", 30.0),
        ("o_bias", True),
        ("query_scale", 7.0),
    ],
)
def test_an_option_that_the_family_lacks_is_not_written(field, value):
    config = dataclasses.replace(ModelConfig(vocab_size=8, num_hidden_layers=2), **{field: value})
    with pytest.raises(UsageError, match=rf"model\.{field}=.*: a llama checkpoint cannot say"):
        hf_config(config)


def test_our_own_backbone_can_be_written():
    config = ModelConfig(vocab_size=8, num_hidden_layers=2, query_scale=32.0, windows=(0, 0))
    assert read(hf_config(config)) == dataclasses.replace(config, query_scale=0.0, windows=())
