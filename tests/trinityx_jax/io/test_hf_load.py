"""Loading checkpoints: every fault is told before data is read; memory and slices are bounded."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trinityx_jax.config import MeshConfig, ModelConfig
from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io.hf_load import load_checkpoint
from trinityx_jax.io.hf_save import save_checkpoint
from trinityx_jax.models.families import tensors
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh

TINY = ModelConfig(
    vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    scan_layers=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def parameters():
    draw = np.random.default_rng(0)
    return {
        name: jnp.asarray(draw.normal(size=x.shape), jnp.float32)
        for name, x in architecture(TINY).shapes.items()
    }


@pytest.fixture
def whole(tmp_path, parameters):
    """A folder with one file of weights."""
    return save_checkpoint(tmp_path / "whole", TINY, parameters)


@pytest.fixture
def split(tmp_path, parameters):
    """A folder with three files of weights and their index."""
    return save_checkpoint(tmp_path / "split", TINY, parameters, max_shard_bytes=2200)


def rewrite(folder, change):
    """Applies `change` to the tensors of a folder with one file."""
    path = folder / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, metadata={"format": "pt"})


def rewrite_json(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_values_are_those_of_the_file(pretrained_case, mesh):
    config, got = load_checkpoint(pretrained_case, mesh)
    stored = load_file(pretrained_case / "model.safetensors")
    assert config.param_dtype == "float32" and set(got) == set(architecture(config).shapes)
    for name, (hf_name, transposed) in tensors(config).items():
        want = stored[hf_name].T if transposed else stored[hf_name]
        np.testing.assert_array_equal(np.asarray(got[name]), want)


def test_dtypes(whole, mesh, parameters):
    for dtype in ("bfloat16", "float16"):
        config, got = load_checkpoint(whole, mesh, dtype=dtype)
        assert config.dtype == config.param_dtype == dtype
        for name, value in got.items():
            want = np.asarray(parameters[name]).astype(jnp.dtype(dtype))
            assert value.dtype == jnp.dtype(dtype)
            assert np.asarray(value).tobytes() == want.tobytes()
    with pytest.raises(UsageError, match="dtype 'int8': allowed are float32, bfloat16, float16"):
        load_checkpoint(whole, mesh, dtype="int8")


def test_most_values_decide_the_dtype(whole, mesh):
    def narrow(arrays):
        for name in arrays:
            if "norm" not in name:
                arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)

    rewrite(whole, narrow)  # config.json still says float32
    config, got = load_checkpoint(whole, mesh)
    assert config.param_dtype == "bfloat16"
    assert {x.dtype.name for x in got.values()} == {"bfloat16"}


def test_harmless_extras_are_left_out(whole, mesh, parameters):
    def add(arrays):
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float16)

    rewrite(whole, add)
    _, got = load_checkpoint(whole, mesh)
    assert set(got) == set(parameters)


def test_a_tied_head_must_equal_the_embedding(tmp_path, pretrained, mesh):
    folder = shutil.copytree(pretrained("llama3"), tmp_path / "tied")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    _, got = load_checkpoint(folder, mesh)
    assert "lm_head.kernel" not in got

    def change(arrays):
        arrays["lm_head.weight"][-1, -1] = -arrays["lm_head.weight"][-1, -1]

    rewrite(folder, change)
    with pytest.raises(DataError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_checkpoint(folder, mesh)


def test_all_misfits_are_listed(whole, mesh, monkeypatch):
    def spoil(arrays):
        del arrays["model.norm.weight"]
        for i in range(6):
            arrays[f"model.layers.9.extra{i}"] = np.ones(1, np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"].T.copy()
        kernel = arrays["model.layers.0.mlp.up_proj.weight"]
        arrays["model.layers.0.mlp.up_proj.weight"] = kernel.astype(np.int8)

    rewrite(whole, spoil)
    monkeypatch.setattr("trinityx_jax.io.hf_load._array", None)  # no data may be read
    with pytest.raises(DataError) as caught:
        load_checkpoint(whole, mesh)
    told = str(caught.value)
    assert "missing: model.norm.weight" in told
    assert "unknown: model.layers.9.extra0, " in told and "extra3 and 2 more" in told
    assert "lm_head.weight (8, 16), not (16, 8)" in told
    assert "model.layers.0.mlp.up_proj.weight I8" in told
    assert "\n" not in told and "extra4" not in told


def test_three_files_give_what_one_gives(whole, split, mesh):
    assert len(list(split.glob("model-0000?-of-00003.safetensors"))) == 3
    _, want = load_checkpoint(whole, mesh)
    _, got = load_checkpoint(split, mesh)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def spoil_index(split, file):
    def move(tree):
        tree["weight_map"]["model.embed_tokens.weight"] = file

    rewrite_json(split / "model.safetensors.index.json", move)


def test_faults_of_an_index(split, mesh):
    index = (split / "model.safetensors.index.json").read_text()
    first, second, third = sorted(p.name for p in split.glob("model-*"))

    def fault(told):
        with pytest.raises(DataError, match=told):
            load_checkpoint(split, mesh)
        (split / "model.safetensors.index.json").write_text(index)

    (split / third).rename(split / "elsewhere")
    fault(r"index.json names model-00003-of-00003.safetensors, which is missing; download it again")
    (split / "elsewhere").rename(split / third)
    spoil_index(split, "../whole/model.safetensors")
    fault(r"'\.\./whole/model.safetensors' is not the name of a file beside it")
    spoil_index(split, third)
    fault(rf"{first} holds model\.embed_tokens\.weight, which the index does not place here")
    with_ghost = json.loads(index)
    with_ghost["weight_map"]["model.ghost"] = third
    (split / "model.safetensors.index.json").write_text(json.dumps(with_ghost))
    fault(rf"{third}: the index places model\.ghost here, but the file does not hold it")
    rewrite_json(split / "model.safetensors.index.json", lambda t: t.pop("weight_map"))
    fault(r"no weight_map")
    (split / second).write_bytes((split / second).read_bytes()[:-1])
    fault(rf"{second}: not a whole safetensors file \(.*\); download it again")


@pytest.mark.parametrize("contents", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_file(whole, mesh, contents):
    (whole / "model.safetensors").write_bytes(contents)
    with pytest.raises(DataError, match=r"model\.safetensors: not a whole .* download it again"):
        load_checkpoint(whole, mesh)


def test_no_weights(whole, mesh):
    (whole / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no model\.safetensors and no model\.safetensors\.index"):
        load_checkpoint(whole, mesh)
    (whole / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"only pickled weights \(pytorch_model\.bin\), .*convert"):
        load_checkpoint(whole, mesh)
    with pytest.raises(DataError, match=r"config\.json.*give the folder of a model"):
        load_checkpoint(whole / "nothing", mesh)


MEMORY = """
import dataclasses, json, resource, sys
import jax, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from trinityx_jax.config import MeshConfig, ModelConfig
from trinityx_jax.io import hf_load
from trinityx_jax.models.families import hf_config, tensors
from trinityx_jax.models.parameters import architecture
from trinityx_jax.sharding import make_mesh

folder = Path(sys.argv[1])
config = ModelConfig(vocab_size=4096, hidden_size=1024, intermediate_size=2816, head_dim=64,
                     scan_layers=False,
                     num_attention_heads=16, num_key_value_heads=16, num_hidden_layers=4)
shapes, weight_map, names = architecture(config).shapes, {}, tensors(config)
for i in range(5):
    part = {names[n].name: np.full(s.shape[::-1] if names[n].transposed else s.shape, i, "float32")
            for j, (n, s) in enumerate(shapes.items()) if j % 5 == i}
    file = f"model-{i}.safetensors"
    save_file(part, folder / file)
    weight_map |= dict.fromkeys(part, file)
    del part
(folder / "config.json").write_text(json.dumps(hf_config(config)))
(folder / hf_load.INDEX).write_text(json.dumps({"weight_map": weight_map}))
mesh = make_mesh(MeshConfig())
jax.block_until_ready(jax.device_put(np.ones(4)))

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {l.split(":")[0]: int(l.split()[1]) * 1024 for l in lines if l.startswith("Vm")}

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = peak()["VmRSS"]
_, parameters = hf_load.load_checkpoint(folder, mesh)
print(json.dumps({
    "extra": peak()["VmHWM"] - before - sum(x.nbytes for x in parameters.values()),
    "total": sum(x.nbytes for x in parameters.values()),
    "file": max((folder / file).stat().st_size for file in weight_map.values()),
    "tensor": max(x.nbytes for x in parameters.values()),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_beyond_the_arrays_is_less_than_a_file_and_a_tensor(tmp_path):
    """An implementation that keeps all files mapped or in memory exceeds this several times."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["total"] > 200e6 and found["file"] < 0.3 * found["total"]
    assert found["extra"] < found["file"] + found["tensor"], found


SHARDED = """
import json, math, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from trinityx_jax.config import MeshConfig
from trinityx_jax.io import hf_load
from trinityx_jax.models.families import tensors
from trinityx_jax.sharding import make_mesh

class Recorded:
    def __init__(self, part, asked):
        self.part, self.asked = part, asked
    def __getitem__(self, index):
        value = self.part[index]
        self.asked.append(value.nbytes)
        return value

asked, array = [], hf_load._array
def recorded(part, *rest):
    asked.append([])
    return array(Recorded(part, asked[-1]), *rest)
hf_load._array = recorded
answers = {}
for sizes in ((1, 4, 2), (2, 2, 2), (8, 1, 1)):
    asked.clear()
    mesh = make_mesh(MeshConfig(*sizes))
    config, parameters = hf_load.load_checkpoint(sys.argv[1], mesh)
    np.savez(f"{sys.argv[2]}/{sizes[0]}.npz", **{n: np.asarray(x) for n, x in parameters.items()})
    ways = {n: x.size // math.prod(x.sharding.shard_shape(x.shape)) for n, x in parameters.items()}
    answers[sizes[0]] = {
        name: [bytes_, x.nbytes, ways[name]]
        for (name, x), bytes_ in zip(parameters.items(), asked, strict=True)
    }
print(json.dumps(answers))
"""


def test_a_shard_is_read_once_and_alone(pretrained, mesh, tmp_path):
    """Eight simulated devices: what is read is each distinct shard, once, whatever holds it."""
    folder = pretrained("llama3")  # one file, so that tensors are read in the parameters' order
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answers = json.loads(result.stdout.splitlines()[-1])
    _, want = load_checkpoint(folder, mesh)
    for data, ways in (("1", 8), ("2", 4), ("8", 1)):
        assert max(count for _, _, count in answers[data].values()) == ways
        for name, (asked, size, count) in answers[data].items():
            assert asked == [size // count] * count, name
        with np.load(tmp_path / f"{data}.npz") as got:
            for name, value in want.items():
                np.testing.assert_array_equal(got[name], value)
