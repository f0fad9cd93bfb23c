"""Tables at URIs: any pyarrow file system, written whole or not at all."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problems import make_table
from pyarrow import fs

from arbitrage import DataError, ScoreTable, UsageError, filesystems
from arbitrage.filesystems import Place, locate, open_output
from arbitrage.io import sha256_file


class NoReplace(fs.FSSpecHandler):
    """Refuses, as HDFS does, to rename onto an existing file."""

    def move(self, src, dest):
        """Renames."""
        if self.fs.exists(dest):
            raise OSError(f"{dest} exists")
        self.fs.mv(src, dest)


def local_tree(tmp_path):
    (tmp_path / "tree").mkdir()
    return fs.SubTreeFileSystem(str(tmp_path / "tree"), fs.LocalFileSystem())


def mock(tmp_path):
    return fs._MockFileSystem()


def memory(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    handler = NoReplace(fsspec.filesystem("memory", skip_instance_cache=True))
    handler.fs.store = {}
    handler.fs.pseudo_dirs = [""]
    return fs.PyFileSystem(handler)


@pytest.fixture(params=[local_tree, mock, memory])
def store(request, tmp_path):
    """A remote place, as a function from a key to a Place."""
    filesystem = request.param(tmp_path)
    return lambda key: Place(f"test://{key}", key, filesystem)


def keys(place: Place) -> list[str]:
    found = place.filesystem.get_file_info(fs.FileSelector("", recursive=True))
    return [info.path.lstrip("/") for info in found if info.type == fs.FileType.File]


def test_tables_at_a_remote_place(store):
    table = make_table(30)
    place = store("folder/deeper/t.parquet")
    table.write(place)
    assert keys(place) == ["folder/deeper/t.parquet"]
    read = ScoreTable.read(place)
    np.testing.assert_array_equal(read.scores, table.scores)
    assert read.metadata == table.metadata
    with pytest.raises(UsageError, match=r"test://folder/deeper/t\.parquet: it already exists"):
        table.write(place)
    make_table(4).write(place, overwrite=True)
    assert len(ScoreTable.read(place)) == 4
    assert keys(place) == ["folder/deeper/t.parquet"]
    with pytest.raises(DataError, match="it is a folder"):
        table.write(store("folder"), overwrite=True)
    make_table(3, seed=1, question_id=["x", "y", "z"]).write(store("folder/deeper/u.parquet"))
    assert ScoreTable.read(store("folder/deeper")).question_id.tolist()[3:] == ["q3", "x", "y", "z"]
    with pytest.raises(DataError, match=r"test://nothing\.parquet: no such file"):
        ScoreTable.read(store("nothing.parquet"))


@pytest.mark.parametrize("older", [False, True])
def test_a_failed_write_leaves_nothing(store, older):
    place = store("t.parquet")
    if older:
        make_table(4).write(place)
    with pytest.raises(KeyError), open_output(place, overwrite=True) as to:
        to.write(b"half of it")
        raise KeyError("stop")
    assert keys(place) == ["t.parquet"] * older
    with pytest.raises(DataError, match=r"cannot write test://t\.parquet: disk full"):
        with open_output(place, overwrite=True):
            raise OSError("disk full\nand a long story")
    assert keys(place) == ["t.parquet"] * older
    if older:
        assert len(ScoreTable.read(place)) == 4


def test_somebody_else_wrote_it_meanwhile(store):
    place = store("t.bin")
    with pytest.raises(UsageError, match="already exists"), open_output(place) as to:
        to.write(b"mine")
        with place.filesystem.open_output_stream("t.bin") as other:
            other.write(b"theirs")
    with place.open() as file:
        assert file.read() == b"theirs"
    assert keys(place) == ["t.bin"]


def test_every_format_is_read_remotely(store, tmp_path):
    np.save(tmp_path / "t.npy", np.ones((3, 2), np.float32))
    (tmp_path / "t.csv").write_text("question_id,scores_0,scores_1\na,1,2\n")
    (tmp_path / "t.jsonl").write_text('{"question_id": "a", "scores": [1, 2]}\n')
    for name in ("t.npy", "t.csv", "t.jsonl"):
        place = store(name)
        with open_output(place) as to:
            to.write((tmp_path / name).read_bytes())
        assert ScoreTable.read(place).scores.shape[1] == 2


def test_file_uris_are_local(tmp_path):
    uri = (tmp_path / "new folder" / "t.parquet").as_uri()
    make_table(5).write(uri)
    assert len(ScoreTable.read(uri)) == 5
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["t.parquet"]
    assert locate(uri).filesystem is None
    with pytest.raises(UsageError, match="--overwrite"):
        make_table(5).write(uri)
    assert sha256_file(uri) == sha256_file(tmp_path / "new folder" / "t.parquet")


@pytest.mark.parametrize("uri", ["nothing://a/b.parquet", "file://relative/b.parquet"])
def test_unknown_file_systems(uri):
    with pytest.raises(UsageError, match="has no file system for the URI") as error:
        ScoreTable.read(uri)
    assert uri in str(error.value) and "\n" not in str(error.value)


def test_a_file_system_that_does_not_answer(monkeypatch):
    def fail(uri):
        raise OSError("Unable to load libjvm\na long\nstory")

    monkeypatch.setattr(filesystems, "_from_uri", fail)
    with pytest.raises(DataError, match=r"does not answer: Unable to load libjvm$"):
        ScoreTable.read("hdfs://host/t.parquet")


def test_the_hash_of_a_folder(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "b").write_bytes(b"2")
    (folder / "a").write_bytes(b"1")
    (folder / "_ignored").write_bytes(b"3")
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for data, name in ((b"1", "a"), (b"2", "b"))
    ]
    assert sha256_file(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()
    with pytest.raises(DataError, match="no such file"):
        sha256_file((tmp_path / "none").as_uri())


def test_part_files(tmp_path):
    table = make_table(7, extra={"cost": np.arange(7.0)})
    for part, rows in enumerate((range(0, 2), range(2, 3), range(3, 7))):
        one = table.take(np.array(rows))
        one.metadata["part"] = str(part)  # type: ignore[index]
        one.write(tmp_path / f"part-{2 - part:02}.parquet")
    (tmp_path / "README.md").write_text("not a part")
    (tmp_path / "_metadata").write_text("nor this")
    read = ScoreTable.read(tmp_path)
    order = [3, 4, 5, 6, 2, 0, 1]
    assert read.question_id.tolist() == [f"q{at}" for at in order]
    np.testing.assert_array_equal(read.scores, table.scores[order])
    np.testing.assert_array_equal(read.extra["cost"], np.array(order, float))
    assert read.metadata == {"model": "model-0"}
    (tmp_path / "part-03.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-03\.parquet: not a readable Parquet file"):
        ScoreTable.read(tmp_path)
    pq.write_table(
        pa.table({"question_id": ["z"], "scores": [[1.0]]}), tmp_path / "part-03.parquet"
    )
    with pytest.raises(DataError, match=r"part-03.*differ from those of part-00\.parquet"):
        ScoreTable.read(tmp_path)
    (tmp_path / "part-03.parquet").unlink()
    (tmp_path / "group=a").mkdir()
    with pytest.raises(DataError, match="holds a folder, group=a: folders in folders are not read"):
        ScoreTable.read(tmp_path)
