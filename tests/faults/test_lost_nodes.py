"""A node that is lost while a job scores: one line says so, nothing is lost, and Ray's reports stay out of the output."""

from pathlib import Path

import pytest

from tests.conftest import RayCluster, cli, start_cli, wait_for

pytestmark = pytest.mark.long


def test_a_node_lost_while_scoring_is_one_line(digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    cluster, out = RayCluster(cpus=1), tmp_path / "out"
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(digit_folder.rglob("*.png")) * 300))
    try:
        cluster.add_node(1)
        flags = ["--model", str(run_dir), "--out", str(out), "--workers", "1:2", "--unit-rows", "300"]
        job = start_cli("score", str(tmp_path / "list.txt"), *flags, "--address", cluster.address)
        wait_for(lambda: len(list(out.glob("predictions/part-*"))) >= 20, job)
        cluster.kill_node()
        printed, said = job.communicate(timeout=400)
    finally:
        cluster.stop()
    assert job.returncode == 0, said
    assert printed.count("with 1 CPUs and 0 GPUs: it failed; units that its actors had not finished are scored again") == 1
    assert not [line for line in (printed + said).splitlines() if "(raylet)" in line or "state-dump" in line]
    assert cli("verify", str(out)).returncode == 0
