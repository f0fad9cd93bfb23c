"""Tiny Hugging Face tokenizer folders, made of the tokenizers library alone."""

import json
import string
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
    "the quick brown fox jumps over the lazy dog", "question and answer : yes or no ?",
    "what is the capital of the moon ? there is none", "add 1 2 3 = 6\n\nshe said \"yes\" twice",
] * 4  # fmt: skip
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """Like Llama 3: byte-level BPE without a prefix space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def metaspace() -> Tokenizer:
    """Like Llama 2: BPE over words that begin with a visible space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _train(tokenizer, list(string.printable))


def _train(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    special = [AddedToken(name, special=True) for name in (*SPECIAL, "<unk>")]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def write_folder(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    post_processor: bool = True,
    chat: str | None = CHAT,
    files: Mapping[str, dict] | None = None,
) -> Path:
    """tokenizer.json, tokenizer_config.json, config.json, and `files` in their places."""
    if post_processor:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    contents = {
        "config": {"model_type": "llama", "eos_token_id": 2},
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "pad_token": "<pad>",
        },
    }
    for name, content in (contents | dict(files or {})).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    return folder
