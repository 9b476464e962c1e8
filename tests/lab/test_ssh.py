"""deploy/cluster-local.yaml on hosts with SSH, from `ray up` to a table in a bucket, and with hosts that fail meanwhile.

Not proven here: several real machines (all hosts share two cores, a kernel and a disk), the installation of packages on a
bare machine (hosts see this machine's), GPUs, and a network that is slow or loses single packets.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import descendants, wait_for
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


def test_from_ray_up_to_a_table_in_a_bucket() -> None:
    with cluster_of(2) as cluster:
        cluster.up()
        refused = cluster.submit(*TRAIN, show="Authentication|Token authentication", status=1, RAY_AUTH_MODE="disabled")
        assert "Authentication required: Unauthorized: Missing authentication token" in refused
        wrong = cluster.submit(*TRAIN, show="Authentication failed", status=1, RAY_AUTH_TOKEN="0" * 64)
        assert "Invalid authentication token" in wrong
        run, digits, table = (f"s3://{BUCKET}/{name}" for name in ("run", "digits", "table"))
        cluster.submit(*TRAIN, "--epochs", "4", "--out", run)
        ranks = json.loads(cluster.read("run/metrics.json"))["workers"]
        assert ranks == 2
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
