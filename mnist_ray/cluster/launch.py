"""Finds the problems of a launch file before it costs money: a `ray up` file for aws, gcp or local, or a RayJob of KubeRay.

`RULES` is a table of known traps. Each rule finds the places of a file that fall into its trap, and says what to do there.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import first_line

Config = dict[str, Any]

WORKERS = "worker_start_ray_commands"
STARTS = ("head_start_ray_commands", WORKERS)

PLACEHOLDERS = r"(?<![${\w])(?:(?:ami|sg)-0+|192\.0\.2\.\d+|BUCKET|IMAGE|PROJECT|REGISTRY)\b"
"""What stands for a value of the user in the launch files of this project."""


@dataclass(frozen=True)
class Launch:
    """A launch file: its kind (aws, gcp, local or rayjob), and what it says, with Ray's defaults filled in."""

    kind: str
    config: Config

    def node_types(self) -> dict[str, Config]:
        """The node types of aws and gcp, by name."""
        return dict(self.config["available_node_types"])

    def is_head(self, name: str) -> bool:
        """Whether this is the node type of the head."""
        return bool(name == self.config["head_node_type"])

    def groups(self) -> dict[str, Config]:
        """The head group and the worker groups of a RayJob, by their places in the file."""
        cluster = at(self.config, "spec.rayClusterSpec")
        workers = enumerate(items(at(cluster, "workerGroupSpecs")))
        return {
            "headGroupSpec": at(cluster, "headGroupSpec"),
            **{f"workerGroupSpecs[{index}]": group for index, group in workers},
        }

    def containers(self) -> Iterator[tuple[str, Config]]:
        """The containers of a RayJob's pods, each with its place in the file."""
        for place, group in self.groups().items():
            found = items(at(group, "template.spec.containers")) or [{}]
            yield from ((f"{place}.containers[{index}]", container) for index, container in enumerate(found))

    def starts(self) -> Iterator[tuple[str, str]]:
        """The commands that start Ray on a node of `ray up`, each with its place in the file."""
        for key in STARTS:
            found = [command for command in self.config[key] if re.search(r"\bray start\b", command)]
            yield from ((key, command) for command in found or [""])


@dataclass(frozen=True)
class Rule:
    """A trap: the kinds of files that can fall into it, how to find its places in a file, and what to do there."""

    kinds: str
    places: Callable[[Launch], Iterator[str]]
    advice: str


def lint(path: str) -> list[str]:
    """The problems of a launch file, one sentence each: the place, what is wrong, and what to do. Reads no network."""
    try:
        launch = _read(path)
    except Exception as error:  # Ray checks a file by using it: a wrong one can raise anything
        return [f"{' '.join(str(error).split())}; correct this first"]
    rules = [rule for rule in RULES if launch.kind in rule.kinds.split()]
    return [f"{place}: {rule.advice}" for rule in rules for place in rule.places(launch)]


def placeholders(path: str) -> list[str]:
    """What still stands for a value of the user in a launch file that `lint` can read."""
    return sorted(set(re.findall(PLACEHOLDERS, str(_read(path).config))))


def _read(path: str) -> Launch:
    """Read a launch file, and let Ray check its keys. Raises ValueError, OSError and YAMLError."""
    import yaml

    with open(path, encoding="utf-8") as file:
        documents = [document for document in yaml.safe_load_all(file) if isinstance(document, dict)]
    for given in documents:
        if given.get("kind") == "RayJob":
            return Launch("rayjob", given)
        if at(given, "provider.type") in ("aws", "gcp", "local"):
            return Launch(given["provider"]["type"], _with_defaults(given))
    raise ValueError("this is neither a file for `ray up` (provider.type: aws, gcp or local) nor a RayJob")


def _with_defaults(given: Config) -> Config:
    """What `ray up` makes of a file. Raises ValueError if Ray refuses it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        try:
            config: Config = prepare_config(given)
            validate_config(config)
        except Exception as error:
            why = [getattr(error, "json_path", ""), first_line(error), *printed.getvalue().split("\n")]
            raise ValueError(f"Ray refuses it: {' '.join(' '.join(why).split())}") from None
    return config


def at(value: Any, path: str) -> Any:
    """The value at a path of keys, such as `spec.entrypoint`; None where there is none."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def is_pinned(image: object) -> bool:
    """Whether a container image has a digest, or a tag that is meant to stay."""
    _, colon, tag = str(image).rpartition("/")[2].partition(":")
    return "@sha256:" in str(image) or (bool(colon) and not re.search("latest|nightly", tag))


def is_spot(node_type: Config) -> bool:
    """Whether AWS or GCP can take machines of this node type back at any time."""
    node = node_type["node_config"]
    scheduling = at(node, "scheduling")
    return at(node, "InstanceMarketOptions.MarketType") == "spot" or any(
        at(part, "provisioningModel") == "SPOT" or at(part, "preemptible") for part in [scheduling, *items(scheduling)]
    )


def missing(value: Any) -> bool:
    """Whether a value is absent, empty or zero."""
    return not value


def not_true(value: Any) -> bool:
    """Whether a switch is off, or left to its default."""
    return value is not True


def where(path: str, wrong: Callable[[Any], bool]) -> Callable[[Launch], Iterator[str]]:
    """Finds one path of the file if its value is wrong."""
    return lambda launch: iter([path] if wrong(at(launch.config, path)) else [])


def on_nodes(path: str, wrong: Callable[[Any], bool]) -> Callable[[Launch], Iterator[str]]:
    """Finds a path below `node_config` in each node type where its value is wrong."""

    def places(launch: Launch) -> Iterator[str]:
        for name, node_type in launch.node_types().items():
            if wrong(at(node_type["node_config"], path)):
                yield f"available_node_types.{name}.node_config.{path}"

    return places


def on_starts(pattern: str, *, forbidden: bool = False, keys: tuple[str, ...] = STARTS) -> Callable[[Launch], Iterator[str]]:
    """Finds the commands that start Ray and lack a pattern, or have a forbidden one."""
    return lambda launch: (
        key for key, command in launch.starts() if key in keys and bool(re.search(pattern, command)) is forbidden
    )


def head_offers_cpus(launch: Launch) -> Iterator[str]:
    """Finds a head on which tasks and workers can run."""
    if launch.kind == "rayjob":
        if str(at(launch.groups()["headGroupSpec"], "rayStartParams.num-cpus")) != "0":
            yield "headGroupSpec.rayStartParams.num-cpus"
    elif launch.kind == "local":
        yield from on_starts(r"--num-cpus[= ]0\b", keys=STARTS[:1])(launch)
    else:
        head = launch.config["head_node_type"]
        resources = launch.node_types()[head]["resources"]
        if any(resources.get(name) != 0 for name in ("CPU", "GPU")):
            yield f"available_node_types.{head}.resources"


def unpinned_images(launch: Launch) -> Iterator[str]:
    """Finds container images that are missing, or whose tag moves."""
    if launch.kind == "rayjob":
        yield from (f"{place}.image" for place, container in launch.containers() if not is_pinned(at(container, "image")))
        return
    docker = launch.config.get("docker", {})
    named = {f"docker.{key}": docker.get(key) for key in ("head_image", "worker_image", "image") if key in docker}
    for name, node_type in launch.node_types().items():
        if at(node_type, "docker.worker_image"):
            named[f"available_node_types.{name}.docker.worker_image"] = node_type["docker"]["worker_image"]
    yield from (place for place, image in (named or {"docker.image": None}).items() if not is_pinned(image))


def spot_head(launch: Launch) -> Iterator[str]:
    """Finds a head that the provider can take back."""
    yield from (f"available_node_types.{n}" for n, node in launch.node_types().items() if launch.is_head(n) and is_spot(node))


def spot_without_fallback(launch: Launch) -> Iterator[str]:
    """Finds spot worker types for which no on-demand type of the same shape has a lower priority."""
    workers = {name: node for name, node in launch.node_types().items() if not launch.is_head(name)}
    for name, spot in workers.items():
        others = [node for node in workers.values() if not is_spot(node) and node["resources"] == spot["resources"]]
        if is_spot(spot) and not any(node.get("priority", 0) < spot.get("priority", 0) for node in others):
            yield f"available_node_types.{name}.priority"


def no_spot_watcher(launch: Launch) -> Iterator[str]:
    """Finds a file with spot workers on which nothing reads AWS's notices."""
    spot = any(is_spot(node_type) for node_type in launch.node_types().values())
    if spot and not any("spot_notice" in command for command in launch.config[WORKERS]):
        yield WORKERS


def installs_packages(launch: Launch) -> Iterator[str]:
    """Finds what installs packages when a node or a job starts."""
    if launch.kind == "rayjob":
        if re.search(r"(?m)^\s*(pip|uv|conda)\s*:", str(at(launch.config, "spec.runtimeEnvYAML"))):
            yield "spec.runtimeEnvYAML"
        return
    common = launch.config["setup_commands"]  # Ray puts them in front of the other two lists
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        commands = [command for command in launch.config[key] if key == "setup_commands" or command not in common]
        if re.search(r"\b(pip3?|conda|mamba)\b.* install\b|\buv sync\b", " ; ".join(commands)):
            yield key


def without_resources(launch: Launch) -> Iterator[str]:
    """Finds containers of a RayJob without requests and limits for CPU and memory."""
    for place, container in launch.containers():
        sizes = [at(container, f"resources.{kind}.{name}") for kind in ("requests", "limits") for name in ("cpu", "memory")]
        if None in sizes:
            yield f"{place}.resources"


def results_in_the_pods(launch: Launch) -> Iterator[str]:
    """Finds an entrypoint whose results are lost with the cluster."""
    if not re.search(r"--out[= ]+['\"]?\w+://", str(at(launch.config, "spec.entrypoint"))):
        yield "spec.entrypoint"


RULES = (
    # The head, and who may reach it.
    Rule(
        "aws gcp local rayjob", head_offers_cpus, "work on the head can push the cluster out of memory; offer 0 CPUs and 0 GPUs"
    ),
    Rule("aws gcp", spot_head, "the cluster ends when this machine is taken back; let the head run on demand"),
    Rule(
        "aws gcp local",
        on_starts("RAY_AUTH_MODE=token"),
        "without a token, whoever reaches a port of this node can run code; start it with RAY_AUTH_MODE=token",
    ),
    Rule(
        "aws gcp local",
        where("file_mounts", lambda mounts: not any(str(mount).endswith(".ray/auth_token") for mount in mounts or ())),
        "nodes have no token to prove themselves with; add ~/.ray/auth_token: ~/.ray/auth_token",
    ),
    Rule(
        "rayjob",
        where("spec.rayClusterSpec.authOptions.mode", lambda mode: mode != "token"),
        "without a token, whoever reaches a port of the pods can run code; set mode: token",
    ),
    Rule(
        "aws gcp local",
        on_starts(r"--dashboard-host[= ]('|\")?(0\.0\.0\.0|::)", forbidden=True),
        "the dashboard listens to the whole network; leave --dashboard-host out and use `ray dashboard`",
    ),
    Rule(
        "aws",
        on_nodes("SecurityGroupIds", missing),
        "Ray makes a security group that admits SSH from 0.0.0.0/0; name a group of your own",
    ),
    Rule(
        "gcp",
        on_nodes(
            "networkInterfaces", lambda cards: not items(cards) or any(at(card, "accessConfigs") for card in items(cards))
        ),
        "the machine gets a public address; name a subnetwork without accessConfigs",
    ),
    Rule(
        "aws",
        on_nodes("MetadataOptions.HttpTokens", lambda mode: mode != "required"),
        "any program of the machine can be tricked into showing its credentials; set it to required (IMDSv2)",
    ),
    Rule(
        "aws",
        on_nodes(
            "BlockDeviceMappings",
            lambda disks: not items(disks) or any(not_true(at(disk, "Ebs.Encrypted")) for disk in items(disks)),
        ),
        "the disk is not encrypted; add a BlockDeviceMapping with Encrypted: true",
    ),
    Rule(
        "aws",
        on_nodes("IamInstanceProfile", missing),
        "the node cannot use the bucket; Ray gives a profile to the head alone; name one",
    ),
    Rule("gcp", on_nodes("serviceAccounts", missing), "the node cannot use the bucket; name a service account"),
    # What every node runs.
    Rule("aws gcp", where("provider.region", missing), "Ray needs a region; name the one of your bucket"),
    Rule("aws", on_nodes("ImageId", missing), "Ray takes an image of Ubuntu 18.04; name a machine image of your region"),
    Rule(
        "aws gcp rayjob",
        unpinned_images,
        "nodes that start later can get another version of Ray; name an image with a tag that stays",
    ),
    Rule(
        "aws gcp rayjob", installs_packages, "nodes install packages at each start, and differ one day; put them into the image"
    ),
    Rule(
        "aws gcp local",
        on_starts(r"ulimit -n \d+"),
        "1,024 open files end large jobs; put `ulimit -n 65536;` before `ray start`",
    ),
    Rule(
        "rayjob",
        without_resources,
        "the pod can be evicted, or take the memory of others; give requests and limits of cpu and memory",
    ),
    Rule(
        "rayjob",
        where("spec.rayClusterSpec.rayVersion", missing),
        "KubeRay needs it to turn tokens on; give the Ray of the image",
    ),
    # Growing, shrinking, and losing machines.
    Rule(
        "local",
        on_starts("RAY_enable_autoscaler_v2=0", keys=STARTS[:1]),
        "version 2 of the autoscaler does not know machines of your own; put RAY_enable_autoscaler_v2=0 before `ray start`",
    ),
    Rule("rayjob", where("spec.rayClusterSpec.enableInTreeAutoscaling", not_true), "the cluster never grows; set it to true"),
    Rule(
        "rayjob",
        where("spec.rayClusterSpec.autoscalerOptions.version", lambda version: version != "v2"),
        "version 1 knows no priorities; set it to v2",
    ),
    Rule(
        "aws",
        where("provider.cache_stopped_nodes", lambda kept: kept is not False),
        "idle machines keep their disks and cost; set it to false",
    ),
    Rule(
        "aws gcp",
        spot_without_fallback,
        "jobs wait for ever when spot machines run out; add an on-demand type with these resources and a lower priority",
    ),
    Rule("aws", no_spot_watcher, "Ray does not read AWS's spot notices; start deploy/spot_notice.py on the workers"),
    # The end of a RayJob.
    Rule("rayjob", where("spec.shutdownAfterJobFinishes", not_true), "the pods stay and cost after the job; set it to true"),
    Rule("rayjob", where("spec.ttlSecondsAfterFinished", missing), "the pods and their logs go at once; give some minutes"),
    Rule("rayjob", where("spec.activeDeadlineSeconds", missing), "a job that hangs costs for ever; give a limit"),
    Rule(
        "rayjob",
        where("spec.backoffLimit", missing),
        "the job ends with its head; give a number of retries, each in a new cluster",
    ),
    Rule("rayjob", results_in_the_pods, "results are lost with the pods; give --out a URI such as s3://BUCKET/runs/first"),
)
