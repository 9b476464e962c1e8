"""Wrong buckets, regions, credentials and endpoints: one fault has one status and one line, wherever the URI is given."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import cli, free_port
from tests.objectstore import proxy as px
from tests.objectstore.bucket import Bucket
from tests.objectstore.server import is_ceph

pytestmark = pytest.mark.usefixtures("in_threads", "impatient")

Place = Callable[[str, str, str, str], list[str]]
PLACES: dict[str, Place] = {
    "input": lambda uri, digits, model, tmp: ["score", f"{uri}/in", "--model", model, "--out", tmp, "--workers", "0"],
    "output": lambda uri, digits, model, tmp: ["score", digits, "--model", model, "--out", f"{uri}/out", "--workers", "0"],
    "model": lambda uri, digits, model, tmp: ["score", digits, "--model", f"{uri}/model", "--out", tmp, "--workers", "0"],
    "verify": lambda uri, digits, model, tmp: ["verify", f"{uri}/out"],
    "data": lambda uri, digits, model, tmp: ["train", "--data", f"{uri}/idx", "--out", tmp, "--workers", "0"],
    "run": lambda uri, digits, model, tmp: ["train", "--data", "mnist5k", "--out", f"{uri}/run", "--workers", "0"],
}


def wrong_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    return f"{bucket.uri}-no", "NoSuchBucket"


def wrong_region(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What AWS answers to a signature for another region."""
    message = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'"
    bucket.proxy.fail(px.answer(400, "AuthorizationHeaderMalformed", message))
    return bucket.uri, "AuthorizationHeaderMalformed.*region"


def other_region(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What AWS answers if the bucket is elsewhere."""
    bucket.proxy.fail(px.answer(301, "PermanentRedirect", x_amz_bucket_region="eu-central-1"))
    return bucket.uri, "another region.*AWS_REGION"


def unknown_key(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    bucket.proxy.fail(px.answer(403, "InvalidAccessKeyId"))
    return bucket.uri, "InvalidAccessKeyId.*credentials"


def wrong_secret(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    if is_ceph():
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    else:  # moto does not check signatures
        bucket.proxy.fail(px.answer(403, "SignatureDoesNotMatch"))
    return bucket.uri, "credentials|denied"


def no_permission(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    bucket.proxy.fail(px.answer(403, "AccessDenied"))
    return bucket.uri, "denied"


def no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return bucket.uri, "credentials.*AWS_ACCESS_KEY_ID"


def wrong_endpoint(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    return bucket.uri, "refused"


def unknown_host(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")
    return bucket.uri, "dns|lookup|resolve|not known"


def endpoint_without_scheme(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    return bucket.uri, "AWS_ENDPOINT_URL.*expected http://"


def no_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What s3://$BUCKET/runs becomes if the variable is not set."""
    return "s3://", "cannot reach this storage"


def no_account(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    return "az://runs", "account"


FAULTS = [
    wrong_bucket,
    wrong_region,
    other_region,
    unknown_key,
    wrong_secret,
    no_permission,
    no_credentials,
    wrong_endpoint,
    unknown_host,
    endpoint_without_scheme,
    no_bucket,
    no_account,
]


def _marks(place: str, fault: object) -> list[pytest.MarkDecorator]:
    if place == "input" or fault is wrong_bucket:
        return []
    return [pytest.mark.slow if place == "output" else pytest.mark.long]


CASES = [pytest.param(place, fault, marks=_marks(place, fault)) for place in PLACES for fault in FAULTS]


@pytest.mark.parametrize(("place", "fault"), CASES)
def test_a_storage_that_refuses_is_named_in_one_line(
    place: str,
    fault: Callable[[Bucket, pytest.MonkeyPatch], tuple[str, str]],
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    digit_folder: Path,
    run_dir: Path,
    tmp_path: Path,
) -> None:
    uri, cause = fault(bucket, monkeypatch)
    done = cli(*PLACES[place](uri, str(digit_folder), str(run_dir), str(tmp_path / "out")))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 8, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {uri}"), lines
    assert re.search(f"(?i){cause}", lines[0]), lines
    assert not (tmp_path / "out" / "quarantine").exists()
