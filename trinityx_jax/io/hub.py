"""A model by name: a folder of this machine, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trinityx_jax.errors import DataError, UsageError

# What a causal language model is read from; pickled weights and other formats stay behind.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
    "tokenizer.model",
    "model*.safetensors",
    "model.safetensors.index.json",
)


def local_folder(name: str | Path, revision: str | None = None) -> Path:
    """Folder with the files of a model: `name` itself, or the Hub's `org/name` downloaded.

    huggingface_hub does the work, so HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured, and what
    is cached is not downloaded again. `revision` is a branch, tag or commit of the repository.

    Raises UsageError for a name that is neither and for a revision of a folder; DataError, in one
    line, when the Hub does not have the repository, refuses it or cannot be reached.
    """
    if os.path.isdir(name):
        if revision is not None:
            raise UsageError(f"model {name}: a folder has no revision {revision!r}; leave it out")
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UsageError(f"model {name}: no such folder, and no Hub id of the form org/name")
    return _download(str(name), revision)


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    at = repo if revision is None else f"{repo} at {revision}"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(PATTERNS)
            )
        )
    except errors.HFValidationError as e:
        raise UsageError(f"model {repo}: no such folder, and not a valid Hub id") from e
    except errors.GatedRepoError as e:
        raise DataError(
            f"model {repo}: gated; accept its terms at https://huggingface.co/{repo}, then set "
            "HF_TOKEN to a token of that account"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise DataError(
            f"model {repo}: not on the Hub, or private; check the id, or set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise DataError(f"model {repo}: no revision {revision!r}; see its branches and tags") from e
    except errors.LocalEntryNotFoundError as e:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise DataError(
                f"model {at}: not in the cache, and HF_HUB_OFFLINE is set; unset it to download, "
                "or give a folder"
            ) from e
        raise DataError(
            f"model {at}: not in the cache, and the Hub cannot be reached; check the network, or "
            "give a folder"
        ) from e
    except Exception as e:  # whatever the HTTP library raises; its text may quote a request
        raise DataError(f"model {at}: the download failed ({type(e).__name__}); try again") from e
