import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.data import bulk, listing, patience, storage
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
    dangling = {"nowhere.png": "nowhere", "itself.png": "itself.png", "below.png": "b/file.png/x", "long.png": "x" * 300}
    for name, target in dangling.items():
        (tmp_path / "a" / name).symlink_to(target)
    found = {Path(entry.uri).name: entry.size for entry in listing.walk(str(tmp_path))}
    assert found == {"file.png": 0, "link.png": 0, "pipe.png": -1} | dict.fromkeys(dangling, -1)
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


@pytest.mark.parametrize("sizes", [None, [0] * 40, [-1, 20] * 20, [50] * 40])
def test_files_are_whole_and_in_order_whatever_size_was_expected(
    sizes: list[int] | None, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are read at once: all of them, or after the first ones on a slow disk."""
    monkeypatch.setattr(bulk, "AHEAD_BYTES", 60)
    monkeypatch.setattr(bulk, "USUAL_BYTES", 10)
    monkeypatch.setattr(bulk, "SLOW_S", -1.0)
    contents = [b"%d" % number * number for number in range(40)]
    uris = [storage.join(place, f"{number}") for number in range(40)]
    for uri, content in zip(uris, contents, strict=True):
        storage.write(uri, content)
    storage.delete(uris[35])
    found = list(bulk.read_many(uris, 70, sizes))
    assert isinstance(found.pop(35), FileNotFoundError)
    assert found == [content[:71] for content in contents[:35] + contents[36:]]


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


class Faults:
    """Makes a function of the operating system fail a number of times with an error code."""

    def __init__(self, function: Callable[..., object], times: int, code: int) -> None:
        self.function, self.left, self.code = function, times, code

    def __call__(self, *args: object) -> object:
        if self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*args)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    monkeypatch.setattr(patience, "_warned", {})


def test_a_fault_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for call in ("read", "fsync"):
        monkeypatch.setattr(os, call, Faults(getattr(os, call), 2, errno.EIO))
    assert list(bulk.read_many([str(tmp_path / "a")], 10)) == [b"x"]
    storage.write(str(tmp_path / "b"), b"y")
    assert (tmp_path / "b").read_bytes() == b"y"
    assert os.read.left == os.fsync.left == 0  # type: ignore[attr-defined]


def test_a_lasting_fault_is_the_fault_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "read", Faults(os.read, 99, errno.EIO))
    with pytest.raises(StorageError, match=r"a: cannot be read: Input/output error; tried for"):
        list(bulk.read_many([str(tmp_path / "a")], 10))
    assert caplog.messages == ["warning: local files: Input/output error; trying again for up to 1 s"]
    before = os.read.left  # type: ignore[attr-defined]
    with pytest.raises(StorageError):
        storage.read(str(tmp_path / "a"))
    assert os.read.left == before - 1, "a storage that is known to be gone is tried once"  # type: ignore[attr-defined]


def test_what_a_file_itself_is_to_blame_for_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    names = ["loop", "none", "folder", "x" * 300, "null\0byte", "none/below"]
    found = list(bulk.read_many([str(tmp_path / name) for name in names], 10))
    kinds = [
        FileNotFoundError,
        FileNotFoundError,
        patience.NotAFileError,
        FileNotFoundError,
        patience.NotAFileError,
        FileNotFoundError,
    ]
    assert [type(error) for error in found] == kinds


def test_a_file_is_created_once(place: str) -> None:
    uri = storage.join(place, "record")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read(uri) == b"first"


def test_parts_of_a_file_can_be_read(place: str) -> None:
    uri = storage.join(place, "file")
    storage.write(uri, bytes(range(100)))
    with storage.open_file(uri) as stream:
        assert stream.size() == 100
        stream.seek(40)
        assert stream.read(3) == bytes([40, 41, 42])
        stream.seek(95)
        assert stream.read(100) == bytes(range(95, 100))
    with storage.open_stream(uri) as stream:
        assert stream.read() == bytes(range(100))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system without folders of the user: /proc")
def test_a_folder_that_cannot_be_made_is_a_fault_of_the_storage() -> None:
    with pytest.raises(StorageError, match=r"^/proc/none/a.json: cannot be written: its folder is gone, or cannot be made$"):
        storage.write("/proc/none/a.json", b"")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.create("/proc/none/a.json", b"")


@pytest.mark.parametrize("expected", [-1, 0, 4, 5, 6, 1 << 40])
def test_a_file_is_read_whole_whatever_size_it_was_listed_with(expected: int, tmp_path: Path) -> None:
    """Also those after the first files, whose reading is timed."""
    for number in range(bulk.TIMED_FILES + 3):
        (tmp_path / f"{number}").write_bytes(b"12345")
    (tmp_path / "34").unlink()
    uris = [str(tmp_path / f"{number}") for number in range(bulk.TIMED_FILES + 3)]
    *read, missing = bulk.read_many(uris, 100, [expected] * len(uris))
    assert set(read) == {b"12345"}
    assert isinstance(missing, FileNotFoundError)
    assert list(bulk.read_many(uris[:-1], 3, [expected] * (len(uris) - 1)))[-1] == b"1234", "one byte more than the limit"
