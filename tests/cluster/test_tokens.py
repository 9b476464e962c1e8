"""Tokens: who is let in, and what a job says at once that is not."""

import os
import time
from pathlib import Path

import pytest

from mnist_ray.cluster import address, runtime
from mnist_ray.errors import ClusterError
from tests.conftest import RayCluster, start_cli

ASKS = "asks for a token: set RAY_AUTH_MODE=token; put the cluster's token in RAY_AUTH_TOKEN"
NONE = "RAY_AUTH_MODE=token, but there is no token: put the cluster's token in RAY_AUTH_TOKEN"
WRONG = "refuses the token of this process; put the cluster's token in RAY_AUTH_TOKEN"
LET_IN = "--workers 64: the cluster has 2 CPUs"


def _said(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, token: str) -> str:
    """The one error line of a job that the cluster refuses, if not for its token then for its size."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    flags = [
        "--data",
        "mnist5k",
        "--workers",
        "64",
        "--global-batch-size",
        "2048",
        "--out",
        str(tmp_path / "run"),
        "--address",
        place,
    ]
    job = start_cli("train", *flags)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 7, said
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("mode", "token", "expected"),
    [
        ("", "", ASKS),
        ("token", "0" * 64, WRONG),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("", "its own", ASKS), ("token", "", NONE), ("token", "its own", LET_IN))
        ),
    ],
)
def test_a_cluster_with_a_token(
    mode: str, token: str, expected: str, ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = os.environ["RAY_AUTH_TOKEN"] if token == "its own" else token
    assert expected in _said(ray_cluster.address, tmp_path, monkeypatch, mode, token)


@pytest.mark.slow
def test_a_cluster_without_a_token_lets_everyone_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = RayCluster(RAY_AUTH_MODE="disabled")
    try:
        assert LET_IN in _said(cluster.address, tmp_path, monkeypatch, "token", "0" * 64)
    finally:
        cluster.stop()


def test_a_port_that_does_not_speak_grpc_is_named(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port of the dashboard, which users confuse with the port of the cluster."""
    monkeypatch.setattr(address, "PROBE_S", 1.0)
    start = time.monotonic()
    with (
        pytest.raises(ClusterError, match="this is the port of Ray's dashboard"),
        runtime.cluster(ray_cluster.jobs_address[7:]),
    ):
        pass
    assert time.monotonic() - start < 60
