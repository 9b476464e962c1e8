"""The RayJobs: their fields and quantities, and their entrypoints, run here on small data.

Not covered: KubeRay and Kubernetes themselves. Neither runs in these tests.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, cli

TRAIN, SCORE = ROOT / "deploy" / "kuberay" / "train.yaml", ROOT / "deploy" / "kuberay" / "score.yaml"
JOBS = pytest.mark.parametrize("file", [TRAIN, SCORE], ids=["train", "score"])

# The fields of ray.io/v1 in KubeRay's API reference, and the fields of Kubernetes that these files use below them.
FIELDS: dict[str, str] = {
    "": "apiVersion kind metadata spec",
    "metadata": "name namespace labels annotations",
    "spec": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector submitterConfig "
    "managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources entrypointNumCpus "
    "entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
    "spec.rayClusterSpec": "suspend managedBy authOptions autoscalerOptions headServiceAnnotations enableInTreeAutoscaling "
    "gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs",
    "spec.rayClusterSpec.authOptions": "mode secretName enableK8sTokenAuth",
    "spec.rayClusterSpec.autoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode "
    "version env envFrom volumeMounts",
    "spec.rayClusterSpec.headGroupSpec": "template headService enableIngress rayStartParams serviceType",
    "spec.rayClusterSpec.workerGroupSpecs[]": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority "
    "rayStartParams template scaleStrategy numOfHosts",
}
POD: dict[str, str] = {
    "template": "metadata spec",
    "template.spec": "containers serviceAccountName securityContext tolerations affinity nodeSelector",
    "template.spec.containers[]": "name image resources securityContext env envFrom ports volumeMounts lifecycle",
    "template.spec.containers[].resources": "requests limits claims",
    "template.spec.tolerations[]": "key operator value effect tolerationSeconds",
}
UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def load(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


def quantity(value: object) -> float:
    """A Kubernetes quantity, such as 250m or 4Gi, as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi)?", str(value))
    assert found, f"{value} is not a quantity"
    return float(found[1]) * UNITS[found[2] or ""]


def unknown(value: Any, fields: dict[str, str], place: str = "") -> list[str]:
    """The fields of a manifest that its reference does not have, at the places that `fields` names."""
    if isinstance(value, list):
        return [found for part in value for found in unknown(part, fields, f"{place}[]")]
    if not isinstance(value, dict):
        return []
    wrong = [f"{place}.{key}" for key in value if place in fields and key not in fields[place].split()]
    return wrong + [found for key, part in value.items() for found in unknown(part, fields, f"{place}.{key}".lstrip("."))]


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@JOBS
def test_every_field_is_one_of_the_reference(file: Path) -> None:
    job = load(file)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert unknown(job, FIELDS) == []
    assert [found for group in groups(job) for found in unknown(group, POD)] == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxWorkers"] = 3
    assert unknown(job, FIELDS) == ["spec.rayClusterSpec.workerGroupSpecs[].maxWorkers"]


@JOBS
def test_a_cluster_that_starts_small_grows_and_ends(file: Path) -> None:
    spec = load(file)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(isinstance(value, str) for group in groups(load(file)) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert 0 == group["minReplicas"] == group["replicas"] < group["maxReplicas"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]


@JOBS
def test_pods_state_what_they_need_and_have_no_rights(file: Path) -> None:
    job = load(file)
    containers = [container for group in groups(job) for container in group["template"]["spec"]["containers"]]
    for sizes in [
        *(container["resources"] for container in containers),
        job["spec"]["rayClusterSpec"]["autoscalerOptions"]["resources"],
    ]:
        for name in ("cpu", "memory"):
            assert 0 < quantity(sizes["requests"][name]) <= quantity(sizes["limits"][name])
    for container in containers:
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for group in groups(job):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert all(
        quantity(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]).is_integer() for group in workers
    )
    assert not job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].get("tolerations"), (
        "the head avoids spot machines"
    )


@JOBS
def test_ray_understands_the_groups_of_the_autoscaler(file: Path) -> None:
    """Ray's own translation of a RayCluster: a head without CPUs, and workers with those of their limits."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    job = load(file)
    resource = {"metadata": {"name": "cluster", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    types = {name: node_type["resources"] for name, node_type in config["available_node_types"].items()}
    assert types.pop(config["head_node_type"])["CPU"] == 0
    assert {name: found["CPU"] for name, found in types.items()} == {"cpu": 4}


def entrypoint(file: Path, bucket: Path) -> str:
    """The command of a RayJob, with a folder in place of the bucket, and without a cluster."""
    command = str(load(file)["spec"]["entrypoint"])
    assert "s3://BUCKET/" in command
    assert all(word.startswith("s3://BUCKET/") for word in shlex.split(command) if "/" in word), "a bucket holds everything"
    command, found = re.subn(r"--workers \S+", "--workers 0", command.replace("s3://BUCKET", shlex.quote(str(bucket))))
    assert found == 1
    return command


@pytest.mark.long
def test_the_entrypoints_do_their_work_and_can_be_repeated(tmp_path: Path, small_idx: Path, digit_folder: Path) -> None:
    """First as a shell runs them, then once more: that is what a retry in a new cluster does."""
    (tmp_path / "mnist").symlink_to(small_idx)
    (tmp_path / "digits").symlink_to(digit_folder)
    complete = "300 inputs = 300 predicted + 0 quarantined"
    for file, first, again in ((TRAIN, "trained", "is done: nothing to train"), (SCORE, complete, complete)):
        command = entrypoint(file, tmp_path)
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, first in done.stdout) == (0, True), done.stdout + done.stderr
        repeated = cli(*shlex.split(command)[1:])
        assert (repeated.returncode, again in repeated.stdout) == (0, True), repeated.stdout + repeated.stderr
    assert cli("verify", str(tmp_path / "tables" / "first")).returncode == 0
