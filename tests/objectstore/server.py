"""S3 servers for tests: Ceph's gateway where Ceph can be found, or else moto. Both listen on the loopback interface only.

Ceph is looked for among the installed programs (Debian: ceph-mon, ceph-osd and radosgw), and in the folder of unpacked
packages that MNIST_RAY_TEST_CEPH names. `python -m tests.objectstore.server FOLDER` makes such a folder. moto stands in for a
server: unlike Ceph, it accepts any credentials.
"""

import base64
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import BIN, free_port

ACCESS_KEY, SECRET_KEY, REGION = "tests", "tests-secret", "us-east-1"
PACKAGES = ["ceph-mon", "ceph-osd", "radosgw"]
DEADLINE_S = 90
"""Seconds within which a server must answer."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a running S3 server with an account that has the keys above."""
    root = _ceph_root()
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, _ceph(root, Path(folder)) if root else _moto() as endpoint:
        yield endpoint


def is_ceph() -> bool:
    """Whether `s3_server` starts Ceph."""
    return _ceph_root() is not None


def _ceph_root() -> Path | None:
    """The folder whose `usr/bin` holds Ceph's programs; None if there is none."""
    places = [Path("/"), *map(Path, filter(None, [os.environ.get("MNIST_RAY_TEST_CEPH")]))]
    return next((place for place in places if all((place / "usr/bin" / name).exists() for name in PACKAGES)), None)


@contextmanager
def _running(*command: str, log: Path | None = None, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs inside this block. Its data is thrown away, so it is killed."""
    with log.open("ab") if log else open(os.devnull, "ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


MOTO = """
import sys, threading
from moto import server
from moto.s3.responses import S3Response
lock, put_object = threading.Lock(), S3Response.put_object
def put_object_alone(self):
    with lock:
        return put_object(self)
S3Response.put_object = put_object_alone
server.main(sys.argv[1:])
"""
"""moto looks for an object and then writes it. S3 and Ceph do both in one step if a condition is given."""


@contextmanager
def _moto() -> Iterator[str]:
    port = free_port()
    with _running(str(BIN / "python"), "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)) as process:
        endpoint = f"http://127.0.0.1:{port}"
        _wait_for_http(endpoint, process)
        yield endpoint


@contextmanager
def _ceph(root: Path, folder: Path) -> Iterator[str]:
    """A monitor, a storage daemon that keeps its data in memory, and the gateway."""
    env = _ceph_environment(root)
    monitor, port, conf, fsid = f"v2:127.0.0.1:{free_port()}", free_port(), folder / "ceph.conf", str(uuid.uuid4())
    conf.write_text(_configuration(root, folder, fsid, monitor, port))
    flags = ["-c", str(conf)]

    def program(name: str) -> str:
        return str(root / "usr/bin" / name)

    def run(*command: str) -> None:
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=env, timeout=DEADLINE_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    for name in ("mon", "osd"):
        (folder / name).mkdir()
    disk = str(uuid.uuid4())
    run(program("monmaptool"), "--create", "--fsid", fsid, "--addv", "a", f"[{monitor}]", f"{folder}/monmap")
    (folder / "keyring").write_text(_keyring())
    run(program("ceph-mon"), "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap", "--keyring", f"{folder}/keyring")
    with _running(program("ceph-mon"), "-f", "-i", "a", *flags, log=folder / "mon.log", env=env):
        # The bindings of the `ceph` command are built for Debian's own Python.
        run("/usr/bin/python3", program("ceph"), "--connect-timeout", str(DEADLINE_S), "osd", "new", disk)
        run(program("ceph-osd"), "-i", "0", "--mkfs", "--osd-uuid", disk)
        with (
            _running(program("ceph-osd"), "-f", "-i", "0", *flags, log=folder / "osd.log", env=env),
            _running(program("radosgw"), "-f", "-n", "client.admin", *flags, log=folder / "rgw.log", env=env) as gateway,
        ):
            _wait_for_http(f"http://127.0.0.1:{port}", gateway)
            user = ["--uid", "tests", "--display-name", "tests", "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
            run(program("radosgw-admin"), "-n", "client.admin", "user", "create", *user)
            yield f"http://127.0.0.1:{port}"


def _ceph_environment(root: Path) -> dict[str, str]:
    """The environment in which programs of unpacked packages find their libraries."""
    libraries = _libraries(root)
    paths = [libraries, libraries / "ceph", root / "lib" / libraries.name]
    more = {"LD_LIBRARY_PATH": ":".join(map(str, paths)), "PYTHONPATH": str(root / "usr/lib/python3/dist-packages")}
    return {**os.environ, **(more if root != Path("/") else {})}


def _libraries(root: Path) -> Path:
    return next((root / "usr/lib").glob("*-linux-gnu/ceph")).parent


def _configuration(root: Path, folder: Path, fsid: str, monitor: str, port: int) -> str:
    libraries = _libraries(root)
    return f"""
[global]
fsid = {fsid}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
plugin_dir = {libraries}/ceph
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
# Each new pool asks the monitor for its consent, which it otherwise gives once a second.
paxos_propose_interval = 0.05
# There is one disk, so there is one copy of each object.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_max_pg_per_osd = 1000
osd_objectstore = memstore
memstore_device_bytes = {2 << 30}
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
[client.admin]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_dns_name = 127.0.0.1
"""


def _keyring() -> str:
    """Keys of the monitor, the storage daemon and the administrator, who may do everything."""
    may = {"mon.": ["mon"], "osd.0": ["mon", "osd"], "client.admin": ["mon", "osd"]}
    return "".join(
        f"[{name}]\nkey = {_key()}\n" + "".join(f'caps {service} = "allow *"\n' for service in services)
        for name, services in may.items()
    )


def _key() -> str:
    """A new AES key in Ceph's format: type, time of creation (seconds, nanoseconds), length, bytes."""
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


def _wait_for_http(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r}: does not answer at {url}; exit status {process.poll()}")


def fetch(folder: Path) -> None:
    """Unpack Ceph's Debian packages, and those they need and this machine lacks, into a folder. Nothing is installed."""
    simulated = ["apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES]
    lines = subprocess.run(simulated, check=True, capture_output=True, text=True).stdout.splitlines()
    wanted = [line.split()[1] for line in lines if line.startswith("Inst ")]
    with tempfile.TemporaryDirectory() as scratch:
        # Without this option, apt downloads as a user who may not write to the folder, and warns.
        download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *wanted]
        subprocess.run(download, check=True, cwd=scratch)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    if not shutil.which("radosgw", path=folder / "usr/bin"):
        raise RuntimeError(f"{folder}: the packages do not contain radosgw")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]).absolute())
