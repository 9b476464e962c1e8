"""deploy/cluster-local.yaml on hosts with SSH, from `ray up` to a table in a bucket, and with hosts that fail meanwhile.

Not proven here: several real machines (all hosts share two cores, a kernel and a disk), the installation of packages on a
bare machine (hosts see this machine's), GPUs, and a network that is slow or loses single packets.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.lab.hosts import Host, Lab
from tests.lab.session import BUCKET, Cluster, Write, s3_variables

pytestmark = pytest.mark.slow

# The head checks its nodes every second instead of every three, so that a lost node is noticed sooner.
HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3", "OMP_NUM_THREADS": "1"}
TRAIN = ["python", "jobs/train.py", "--data", "mnist5k", "--workers", "2"]
SCORE = ["python", "jobs/score.py", "--workers", "2"]
CUT_S = 60
NOTICE_S = 30


@contextmanager
def cluster_of(workers: int) -> Iterator[Cluster]:
    variables = s3_variables("10.66.0.1")
    with Lab(variables={**variables, **HEALTH}) as lab:
        yield Cluster(lab, variables, workers)


def test_from_ray_up_to_a_table_in_a_bucket() -> None:
    with cluster_of(2) as cluster:
        cluster.up()
        refused = cluster.submit(*TRAIN, show="Authentication|Token authentication", status=1, RAY_AUTH_MODE="disabled")
        assert "Authentication required: Unauthorized: Missing authentication token" in refused
        wrong = cluster.submit(*TRAIN, show="Authentication failed", status=1, RAY_AUTH_TOKEN="0" * 64)
        assert "Invalid authentication token" in wrong
        run, digits, table = (f"s3://{BUCKET}/{name}" for name in ("run", "digits", "table"))
        cluster.submit(*TRAIN, "--epochs", "4", "--out", run)
        assert json.loads(cluster.read("run/metrics.json"))["workers"] == 2
        cluster.run("python", "jobs/write_digits.py", "--data", "mnist5k", "--out", digits)
        cluster.submit(*SCORE, digits, "--model", run, "--out", table, "--unit-rows", "25")
        assert {write.host for write in cluster.writes("^table/predictions/")} == {host.address for host in cluster.workers}
        assert "every one of 500 inputs is there exactly once" in cluster.run("mnist-ray", "verify", table)
        cluster.run("ray", "down", "-y", cluster.file)
        left = cluster.ray_processes()
        print(f"(Ray still runs on {', '.join(left)})\n")
        assert set(left) == {host.address for host in cluster.workers}, "ray down ends workers now: simplify the stop command"
        cluster.run("deploy/stop-local.sh", cluster.file)
        assert not cluster.ray_processes()


@dataclass(frozen=True)
class Job:
    """A job with two workers: the class of its actors, and the files that show its progress."""

    flags: list[str]
    actor: str
    progress: str
    shared: bool
    """Whether a file holds the progress of all workers, and not of the one that writes it."""


def cut(cluster: Cluster, host: Host) -> threading.Timer:
    """Pull the network cable, and plug it in again after a minute."""
    cluster.lab.connect(host, False)
    return threading.Timer(CUT_S, cluster.lab.connect, (host, True))


def kill(cluster: Cluster, host: Host) -> threading.Timer:
    """Take the power away."""
    cluster.lab.remove(host)
    return threading.Timer(0, lambda: None)


def preempt(cluster: Cluster, host: Host) -> threading.Timer:
    """Give notice as a cloud does before it takes a spot machine, and then take it."""
    why = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    left = f"--deadline-remaining-seconds {NOTICE_S}"
    cluster.run("ray", "exec", cluster.file, f"ray drain-node --node-id {cluster.node_id(host)} {why} {left}", show="^$")
    return threading.Timer(NOTICE_S, cluster.lab.remove, (host,))


Fault = Callable[[Cluster, Host], threading.Timer]
"""Hits a host at once. Returns what happens to it later."""
FAULTS: tuple[Fault, ...] = (cut, kill, preempt)


class Ordeal:
    """A job under faults, each of which hits another host that works for it."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.cluster, self.job = cluster, job
        self._log = cluster.lab.folder / "job.log"
        self._process = cluster.start_job(self._log, *job.flags)
        self._struck: set[str] = set()
        self._later: list[threading.Timer] = []

    def endure(self) -> None:
        """See the job through all faults to its end."""
        try:
            wait_for(lambda: len(self._saved()) > 2 and len(self._working()) == 2, self._process)
            for fault in FAULTS:
                self._strike(fault)
            assert self._process.wait(400) == 0
        except BaseException:
            for timer in self._later:
                timer.cancel()
            print(self._log.read_text())
            raise
        for timer in self._later:
            timer.join()

    def _strike(self, fault: Fault) -> None:
        """Let a fault hit a host. Waits until two others work and have saved something, and prints what was lost."""
        wait_for(self._candidates, self._process)
        victim = self._candidates()[0]
        self._struck.add(self.cluster.node_id(victim))
        began = time.time()
        self._later.append(fault(self.cluster, victim))
        self._later[-1].start()
        if fault is preempt:
            wait_for(lambda: victim not in self.cluster.hosts_of(self.job.actor), self._process)
        gone = time.time()
        repeated = self._work_since_the_last_file(victim, gone)
        wait_for(lambda: len(self._working()) == 2, self._process)
        again = time.time()
        wait_for(lambda: self._saved()[-1].at > again, self._process)
        print(
            f"{fault.__name__} {victim.address}: at most {repeated:.0f} s of work lost; its worker ended after "
            f"{gone - began:.0f} s, two others run after {again - began:.0f} s, the next file is saved after "
            f"{time.time() - began:.0f} s",
            flush=True,
        )

    def _working(self) -> list[Host]:
        """The hosts that work for the job. A host whose cable was pulled counts again when it has a new Ray node."""
        hosts = self.cluster.hosts_of(self.job.actor)
        return [host for host in hosts if self.cluster.node_id(host) not in self._struck]

    def _candidates(self) -> list[Host]:
        """The hosts whose own work can be measured: two files of theirs are saved."""
        return [host for host in self._working() if len(self._times(host)) > 1]

    def _times(self, host: Host) -> list[float]:
        """When the files that show the progress of a host were saved."""
        return [write.at for write in self._saved() if self.job.shared or write.host == host.address]

    def _saved(self) -> list[Write]:
        return self.cluster.writes(self.job.progress)

    def _work_since_the_last_file(self, victim: Host, end: float) -> float:
        """Seconds since the victim's last file, but not more than it has ever needed for one."""
        times = self._times(victim)
        needed = [after - before for before, after in pairwise(times)]
        return max(0.0, min(end - times[-1], max(needed)))


@pytest.mark.long
def test_training_loses_no_sample_with_its_hosts() -> None:
    flags = [*TRAIN, "--epochs", "90", "--checkpoint-every", "50steps", "--out", f"s3://{BUCKET}/run"]
    with cluster_of(4) as cluster:
        cluster.up()
        Ordeal(cluster, Job(flags, "RayTrainWorker", "^run/checkpoints/.*/commit.json", shared=True)).endure()
        epochs = [json.loads(line) for line in cluster.read("run/history.jsonl").splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 91))
    assert sum(epoch["train_samples"] for epoch in epochs) == 90 * 4500


@pytest.mark.long
def test_scoring_loses_and_doubles_no_input_with_its_hosts(run_dir: Path) -> None:
    with cluster_of(4) as cluster:
        cluster.up()
        digits, table = f"s3://{BUCKET}/digits", f"s3://{BUCKET}/table"
        cluster.run("python", "jobs/write_digits.py", "--data", "mnist5k", "--out", digits)
        program = "import sys; from mnist_ray.data import storage; storage.write(sys.argv[1], sys.stdin.buffer.read())"
        keys = [f"s3://{BUCKET}/{write.key}" for write in cluster.writes("^digits/.*png")]
        assert len(keys) == 500
        listing = cluster.lab.folder / "list.txt"
        listing.write_text("\n".join(keys * 64))
        cluster.run("bash", "-c", f"python -c '{program}' s3://{BUCKET}/list.txt < {listing}", show="^$")
        flags = [*SCORE, f"s3://{BUCKET}/list.txt", "--model", str(run_dir), "--out", table, "--unit-rows", "40"]
        Ordeal(cluster, Job(flags, "MapWorker", "^table/predictions/", shared=False)).endure()
        assert "every one of 32,000 inputs is there exactly once" in cluster.run("mnist-ray", "verify", table)
