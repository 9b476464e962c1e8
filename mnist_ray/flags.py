"""Checks the values of flags, and parses --workers, --checkpoint-every, --probabilities and --max-quarantined."""

import os
import re
from math import inf
from pathlib import Path
from typing import Literal

from mnist_ray.errors import OutputError, UsageError

_RAY_COPIES = "working_dir_files"
"""Ray's folder for copies of working directories."""
SHARDS = "shards"
"""The folder below `--out` that holds the tables of shards."""
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
ScoringPrecision = Literal["float32", "bfloat16"]


def require(holds: bool, message: str) -> None:
    """Raise UsageError with this message if a condition does not hold."""
    if not holds:
        raise UsageError(message)


def require_working_directory() -> None:
    """Raise UsageError if the working directory was deleted. Relative paths then mean nothing, and no process can start."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory was deleted; change to another folder") from None


def expand_home(text: str) -> str:
    """A path, or a flag with a path behind `=`, whose `~` is replaced by the home folder. A shell does not do it there."""
    return re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: f"{found[1] or ''}{Path.home()}", text)


def output_path(out: str) -> str:
    """The absolute path, or the URI, that `--out` names.

    A job of `ray job submit --working-dir` runs in a copy of that folder, which Ray deletes. There, a relative path is below
    `~/mnist_ray` of the machine that runs the job. Raises UsageError for a URI of nothing, as an unset variable makes it.
    """
    scheme, separator, place = out.partition("://")
    if separator:
        require(bool(place.strip("/")), f"{out}: names no folder; expected {scheme}://, a bucket or a host, and a path")
        return out.rstrip("/")
    temporary = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and _RAY_COPIES in Path.cwd().parts
    return os.path.abspath(os.path.join(Path.home() / "mnist_ray" if temporary else "", out))


def output_folder(out: str) -> str:
    """The `output_path` of a folder. Raises OutputError if it is a local file, or below one."""
    place = output_path(out)
    for one in (place, *map(str, Path(place).parents)):
        if os.path.lexists(one) and not os.path.isdir(one):
            raise OutputError(f"--out {out}: {one} is no folder; expected one, or a place where one can be made")
    return place


def shard(text: str) -> tuple[int, int]:
    """The number of a shard and how many there are: `2/5` is (2, 5), and empty text (1, 1). Raises UsageError."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text or "1/1")
    number, count = (int(found[1]), int(found[2])) if found else (1, 0)
    require(number <= count, f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/5")
    return number, count


def shard_folder(text: str) -> str:
    """Where the table of a shard lies below `--out`, such as `/shards/2-of-5`; empty text without `--shard`."""
    return "/{}/{}-of-{}".format(SHARDS, *shard(text)) if text else ""


def table_path(out: str, shard: str) -> str:
    """The absolute path, or the URI, of the table of a job. `out` may name the folder of the shard itself."""
    folder, below = output_folder(out), shard_folder(shard)
    return folder.rstrip("/").removesuffix(below) + below if below else folder


def worker_range(workers: str) -> tuple[int, int]:
    """The smallest and the largest number of workers that `--workers` allows: `4` is (4, 4), `1:4` is (1, 4).

    Raises UsageError for other text.
    """
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", workers)
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if fewest != most and not 1 <= fewest < most:
        raise UsageError(f"--workers {workers}: expected a number (0 works without Ray), or MIN:MAX with 1 <= MIN <= MAX")
    return fewest, most


def checkpoint_interval(every: str) -> tuple[float, str]:
    """The number and the unit of `--checkpoint-every`. The unit is `epochs`, `steps` or `seconds`. Raises UsageError."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(epochs?|steps?|s|seconds?|)", every)
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--checkpoint-every {every}: expected epochs (1, 0.5), steps (200steps) or seconds (30s)")
    unit = "steps" if found[2].startswith("step") else "seconds" if found[2].startswith("s") else "epochs"
    return float(found[1]), unit


def scoring_pool(workers: str) -> tuple[int, int]:
    """The smallest and the largest number of actors that `--workers` allows; `auto` is (-1, -1). Raises UsageError."""
    return (-1, -1) if workers == "auto" else worker_range(workers)


def share(name: str, text: str) -> float:
    """A share as text, as in `0.1%` or `0.001`; 0 for empty text. Raises UsageError unless it is above 0 and below 1."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(%?)", text or "0")
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if text and not 0 < value < 1:
        raise UsageError(f"{name} {text}: expected a share above 0 and below 1, such as 0.1% or 0.001")
    return value


def probabilities(wanted: str) -> int | None:
    """How many probabilities of an image `--probabilities` asks for: `none` is 0, `top3` is 3, `all` is None.

    Raises UsageError for other text.
    """
    found = re.fullmatch(r"none|all|top([1-9])", wanted)
    if not found:
        raise UsageError(f"--probabilities {wanted}: expected none, all, or top1 to top9")
    return int(found[1] or 0) if wanted != "all" else None


def most_quarantined(allowed: str, inputs: int | None) -> float:
    """How many inputs `--max-quarantined` allows to be quarantined: `10` is 10, and `1%` a share of `inputs`.

    Empty text has no limit. A share of an unknown number of inputs has no limit yet. Raises UsageError for other text.
    """
    found = re.fullmatch(r"(\d+)|(\d+\.?\d*|\.\d+) ?%", allowed or "0")
    if not found or float(found[2] or 0) > 100:
        raise UsageError(f"--max-quarantined {allowed}: expected a number of inputs (100), or a share of them (1%)")
    if found[1]:
        return float(allowed) if allowed else inf
    return inf if inputs is None else float(found[2]) / 100 * inputs
