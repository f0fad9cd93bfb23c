import dataclasses
import gzip
import json
import multiprocessing
import subprocess
import sys
import time

import pytest

from trinityx_jax.config import OBJECTIVES, DataConfig
from trinityx_jax.data import prepare as prepare_module
from trinityx_jax.data.examples import SPLITS
from trinityx_jax.data.microworld import Microworld
from trinityx_jax.data.own_codec import OwnCodec
from trinityx_jax.data.pipeline import training_batches
from trinityx_jax.data.prepare import prepare
from trinityx_jax.data.tokenizer import UNK
from trinityx_jax.errors import DataError, UsageError

SMALL = DataConfig(train_rows=30, held_out_rows=12, pretrain_rows=50, seed=2)


def test_microworld_end_to_end(tmp_path):
    data = prepare(SMALL, tmp_path)
    world = Microworld(2, 30, 12, 50)
    for objective in OBJECTIVES:
        for split in SPLITS:
            assert list(data.rows(objective, split)) == world.rows(objective, split)
    assert list(data.pretrain("train")) == world.pretrain_rows()
    assert len(data.pretrain("validation")) == 2
    row = data.rows("helpful", "test")[0]
    assert data.verify is not None and data.verify(row, row.response)
    codec = OwnCodec(data.tokenizer, SMALL.template)
    for row in data.pretrain():
        prompt, response = codec.encode(row.prompt, row.response)
        assert UNK not in prompt + response
    about = data.describe()
    assert about["rows"]["honest"] == dict.fromkeys(SPLITS, 12) | {"train": 30}
    assert about["pretrain"] == {"train": 50, "validation": 2}
    assert set(about["licences"]) == {*OBJECTIVES, "pretrain"}
    json.dumps(about)


def test_prepared_data_is_reused_and_another_config_gets_its_own_folder(tmp_path, monkeypatch):
    first = prepare(SMALL, tmp_path)
    monkeypatch.setattr(prepare_module, "write", lambda *a, **k: pytest.fail("written again"))
    again = prepare(dataclasses.replace(SMALL, max_length=16), tmp_path)  # not a matter of rows
    assert again.directory == first.directory
    monkeypatch.undo()
    other = prepare(dataclasses.replace(SMALL, seed=3), tmp_path)
    assert other.directory != first.directory and len(list(tmp_path.iterdir())) == 2


def test_without_a_tokenizer_of_its_own(tmp_path):
    """The rows are the same, and neither template nor vocabulary size is a matter of them."""
    data = prepare(SMALL, tmp_path, own_tokenizer=False)
    assert data.describe()["tokenizer"] is None
    with pytest.raises(UsageError, match="tokenizer"):
        _ = data.tokenizer
    other = dataclasses.replace(SMALL, template="chat", vocab_size=1000)
    assert prepare(other, tmp_path, own_tokenizer=False).directory == data.directory
    mine = prepare(SMALL, tmp_path)
    assert mine.directory != data.directory
    assert mine.describe()["tokenizer"]["vocab_size"] == mine.tokenizer.get_vocab_size()
    assert list(mine.rows("honest", "test")) == list(data.rows("honest", "test"))


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "save_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(SMALL, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(prepare(SMALL, tmp_path).rows("helpful", "train")) == 30


def test_a_killed_preparation_is_not_trusted(tmp_path):
    config = dataclasses.replace(SMALL, pretrain_rows=20_000)
    process = multiprocessing.get_context("spawn").Process(target=prepare, args=(config, tmp_path))
    process.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".preparing-*/tfds/*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    left = [path.name for path in tmp_path.iterdir()]
    assert left and all(name.startswith(".preparing-") for name in left)
    assert len(prepare(SMALL, tmp_path).pretrain()) == 50


def test_two_preparations_at_once_agree(tmp_path, monkeypatch):
    build = prepare_module._build

    def slower(wanted, root, **options):
        monkeypatch.setattr(prepare_module, "_build", build)
        prepare(SMALL, tmp_path)  # "another process" finishes first
        build(wanted, root, **options)

    monkeypatch.setattr(prepare_module, "_build", slower)
    data = prepare(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [data.directory.name]


def test_damaged_folder_is_named(tmp_path):
    data = prepare(SMALL, tmp_path)
    (data.directory / "tfds").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="delete the folder and run again"):
        prepare(SMALL, tmp_path)


def test_hhh_end_to_end_on_made_up_rows(hhh, tmp_path):
    data = prepare(hhh, tmp_path / "work")
    assert data.verify is None
    about = data.describe()
    assert set(about["licences"]) == set(OBJECTIVES)
    assert about["left_out"]["harmless"]["repeated pair"] == 1
    corpus = [len(data.pretrain(split)) for split in ("train", "validation")]
    assert corpus == list(about["pretrain"].values()) and min(corpus) > 0
    kinds = {row.kind for row in data.pretrain()}
    assert kinds == {"alpaca", "pku", "judge"}
    assert data.tokenizer.get_vocab_size() <= 400
    batch = next(
        training_batches(
            {objective: data.rows(objective, "train") for objective in OBJECTIVES},
            OwnCodec(data.tokenizer, hhh.template),
            max_length=64,
            batch_size=2,
            seed=0,
        )
    )
    assert batch["tokens"].shape == (6, 64)


def test_the_tokenizer_does_not_depend_on_held_out_text(hhh, pack, tmp_path):
    before = prepare(hhh, tmp_path / "a").tokenizer.to_str()
    path = pack / "eval_truthfulqa_mc.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode().replace("wrong b", "zzzzzzzz")
    path.write_bytes(gzip.compress(text.encode()))
    assert prepare(hhh, tmp_path / "a").tokenizer.to_str() == before


def test_changed_input_files_are_noticed(hhh, pack, tmp_path):
    first = prepare(hhh, tmp_path)
    (pack / "pku_split.json").unlink()
    assert prepare(hhh, tmp_path).directory != first.directory


def test_user_mistakes_are_one_line(hhh, pack, tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        prepare(dataclasses.replace(hhh, data_dir="nowhere"), tmp_path)
    path = pack / "train_helpful.jsonl.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"train_helpful.jsonl.gz: damaged"):
        prepare(hhh, tmp_path / "work")
    assert not [p for p in (tmp_path / "work").iterdir()]


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from trinityx_jax.config import DataConfig\n"
        "from trinityx_jax.data.prepare import prepare\n"
        "c = DataConfig(train_rows=12, held_out_rows=6, pretrain_rows=20)\n"
        "data = prepare(c, pathlib.Path(sys.argv[1]))\n"
        "list(data.pretrain())\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
