"""The launch files, as far as they can be judged without a cloud: Ray's own checks, the lint, and the versions they name.

Not covered: that a provider accepts them. The launchers' own tests run `ray up` on emulated machines.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from mnist_ray import __version__
from mnist_ray.cluster.launch import RULES, lint, placeholders
from tests.conftest import ROOT

AWS, GCP, LOCAL = "cluster.yaml", "deploy/cluster-gcp.yaml", "deploy/cluster-local.yaml"
TRAIN, SCORE = "deploy/kuberay/train.yaml", "deploy/kuberay/score.yaml"
UP, JOBS = (AWS, GCP, LOCAL), (TRAIN, SCORE)
HEAD, WORKERS = "head_start_ray_commands", "worker_start_ray_commands"
REMOVED: Any = object()

Change = Callable[[Any], Any]


def load(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / file).read_text()))


def changed(file: str, place: str, change: Any) -> dict[str, Any]:
    """A launch file with another value at one place, such as `spec.groups.0.name`; a function makes it from the old value."""
    config: Any = json.loads(json.dumps(load(file)))  # without parts that YAML aliases share
    *path, last = place.split(".")
    inside = config
    for key in path:
        inside = inside[int(key)] if isinstance(inside, list) else inside[key]
    if change is REMOVED:
        del inside[last]
    else:
        inside[last] = change(inside[last]) if callable(change) else change
    return dict(config)


def swap(old: str, new: str) -> Change:
    """Replace a piece of a list of commands. It must be there."""

    def change(commands: list[str]) -> list[str]:
        assert any(old in command for command in commands)
        return [command.replace(old, new) for command in commands]

    return change


def more(command: str) -> Change:
    return lambda commands: [*commands, command]


HEAD_NODE, SPOT_NODE = "available_node_types.head.node_config", "available_node_types.cpu-spot.node_config"
CLUSTER = "spec.rayClusterSpec"
HEAD_POD, WORKER_POD = f"{CLUSTER}.headGroupSpec.template.spec", f"{CLUSTER}.workerGroupSpecs.0.template.spec"
BROKEN: list[tuple[str, str, Any, str]] = [
    # file, place, change, a part of the expected problem
    *[(file, "available_node_types.head.resources.CPU", 2, "head.resources: work on the head") for file in (AWS, GCP)],
    (AWS, "available_node_types.head.resources", {}, "head.resources: work on the head"),
    (LOCAL, HEAD, swap("--num-cpus=0", ""), f"{HEAD}: work on the head"),
    *[(file, f"{CLUSTER}.headGroupSpec.rayStartParams", {}, "rayStartParams.num-cpus: work on the head") for file in JOBS],
    (AWS, f"{HEAD_NODE}.InstanceMarketOptions", {"MarketType": "spot"}, "head: the cluster ends"),
    (GCP, f"{HEAD_NODE}.scheduling", {"provisioningModel": "SPOT"}, "head: the cluster ends"),
    *[(file, key, swap("RAY_AUTH_MODE=token", "A=b"), f"{key}: without a token") for file in UP for key in (HEAD, WORKERS)],
    *[(file, "file_mounts", {"~/code": "."}, "file_mounts: nodes have no token") for file in UP],
    *[(file, f"{CLUSTER}.authOptions", REMOVED, "authOptions.mode: without a token") for file in JOBS],
    *[(file, HEAD, swap("--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0"), "the whole network") for file in UP],
    (AWS, f"{SPOT_NODE}.SecurityGroupIds", REMOVED, "cpu-spot.node_config.SecurityGroupIds: Ray makes a security group"),
    (GCP, f"{SPOT_NODE}.networkInterfaces.0.accessConfigs", [{"type": "ONE_TO_ONE_NAT"}], "gets a public address"),
    (GCP, f"{HEAD_NODE}.networkInterfaces", REMOVED, "head.node_config.networkInterfaces: the machine gets a public address"),
    (AWS, f"{HEAD_NODE}.MetadataOptions.HttpTokens", "optional", "IMDSv2"),
    (AWS, f"{SPOT_NODE}.BlockDeviceMappings.0.Ebs.Encrypted", False, "cpu-spot.node_config.BlockDeviceMappings: the disk"),
    (AWS, f"{HEAD_NODE}.BlockDeviceMappings", REMOVED, "head.node_config.BlockDeviceMappings: the disk is not encrypted"),
    (AWS, f"{SPOT_NODE}.IamInstanceProfile", REMOVED, "cpu-spot.node_config.IamInstanceProfile: the node cannot use"),
    (GCP, f"{SPOT_NODE}.serviceAccounts", REMOVED, "cpu-spot.node_config.serviceAccounts: the node cannot use"),
    *[(file, "provider.region", REMOVED, "provider.region: Ray needs a region") for file in (AWS, GCP)],
    (AWS, f"{SPOT_NODE}.ImageId", REMOVED, "cpu-spot.node_config.ImageId: Ray takes an image of Ubuntu 18.04"),
    *[
        (AWS, "docker.image", image, "docker.image: nodes that start later")
        for image in ("team/m:latest", "host:5000/m", "m:nightly")
    ],
    (GCP, "docker", REMOVED, "docker.image: nodes that start later"),
    (
        AWS,
        "available_node_types.gpu-spot.docker",
        {"worker_image": "m"},
        "gpu-spot.docker.worker_image: nodes that start later",
    ),
    *[(file, f"{WORKER_POD}.containers.0.image", "m:latest", "containers[0].image: nodes that start later") for file in JOBS],
    *[(file, "setup_commands", ["pip install x"], "setup_commands: nodes install packages") for file in (AWS, GCP)],
    (AWS, "setup_commands", REMOVED, "setup_commands: nodes install packages"),  # Ray's default installs a nightly Ray
    (GCP, "worker_setup_commands", ["python -m pip -q install x"], "worker_setup_commands: nodes install packages"),
    (TRAIN, "spec.runtimeEnvYAML", "env_vars: {A: b}\npip: [x]", "spec.runtimeEnvYAML: nodes install packages"),
    *[(file, key, swap("ulimit -n 65536;", ""), f"{key}: 1,024 open files") for file in UP for key in (HEAD, WORKERS)],
    *[
        (TRAIN, f"{pod}.containers.0.resources.limits", {"cpu": 1}, "containers[0].resources: the pod")
        for pod in (HEAD_POD, WORKER_POD)
    ],
    *[(file, f"{CLUSTER}.rayVersion", REMOVED, "rayVersion: KubeRay needs it") for file in JOBS],
    (LOCAL, HEAD, swap("RAY_enable_autoscaler_v2=0", ""), f"{HEAD}: version 2 of the autoscaler"),
    *[(file, f"{CLUSTER}.enableInTreeAutoscaling", False, "enableInTreeAutoscaling: the cluster never grows") for file in JOBS],
    *[(file, f"{CLUSTER}.autoscalerOptions.version", "v1", "autoscalerOptions.version: version 1") for file in JOBS],
    *[(AWS, "provider.cache_stopped_nodes", value, "cache_stopped_nodes: idle machines") for value in (True, REMOVED)],
    *[(file, "available_node_types.cpu-on-demand", REMOVED, "cpu-spot.priority: jobs wait for ever") for file in (AWS, GCP)],
    *[
        (file, "available_node_types.gpu-spot.priority", REMOVED, "gpu-spot.priority: jobs wait for ever")
        for file in (AWS, GCP)
    ],
    (AWS, WORKERS, swap("spot_notice", "other"), f"{WORKERS}: Ray does not read AWS's spot notices"),
    *[(file, "spec.shutdownAfterJobFinishes", REMOVED, "shutdownAfterJobFinishes: the pods stay") for file in JOBS],
    *[(file, "spec.ttlSecondsAfterFinished", REMOVED, "ttlSecondsAfterFinished: the pods and their logs") for file in JOBS],
    *[(file, "spec.activeDeadlineSeconds", REMOVED, "activeDeadlineSeconds: a job that hangs") for file in JOBS],
    *[(file, "spec.backoffLimit", 0, "backoffLimit: the job ends with its head") for file in JOBS],
    (TRAIN, "spec.entrypoint", "mnist-ray train --out runs/first", "spec.entrypoint: results are lost"),
    (SCORE, "spec.entrypoint", "mnist-ray score s3://b/digits --out=/tmp/table", "spec.entrypoint: results are lost"),
    # What Ray itself refuses.
    (AWS, "idle_timeout", 5, "Ray refuses it: $ Additional properties are not allowed ('idle_timeout' was unexpected)"),
    (
        GCP,
        "available_node_types.cpu-spot.max_workers",
        "many",
        "Ray refuses it: $.available_node_types['cpu-spot'].max_workers 'many' is not of type 'integer'",
    ),
    (LOCAL, "provider.head_ip", REMOVED, "Ray refuses it:"),
    (AWS, "head_node_type", "boss", "`head_node_type` must be one of `available_node_types`"),
    (LOCAL, "provider.type", "azure", "this is neither a file for `ray up`"),
]


@pytest.mark.parametrize("file", [*UP, *JOBS])
def test_our_launch_files_have_no_problems(file: str) -> None:
    assert lint(str(ROOT / file)) == []


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (AWS, ["REGISTRY", f"ami-{'0' * 17}", f"sg-{'0' * 17}"]),
        (GCP, ["IMAGE", "PROJECT", "REGISTRY"]),
        (LOCAL, ["192.0.2.10", "192.0.2.11", "192.0.2.12"]),
        *[(file, ["BUCKET", "REGISTRY"]) for file in JOBS],
    ],
)
def test_what_is_to_be_filled_in_is_found(file: str, expected: list[str]) -> None:
    assert placeholders(str(ROOT / file)) == expected


@pytest.mark.parametrize("page", ["docs/how-to/clusters.md", GCP, *JOBS])
def test_the_command_that_fills_files_in_leaves_nothing_out(page: str, tmp_path: Path) -> None:
    (command,) = re.findall("sed -i .*", (ROOT / page).read_text())
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    found = {file: placeholders(str(file)) for file in tmp_path.glob(command.split()[-1])}
    assert found
    assert not any(found.values()), found


@pytest.mark.parametrize(("file", "place", "change", "expected"), BROKEN, ids=[f"{case[0]}: {case[3]}" for case in BROKEN])
def test_each_trap_is_found(tmp_path: Path, file: str, place: str, change: Any, expected: str) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(changed(file, place, change)))
    problems = lint(str(broken))
    assert problems
    assert all(expected in problem and "\n" not in problem for problem in problems), problems


def test_every_rule_is_seen_failing_for_every_kind_of_file() -> None:
    kinds = {AWS: "aws", GCP: "gcp", LOCAL: "local", TRAIN: "rayjob", SCORE: "rayjob"}
    seen = {(kinds[file], expected.rpartition(": ")[2]) for file, _, _, expected in BROKEN}
    for rule in RULES:
        for kind in rule.kinds.split():
            assert any(kind == found and part in rule.advice for found, part in seen), f"{kind}: {rule.advice}"


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "text.yaml").write_text("a: [1")
    for name, expected in (("gone.yaml", "No such file"), ("text.yaml", "expected ',' or ']'")):
        (problem,) = lint(str(tmp_path / name))
        assert expected in problem
        assert "\n" not in problem


@pytest.mark.long
@pytest.mark.parametrize("file", [AWS, GCP, LOCAL, TRAIN])
def test_a_value_of_a_wrong_type_is_no_crash(tmp_path: Path, file: str) -> None:
    """Each value of the file in turn becomes null, and a list of null. What YAML aliases share changes together, and once."""
    broken, config = tmp_path / "broken.yaml", load(file)
    seen: set[int] = set()

    def check(value: Any) -> None:
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            for wrong in (None, [None]):
                value[key] = wrong
                broken.write_text(json.dumps(config))
                assert isinstance(lint(str(broken)), list)
            value[key] = part
            if isinstance(part, dict | list) and id(part) not in seen:
                seen.add(id(part))
                check(part)

    check(config)
    assert config == load(file)


@pytest.mark.parametrize("file", UP)
def test_ray_accepts_the_file_as_it_is(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load(file))
    validate_config(prepared)
    with pytest.raises(Exception, match="was unexpected"):
        validate_config({**prepared, "worker_types": {}})


def test_google_knows_every_field_of_the_machines() -> None:
    """Google's description of its API, which its SDK carries, names every field and value of the machines."""
    cache = pytest.importorskip("googleapiclient.discovery_cache")
    schemas = json.loads(cache.get_static_doc("compute", "v1"))["schemas"]

    def unknown(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        if isinstance(value, dict) and "properties" in schema:
            yield from (f"{place}.{key}" for key in value if key not in schema["properties"])
            for key in value.keys() & schema["properties"].keys():
                yield from unknown(value[key], schema["properties"][key], f"{place}.{key}")
        elif isinstance(value, list):
            for index, part in enumerate(value):
                yield from unknown(part, schema["items"], f"{place}[{index}]")
        elif value not in schema.get("enum", [value]):
            yield f"{place}: {value}"

    def problems(config: dict[str, Any]) -> list[str]:
        types = config["available_node_types"].items()
        return [place for name, node in types for place in unknown(node["node_config"], {"$ref": "Instance"}, name)]

    assert problems(load(GCP)) == []
    assert problems(changed(GCP, f"{SPOT_NODE}.scheduling.provisioningModel", "CHEAP")) == [
        "cpu-spot.scheduling.provisioningModel: CHEAP"
    ]
    assert problems(changed(GCP, f"{SPOT_NODE}.bootDisk", {})) == ["cpu-spot.bootDisk"]


def _pins() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def _images() -> set[str]:
    """The container images of all launch files."""
    named = {load(file)["docker"]["image"] for file in (AWS, GCP)}
    for file in JOBS:
        spec = load(file)["spec"]["rayClusterSpec"]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        named |= {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    return named


def test_versions_hold_together() -> None:
    pins = _pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    image = f"REGISTRY/mnist-ray:{Version(__version__).base_version}"
    # One image, and what it is made of.
    assert _images() == {image}
    assert set(re.findall(r"\S*/mnist-ray:\S+", dockerfile)) <= {image, f"{image}:"}
    (python,) = re.findall(r"^ARG PYTHON=(\d+\.\d+\.\d+)$", dockerfile, re.MULTILINE)
    assert python in SpecifierSet(project["project"]["requires-python"])
    assert project["tool"]["mypy"]["python_version"] == python.rpartition(".")[0]
    # One Ray.
    assert {load(file)["spec"]["rayClusterSpec"]["rayVersion"] for file in JOBS} == {pins["ray"]}
    # Every requirement has one version, which is allowed; the tests ran with it.
    extras = project["project"]["optional-dependencies"]
    for text in [*project["project"]["dependencies"], *extras["aws"], *extras["gcp"]]:
        needed = Requirement(text)
        assert pins[needed.name.lower()] in needed.specifier, f"{text}: constraints.txt has {pins[needed.name.lower()]}"
    for name in ("ray", "torch", "torchvision"):
        assert Version(metadata.version(name)).public == pins[name], (
            f"{name} of this environment is not the one of constraints.txt"
        )
    (pair,) = [found for found in map(Requirement, metadata.requires("torchvision") or []) if found.name == "torch"]
    assert pins["torch"] in pair.specifier


def test_every_installation_of_the_image_is_pinned() -> None:
    dockerfile = re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text())
    installs = re.findall(r"pip install [^&\n]*", dockerfile)
    assert installs
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE), "the image runs as a user that is not root"


def test_the_image_finds_the_files_that_it_copies() -> None:
    """Each file that the Dockerfile copies exists and is not ignored, and the launch file starts the watcher where it lies."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert any(name == path or name.startswith(f"{path}/") for path in allowed), f".dockerignore hides {name}"
    (folder,) = re.findall(r"^WORKDIR (/opt/\S+)$", dockerfile, re.MULTILINE)
    assert any(f"python {folder}/spot_notice.py --address " in command for command in load(AWS)[WORKERS])


def test_the_watcher_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "deploy" / "spot_notice.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names
    assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)


@pytest.mark.parametrize("file", [AWS, GCP, LOCAL])
def test_shells_accept_the_commands(file: str) -> None:
    """`bash -n` reads every command of a launch file without an error."""
    lists = [value for key, value in load(file).items() if key.endswith("_commands")]
    commands = [command for found in lists for command in found]
    assert commands
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
