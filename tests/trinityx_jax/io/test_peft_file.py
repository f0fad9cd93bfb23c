"""The PEFT writer against a hand-made reading of its file and its own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trinityx_jax.errors import DataError, UsageError
from trinityx_jax.io import peft

WIDTH, INNER, RANK, LAYERS = 6, 10, 2, 2


def make_pairs(seed: int = 0, layers: int = LAYERS) -> dict:
    """Random pairs in the (in, r), (r, out) orientation."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for layer in range(layers):
        for projection in peft.PROJECTIONS:
            inputs, outputs = (INNER, WIDTH) if projection == "down_proj" else (WIDTH, INNER)
            pairs[layer, projection] = (
                rng.normal(size=(inputs, RANK)).astype(np.float32),
                rng.normal(size=(RANK, outputs)).astype(np.float32),
            )
    return pairs


def write(path, pairs, **options):
    return peft.write_adapter(path, pairs, **{"scale": 2.0, "base_model": "backbone", **options})


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3, -1.0])
def test_round_trip_is_bitwise(tmp_path, scale):
    pairs = make_pairs()
    folder = write(tmp_path / "helpful", pairs, scale=scale)
    got = peft.read_adapter(folder)
    assert list(got) == sorted(pairs)
    for key, (a, b) in pairs.items():
        assert got[key][0].tobytes() == a.tobytes()
        assert got[key][1].tobytes() == (b * np.float32(scale)).tobytes()


def test_file_holds_what_peft_adds_to_the_weight(tmp_path):
    pairs = make_pairs()
    folder = write(tmp_path / "helpful", pairs, scale=3.0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(peft.FILES)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == LAYERS * 3 * 2
    for (layer, projection), (a, b) in pairs.items():
        stem = f"base_model.model.model.layers.{layer}.mlp.{projection}"
        lora_a, lora_b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        assert lora_a.shape == (RANK, a.shape[0]) and lora_b.shape == (b.shape[1], RANK)
        delta = config["lora_alpha"] / config["r"] * lora_b @ lora_a  # torch: [out, in]
        np.testing.assert_allclose(delta, 3.0 * (a @ b).T, rtol=1e-5, atol=1e-6)


def test_arrays_that_are_not_contiguous_survive(tmp_path):
    pairs = {
        key: (np.asfortranarray(a), np.repeat(b, 2, axis=1)[:, ::2])
        for key, (a, b) in make_pairs().items()
    }
    got = peft.read_adapter(write(tmp_path / "a", pairs, scale=1.0))
    for key, (a, b) in pairs.items():
        np.testing.assert_array_equal(got[key][0], a)
        np.testing.assert_array_equal(got[key][1], b)


def test_reader_applies_another_writers_scale(tmp_path):
    pairs = make_pairs()
    folder = write(tmp_path / "a", pairs, scale=1.0)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"lora_alpha": 4 * RANK}
    path.write_text(json.dumps(config))
    got = peft.read_adapter(folder)
    np.testing.assert_array_equal(got[0, "up_proj"][1], 4 * pairs[0, "up_proj"][1])


def _without(pairs, key):
    return {k: v for k, v in pairs.items() if k != key}


def _with(pairs, key, a=None, b=None):
    old = pairs[key]
    return {**pairs, key: (old[0] if a is None else a, old[1] if b is None else b)}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: {}, "no layers"),
        (lambda p: _without(p, (1, "up_proj")), "layer 1 has no up_proj pair"),
        (lambda p: {**p, (0, "q_proj"): p[0, "up_proj"]}, "layer 0 has 'q_proj'"),
        (
            lambda p: _with(p, (1, "up_proj"), np.ones((WIDTH, 3), np.float32)),
            r"layer 1 up_proj A: shape \(6, 3\), expected \(6, 2\)",
        ),
        (lambda p: _with(p, (0, "up_proj"), b=np.ones((RANK, INNER))), "float64"),
        (
            lambda p: _with(p, (0, "up_proj"), b=np.full((RANK, INNER), np.nan, np.float32)),
            "not finite",
        ),
        (lambda p: _with(p, (0, "gate_proj"), np.ones(3, np.float32)), "must be matrices"),
    ],
)
def test_bad_pairs_are_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", change(make_pairs()))
    assert not list(tmp_path.iterdir())


def test_scale_must_be_finite_and_stay_finite(tmp_path):
    with pytest.raises(UsageError, match="lora_alpha"):
        write(tmp_path / "a", make_pairs(), scale=float("inf"))
    with pytest.raises(DataError, match="not finite"), np.errstate(over="ignore"):
        write(tmp_path / "a", make_pairs(), scale=3e38)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_kept_without_overwrite(tmp_path):
    folder = write(tmp_path / "a", make_pairs(0))
    old = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        write(folder, make_pairs(1))
    assert (folder / "adapter_model.safetensors").read_bytes() == old
    write(folder, make_pairs(1), overwrite=True)
    assert (folder / "adapter_model.safetensors").read_bytes() != old
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overwrite_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        write(tmp_path, make_pairs(), overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("option, value", [("use_dora", True), ("rank_pattern", {"x": 4})])
def test_reader_refuses_options_that_change_the_meaning(tmp_path, option, value):
    folder = write(tmp_path / "a", make_pairs())
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(DataError, match=option):
        peft.read_adapter(folder)


def test_reader_names_missing_unknown_and_damaged_parts(tmp_path):
    folder = write(tmp_path / "a", make_pairs())
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, path)
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight' is missing"):
        peft.read_adapter(folder)
    save_file(tensors | {"lm_head.weight": np.ones(2, np.float32)}, path)
    with pytest.raises(DataError, match=r"lm_head\.weight"):
        peft.read_adapter(folder)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        peft.read_adapter(folder)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        peft.read_adapter(folder)


def test_some_layers_travel_by_name(tmp_path):
    some = {key: pair for key, pair in make_pairs().items() if key[0] == 1}
    peft.write_adapter(tmp_path / "a", some, scale=1.0, base_model="base")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]
    assert peft.read_adapter(tmp_path / "a").keys() == some.keys()
    for said, message in ((None, "layer 0 has no gate_proj pair"), ([0, 1], "names other layers")):
        changed = json.dumps(config | {"layers_to_transform": said})
        (tmp_path / "a" / "adapter_config.json").write_text(changed)
        with pytest.raises(DataError, match=message):
            peft.read_adapter(tmp_path / "a")
