"""Training, saving and loading the tokenizer (Hugging Face `tokenizers`, one tokenizer.json)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trinityx_jax.config import DataConfig
from trinityx_jax.errors import DataError, UsageError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def train_tokenizer(
    config: DataConfig, texts: Iterable[str], vocabulary: list[str] | None = None
) -> Tokenizer:
    """Word-level tokenizer of a closed `vocabulary`, or byte-level BPE trained on `texts`.

    Both reserve ids 0..3 for <pad>, <bos>, <eos>, <unk>. The word-level one also knows the
    template's words and ignores `texts`; BPE has `config.vocab_size` entries at most. Give it the
    train split only. Raises UsageError where `config.vocab_size` has no room for the 256 bytes.
    """
    if vocabulary is not None:
        words = [*SPECIAL_TOKENS, *vocabulary, *config.template.replace("{prompt}", " ").split()]
        ids = {word: i for i, word in enumerate(dict.fromkeys(words))}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        return _plain(tokenizer)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if config.vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise UsageError(
            f"config data.vocab_size={config.vocab_size}: at least "
            f"{len(alphabet) + len(SPECIAL_TOKENS)} (256 bytes and 4 special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    # The leading space makes a word one token wherever it stands: prompt and response are encoded
    # apart and then joined.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _plain(tokenizer)


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> Path:
    """Writes `directory/tokenizer.json` by way of a temporary name; gives its path."""
    path = directory / "tokenizer.json"
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    temporary.replace(path)
    return path


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json file, or of the directory that holds one.

    Raises UsageError where there is none and DataError where it is damaged.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(f"tokenizer {path}: {e.strerror}; prepare the data first") from e
    try:
        return _plain(Tokenizer.from_str(text))
    except Exception as e:  # the library raises bare Exception for bad JSON
        raise DataError(f"tokenizer {path}: damaged ({e}); delete it and prepare again") from e


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that the tokenizer is, for manifests."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # A row that contains the text "<eos>" must not end its own sequence. (Byte-level only: for the
    # word-level model it stays a word, which no generated row holds.)
    tokenizer.encode_special_tokens = True
    return tokenizer
