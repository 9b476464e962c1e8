"""Two jobs for one folder of a bucket, at the same moment."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from mnist_ray.errors import OutputError
from mnist_ray.run.owner import Owner, owning
from tests.conftest import start_cli
from tests.objectstore import proxy as px
from tests.objectstore.bucket import Bucket
from tests.objectstore.conftest import Inputs

OWNER = "PUT|POST", r"owner\.json"


Claim = Callable[[str], Owner | OutputError]


@pytest.fixture
def claim() -> Iterator[Claim]:
    """A function that returns the owner that a new job becomes, or why it does not. An owner lives until the test ends."""
    with ExitStack() as stack:

        def start(run: str) -> Owner | OutputError:
            try:
                return stack.enter_context(owning(Owner(run)))
            except OutputError as error:
                return error

        yield start


def check_one_owner(found: list[Owner | OutputError], bucket: Bucket) -> None:
    owners = [owner for owner in found if isinstance(owner, Owner)]
    assert len(owners) == 1
    assert bucket.json("run/owner.json")["token"] == owners[0].token


@pytest.mark.parametrize("jobs", [2, 5])
def test_one_of_several_jobs_becomes_the_owner(jobs: int, claim: Claim, bucket: Bucket) -> None:
    """All of them see a free folder, and write their records at the same moment."""
    rule = bucket.proxy.fail(px.together(jobs), *OWNER, times=jobs)
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(claim, [f"{bucket.uri}/run"] * jobs))
    assert rule.hits == jobs
    check_one_owner(found, bucket)


@pytest.mark.usefixtures("impatient")
def test_one_of_two_jobs_takes_over_from_a_dead_one(claim: Claim, bucket: Bucket) -> None:
    dead = {"token": "0", "pid": 1, "place": "another machine", "began": "yesterday", "beats": 7, "stop": False}
    bucket.put("run/owner.json", json.dumps(dead).encode())
    bucket.proxy.fail(px.together(2), *OWNER, times=2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(claim, [f"{bucket.uri}/run"] * 2))
    check_one_owner(found, bucket)


def test_a_record_whose_answer_is_lost_is_still_the_owners(bucket: Bucket) -> None:
    """The server has stored the record. The second try finds a record, and it is this job's own."""
    rule = bucket.proxy.fail(px.lose_answer, *OWNER, times=1)
    with owning(Owner(f"{bucket.uri}/run")) as owner:
        assert rule.hits == 1
        assert bucket.json("run/owner.json")["token"] == owner.token
    assert bucket.json("run/owner.json")["ended"]


@pytest.mark.slow
def test_an_owner_keeps_its_run_through_an_outage(claim: Claim, bucket: Bucket) -> None:
    """Its record does not change for a while. A job that starts then must not take it for dead."""
    first = claim(f"{bucket.uri}/run")
    assert isinstance(first, Owner)
    bucket.proxy.fail(px.answer(503, "SlowDown"), *OWNER)
    time.sleep(4)
    bucket.proxy.heal()
    assert isinstance(claim(f"{bucket.uri}/run"), OutputError)
    first.require()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    "command", [pytest.param("train", marks=pytest.mark.long), pytest.param("score", marks=pytest.mark.slow)]
)
def test_of_two_processes_that_start_together_one_works(
    command: str, bucket: Bucket, inputs: Inputs, processes: ExitStack
) -> None:
    bucket.proxy.fail(px.together(2), *OWNER, times=2)
    bucket.proxy.fail(px.slow(5), "GET", "digits/.*png", times=1)  # so that the one that works is not done too soon
    flags = {
        "train": ["--data", inputs.idx, "--epochs", "20", "--out", f"{bucket.uri}/run"],
        "score": [inputs.digits, "--model", inputs.model, "--out", f"{bucket.uri}/run"],
    }[command]
    jobs = [start_cli(command, *flags, "--workers", "0") for _ in range(2)]
    for job in jobs:
        processes.callback(job.kill)
    ended = [job.communicate(timeout=300) for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 5], ended
    said = next(said for job, (_, said) in zip(jobs, ended, strict=True) if job.returncode)
    assert "is writing here" in said
