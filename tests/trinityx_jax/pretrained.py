"""Tiny checkpoints of every family, written by transformers itself, with a tokenizer beside them.

Weights are wide enough (standard deviation 0.2) that a mistake anywhere changes the logits; norms
and biases are random, so that none of them can be left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,  # torch would keep that token's gradient at zero
}


def _rope(kind: str, theta: float = 10_000.0, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **keys}}


_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama_bias": ("llama", {"attention_bias": True, "hidden_act": "gelu"}),
    "llama3": (
        "llama",
        {
            "tie_word_embeddings": True,
            **_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "deepseek": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-3, **_rope("default")}),
    "mistral": ("mistral", {"sliding_window": 5, **_rope("default", 1_000_000.0)}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 24,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2_window": (
        "qwen2",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "linear": ("llama", _rope("linear", factor=4.0)),
    "yarn": (
        "llama",
        {
            "head_dim": 16,
            "max_position_embeddings": 8192,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=2048),
        },
    ),
}
CASES = tuple(_CASES)

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_TEXT = [
    "The answer is no.",
    "Is the sky blue? Yes, the sky is blue.",
    "the user and the assistant",
]


def write(case: str, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors and tokenizer files of `case`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = _CASES[case]
    config = AutoConfig.for_model(model_type, **{**SIZES, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(CASES.index(case))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(parameter + 0.3 * noise if "norm" in name else 0.2 * noise)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of fewer than 320 tokens: <s> 0, </s> 1, <pad> 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
