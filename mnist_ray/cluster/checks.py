"""The checks of a set-up: each finds one thing out, and says what to do about a problem. `doctor` runs them."""

import atexit
import os
import platform
from collections import Counter
from collections.abc import Callable, Sized
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mnist_ray.cluster import node, runtime
from mnist_ray.cluster.address import Answer, asks_for_token, probe, sends_token, token_source
from mnist_ray.cluster.capacity import capacity
from mnist_ray.config import DoctorConfig
from mnist_ray.data import storage
from mnist_ray.errors import DataError, first_line

NODES_S = 60
"""Seconds to wait for the answers of all nodes."""
SHOWN = 3
"""Nodes with a problem, or failed launches, that a line names."""
LAUNCH_FILE = "cluster.yaml"
UNAUTHORIZED = "HTTP 401 or 403, InvalidAuthToken"
"""How a missing or wrong token shows elsewhere."""
GET_TOKEN = "copy ~/.ray/auth_token from the cluster's head to the same place here, and `chmod 600` it"
GIVE_ADDRESS = "give --address HOST:6379, where HOST is the cluster's head"
SAME_VERSIONS = "use the same image or constraints.txt everywhere, down to Python's patch version"
STORAGE = "look at the URI, and at the endpoint and the credentials in the environment, here and on the nodes"
JOIN = "look at the logs in /tmp/ray/session_latest/logs, and whether the nodes' ports are open to each other"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and, if it is a problem, what to do."""

    name: str
    state: Literal["ok", "problem", "skipped"]
    text: str
    advice: str = ""

    def to_text(self) -> str:
        """One line: mark, name, what was found, and what to do."""
        line = f"{self.state:8} {self.name}: {self.text}{f'; {self.advice}' if self.advice else ''}"
        return " ".join(line.split("\n"))


class Skip(Exception):  # noqa: N818
    """There is nothing to check. The message says why."""


class Problem(Exception):  # noqa: N818
    """A check found a problem. The arguments are what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Check:
    """A function that returns what it found, or raises Problem, a group of Problems, or Skip."""

    name: str
    run: Callable[[DoctorConfig], str]
    limit_s: float
    needs: tuple[str, ...] = ()
    """The checks that must be ok before."""
    stuck: str = "run it again; if it repeats, report it"
    """What to do if the check gives no answer."""


def _versions_here(_: DoctorConfig) -> str:
    found, faults = node.versions()
    if faults:
        raise Problem(
            f"{_listed(found)}: {'; '.join(faults)}", "install the versions of constraints.txt, all from one package index"
        )
    return _listed(found)


def _devices_here(_: DoctorConfig) -> str:
    return node.devices()[0]


def _mnist(_: DoctorConfig) -> str:
    from mnist_ray.data.datasets import load
    from mnist_ray.data.mnist import cache_folder, find_mnist

    try:
        if not find_mnist():
            return f"not in {cache_folder()}; `--data auto` downloads it, or else uses the 5,000 images that are installed"
        splits = load("mnist")
    except DataError as error:
        raise Problem(str(error), "set MNIST_RAY_DATA to a folder with the four files, or unset it to download them") from None
    kind = "MNIST" if splits.name == "mnist" else "digits in MNIST's format, but not those of MNIST"
    return f"{len(splits.train):,} training and {len(splits.test):,} test images of {kind} in {splits.origin}"


def _launch_file(config: DoctorConfig) -> str:
    path = config.launch_file or LAUNCH_FILE
    if not os.path.exists(path):
        if config.launch_file:
            raise Problem(f"{path}: there is no such file", "give --launch-file the launch file of `ray up`")
        raise Skip(f"there is no {LAUNCH_FILE} in this folder, and no --launch-file")
    from mnist_ray.cluster.launch import lint, placeholders

    if faults := lint(path):
        raise ExceptionGroup("problems of a launch file", [Problem(f"{path}: {fault}") for fault in faults])
    if left := ", ".join(placeholders(path)):
        if config.launch_file:
            raise Problem(f"{path}: holds placeholders: {left}", "replace them with your values")
        raise Skip(f"{path}: is not filled in: {left}")  # it comes with the project, and not everybody uses it
    return f"{path}: no known trap"


def _storage_here(config: DoctorConfig) -> str:
    folder = _out(config)
    if fault := node.use_storage(folder):
        raise Problem(fault, STORAGE)
    return f"{folder}: wrote, read, listed and deleted a file"


def _out(config: DoctorConfig) -> str:
    if not config.out:
        raise Skip("no --out")
    return storage.absolute(config.out)


def _target(config: DoctorConfig) -> str:
    """HOST:PORT of the cluster to check. Raises Skip if none is named, and Problem for another form."""
    given = config.address or os.environ.get("RAY_ADDRESS", "")
    if given in ("", "local"):
        raise Skip("neither --address nor RAY_ADDRESS names a cluster, and doctor starts none")
    if given == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        with suppress(ConnectionError):
            given = canonicalize_bootstrap_address("auto") or given
        if given == "auto":
            raise Problem("auto: no Ray runs on this machine", GIVE_ADDRESS)
    if given.startswith("ray://"):
        raise Problem(f"{given} is an address of Ray Client, which jobs cannot use", GIVE_ADDRESS)
    target = given.partition("://")[2].rstrip("/") if "://" in given else given
    port = target.rpartition(":")[2]
    if not (port.isdecimal() and int(port) < 2**16):
        raise Problem(f"{given}: expected HOST:PORT", GIVE_ADDRESS)
    return target


@cache
def _answer_at(target: str) -> Answer:
    return probe(target)


def _address(config: DoctorConfig) -> str:
    target = _target(config)
    match answer := _answer_at(target):
        case Answer(service="GCS"):
            return f"{target} is the cluster's GCS"
        case Answer(service="dashboard", accepted=accepted):
            refused = "" if accepted else f"; it refuses this machine ({UNAUTHORIZED})"
            advice = f"{GIVE_ADDRESS}, or submit: `ray job submit --address http://{target} -- mnist-ray doctor`"
            raise Problem(f"{target} is the dashboard (`ray job submit`), and not the cluster's GCS{refused}", advice)
        case Answer(service="Ray Client"):
            raise Problem(f"{target} is the port of Ray Client (ray://), and not the cluster's GCS", GIVE_ADDRESS)
        case Answer(service="other"):
            raise Problem(f"{target} is {answer.detail}", GIVE_ADDRESS)
    raise Problem(
        f"nothing answers at {target}: {answer.detail}", f"start the cluster, open the port to this machine, or {GIVE_ADDRESS}"
    )


def _token_here(_: DoctorConfig) -> str:
    source = token_source()
    if os.path.isfile(source) and os.stat(source).st_mode & 0o077:
        raise Problem(f"{source}: other users may use it (mode {os.stat(source).st_mode & 0o777:o})", f"chmod 600 {source}")
    if not sends_token():
        unused = f"; a token is in {source}" if source else ""
        return f"authentication is off on this machine: RAY_AUTH_MODE is not `token`{unused}"
    if not source:
        raise Problem("RAY_AUTH_MODE is `token`, and there is no token", GET_TOKEN)
    return f"RAY_AUTH_MODE is `token`, and the token is in {source}"


def _token(config: DoctorConfig) -> str:
    target, source = _target(config), token_source()
    if _answer_at(target).accepted:
        if os.environ.get("RAY_USE_TLS") != "1" and not asks_for_token(target):
            raise Problem(
                f"{target} asks for no token: whoever reaches it can run code there",
                "start the cluster with RAY_AUTH_MODE=token",
            )
        return "the cluster asks for the token and accepts it"
    if not sends_token():
        advice = "export RAY_AUTH_MODE=token" + ("" if source else f", and {GET_TOKEN}")
        raise Problem(
            f"the cluster asks for a token, and this machine sends none ({UNAUTHORIZED}): RAY_AUTH_MODE is not `token`", advice
        )
    if not source:
        raise Problem(f"the cluster asks for a token, and this machine has none ({UNAUTHORIZED})", GET_TOKEN)
    raise Problem(
        f"the cluster refuses the token in {source} ({UNAUTHORIZED}): expected the token of the cluster's head", GET_TOKEN
    )


def _cluster_versions(config: DoctorConfig) -> str:
    import ray

    there = _answer_at(_target(config)).versions
    if found := differences({"Ray": ray.__version__, "Python": platform.python_version()}, there):
        raise Problem(f"the cluster was started with {found}", SAME_VERSIONS)
    return f"the cluster was started with {_listed(there)}, as here"


def differences(here: dict[str, str], there: dict[str, str]) -> str:
    """The versions that differ, as text; empty if none does. Builds for other devices, such as `+cpu`, do not differ."""
    wrong = [name for name in here if name in there and here[name].partition("+")[0] != there[name].partition("+")[0]]
    return ", ".join(f"{name} {there[name]} (here {here[name]})" for name in wrong)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _num(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _jobs_port(config: DoctorConfig) -> str:
    if not (dashboard := _answer_at(_target(config)).dashboard):
        raise Skip("the cluster has no dashboard, so `ray job submit` does not work")
    if probe(dashboard).service == "nothing":
        raise Skip(
            f"the head's {dashboard} is not open to this machine; use `ray dashboard {LAUNCH_FILE}` or `ssh -L` to reach it"
        )
    return f"jobs can be submitted to http://{dashboard}"


def _join(config: DoctorConfig) -> str:
    from ray._private.services import find_node_ids

    answer = _answer_at(_target(config))
    if not find_node_ids() & answer.nodes:  # ray.init would look for one for a minute
        head = answer.dashboard or "HOST:8265"
        raise Problem(
            "this machine is not a node of the cluster, so no job can run from here with --address",
            f"submit it: `ray job submit --address http://{head} --working-dir . -- python -m mnist_ray doctor`",
        )
    join(config)
    import ray

    return f"this machine is the cluster's node {ray.util.get_node_ip_address()}"


def join(config: DoctorConfig) -> None:
    """Join the cluster to check, until this process ends. Raises ClusterError."""
    _joined(_target(config))


@cache
def _joined(target: str) -> None:
    stack = ExitStack()
    stack.enter_context(runtime.cluster(target))
    atexit.register(stack.close)


def _resources(_: DoctorConfig) -> str:
    import ray

    total, free, has = ray.cluster_resources(), ray.available_resources(), capacity()
    counts = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    text = f"{_num(_nodes(), 'node')}, {counts} free"
    if has.failed:
        raise Problem(
            f"{text}; nodes failed to launch: {', '.join([*dict.fromkeys(has.failed)][:SHOWN])}",
            "look at `ray status` on the head",
        )
    if not has.grows and not has.cpus:
        raise Problem(f"{text}, and no autoscaler adds any", "add nodes")
    return f"{text}; an autoscaler adds more, launching now: {', '.join(has.launching) or 'nothing'}" if has.grows else text


@cache
def _nodes() -> dict[str, tuple[str, dict[str, float]]]:
    """The living nodes: their ids, addresses and resources."""
    import ray

    return {one["NodeID"]: (one["NodeManagerAddress"], one["Resources"]) for one in ray.nodes() if one["Alive"]}


def _on_nodes(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What a function of `node` returns on each node, by the node's id; an exception where it failed or was too slow."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(node)
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(function)
    refs = {
        id_: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id_, soft=False)).remote(*args) for id_ in _nodes()
    }
    ready, late = ray.wait(list(refs.values()), num_returns=len(refs), timeout=NODES_S)
    for ref in late:
        ray.cancel(ref, force=True)
    return {id_: _result(ref) if ref in ready else TimeoutError(f"no answer within {NODES_S} s") for id_, ref in refs.items()}


def _result(ref: Any) -> Any:
    import ray

    try:
        return ray.get(ref)
    except Exception as error:
        return getattr(error, "cause", None) or error


def _require_none(faults: dict[str, str], advice: str) -> None:
    """Raise Problem if a node, named by its id, has a fault."""
    wrong = [f"{_nodes()[id_][0]}: {fault}" for id_, fault in faults.items() if fault]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Problem(f"{len(wrong)} of {_num(faults, 'node')}: {'; '.join(wrong[:SHOWN])}{more}", advice)


@cache
def _described() -> dict[str, Any]:
    return _on_nodes(node.describe)


def _answers(found: dict[str, Any]) -> dict[str, Any]:
    """What the nodes returned. Raises Problem if one failed or was too slow."""
    failures = {id_: first_line(one) if isinstance(one, Exception) else "" for id_, one in found.items()}
    _require_none(failures, JOIN)
    return found


def _versions_on_nodes(_: DoctorConfig) -> str:
    here, found = node.versions()[0], _answers(_described())
    faults = {id_: [differences(here, one["versions"]), *one["faults"]] for id_, one in found.items()}
    _require_none({id_: "; ".join(filter(None, texts)) for id_, texts in faults.items()}, SAME_VERSIONS)
    images = {one["versions"].get("image") for one in found.values()} - {None}
    return f"{_num(found, 'node')}, with the versions of this machine{f', image {images.pop()}' if images else ''}"


def _devices_on_nodes(_: DoctorConfig) -> str:
    found = _answers(_described())
    faults = {}
    for id_, one in found.items():
        offered = _nodes()[id_][1].get("GPU", 0)
        faults[id_] = f"Ray offers {offered:g} GPUs and PyTorch can use {one['gpus']}" if one["gpus"] < offered else ""
    _require_none(faults, "install the GPU's driver, and torch built for CUDA")
    counts = Counter(one["devices"] for one in found.values())
    return "; ".join(f"{count} x {text}" for text, count in counts.items())


def _node_types(_: DoctorConfig) -> str:
    known = [one["node_types"] for one in _answers(_described()).values() if one["node_types"]]
    if not known:
        raise Skip("no node knows the launch file of the cluster")
    return f"the autoscaler may launch {', '.join(f'{count} x {name}' for name, count in known[0].items())}"


def _storage_on_nodes(config: DoctorConfig) -> str:
    folder, name, content = _out(config), node.scratch_name(), os.urandom(64)
    file, missing = storage.join(folder, name), node.missing_folders(folder)
    try:
        storage.write(file, content)
        found = _on_nodes(node.share_storage, folder, name, content)
    finally:
        storage.delete(file)
        node.remove_folders(missing)
    results = _answers(found)
    blind = {id_: "" if sees else "does not see the file that this machine wrote" for id_, (sees, _) in results.items()}
    share = "mount the folder on every node, or give --out a URI such as s3://BUCKET/FOLDER"
    _require_none(blind, share if storage.is_local(folder) else STORAGE)
    _require_none({id_: fault for id_, (_, fault) in results.items()}, STORAGE)
    return f"{_num(found, 'node')}: read the file that this machine wrote, and wrote another one"


CHECKS = (
    Check("versions here", _versions_here, 90),
    Check("devices here", _devices_here, 30),
    Check("MNIST", _mnist, 60),
    Check("launch file", _launch_file, 30),
    Check("storage here", _storage_here, 60, stuck=STORAGE),
    Check("token here", _token_here, 10),
    Check("address", _address, 30),
    Check("token", _token, 30, ("address",)),
    Check("cluster versions", _cluster_versions, 30, ("token",)),
    Check("jobs port", _jobs_port, 30, ("token",)),
    Check("joining", _join, 60, ("cluster versions",), JOIN),
    Check("resources", _resources, 30, ("joining",)),
    Check("versions on nodes", _versions_on_nodes, NODES_S + 30, ("joining",)),
    Check("devices on nodes", _devices_on_nodes, NODES_S + 30, ("joining",)),
    Check("node types", _node_types, NODES_S + 30, ("joining",)),
    Check("storage on nodes", _storage_on_nodes, NODES_S + 30, ("storage here", "joining"), STORAGE),
)
"""All checks, in the order in which they run."""
