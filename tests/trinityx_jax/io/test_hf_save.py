"""Saved checkpoints: bit-identical to the original, and the same model for transformers."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from trinityx_jax.config import MeshConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.io.hf_save import save_checkpoint
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh

TINY = ModelConfig(
    vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=4, param_dtype="bfloat16",
    scan_layers=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def parameters():
    draw = np.random.default_rng(0)
    return {
        name: jnp.asarray(draw.normal(size=x.shape), jnp.bfloat16)
        for name, x in architecture(TINY).shapes.items()
    }


def stored(folder):
    """Every tensor of a folder, of all its files."""
    return {
        name: x for file in folder.glob("model*.safetensors") for name, x in load_file(file).items()
    }


def logits(folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12) * 7).logits.numpy()


@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
def test_the_round_trip_changes_nothing(pretrained_case, mesh, tmp_path, limit):
    config, parameters = load_checkpoint(pretrained_case, mesh)
    generation = pretrained_case / "generation_config.json"
    folder = save_checkpoint(
        tmp_path / "saved",
        config,
        parameters,
        max_shard_bytes=limit,
        extra_files={generation.name: generation, "note.txt": b"hello"},
    )
    want, got = stored(pretrained_case), stored(folder)
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].tobytes() == array.tobytes(), name
    assert (folder / "model.safetensors").exists() == (limit > 20_000)
    assert load_checkpoint(folder, mesh)[0] == config
    assert (folder / "note.txt").read_bytes() == b"hello"
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 1
    np.testing.assert_array_equal(logits(folder), logits(pretrained_case))


def test_shards_and_their_index(parameters, tmp_path):
    folder = save_checkpoint(tmp_path / "saved", TINY, parameters, max_shard_bytes=600)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    arrays = stored(folder)
    assert index["metadata"] == {
        "total_parameters": sum(x.size for x in arrays.values()),
        "total_size": sum(x.nbytes for x in arrays.values()),
    }
    assert set(index["weight_map"]) == set(arrays)
    files = sorted(path.name for path in folder.glob("model-*"))
    assert files[-1] == f"model-{len(files):05}-of-{len(files):05}.safetensors" and len(files) > 2
    for file in files:
        inside = load_file(folder / file)
        assert {index["weight_map"][name] for name in inside} == {file}
        assert len(inside) == 1 or sum(x.nbytes for x in inside.values()) <= 600
    assert arrays["model.layers.0.mlp.up_proj.weight"].dtype == jnp.bfloat16
    want = np.asarray(parameters["layers.0.mlp.up_proj.kernel"]).T
    assert arrays["model.layers.0.mlp.up_proj.weight"].tobytes() == want.tobytes()


def test_a_folder_is_replaced_only_when_asked(parameters, tmp_path):
    folder = save_checkpoint(tmp_path / "saved", TINY, parameters, max_shard_bytes=600)
    with pytest.raises(UsageError, match="already exists: pass --overwrite"):
        save_checkpoint(folder, TINY, parameters)
    save_checkpoint(folder, TINY, parameters, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match=r"holds 'mine\.txt'"):
        save_checkpoint(folder, TINY, parameters, overwrite=True)


def test_parameters_that_do_not_fit(parameters, tmp_path):
    name = "layers.0.mlp.up_proj.kernel"

    def fault(told, **changed):
        with pytest.raises(UsageError, match=told):
            save_checkpoint(
                tmp_path / "saved",
                changed.pop("config", TINY),
                {key: x for key, x in {**parameters, **changed}.items() if x is not None},
            )
        assert not (tmp_path / "saved").exists()

    fault(rf"missing parameters: {name}", **{name: None})
    fault(r"unknown parameters: router\.kernel", **{"router.kernel": parameters[name]})
    fault(rf"misshapen parameters: {name} \(12, 8\)", **{name: parameters[name].T})
    wide = parameters[name].astype(jnp.float32)
    fault(rf"not bfloat16 parameters: {name} float32", **{name: wide})


def test_extra_files_that_cannot_be_written(parameters, tmp_path):
    def save(extra):
        save_checkpoint(tmp_path / "saved", TINY, parameters, extra_files=extra)

    for name in ("config.json", "../config.txt", "a/b", ""):
        with pytest.raises(UsageError, match="give a plain file name that is not taken"):
            save({name: b""})
    with pytest.raises(DataError, match=r"missing\.json: cannot be copied"):
        save({"tokenizer.json": tmp_path / "missing.json"})
    with pytest.raises(DataError, match=r"generation_config\.json: not a readable JSON"):
        save({"generation_config.json": b"{"})
    assert not (tmp_path / "saved").exists()


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
number, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from trinityx_jax.config import MeshConfig
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.io.hf_save import save_checkpoint
from trinityx_jax.sharding import make_mesh
config, parameters = load_checkpoint(source, make_mesh(MeshConfig(data=1, fsdp=4)))
assert not parameters["embed_tokens.embedding"].is_fully_addressable
save_checkpoint(target, config, parameters, max_shard_bytes=20_000)
"""


def test_two_processes_write_one_checkpoint(pretrained, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source, target = pretrained("qwen2"), tmp_path / "saved"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(i), str(port), str(source), str(target)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for worker in workers:
        _, told = worker.communicate(timeout=200)
        assert worker.returncode == 0, told[-2000:]
    want, got = stored(source), stored(target)
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].tobytes() == array.tobytes(), name
