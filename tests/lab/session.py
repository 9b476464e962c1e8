"""What a user types at the launcher of a lab, printed as a transcript with the seconds of each command."""

import re
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, descendants, wait_for
from tests.lab.hosts import Host, Lab

BUCKET = "digits"
PORT = 5055
JOBS = "http://127.0.0.1:8265"
"""Where `ray dashboard` brings the head's Jobs API to."""
NOISE = re.compile(
    r"\x1b\[[\d;]*m|\r|.*\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\b.*|Shared connection to .* closed\.|^Warning: Perm.*", re.M
)
"""Colours, lines of Ray's log and lines of ssh: what a transcript does without."""


def s3_variables(lab_gateway: str) -> dict[str, str]:
    """The environment variables by which hosts and launcher find the lab's S3 server."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": f"http://{lab_gateway}:{PORT}", "AWS_EC2_METADATA_DISABLED": "true", **keys}


@dataclass(frozen=True)
class Write:
    """An object that a host has written to the bucket, and when."""

    at: float
    host: str
    key: str


class Session:
    """A user at the launcher, with an S3 server beside them that also logs which host wrote what."""

    def __init__(self, lab: Lab, variables: dict[str, str]) -> None:
        self.lab, self.variables = lab, {**variables, "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"}
        self._s3_log = lab.folder / "s3.log"
        lab.start(self._s3_log, "moto_server", "-H", str(lab.gateway.ip), "-p", str(PORT))
        wait_for(lambda: "Running on" in self._s3_log.read_text())
        lab.run("python", "-c", f"import boto3; boto3.client('s3').create_bucket(Bucket='{BUCKET}')", variables=variables)

    def run(self, *words: str, show: str = "", status: int = 0, **more: str) -> str:
        """Run a command, print it with its output and its seconds, and return what it printed.

        Args:
            *words: The command.
            show: Pattern of the lines to print; all lines if empty.
            status: The exit status to require.
            **more: Environment variables.
        """
        began = time.monotonic()
        done = self.lab.run(*words, variables={**self.variables, **more}, check=False)
        self._print(words, done.stdout, show, time.monotonic() - began)
        assert done.returncode == status, done.stdout
        return done.stdout

    def submit(self, *job: str, show: str = "", status: int = 0, **more: str) -> str:
        """Run `ray job submit` to the end of the job."""
        return self.run(*self._submit(job), show=show, status=status, **more)

    def start_job(self, log: Path, *job: str) -> subprocess.Popen[bytes]:
        """Start `ray job submit`, which prints to the file `log`."""
        return self.lab.start(log, *self._submit(job), **self.variables)

    def read(self, key: str) -> str:
        """A text in the bucket."""
        program = f"from mnist_ray.data import storage; print(storage.read('s3://{BUCKET}/{key}').decode(), end='')"
        return self.lab.run("python", "-c", program, variables=self.variables).stdout

    def writes(self, pattern: str) -> list[Write]:
        """The objects written so far whose keys match a pattern, oldest first; a multipart upload counts when it is begun."""
        line = re.compile(r'(\S+) - - \[(.*?)\] "(?:PUT|POST) /' + BUCKET + r"/([^? ]*)(?:\?uploads)? HTTP")
        found = line.findall(self._s3_log.read_text())
        whole = [Write(datetime.strptime(at, "%d/%b/%Y %H:%M:%S").timestamp(), host, key) for host, at, key in found]
        return [write for write in whole if re.search(pattern, write.key)]

    def _submit(self, job: tuple[str, ...]) -> list[str]:
        return ["ray", "job", "submit", "--address", JOBS, "--working-dir", ".", "--", *job]

    def _print(self, words: tuple[str, ...], output: str, show: str, seconds: float) -> None:
        lines = [line for line in NOISE.sub("", output).splitlines() if line.strip() and re.search(show, line)]
        command = " ".join(words).replace(str(self.lab.folder), "~")
        print("\n".join([f"$ {command}", *lines, f"[{seconds:.1f} s]", ""]), flush=True)


class Cluster(Session):
    """A session with a Ray cluster of `deploy/cluster-local.yaml`: a head, and workers with one CPU each."""

    def __init__(self, lab: Lab, variables: dict[str, str], workers: int) -> None:
        super().__init__(lab, variables)
        addresses = [str(lab.gateway.ip + 10 + number) for number in range(workers + 1)]
        self.head, *self.workers = [lab.add(address) for address in addresses]
        self.file = str(lab.folder / "cluster-local.yaml")
        Path(self.file).write_text(yaml.safe_dump(self._launch_file(addresses)))

    def up(self) -> None:
        """Start the cluster, wait until all workers are there, and bring the Jobs API here."""
        self.run("bash", "-c", "umask 077; ray get-auth-token --generate", show="^$")
        self.run("ray", "up", "-y", self.file, show="^$")
        began = time.monotonic()
        try:
            wait_for(lambda: f"/{len(self.workers)}.0 CPU" in self.status())
        except AssertionError:
            logs = "tail -n 60 /tmp/ray/session_latest/logs/monitor.*"
            print(self.status(), self.lab.ssh(self.head, logs, check=False).stdout)
            raise
        print(f"(the last worker has joined)\n[{time.monotonic() - began:.1f} s]\n")
        forward = self.lab.start(self.lab.folder / "dashboard.log", "ray", "dashboard", self.file, **self.variables)
        answers = f"until (: </dev/tcp/127.0.0.1/{JOBS.rpartition(':')[2]}) 2>/dev/null; do sleep 0.1; done"
        self.lab.run("timeout", "60", "bash", "-c", answers)
        assert forward.poll() is None

    def status(self) -> str:
        """What `ray status` says on the head."""
        return self.lab.run("ray", "exec", self.file, "ray status", variables=self.variables, check=False).stdout

    def hosts_of(self, actor: str) -> list[Host]:
        """The workers with a living Ray node on which actors of this class run."""
        title = re.compile(f"ray::_?{actor}")
        return [host for host in self.workers if self.node_id(host) and any(map(title.match, descendants(host.pid).values()))]

    def node_id(self, host: Host) -> str:
        """The id of a host's Ray node, which its main process was started with; empty if there is none."""
        raylets = [command for command in descendants(host.pid).values() if re.match(r"\S*/raylet ", command)]
        return "".join(re.findall(r"--node_id=(\w+)", " ".join(raylets))[:1])

    def ray_processes(self) -> dict[str, list[str]]:
        """The command lines of Ray's processes on each host that has any."""
        found = {host.address: list(descendants(host.pid).values()) for host in (self.head, *self.workers)}
        ray = {address: [line for line in lines if re.match(r"ray::|.*/ray/", line)] for address, lines in found.items()}
        return {address: lines for address, lines in ray.items() if lines}

    def _launch_file(self, addresses: list[str]) -> dict[str, Any]:
        """The project's launch file with this lab's values. Each worker offers one CPU, so that two of them share two cores."""
        file = yaml.safe_load((ROOT / "deploy/cluster-local.yaml").read_text())
        head, *workers = addresses
        file["cluster_name"] = self.lab.folder.name  # connections of Ray's launcher are shared by all clusters of one name
        file["provider"].update(head_ip=head, worker_ips=workers)
        file["auth"]["ssh_private_key"] = str(self.lab.key)
        starts = file["worker_start_ray_commands"]
        file["worker_start_ray_commands"] = [line.replace("ray start", "ray start --num-cpus=1") for line in starts]
        return dict(file)
