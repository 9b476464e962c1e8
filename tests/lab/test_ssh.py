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
from pathlib import Path
from subprocess import Popen

import pytest

from tests.conftest import wait_for
from tests.lab.hosts import Host, Lab
from tests.lab.session import BUCKET, Cluster, s3_variables

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


FAULTS = (cut, kill, preempt)


def strike(
    fault: Callable[[Cluster, Host], threading.Timer], cluster: Cluster, job: Job, process: Popen[bytes]
) -> threading.Timer:
    """Let a fault hit a host that works for the job. Waits until two others do, and prints what was lost."""
    victim = cluster.hosts_of(job.actor)[0]
    began = time.time()
    later = fault(cluster, victim)
    later.start()
    if fault is preempt:
        wait_for(lambda: victim not in cluster.hosts_of(job.actor), process)
    lost = time.time()
    saved = [write.at for write in cluster.writes(job.progress) if job.shared or write.host == victim.address]
    wait_for(lambda: len([host for host in cluster.hosts_of(job.actor) if host != victim]) == 2, process)
    again = time.time()
    wait_for(lambda: cluster.writes(job.progress)[-1].at > again, process)
    print(
        f"{fault.__name__} {victim.address}: {max(0.0, lost - saved[-1]):.0f} s of work lost (at most); worker gone after "
        f"{lost - began:.0f} s, two others run after {again - began:.0f} s, next file after {time.time() - began:.0f} s",
        flush=True,
    )
    return later


def survive(cluster: Cluster, job: Job) -> None:
    """Run a job through all faults to its end."""
    log = cluster.lab.folder / "job.log"
    process = cluster.start_job(log, *job.flags)
    try:
        wait_for(lambda: len(cluster.writes(job.progress)) > 2, process)
        timers = [strike(fault, cluster, job, process) for fault in FAULTS]
        assert process.wait(400) == 0
    except BaseException:
        print(log.read_text())
        raise
    for timer in timers:
        timer.join()


def test_training_loses_no_sample_with_its_hosts() -> None:
    flags = [*TRAIN, "--epochs", "15", "--checkpoint-every", "20steps", "--out", f"s3://{BUCKET}/run"]
    with cluster_of(4) as cluster:
        cluster.up()
        survive(cluster, Job(flags, "RayTrainWorker", "^run/checkpoints/.*/commit.json", shared=True))
        epochs = [json.loads(line) for line in cluster.read("run/history.jsonl").splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 16))
    assert sum(epoch["train_samples"] for epoch in epochs) == 15 * 4500


def test_scoring_loses_and_doubles_no_input_with_its_hosts(run_dir: Path) -> None:
    with cluster_of(4) as cluster:
        cluster.up()
        digits, table = f"s3://{BUCKET}/digits", f"s3://{BUCKET}/table"
        cluster.run("python", "jobs/write_digits.py", "--data", "mnist5k", "--out", digits)
        program = "import sys; from mnist_ray.data import storage; storage.write(sys.argv[1], sys.stdin.buffer.read())"
        keys = [f"s3://{BUCKET}/{write.key}" for write in cluster.writes("^digits/.*png")]
        assert len(keys) == 500
        listing = cluster.lab.folder / "list.txt"
        listing.write_text("\n".join(keys * 24))
        cluster.run("bash", "-c", f"python -c '{program}' s3://{BUCKET}/list.txt < {listing}", show="^$")
        flags = [*SCORE, f"s3://{BUCKET}/list.txt", "--model", str(run_dir), "--out", table, "--unit-rows", "40"]
        survive(cluster, Job(flags, "MapWorker", "^table/predictions/", shared=False))
        assert "every one of 12,000 inputs is there exactly once" in cluster.run("mnist-ray", "verify", table)
