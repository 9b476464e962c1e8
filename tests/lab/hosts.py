"""Machines with an SSH server, each in namespaces of this one machine, to run Ray's cluster launcher against.

A host has its own network, processes, host name, shared memory and files: it sees a copy of this machine's files, and
what it writes is kept in memory and lost with it. Hosts reach each other and the launcher through a bridge. Nothing
leads out of this network. All of it ends with its processes, and those end with the process that made the lab.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import BIN, ROOT, wait_for

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {"ip": "iproute2", "nsenter": "util-linux", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
HOME = "/home/lab"
"""The home of every login of a host."""
SSHD = """HostKey /etc/ssh/lab_host_key
AuthorizedKeysFile /etc/ssh/lab_authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
OVERLAY = """mount -t tmpfs lab $0; mkdir $0/up $0/work $0/all
mount -t overlay -o lowerdir=/,upperdir=$0/up,workdir=$0/work lab $0/all"""


@cache
def missing() -> str:
    """Why no lab can be made on this machine; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    for program, package in PACKAGES.items():
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return f"needs {program}: apt-get install {package}"
    with tempfile.TemporaryDirectory() as folder:
        unshare = ["unshare", "--net", "--pid", "--fork", "--uts", "--ipc", "--mount"]
        tried = subprocess.run([*unshare, "sh", "-ec", OVERLAY, folder], capture_output=True, text=True, check=False)
    return f"needs namespaces and overlayfs: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """A running host. `pid` is the parent of its first process: `descendants(pid)` are its processes."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def link(self) -> str:
        """The launcher's end of the host's network cable."""
        return f"v{self.address}"


class Lab:
    """A network with a launcher and hosts. Close it, or use it in a `with` statement.

    Hosts die with the thread that added them.

    Args:
        gateway: The launcher's address in the network, with the length of the network's prefix.
        variables: Environment variables of all hosts.
    """

    def __init__(self, gateway: str = "10.66.0.1/24", variables: dict[str, str] | None = None) -> None:
        if reason := missing():
            pytest.skip(f"a lab of hosts {reason}")
        self.gateway = ip_interface(gateway)
        self.variables = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **(variables or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="lab-"))
        self.home, self.key = self.folder / "home", self.folder / "key"
        self.hosts: dict[str, Host] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        for name in ("home/.ssh", "tmp"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.key))
        self._network = _spawn(["unshare", "--net", "sleep", "infinity"])
        wait_for(lambda: _network_of(self._network.pid) != _network_of("self"), self._network)
        self._ip("link set lo up", "link add bridge type bridge", f"address add {gateway} dev bridge", "link set bridge up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the hosts and the programs that the launcher started, and delete the files of the lab."""
        for process in self._started:
            process.kill()
            process.wait()
        for host in list(self.hosts.values()):
            self.remove(host)
        self._network.kill()
        self._network.wait()
        shutil.rmtree(self.folder)

    def add(self, address: str, *more: str, public_key: str | None = None) -> Host:
        """Start a host and wait until it accepts logins of `ubuntu` and `root`, both of which are root.

        Args:
            address: Its address in the network.
            *more: Further addresses that lead to it.
            public_key: The key that may log in; the lab's own if None.
        """
        name = f"ip-{address.replace('.', '-')}"
        folder = self.folder / name
        (folder / "changes").mkdir(parents=True)
        self._write_etc(folder / "etc", name, address, public_key or self.key.with_suffix(".pub").read_text())
        namespaces = ["--net", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--mount"]
        boot = ["bash", str(Path(__file__).with_name("boot.sh")), str(folder), name, *_mounts()]
        with (folder / "log").open("wb") as log:
            host = Host(address, _spawn(["unshare", *namespaces, *boot], log))
        self.hosts[address] = host
        try:
            self._plug_in(host, more)
            reach = f"until (: </dev/tcp/{address}/22) 2>/dev/null; do sleep 0.05; done"
            wait_for(lambda: self.run("timeout", "1", "bash", "-c", reach, check=False).returncode == 0, host.process)
        except BaseException:
            print((folder / "log").read_text(), file=sys.stderr)
            self.remove(host)
            raise
        return host

    def remove(self, host: Host) -> None:
        """Kill a host with all its processes, as a loss of power does. Its address is free again."""
        host.process.kill()
        host.process.wait()
        del self.hosts[host.address]
        subprocess.run(self.command("ip", "link", "delete", host.link), stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.folder / f"ip-{host.address.replace('.', '-')}")

    def connect(self, host: Host, connected: bool) -> None:
        """Plug in the host's network cable, or pull it out."""
        self._ip(f"link set {host.link} {'up' if connected else 'down'}")

    def command(self, *words: str) -> list[str]:
        """A command that runs in the launcher's network."""
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 600, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the launcher's network to its end and collect what it prints. `more` are environment variables."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment(**more),
            cwd=ROOT,
            check=False,
            timeout=timeout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0 or not check, f"{' '.join(words)}: status {done.returncode}\n{done.stdout}"
        return done

    def start(self, log: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command in the launcher's network that prints to the file `log`. It is killed when the lab closes."""
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(*words), env=self.environment(**more), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
            )
        self._started.append(process)
        return process

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of the launcher's commands. Ray keeps what it knows of a cluster in the temporary folders."""
        tmp = str(self.folder / "tmp")
        own = {"HOME": str(self.home), "PATH": f"{BIN}:{SYSTEM_PATH}", "LANG": "C.UTF-8", "TMPDIR": tmp, "RAY_TMPDIR": tmp}
        return {**own, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **more}

    def ssh(self, host: Host, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host that accepts the lab's key."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return self.run("ssh", "-i", str(self.key), *options, f"ubuntu@{host.address}", command, check=check)

    def _ip(self, *commands: str, pid: int | None = None) -> None:
        for command in commands:
            _call("nsenter", f"--net=/proc/{pid or self._network.pid}/ns/net", "ip", *command.split())

    def _plug_in(self, host: Host, more: tuple[str, ...]) -> None:
        """Connect a host that has just started with the bridge."""
        gateway, length = self.gateway.ip, self.gateway.network.prefixlen
        wait_for(lambda: _network_of(host.pid) != _network_of("self"), host.process)
        # A new host at an old address has the same hardware address: neighbours that remember it need not forget.
        hardware = "02:00:" + ip_interface(host.address).packed.hex(":")
        self._ip(f"link add {host.link} type veth peer name eth0 address {hardware} netns {host.pid}")
        self._ip(f"link set {host.link} master bridge up")
        self._ip("link set lo up", f"address add {host.address}/{length} dev eth0", "link set eth0 up", pid=host.pid)
        # Ray asks for the route to the internet to find a node's own address, so there must be one.
        self._ip(f"route add default via {gateway}", pid=host.pid)
        for address in more:
            self._ip(f"address add {address}/32 dev lo", pid=host.pid)
            self._ip(f"route replace {address}/32 via {host.address}")

    def _write_etc(self, etc: Path, name: str, address: str, public_key: str) -> None:
        (etc / "ssh").mkdir(parents=True)
        (etc / "profile.d").mkdir()
        (etc / "hostname").write_text(f"{name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once; others would be waited for
        # Login shells reset PATH and then read this.
        (etc / "profile.d/lab.sh").write_text(f"export PATH={BIN}:$PATH\n")
        (etc / "ssh/lab_authorized_keys").write_text(public_key)
        settings = " ".join(f'"{name}={value}"' for name, value in self.variables.items())
        (etc / "ssh/lab_sshd_config").write_text(f"{SSHD}SetEnv {settings}\n")
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "ssh/lab_host_key"))
        # `ubuntu`, the usual login of launch files, is a second name of root: this Python may lie where only root reads.
        logins = {"passwd": f":*:0:0:lab:{HOME}:/bin/bash", "shadow": ":*:19000:0:99999:7:::"}
        for file, rest in logins.items():
            others = [
                line for line in Path("/etc", file).read_text().splitlines() if line.split(":")[0] not in ("root", "ubuntu")
            ]
            (etc / file).write_text("\n".join([f"root{rest}", f"ubuntu{rest}", *others, ""]))


def _spawn(command: list[str], log: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a process that is killed when this one ends, however it ends."""
    env = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _call(*command: str) -> None:
    done = subprocess.run(command, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _network_of(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _mounts() -> list[str]:
    """The root of the file system, and the other file systems that hold this Python or the project."""
    found = {"/"}
    for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        found.add(str(next(folder for folder in (path, *path.parents) if os.path.ismount(folder))))
    return sorted(found)
