"""Faults of a storage in the middle of both jobs. None of them may look like damage of an input.

The quick tests run in this process, with short time limits. The slow ones start the command line as a user does, with the
limits that users have.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.conftest import RayCluster, cli, start_cli
from tests.objectstore import proxy as px
from tests.objectstore.bucket import Bucket
from tests.objectstore.conftest import Inputs
from tests.objectstore.proxy import Proxy, Rule

TRAINING = ["--workers", "0", "--epochs", "3", "--checkpoint-every", "5steps"]
SCORING = ["--workers", "0", "--unit-rows", "25"]


class Reference(NamedTuple):
    """What the jobs write without any fault."""

    weights: bytes
    labels: list[tuple[str, int | None, int]]


def marked(mark: pytest.MarkDecorator, *names: str) -> list[Any]:
    """Values of a parameter whose tests are slow or long."""
    return [pytest.param(name, marks=mark) for name in names]


def train(bucket: Bucket, inputs: Inputs) -> list[str]:
    return ["train", "--data", inputs.idx, "--out", f"{bucket.uri}/run", *TRAINING]


def score(bucket: Bucket, inputs: Inputs, *flags: str) -> list[str]:
    return ["score", inputs.digits, inputs.tables, "--model", inputs.model, "--out", f"{bucket.uri}/out", *SCORING, *flags]


def labels(bucket: Bucket, out: str = "out") -> list[tuple[str, int | None, int]]:
    return [(row["source"], row["row"], row["label"]) for row in bucket.rows(out)]


@pytest.fixture
def reference(bucket: Bucket, new_reference: Callable[[], Reference]) -> Reference:
    return new_reference()


@pytest.fixture(scope="module")
def new_reference(new_bucket: Callable[[], Bucket], inputs: Inputs) -> Callable[[], Reference]:
    """The results without faults, made when first asked for: the environment must lead to the proxy."""
    made: list[Reference] = []

    def make() -> Reference:
        if not made:
            bucket = new_bucket()
            for command in (train(bucket, inputs), score(bucket, inputs)):
                done = cli(*command)
                assert done.returncode == 0, done.stderr
            made.append(Reference(bucket.get("run/model/weights.safetensors"), labels(bucket)))
        return made[0]

    return make


def check_score(bucket: Bucket, reference: Reference) -> None:
    """Every input is predicted as without faults, and the table can be verified."""
    summary = bucket.json("out/summary.json")
    assert (summary["quarantined"], summary["reasons"]) == (0, {})
    assert labels(bucket) == reference.labels
    verified = cli("verify", f"{bucket.uri}/out")
    assert verified.returncode == 0, verified.stderr


def check_train(bucket: Bucket, reference: Reference) -> None:
    """The run learned what it learns without faults."""
    assert bucket.get("run/model/weights.safetensors") == reference.weights
    assert bucket.json("run/metrics.json")["samples_seen"] == 1800


Break = Callable[[Proxy], Rule]
PASSING: dict[str, Break] = {
    "none": lambda proxy: proxy.fail(px.pass_on),
    "503 to every third GET": lambda proxy: proxy.fail(px.answer(503, "SlowDown"), "GET", every=3),
    "500 to every fourth": lambda proxy: proxy.fail(px.answer(500, "InternalError"), every=4),
    "429 to every third": lambda proxy: proxy.fail(px.answer(429, "TooManyRequests"), every=3),
    "reset of every fourth": lambda proxy: proxy.fail(px.reset, every=4),
    "reset in the body of every third GET": lambda proxy: proxy.fail(px.reset_in_body, "GET", every=3),
    "every third body cut": lambda proxy: proxy.fail(px.cut, "GET", every=3),
    "503 to every second PUT": lambda proxy: proxy.fail(px.answer(503, "SlowDown"), "PUT|POST", every=2),
    "reset of every second PUT": lambda proxy: proxy.fail(px.reset, "PUT|POST", every=2),
    "lost answer to every second PUT": lambda proxy: proxy.fail(px.lose_answer, "PUT|POST", every=2),
    "expired credentials (400)": lambda proxy: proxy.outage(px.answer(400, "ExpiredToken"), 30, seconds=0.6),
    "expired credentials (403)": lambda proxy: proxy.outage(px.answer(403, "ExpiredToken"), 30, seconds=0.6),
    "denied for a moment": lambda proxy: proxy.fail(px.answer(403, "AccessDenied"), "GET", r"digits/.*\.png", every=4, times=9),
    "no answer": lambda proxy: proxy.outage(px.silence, 30, seconds=0.5),
    "slow answers": lambda proxy: proxy.fail(px.slow(0.5), "GET", every=20),
}


SLOW = ["503 to every third GET", "lost answer to every second PUT", "expired credentials (403)", "no answer"]
LONG = [name for name in PASSING if name not in (*SLOW, "denied for a moment")]


@pytest.mark.usefixtures("in_threads", "short_requests")
@pytest.mark.parametrize(
    "fault",
    ["denied for a moment", *marked(pytest.mark.slow, *SLOW), *marked(pytest.mark.long, *LONG)],
)
def test_scoring_waits_for_a_fault_to_pass(fault: str, bucket: Bucket, inputs: Inputs, reference: Reference) -> None:
    rule = PASSING[fault](bucket.proxy)
    done = cli(*score(bucket, inputs))
    bucket.proxy.heal()
    assert done.returncode == 0, done.stderr
    assert rule.hits
    check_score(bucket, reference)


@pytest.mark.usefixtures("in_threads", "short_requests")
@pytest.mark.parametrize(
    "fault",
    [
        "503 to every second PUT",
        *marked(pytest.mark.slow, "503 to every third GET"),
        *marked(pytest.mark.long, "every third body cut", "reset of every fourth", "no answer"),
    ],
)
def test_training_waits_for_a_fault_to_pass(fault: str, bucket: Bucket, inputs: Inputs, reference: Reference) -> None:
    rule = PASSING[fault](bucket.proxy)
    done = cli(*train(bucket, inputs))
    bucket.proxy.heal()
    assert done.returncode == 0, done.stderr
    assert rule.hits
    check_train(bucket, reference)


@pytest.mark.usefixtures("in_threads", "impatient")
@pytest.mark.parametrize(
    "fault", [*marked(pytest.mark.slow, "dead", "denied"), *marked(pytest.mark.long, "silent", "503", "key deleted")]
)
def test_scoring_stops_if_a_fault_stays(fault: str, bucket: Bucket, inputs: Inputs, reference: Reference) -> None:
    """It ends with status 8 and has quarantined nothing. With --resume it completes."""
    actions: dict[str, px.Action] = {
        "dead": bucket.proxy.die,
        "silent": px.silence,
        "503": px.answer(503, "SlowDown"),
        "denied": px.answer(403, "AccessDenied"),
        "key deleted": px.answer(403, "InvalidAccessKeyId"),
    }
    bucket.proxy.outage(actions[fault], 60, rf"{inputs.bucket.name}/digits/.*\.png")
    done = cli(*score(bucket, inputs))
    bucket.proxy.revive()
    assert done.returncode == 8, done.stderr
    assert "error: s3://" in done.stderr
    assert not bucket.keys("out/quarantine")
    assert "--resume" in done.stderr
    resumed = cli(*score(bucket, inputs, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    check_score(bucket, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("in_threads", "impatient")
def test_training_stops_if_a_fault_stays(bucket: Bucket, inputs: Inputs, reference: Reference) -> None:
    """It ends with status 8. The same command completes the run."""
    bucket.proxy.outage(bucket.proxy.die, 2, f"{bucket.name}/run/checkpoints/.*state.pt")
    done = cli(*train(bucket, inputs))
    bucket.proxy.revive()
    assert done.returncode == 8, done.stderr
    assert "run the same command again" in done.stderr
    assert len(bucket.keys("run/checkpoints")) == 2
    resumed = cli(*train(bucket, inputs))
    assert resumed.returncode == 0, resumed.stderr
    check_train(bucket, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("in_threads", "impatient")
def test_the_table_of_an_outage_is_not_called_damaged(bucket: Bucket, inputs: Inputs, reference: Reference) -> None:
    """Neither `verify` nor --resume advises to delete anything because the storage is away."""
    assert cli(*score(bucket, inputs)).returncode == 0
    bucket.proxy.fail(px.answer(503, "SlowDown"))
    for command in (["verify", f"{bucket.uri}/out"], score(bucket, inputs, "--resume")):
        done = cli(*command)
        assert done.returncode == 8, done.stderr
        assert re.search("SlowDown|503", done.stderr)
        assert "damaged" not in done.stderr
        assert "delete" not in done.stderr
        assert "--overwrite" not in done.stderr
    for folder, action in (("predictions", px.answer(503, "SlowDown")), ("plan", px.answer(403, "AccessDenied"))):
        bucket.proxy.heal()
        bucket.proxy.fail(action, "GET", f"/out/{folder}/")
        for command in (["verify", f"{bucket.uri}/out"], score(bucket, inputs, "--resume")):
            done = cli(*command)
            assert (done.returncode, "delete" in done.stderr, "--overwrite" in done.stderr) == (8, False, False), done.stderr


@pytest.mark.usefixtures("in_threads", "impatient")
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidObjectState"])
def test_an_object_without_permission_is_quarantined(code: str, bucket: Bucket, inputs: Inputs) -> None:
    """S3 gives the second answer for an archived object."""
    denied = inputs.bucket.keys("digits/")[3]
    bucket.proxy.fail(px.answer(403, code), target=denied)
    done = cli("score", inputs.digits, "--model", inputs.model, "--out", f"{bucket.uri}/out", *SCORING)
    assert done.returncode == 0, done.stderr
    found = [(row["source"], row["reason"]) for row in bucket.rows("out", "quarantine")]
    assert found == [(f"{inputs.bucket.uri}/{denied}", "unreadable")]
    assert bucket.json("out/summary.json")["predicted"] == inputs.num_digits - 1


@pytest.mark.usefixtures("in_threads", "impatient")
def test_a_deleted_object_is_missing(bucket: Bucket, inputs: Inputs) -> None:
    """It was listed, and is gone when its unit is read. Its rows are missing if it is a Parquet file."""
    for key in (*inputs.bucket.keys("digits/")[:3], "tables/a.parquet"):
        bucket.put(key, inputs.bucket.get(key))
    command = ["score", bucket.uri, "--model", inputs.model, "--out", f"{inputs.bucket.uri}/{bucket.name}", *SCORING]
    assert cli(*command).returncode == 0
    for part in inputs.bucket.keys(f"{bucket.name}/predictions/"):
        inputs.bucket.delete(part)
    gone = [bucket.keys("digits/")[0], "tables/a.parquet"]
    for key in gone:
        bucket.delete(key)
    done = cli(*command, "--resume")
    assert done.returncode == 0, done.stderr
    rows = inputs.bucket.rows(bucket.name, "quarantine")
    assert {(row["source"], row["reason"]) for row in rows} == {(f"{bucket.uri}/{key}", "missing") for key in gone}
    assert len(rows) == 1 + inputs.num_rows // 3


@pytest.mark.usefixtures("in_threads", "impatient")
def test_a_job_without_any_readable_input_is_an_error(bucket: Bucket, inputs: Inputs) -> None:
    manifest = bucket.put("list.txt", "\n".join(f"{bucket.uri}/{name}.png" for name in range(10)).encode())
    done = cli("score", manifest, "--model", inputs.model, "--out", f"{bucket.uri}/out", *SCORING)
    assert done.returncode == 9, done.stderr
    assert "missing" in done.stderr


REAL: dict[str, Break] = {
    **{name: PASSING[name] for name in ("none", "503 to every third GET", "503 to every second PUT", "every third body cut")},
    "no answer for 15 s": lambda proxy: proxy.outage(px.silence, 50, seconds=15),
    "refused for 15 s": lambda proxy: proxy.outage(px.reset, 50, seconds=15),
}


def run(command: list[str], timeout_s: float = 400) -> tuple[int, str]:
    """The exit status and the messages of a process of its own."""
    job = start_cli(*command)
    try:
        _, said = job.communicate(timeout=timeout_s)
    finally:
        job.kill()
        job.communicate()
    return job.returncode, said


@pytest.mark.parametrize(
    "fault",
    [
        *marked(pytest.mark.slow, "503 to every third GET"),
        *marked(pytest.mark.long, *(name for name in REAL if name != "503 to every third GET")),
    ],
)
@pytest.mark.parametrize("job", [train, score])
def test_a_process_waits_for_a_fault_to_pass(
    job: Callable[..., list[str]], fault: str, bucket: Bucket, inputs: Inputs, reference: Reference
) -> None:
    rule = REAL[fault](bucket.proxy)
    status, said = run(job(bucket, inputs))
    bucket.proxy.heal()
    assert status == 0, said
    assert rule.hits
    (check_train if job is train else check_score)(bucket, reference)


@pytest.mark.parametrize("job", [pytest.param(train, marks=pytest.mark.long), pytest.param(score, marks=pytest.mark.slow)])
def test_a_process_stops_within_two_minutes_of_an_outage(
    job: Callable[..., list[str]], bucket: Bucket, inputs: Inputs, reference: Reference
) -> None:
    bucket.proxy.outage(bucket.proxy.die, 50)
    status, said = run(job(bucket, inputs), timeout_s=120)
    bucket.proxy.revive()
    assert status == 8, said
    resumed = score(bucket, inputs, "--resume") if job is score else train(bucket, inputs)
    status, said = run(resumed)
    assert status == 0, said
    (check_train if job is train else check_score)(bucket, reference)


@pytest.fixture(scope="module")
def s3_cluster(s3_environment: dict[str, str]) -> Any:
    """A Ray cluster whose nodes have the variables of the storage."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        cluster = RayCluster()
    yield cluster
    cluster.stop()


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    ["no answer for 15 s", "none", "503 to every third GET"],
)
def test_a_ray_cluster_waits_for_a_fault_to_pass(
    fault: str, s3_cluster: RayCluster, bucket: Bucket, inputs: Inputs, reference: Reference
) -> None:
    on_ray = ["--workers", "2", "--address", s3_cluster.address]
    for job, check in ((train, None), (score, partial(check_score, bucket, reference))):
        rule = REAL[fault](bucket.proxy)
        status, said = run([*job(bucket, inputs), *on_ray])
        bucket.proxy.heal()
        assert status == 0, said
        assert rule.hits
        if check:
            check()
    assert bucket.json("run/metrics.json")["samples_seen"] == 1800


@pytest.mark.long
def test_a_ray_cluster_stops_if_a_fault_stays(
    s3_cluster: RayCluster, bucket: Bucket, inputs: Inputs, reference: Reference
) -> None:
    on_ray = ["--workers", "2", "--address", s3_cluster.address]
    for job, resume in ((train, []), (score, ["--resume"])):
        bucket.proxy.outage(bucket.proxy.die, 50)
        status, said = run([*job(bucket, inputs), *on_ray], timeout_s=180)
        bucket.proxy.revive()
        assert status == 8, said
        assert not bucket.keys("out/quarantine")
        status, said = run([*job(bucket, inputs), *on_ray, *resume])
        assert status == 0, said
    check_score(bucket, reference)
