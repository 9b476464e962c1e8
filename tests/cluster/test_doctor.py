"""`mnist-ray doctor` on a healthy set-up, and on set-ups that are really broken."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mnist_ray.cluster import checks, doctor, node
from mnist_ray.cluster.checks import CHECKS, Finding
from mnist_ray.config import DoctorConfig
from tests.conftest import ROOT, RayCluster, cli, free_port

ON_CLUSTER = "address,token,cluster versions,jobs port,joining,resources"


def examine(*args: str, only: str = "") -> list[Finding]:
    """What doctor finds, through the command line and its JSON. If `only` names checks, it runs these and what they need."""
    wanted = set(only.split(","))
    for check in reversed(CHECKS):
        wanted |= set(check.needs) if check.name in wanted else set()
    with pytest.MonkeyPatch.context() as patch:
        if only:
            patch.setattr(doctor, "CHECKS", [check for check in CHECKS if check.name in wanted])
        done = cli("doctor", "--json", *args)
    document = json.loads(done.stdout)
    found = [Finding(**finding) for finding in document["findings"]]
    assert document["problems"] == sum(one.state == "problem" for one in found)
    assert done.returncode == (document["problems"] > 0)
    return found


def problem(*args: str, only: str) -> str:
    """The only problem, as its line."""
    (found,) = [one for one in examine(*args, only=only) if one.state == "problem"]
    assert found.advice or found.name in ("launch file", "MNIST"), "a problem says what to do"
    return found.to_text()


@pytest.mark.slow
def test_a_healthy_set_up_has_no_problem(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNIST_RAY_DATA", str(small_idx))
    monkeypatch.chdir(tmp_path)
    found = {one.name: one for one in examine("--address", ray_cluster.address, "--out", "new/folder")}
    assert list(found) == [check.name for check in CHECKS]
    skipped = {name for name, one in found.items() if one.state == "skipped"}
    assert skipped == {"launch file", "node types"}
    assert {one.state for one in found.values()} == {"ok", "skipped"}
    assert f"Python {sys.version.split()[0]}, Ray 2." in found["versions here"].text
    assert "600 training and 100 test images of digits in MNIST's format" in found["MNIST"].text
    assert found["resources"].text.startswith("1 node, 2 of 2 CPUs")
    assert found["devices on nodes"].text == f"1 x {found['devices here'].text}"
    assert ray_cluster.jobs_address in found["jobs port"].text
    assert not list(tmp_path.iterdir()), "doctor must leave nothing behind"
    assert capfd.readouterr() == ("", ""), "the checks must not print anything themselves"


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def web_server() -> Iterator[str]:
    """A server of files over HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.long
def test_a_wrong_address_is_named(ray_cluster: RayCluster) -> None:
    def said(address: str) -> str:
        line = problem("--address", address, only="joining")
        assert "give --address HOST:6379" in line
        return line

    assert "is the dashboard (`ray job submit`), and not the cluster's GCS; give" in said(f"127.0.0.1:{ray_cluster.jobs_port}")
    assert "is the dashboard" in said(ray_cluster.jobs_address)
    assert "is the port of Ray Client (ray://)" in said(f"127.0.0.1:{ray_cluster.client_port}")
    assert "an address of Ray Client" in said(f"ray://127.0.0.1:{ray_cluster.client_port}")
    assert "Connection refused" in said(f"127.0.0.1:{free_port()}")
    assert "expected HOST:PORT" in said("127.0.0.1")
    assert "expected HOST:PORT" in said("127.0.0.1:637900")
    with web_server() as address:
        assert "an HTTP server (status 404), but not Ray's dashboard" in said(address)
    with silent_server() as address:
        assert "speaks neither gRPC nor HTTP" in said(address)


def test_checks_that_need_the_cluster_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = examine("--address", f"127.0.0.1:{free_port()}", only=ON_CLUSTER)
    assert [one.state for one in found] == ["problem", *["skipped"] * 5]
    assert {one.text for one in found[1:]} == {"`address` has a problem"}
    none = examine(only=ON_CLUSTER)
    assert {one.state for one in none} == {"skipped"}
    assert {one.text for one in none} == {"neither --address nor RAY_ADDRESS names a cluster, and doctor starts none"}


@pytest.mark.slow
def test_token_problems_are_told_apart(ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(checks: str) -> str:
        return problem("--address", ray_cluster.address, only=checks)

    token = os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "the cluster refuses the token in RAY_AUTH_TOKEN (HTTP 401 or 403, InvalidAuthToken)" in said(
        "address,token,joining"
    )
    dashboard = problem("--address", f"127.0.0.1:{ray_cluster.jobs_port}", only="address")
    assert (
        "is the dashboard (`ray job submit`), and not the cluster's GCS; it refuses this machine (HTTP 401 or 403" in dashboard
    )
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert "RAY_AUTH_MODE is `token`, and there is no token; copy" in said("token here")
    assert "this machine has none" in said("joining")
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(token)
    file.chmod(0o644)
    assert f"{file}: other users may use it (mode 644); chmod 600 {file}" in said("token here,token")
    file.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    line = said("token here,joining")
    assert "this machine sends none" in line
    assert line.endswith("RAY_AUTH_MODE is not `token`; export RAY_AUTH_MODE=token")


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = RayCluster()
    try:
        assert "asks for no token: whoever reaches it can run code" in problem(
            "--address", cluster.address, only="address,token"
        )
    finally:
        cluster.stop()


def require_namespaces(*kinds: str) -> list[str]:
    """The command `unshare` for these namespaces. Skips the test where they cannot be had."""
    command = ["unshare", *kinds]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"`{' '.join(command)}` is not possible here: not root, or not allowed")
    return command


@pytest.mark.slow
def test_a_folder_that_only_the_driver_sees_is_found(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """The second node has another file system at the folder `hidden`, as a machine of its own would."""
    unshare = require_namespaces("--mount", "--propagation", "private")
    hidden, shared = tmp_path / "hidden", tmp_path / "shared"
    hidden.mkdir()
    with ray_cluster.another_node(*unshare, "sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$0" "$@"'):
        line = problem("--address", ray_cluster.address, "--out", str(hidden), only="storage on nodes")
        healthy = {
            one.name: one
            for one in examine(
                "--address", ray_cluster.address, "--out", str(shared), only="versions on nodes,storage on nodes"
            )
        }
    assert "storage on nodes: 1 of 2 nodes: " in line
    assert "does not see the file that this machine wrote; mount the folder on every node, or give --out a URI" in line
    assert {one.state for one in healthy.values()} == {"ok"}
    assert healthy["storage on nodes"].text.startswith("2 nodes: read the file that this machine wrote")
    assert healthy["versions on nodes"].text.startswith("2 nodes, with the versions of this machine")
    assert not list(hidden.iterdir())
    assert not shared.exists()


@pytest.mark.long
def test_a_node_with_another_mnist_ray_is_found(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "old" / "mnist_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.0.1'")
    monkeypatch.chdir(tmp_path)
    with ray_cluster.another_node("env", f"PYTHONPATH={package.parent}"):
        line = problem("--address", ray_cluster.address, only="versions on nodes")
    assert "versions on nodes: 1 of 2 nodes: " in line
    assert "mnist_ray 0.0.1 (here " in line
    assert line.endswith("use the same image or constraints.txt everywhere, down to Python's patch version")


@pytest.mark.long
def test_a_machine_outside_the_cluster_is_told_to_submit(ray_cluster: RayCluster) -> None:
    """In a PID namespace of its own, the machine runs no process of Ray."""
    unshare = require_namespaces("--pid", "--fork", "--mount-proc")
    command = [*unshare, sys.executable, "-m", "mnist_ray", "doctor", "--address", ray_cluster.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "ok       token: the cluster asks for the token and accepts it" in done.stdout
    assert "problem  joining: this machine is not a node of the cluster" in done.stdout
    assert f"submit it: `ray job submit --address {ray_cluster.jobs_address}" in done.stdout
    assert "skipped  resources: `joining` has a problem" in done.stdout


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of an S3 server with the bucket `there`, set in the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1", "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    import boto3

    boto3.client("s3", endpoint_url=settings["ENDPOINT_URL"]).create_bucket(Bucket="there")
    yield settings["ENDPOINT_URL"]
    server.stop()


@pytest.mark.long
def test_a_bucket_is_used_and_a_missing_one_is_found(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = examine("--out", "s3://there/tables/", only="storage here")
    assert (found.state, found.text) == ("ok", "s3://there/tables: wrote, read, listed and deleted a file")
    assert "storage here: s3://missing/tables: cannot be written: NoSuchBucket" in problem(
        "--out", "s3://missing/tables", only="storage here"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    line = problem("--out", "s3://there/tables", only="storage here")
    assert "storage here: s3://there/tables: cannot be written: " in line
    assert "look at the URI, and at the endpoint and the credentials in the environment" in line


def test_an_output_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file/out: cannot be written" in problem("--out", str(tmp_path / "file" / "out"), only="storage here")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


TRAPPED = """
cluster_name: trapped
provider: {type: aws, region: us-west-2}
auth: {ssh_user: ubuntu}
available_node_types:
  head: {node_config: {InstanceType: m5.large}, resources: {}}
head_node_type: head
"""


def test_each_trap_of_a_launch_file_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster.yaml").write_text(TRAPPED)
    monkeypatch.chdir(tmp_path)
    found = examine(only="launch file")
    assert len(found) > 3
    assert all(one.state == "problem" and one.text.startswith("cluster.yaml: ") for one in found)
    (tmp_path / "cluster.yaml").write_text("cluster_name: [")
    assert "cluster.yaml: " in problem(only="launch file")
    assert "nowhere.yaml: there is no such file" in problem("--launch-file", "nowhere.yaml", only="launch file")


def test_a_launch_file_that_is_not_filled_in_is_a_problem_if_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    left = f"REGISTRY, ami-{'0' * 17}, sg-{'0' * 17}"
    found = problem("--launch-file", "cluster.yaml", only="launch file")
    assert found.endswith(f"cluster.yaml: holds placeholders: {left}; replace them with your values")
    (skipped,) = examine(only="launch file")
    assert (skipped.state, skipped.text) == ("skipped", f"cluster.yaml: is not filled in: {left}")


def test_a_folder_without_mnist_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_DATA", str(tmp_path))
    assert f"MNIST_RAY_DATA={tmp_path}: holds no train-images-idx3-ubyte" in problem(only="MNIST")
    monkeypatch.delenv("MNIST_RAY_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = examine(only="MNIST")
    assert (found.state, found.text.partition(";")[0]) == ("ok", f"not in {tmp_path}/mnist_ray")
    assert not list(tmp_path.iterdir()), "doctor must not download"


def test_versions_that_differ_are_listed() -> None:
    here = {"Python": "3.11.9", "Ray": "2.60.0", "torch": "2.14.0+cu132", "torchvision": "0.29.0"}
    assert checks.differences(here, here) == ""
    assert checks.differences(here, {**here, "torch": "2.14.0+cpu"}) == "", "a head without a GPU has another build"
    there = {**here, "Python": "3.11.4", "torch": "none", "image": "team/image:1"}
    assert checks.differences(here, there) == "Python 3.11.4 (here 3.11.9), torch none (here 2.14.0+cu132)"
    assert node.builds("2.14.0+cpu", "0.29.0+cpu") == []
    assert node.builds("2.14.0+cpu", "0.29.0+cu132") == ["torch 2.14.0+cpu and torchvision 0.29.0+cu132 are not a pair"]


@pytest.mark.slow
def test_a_broken_torchvision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    command = [sys.executable, "-m", "mnist_ray", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert done.stderr == ""
    first = done.stdout.splitlines()[0]
    assert first.startswith("problem  versions here: ")
    assert "torchvision cannot be imported: operator torchvision::nms does not exist; install" in first


def test_a_check_that_hangs_or_ends_its_process_is_a_finding() -> None:
    child = doctor._Child(DoctorConfig())
    check = next(check for check in CHECKS if check.name == "token here")
    try:
        (hung,) = child.ask(replace(check, limit_s=0))
        (ended,) = child.ask(replace(check, name="no such check"))
        (fine,) = child.ask(check)
    finally:
        child.stop(5)
    assert (hung.state, hung.text) == ("problem", "no answer within 0 s")
    assert (ended.state, ended.text) == ("problem", "the process that checked this has died")
    assert fine.state == "ok"


@pytest.mark.slow
def test_a_replaced_process_joins_the_cluster_again(ray_cluster: RayCluster) -> None:
    child = doctor._Child(DoctorConfig(address=ray_cluster.address))
    try:
        (found,) = child.ask(next(check for check in CHECKS if check.name == "resources"))
    finally:
        child.stop(5)
    assert (found.state, found.text) == ("ok", "1 node, 2 of 2 CPUs, 0 of 0 GPUs free")
