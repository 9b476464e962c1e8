"""Downloads from real HTTP servers on the loopback interface."""

import gc
import gzip
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_ray.data import datasets, mnist
from mnist_ray.data.digits import Splits
from mnist_ray.errors import DataError

# torchvision does not close the socket of a failed request; the garbage collector does.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class Mirror(http.server.ThreadingHTTPServer):
    """Serves the four files, or fails as `behaviour` says."""

    def __init__(self, files: dict[str, bytes], behaviour: str = "serve") -> None:
        self.files, self.behaviour, self.requests = files, behaviour, 0
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()  # `shutdown` waits for one poll

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def stop(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requests += 1
        data = self.server.files[self.path.lstrip("/")]
        if self.server.behaviour == "error":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.behaviour == "stall":
            self.wfile.write(data[:100])
            self.server.ended.wait(30)
        elif self.server.behaviour == "damage":
            self.wfile.write(b"\0" * len(data))
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def files(small_idx: Path) -> dict[str, bytes]:
    return {f"{file.name}.gz": gzip.compress(file.read_bytes(), mtime=0) for file in small_idx.iterdir()}


@pytest.fixture
def mirrors(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[list[Mirror]]:
    """One mirror for each behaviour in the test's parameter, an empty cache, and no MNIST on this machine."""
    import torchvision.datasets

    servers = [Mirror(files, behaviour) for behaviour in request.param]
    hashes = [(name, hashlib.md5(data).hexdigest()) for name, data in files.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server.url for server in servers])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", hashes)
    monkeypatch.setattr(mnist, "TIMEOUT_S", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    yield servers
    for server in servers:
        server.stop()
    gc.collect()


@pytest.mark.parametrize("mirrors", [["serve"], ["error", "serve"], ["stall", "serve"], ["damage", "serve"]], indirect=True)
def test_a_failing_mirror_is_skipped(mirrors: list[Mirror], small: Splits) -> None:
    splits = datasets.load("mnist")
    assert splits.train.digest == small.train.digest
    before = [server.requests for server in mirrors]
    assert datasets.load("auto").test.digest == small.test.digest
    assert [server.requests for server in mirrors] == before, "MNIST was downloaded again"
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("mirrors", [["serve"]], indirect=True)
def test_concurrent_downloads_fetch_each_file_once(mirrors: list[Mirror], files: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(mnist.download) for _ in range(4)]}
    assert len(folders) == 1
    assert mirrors[0].requests <= 2 * len(files)  # torchvision sends one request to resolve redirects and one for the file


@pytest.mark.parametrize("mirrors", [["stall", "error"]], indirect=True)
def test_without_a_working_mirror_auto_falls_back_to_mnist5k(
    mirrors: list[Mirror], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_RAY_DATA", "")  # as if it was not set
    with pytest.raises(DataError, match=r"Give one of these: --data PATH .*MNIST_RAY_DATA=PATH.*--data mnist5k"):
        datasets.load("mnist")
    assert [path.name for path in (tmp_path / "mnist_ray").iterdir()] == ["download.lock"], "the cache holds an incomplete copy"
    said: list[str] = []
    assert datasets.load("auto", said.append).name == "mnist5k"
    assert said[0].startswith("data: mnist5k, NOT the full MNIST")
