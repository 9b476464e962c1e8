"""What `doctor` measures on one machine: versions, devices, and whether it reads and writes the storage.

Ray sends this module itself to the nodes, not a reference to it, so that it runs on a node with another mnist_ray or none. So
it imports the rest of the package only inside functions, and returns plain values.
"""

import importlib
import os
import platform
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0
"""Seconds for which a storage may fail. Jobs wait longer."""


def describe() -> dict[str, Any]:
    """The `versions` of this machine, their `faults`, its `devices` (text), number of `gpus`, and known `node_types`.

    Must run before anything else has imported torch: it undoes that Ray hides the GPUs from a task that asks for none.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    found, faults = versions()
    text, gpus = devices()
    return {"versions": found, "faults": faults, "devices": text, "gpus": gpus, "node_types": node_types()}


def versions() -> tuple[dict[str, str], list[str]]:
    """The versions of Python and of the packages that must match, and what is wrong with them."""
    found, faults = {"Python": platform.python_version()}, []
    for label, name in (("Ray", "ray"), ("torch", "torch"), ("torchvision", "torchvision"), ("mnist_ray", "mnist_ray")):
        try:
            found[label] = str(importlib.import_module(name).__version__)
        except Exception as error:  # a broken package can raise anything
            found[label] = "none"
            faults.append(f"{label} cannot be imported: {first_line(error)}")
    faults += builds(found["torch"], found["torchvision"])
    if image := container_image():
        found["image"] = image
    return found, faults


def builds(torch: str, torchvision: str) -> list[str]:
    """A fault if torch and torchvision are builds for different devices, such as `+cpu` and `+cu132`."""
    labels = {version.partition("+")[2] for version in (torch, torchvision)}
    return [f"torch {torch} and torchvision {torchvision} are not a pair"] if len(labels - {""}) > 1 else []


def launch_file() -> dict[str, Any]:
    """What `ray up` left on the head of its cluster; empty on any other machine."""
    try:
        import yaml

        found = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())
        return found if isinstance(found, dict) else {}
    except Exception:
        return {}


def container_image() -> str:
    """The container image of the cluster; empty if this machine does not know it."""
    return str((launch_file().get("docker") or {}).get("image") or "")


def node_types() -> dict[str, int]:
    """The types of workers that the cluster's autoscaler may launch, and the largest number of each; empty as `launch_file`."""
    cluster = launch_file()
    found = {name: kind.get("max_workers", 0) for name, kind in cluster.get("available_node_types", {}).items()}
    return {name: count for name, count in found.items() if name != cluster.get("head_node_type")}


def devices() -> tuple[str, int]:
    """The CPUs and GPUs of this machine as text, and the number of GPUs that PyTorch can use."""
    try:
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus:
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # as the training decides (mnist_ray/learn/state.py)
            bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        name = f"{gpus} x {torch.cuda.get_device_name(0)}" if gpus else "no GPU"
    except Exception:  # reported with the versions
        return f"{len(os.sched_getaffinity(0))} CPUs, PyTorch does not run", 0
    return f"{len(os.sched_getaffinity(0))} CPUs, {name}, {'bfloat16' if bf16 else 'float32'}", gpus


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scratch_name() -> str:
    """A file name that no other file has."""
    return f".doctor-{uuid.uuid4().hex}"


def use_storage(folder: str) -> str:
    """Write, read, list and delete a small file in a folder (path or URI); returns what failed, empty if nothing did.

    A local folder that does not exist is made, and removed at the end.
    """
    from mnist_ray.data import patience, storage

    patience.PATIENCE_S = PATIENCE_S
    name, missing = scratch_name(), missing_folders(folder)
    file, content = storage.join(folder, name), os.urandom(64)
    try:
        storage.write(file, content)
        try:
            if storage.read(file) != content:
                return f"{file}: its content is not what was written"
            if name not in storage.names(folder):
                return f"{folder}: does not list a file that was just written"
        finally:
            storage.delete(file)
        return f"{file}: is still there after it was deleted" if name in storage.names(folder) else ""
    except Exception as error:
        return first_line(error).replace(f"/{name}", "")
    finally:
        remove_folders(missing)


def missing_folders(folder: str) -> list[str]:
    """The folders of a local path that do not exist, the deepest first. Empty for a URI."""
    from mnist_ray.data import storage

    path = Path(storage.absolute(folder))
    return [str(one) for one in (path, *path.parents) if not one.exists()] if storage.is_local(folder) else []


def remove_folders(folders: list[str]) -> None:
    """Remove folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


def share_storage(folder: str, name: str, content: bytes) -> tuple[bool, str]:
    """Read the file `name` that the driver wrote in a folder, then use the folder.

    Returns whether this machine sees the driver's file, and what failed, empty if nothing did.
    """
    try:
        from mnist_ray.data import patience, storage

        patience.PATIENCE_S = PATIENCE_S
        if storage.read(storage.join(folder, name)) != content:
            return False, ""
    except FileNotFoundError:
        return False, ""
    except Exception as error:
        return True, first_line(error).replace(f"/{name}", "")
    return True, use_storage(folder)
