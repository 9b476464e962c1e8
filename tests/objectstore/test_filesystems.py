"""File systems of fsspec: URIs with and without a host, and files of unknown size."""

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mnist_ray.data import listing, storage
from tests.conftest import cli

pytestmark = pytest.mark.usefixtures("in_threads", "impatient")


class HostFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory, on several hosts. As with sftp and hdfs, a path within the file system has no host."""

    protocol = "hostfs"
    hosts: ClassVar[dict[str, tuple[dict[str, Any], list[str]]]] = defaultdict(lambda: ({}, [""]))

    def __init__(self, host: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.store, self.pseudo_dirs = self.hosts[host]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        rest = path.removeprefix("hostfs://")
        return super()._strip_protocol(rest if rest == path else rest.partition("/")[2])  # type: ignore[no-any-return]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.removeprefix("hostfs://").partition("/")[0]}

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **more)
        return {**found, "size": None} if "unknown" in path else found

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[Any]:
        found: list[Any] = super().ls(path, detail, **more)
        return [self.info(info["name"]) for info in found] if detail else found


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a host with its own files."""
    fsspec.register_implementation("hostfs", HostFileSystem, clobber=True)
    return f"hostfs://{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "hostfs"])
def root(request: pytest.FixtureRequest, host: str) -> str:
    return host if request.param == "hostfs" else f"memory://{uuid.uuid4().hex}"


def rows(out: Path, table: str = "predictions") -> list[dict[str, Any]]:
    return sorted(pq.read_table(out / table).to_pylist(), key=lambda row: row["source"])


def test_uris_of_a_file_system_keep_their_host(root: str, digit_folder: Path) -> None:
    for name in ("7/a.png", "7/b c.png", "deep/er/3/d.png"):
        storage.write(f"{root}/in/{name}", b"x")
    found = [entry.uri for entry in listing.walk(f"{root}/in")]
    assert sorted(found) == [f"{root}/in/{name}" for name in ("7/a.png", "7/b c.png", "deep/er/3/d.png")]
    assert all(storage.read(uri) == b"x" for uri in found)


def test_a_folder_of_a_file_system_is_scored_into_it(root: str, digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    images = sorted(digit_folder.rglob("*.png"))[::30]
    for image in images:
        storage.write(f"{root}/in/{image.relative_to(digit_folder)}", image.read_bytes())
    done = cli("score", f"{root}/in", "--model", str(run_dir), "--out", f"{root}/out", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert cli("verify", f"{root}/out").returncode == 0
    sources = []
    for name in storage.names(f"{root}/out/predictions"):
        with storage.open_file(f"{root}/out/predictions/{name}") as stream:
            sources += pq.read_table(stream)["source"].to_pylist()
    assert sorted(sources) == [f"{root}/in/{image.relative_to(digit_folder)}" for image in images]


def test_files_of_unknown_size_are_scored(host: str, digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    images = sorted(digit_folder.rglob("*.png"))[::100]
    for position, image in enumerate(images):
        storage.write(f"{host}/in/unknown-{position}.png", image.read_bytes())
    done = cli("score", f"{host}/in", "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert [row["source"] for row in rows(tmp_path / "out")] == [f"{host}/in/unknown-{i}.png" for i in range(len(images))]
    assert cli("verify", str(tmp_path / "out")).returncode == 0


class _Web(BaseHTTPRequestHandler):
    """Serves files. It tells the size of those whose name does not contain `unknown`."""

    files: ClassVar[dict[str, bytes]] = {}
    statuses: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        data = self.files.get(self.path) if self.path not in self.statuses else None
        self.send_response(200 if data is not None else self.statuses.get(self.path, 404))
        if "unknown" not in self.path:
            self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def web(digit_folder: Path) -> Iterator[str]:
    """A web server with images."""
    first, second = sorted(digit_folder.rglob("*.png"))[:2]
    _Web.statuses = {}
    _Web.files = {"/a/1.png": first.read_bytes(), "/a/unknown.png": second.read_bytes()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_manifest_lists_images_of_a_web_server(web: str, run_dir: Path, tmp_path: Path) -> None:
    uris = [f"{web}/a/1.png", f"{web}/a/none.png", f"{web}/a/unknown.png"]
    (tmp_path / "list.txt").write_text("\n".join(uris))
    done = cli("score", str(tmp_path / "list.txt"), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert [row["source"] for row in rows(tmp_path / "out")] == [uris[0], uris[2]]
    assert [(row["source"], row["reason"]) for row in rows(tmp_path / "out", "quarantine")] == [(uris[1], "missing")]
    assert cli("verify", str(tmp_path / "out")).returncode == 0


@pytest.mark.parametrize(
    ("status", "expected"), [(404, "missing"), (410, "missing"), (403, "unreadable"), (451, "unreadable"), (429, ""), (503, "")]
)
def test_a_web_server_out_of_order_is_no_missing_file(
    web: str, run_dir: Path, tmp_path: Path, status: int, expected: str
) -> None:
    """An answer about a file quarantines it. Any other answer stops the job, and it is scored later."""
    _Web.statuses = {"/a/1.png": status}
    (tmp_path / "list.txt").write_text(f"{web}/a/1.png\n{web}/a/unknown.png\n")
    job = ["score", str(tmp_path / "list.txt"), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0"]
    done = cli(*job)
    if expected:
        assert done.returncode == 0, done.stderr
        assert [row["reason"] for row in rows(tmp_path / "out", "quarantine")] == [expected]
        return
    assert done.returncode == 8, done.stderr
    assert f"{web}/a/1.png: cannot be looked up" in done.stderr
    _Web.statuses = {}
    assert cli(*job, "--resume").returncode == 0
    assert len(rows(tmp_path / "out")) == 2
