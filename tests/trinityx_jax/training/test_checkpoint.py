"""Checkpoints come back bit for bit, and say clearly when they do not fit."""

import shutil

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from trinityx_jax.errors import DataError
from trinityx_jax.training.checkpoint import Checkpoints, Snapshot, load_parameters


@pytest.fixture
def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "layers.0.mlp.up_proj.kernel": jax.random.normal(keys[0], (3, 4)),
        "norm.scale": jax.random.normal(keys[1], (3,)),
    }


@pytest.fixture
def opt_state(parameters):
    return optax.adamw(1e-3).init(parameters)


def save(directory, steps, parameters, opt_state):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            moved = jax.tree.map(lambda x, step=step: x + step, parameters)
            checkpoints.save(Snapshot(step, moved, opt_state, f"position {step}"))


def test_restores_the_newest(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1, 2, 5], parameters, opt_state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        got = checkpoints.restore(parameters, opt_state)
    assert got is not None and (got.step, got.position) == (5, "position 5")
    want = jax.tree.map(lambda x: x + 5, parameters)
    chex.assert_trees_all_equal(got.parameters, want)
    chex.assert_trees_all_equal(got.opt_state, opt_state)
    chex.assert_trees_all_equal(load_parameters(tmp_path / "c", parameters), want)


def test_only_the_newest_two_are_kept(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1, 2, 3, 4], parameters, opt_state)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3", "4"]


def test_an_empty_folder_restores_nothing(tmp_path, parameters, opt_state):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(parameters, opt_state) is None


def test_a_save_that_was_killed_is_not_read(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1], parameters, opt_state)
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path / "c") as checkpoints:
        got = checkpoints.restore(parameters, opt_state)
    assert got is not None and got.step == 1


def test_another_shape_is_one_line_that_names_the_array(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1], parameters, opt_state)
    other = parameters | {"layers.0.mlp.up_proj.kernel": jnp.zeros((3, 8))}
    with pytest.raises(DataError, match=r"up_proj.kernel is \(3, 4\).*needs \(3, 8\)") as error:
        load_parameters(tmp_path / "c", other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_other_names_are_errors_too(tmp_path, parameters, opt_state, change):
    save(tmp_path / "c", [1], parameters, opt_state)
    other = dict(parameters)
    if change == "more":
        other["layers.0.extra"] = jnp.zeros(2)
    else:
        del other["norm.scale"]
    with pytest.raises(DataError, match="absent"):
        load_parameters(tmp_path / "c", other)


def test_a_missing_checkpoint_names_the_folder(tmp_path, parameters):
    with pytest.raises(DataError, match=r"no checkpoint in .*nowhere"):
        load_parameters(tmp_path / "nowhere", parameters)
    assert not (tmp_path / "nowhere").exists()


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path, opt_state, parameters):
    """The step donates its arrays while the save is still being written."""
    grow = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x + 1, p), donate_argnums=0)
    moving = {"norm.scale": jnp.ones((512, 512))}
    state = optax.adamw(1e-3).init(moving)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(Snapshot(1, moving, state, "here"))
        for _ in range(5):
            moving = grow(moving)
    got = load_parameters(tmp_path / "c", {"norm.scale": jnp.zeros((512, 512))})
    assert (got["norm.scale"] == 1).all()


def test_masters_are_read_back_in_the_models_dtype(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [0], parameters, opt_state)
    like = {name: jnp.zeros_like(x, jnp.bfloat16) for name, x in parameters.items()}
    got = load_parameters(tmp_path / "c", like)
    chex.assert_trees_all_equal(got, {n: x.astype(jnp.bfloat16) for n, x in parameters.items()})


DAMAGES = {
    "a file is gone": lambda step: (step / "parameters" / "manifest.ocdbt").unlink(),
    "a file is cut": lambda step: cut(next((step / "opt_state" / "d").iterdir())),
    "the position is gone": lambda step: shutil.rmtree(step / "data"),
    "everything is gone": lambda step: [shutil.rmtree(x) for x in step.iterdir() if x.is_dir()],
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, parameters, opt_state, damage):
    save(tmp_path / "c", [1, 2], parameters, opt_state)
    DAMAGES[damage](tmp_path / "c" / "2")
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.warns(UserWarning, match=r"c/2 is damaged.*going on from .*c/1"):
            got = checkpoints.restore(parameters, opt_state)
    assert got is not None and (got.step, got.position) == (1, "position 1")
    chex.assert_trees_all_equal(got.parameters, jax.tree.map(lambda x: x + 1, parameters))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]


def test_reading_only_the_parameters_deletes_nothing(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1, 2], parameters, opt_state)
    DAMAGES["a file is gone"](tmp_path / "c" / "2")
    with pytest.warns(UserWarning, match="is damaged"):
        got = load_parameters(tmp_path / "c", parameters)
    chex.assert_trees_all_equal(got, jax.tree.map(lambda x: x + 1, parameters))
    assert (tmp_path / "c" / "2").is_dir()


def test_with_every_checkpoint_damaged_it_is_one_line(tmp_path, parameters, opt_state):
    save(tmp_path / "c", [1, 2], parameters, opt_state)
    for step in ("1", "2"):
        DAMAGES["a file is gone"](tmp_path / "c" / step)
    with pytest.raises(DataError, match=r"every checkpoint in .*--overwrite") as error:
        load_parameters(tmp_path / "c", parameters)
    assert "\n" not in str(error.value)
