"""The spot watcher, against a server that answers as AWS's metadata service does, and against a real Ray cluster.

Not covered: AWS itself, and the start of the watcher by the launch file on a machine of its own (see tests of the launcher).
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT, RayCluster, free_port, wait_for

SCRIPT = ROOT / "deploy" / "spot_notice.py"


class Metadata(ThreadingHTTPServer):
    """An instance metadata service, version 2: it answers only with a valid token, and 404 while there is no notice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.tokens: list[str] = []
        self.questions = 0
        self.notice: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def announce(self, minutes: float) -> None:
        end = datetime.now(UTC) + timedelta(minutes=minutes)
        self.notice = json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"})


class _Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        if known:
            self.server.tokens.append(f"token-{len(self.server.tokens)}")
        self._answer(*((200, self.server.tokens[-1]) if known else (400, "")))

    def do_GET(self) -> None:
        self.server.questions += 1
        if self.headers["X-aws-ec2-metadata-token"] not in self.server.tokens[-1:]:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, self.server.notice)

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def watcher(endpoint: str, address: str = "127.0.0.1:1") -> Iterator[subprocess.Popen[str]]:
    """A running watcher; it is killed at the end."""
    command = [sys.executable, str(SCRIPT), "--address", address, "--every", "0.05"]
    env = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint, "http_proxy": "http://127.0.0.1:1"}
    process = subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_notice_drains_the_worker_node_and_only_it(metadata: Metadata, ray_cluster: RayCluster) -> None:
    from ray.util import get_node_ip_address
    from ray.util.state import list_nodes

    address = f"{get_node_ip_address()}:{ray_cluster.port}"
    with ray_cluster.another_node() as node, watcher(metadata.url, address) as watching:
        wait_for(lambda: metadata.questions > 2, watching)
        assert [found.state for found in list_nodes(ray_cluster.jobs_address) if found.node_id == node] == ["ALIVE"]
        metadata.announce(minutes=10)
        _, printed = watching.communicate(timeout=120)
        assert watching.returncode == 0, printed
        assert f"draining Ray node {node}" in printed
        assert printed.count("draining Ray node") == 1, "only the worker of this cluster, and once"
        # A drained node without work leaves the cluster.
        wait_for(lambda: not [n for n in list_nodes(ray_cluster.jobs_address) if n.node_id == node and n.state == "ALIVE"])
        alive = [found for found in list_nodes(ray_cluster.jobs_address) if found.state == "ALIVE"]
        assert [found.is_head_node for found in alive] == [True]


def test_an_expired_token_is_replaced(metadata: Metadata) -> None:
    with watcher(metadata.url) as watching:
        wait_for(lambda: metadata.questions > 1, watching)
        metadata.tokens.append("another")
        wait_for(lambda: metadata.tokens[-1] == "token-2", watching)
        seen = metadata.questions
        wait_for(lambda: metadata.questions > seen + 1, watching)


def test_without_a_metadata_service_the_watcher_ends_and_says_so() -> None:
    with watcher(f"http://127.0.0.1:{free_port()}") as watching:
        _, printed = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "does not answer as a metadata service" in printed


def test_a_service_that_has_answered_is_asked_again_after_a_pause(metadata: Metadata) -> None:
    """An outage after the first answer does not end the watcher, and a node that is not there yet is looked for again."""
    with watcher(metadata.url) as watching:
        wait_for(lambda: metadata.questions > 0, watching)
        metadata.tokens.clear()
        metadata.announce(minutes=2)
        assert watching.stderr is not None
        lines = iter(watching.stderr.readline, "")
        assert any("no Ray worker node" in line for line in lines)
        assert watching.poll() is None
