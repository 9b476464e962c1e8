import os
import uuid
from pathlib import Path

import pytest

from mnist_ray.data import bulk, listing, storage
from mnist_ray.errors import StorageError


@pytest.fixture(params=["local", "fsspec"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_written_files_can_be_read_and_listed(place: str) -> None:
    for name in ("b.txt", "sub/a b%20#.txt", "sub/deep/é.txt"):
        storage.write(storage.join(place, name), name.encode())
        assert storage.read(storage.join(place, name)) == name.encode()
    found = {entry.uri.removeprefix(place + "/"): entry.size for entry in listing.walk(place)}
    assert found == {"b.txt": 5, "sub/a b%20#.txt": 15, "sub/deep/é.txt": 15}
    assert [entry.uri for entry in listing.walk(place) if storage.is_file(entry.uri)]
    assert storage.names(place) == ["b.txt", "sub"]
    assert storage.is_folder(storage.join(place, "sub"))
    assert not storage.is_folder(storage.join(place, "b.txt"))


def test_missing_files_and_folders(place: str) -> None:
    missing = storage.join(place, "no")
    assert storage.names(missing) == []
    assert not storage.is_file(missing)
    storage.delete(missing)
    with pytest.raises(FileNotFoundError, match="no: there is no such file"):
        storage.read(missing)
    assert next(listing.stat_files([missing])).size == -1
    assert [type(found) for found in bulk.read_many([missing], 10)] == [FileNotFoundError]


def test_delete_removes_only_the_named_folder(place: str) -> None:
    for name in ("a/x", "a/y/z", "ab"):
        storage.write(storage.join(place, name), b"1")
    storage.delete(storage.join(place, "a"))
    assert storage.names(place) == ["ab"]


def test_write_replaces_a_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    storage.write(str(target), b"old")
    (tmp_path / "full").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write(str(tmp_path / "full"), b"x")
    storage.write(str(target), b"new")
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_walk_follows_links_but_not_loops(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file.png").touch()
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "a" / "b" / "file.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "dangling.png").symlink_to("nowhere")
    found = {Path(entry.uri).name: entry.size for entry in listing.walk(str(tmp_path))}
    assert found == {"file.png": 0, "link.png": 0, "pipe.png": -1, "dangling.png": -1}
    (tmp_path / "twin").symlink_to(tmp_path / "a" / "b")
    both = {str(tmp_path / "a" / "b" / "file.png"), str(tmp_path / "twin" / "file.png")}
    assert both <= {entry.uri for entry in listing.walk(str(tmp_path))}, "a folder with two paths must be listed under both"


def test_reading_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (found,) = bulk.read_many([str(tmp_path / "pipe")], 10)
    assert str(found) == "not a regular file"


def test_reading_stops_one_byte_after_the_limit(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(100))
    (found,) = bulk.read_many([str(tmp_path / "big")], 10)
    assert isinstance(found, bytes)
    assert len(found) == 11


def test_names_that_are_not_utf8_survive_conversion_to_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(path, "wb") as stream:
        stream.write(b"x")
    text = storage.to_text(os.fsdecode(path))
    text.encode("utf-8")
    assert list(bulk.read_many([storage.from_text(text)], 10)) == [b"x"]
    literal = tmp_path / r"\xff.png"
    literal.touch()
    assert storage.from_text(str(literal)) == str(literal)


@pytest.mark.parametrize("uri", ["nosuchscheme://bucket/x", "s4://bucket"])
def test_an_unknown_scheme_is_a_storage_error(uri: str) -> None:
    with pytest.raises(StorageError, match="cannot reach this storage"):
        storage.read(uri)
