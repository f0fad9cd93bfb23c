"""Models by name, with a Hub cache made by hand and no network."""

from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.hub import local_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds org/model at main, in offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--org--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return snapshot


def test_a_folder_is_itself(tmp_path):
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match=r"a folder has no revision 'main'"):
        local_folder(tmp_path, "main")


def test_a_cached_model_needs_no_network(cache):
    assert local_folder("org/model") == cache
    assert local_folder("org/model", "main") == cache
    assert local_folder("org/model", COMMIT) == cache


def test_what_is_not_cached_cannot_be_had_offline(cache):
    with pytest.raises(DataError, match=r"model org/other: not in the cache, and HF_HUB_OFFLINE"):
        local_folder("org/other")
    with pytest.raises(DataError, match=r"model org/model at v2: not in the cache"):
        local_folder("org/model", "v2")


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere/at", "/nowhere/at/all", "a/b/c", "", "a b/c"]
)
def test_what_is_neither_folder_nor_id(cache, name):
    with pytest.raises(UsageError, match=r"no such folder, and no Hub id of the form org/name"):
        local_folder(name)


def test_an_id_that_the_hub_does_not_allow(cache):
    with pytest.raises(UsageError, match=r"org/a--b: no such folder, and not a valid Hub id"):
        local_folder("org/a--b")


FAILURES = {
    "gated": (errors.GatedRepoError, r"gated; accept its terms at https://huggingface.co/org/x"),
    "absent": (errors.RepositoryNotFoundError, r"not on the Hub, or private; check the id"),
    "revision": (errors.RevisionNotFoundError, r"no revision 'v1'"),
    "server": (errors.HfHubHTTPError, r"org/x at v1: the download failed \(HfHubHTTPError\)"),
    "disk": (OSError, r"the download failed \(OSError\)"),
    "network": (errors.LocalEntryNotFoundError, r"the Hub cannot be reached; check the network"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_is_one_line(monkeypatch, failure):
    kind, told = FAILURES[failure]

    def fail(repo, *, revision, allow_patterns):
        assert (repo, revision) == ("org/x", "v1")
        assert "model*.safetensors" in allow_patterns and "*.bin" not in allow_patterns
        text = "401\nBearer hf_secret"
        if issubclass(kind, errors.HfHubHTTPError):
            raise kind(text, response=mock.Mock(headers={}))
        raise kind(text)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=told) as caught:
        local_folder("org/x", "v1")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
