"""The tables of jobs with `--shard`, and the one table that is made of them.

The units of a shard are every N-th unit of the same plan, with the same ids, so their parts are those of the whole job.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from mnist_ray.data import storage
from mnist_ray.data.listing import batches
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.flags import SHARDS, shard_folder
from mnist_ray.scoring.commit import load_commit, require_ignored, require_records
from mnist_ray.scoring.ignored import IGNORED
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE, PartError, copy_part, digests
from mnist_ray.scoring.plan import Plan, fingerprint, write_units
from mnist_ray.scoring.planner import LAST_PART, take
from mnist_ray.scoring.verify import complete_plan

_COPIERS = 16


class Shard(NamedTuple):
    """A finished job over a part of the inputs."""

    out: str
    plan: Plan
    record: dict[str, Any]
    """Its commit record."""


def load_shards(out: str) -> list[Shard]:
    """The shards of the table in an output folder, in order. Raises OutputError if there are none.

    Raises AccountingError if one is missing or not finished, or if they are not parts of one plan.
    """
    names = storage.names(storage.join(out, SHARDS))
    counts = sorted({int(found[1]) for name in names if (found := re.fullmatch(r"\d+-of-(\d+)", name))})
    if not counts:
        raise OutputError(f"{out}: holds no shards; score them with --out {out} and --shard 1/N to N/N")
    if len(counts) > 1:
        of = " and of ".join(map(str, counts))
        raise AccountingError(f"{out}/{SHARDS}: holds shards of {of}; delete those of another job")
    wanted = [f"{number}/{counts[0]}" for number in range(1, counts[0] + 1)]
    if missing := [name for name in wanted if name.replace("/", "-of-") not in names]:
        raise AccountingError(f"{out}/{SHARDS}: lacks shards {', '.join(missing)}; score them with --shard")
    shards = [_load(out, name) for name in wanted]
    _require_one_plan(out, [shard.plan for shard in shards])
    return shards


def _load(out: str, name: str) -> Shard:
    folder = out + shard_folder(name)
    try:
        plan, record = complete_plan(folder), load_commit(folder)
    except OutputError:
        raise AccountingError(f"{folder}: has no plan: its job has not ended; score it again") from None
    if (plan.shard, plan.job_id, plan.fingerprint) != (name, record["job"], record["plan"]):
        raise AccountingError(f"{folder}: is not the table of --shard {name}; score it again with --overwrite")
    require_records(folder, record)
    return Shard(folder, plan, record)


def _require_one_plan(out: str, plans: list[Plan]) -> None:
    """Raise AccountingError unless all shards have the same model and options, and have listed the same inputs."""
    first = plans[0]
    for plan in plans[1:]:
        one, other = ({**found.request, "model": found.model_digest} for found in (first, plan))
        if changes := [f"{name} {one.get(name)} and {other[name]}" for name in other if one.get(name) != other[name]]:
            raise AccountingError(
                f"{out}: shards {first.shard} and {plan.shard} are not of one job ({'; '.join(changes)}); "
                "score one of them again with --overwrite"
            )
        if first.of_all_shards != plan.of_all_shards:
            raise AccountingError(
                f"{out}: shards {first.shard} and {plan.shard} have not listed the same inputs: files were added, deleted or "
                "changed (their size or time) in between; score the older one again with --overwrite"
            )


def write_plan(shards: list[Shard], out: str) -> tuple[Plan, dict[str, int]]:
    """Write one plan of the shards' plans; returns it, and the number of inputs of each unit.

    Raises AccountingError if the units are not those that each shard has listed.
    """
    listed = chain.from_iterable(zip_longest(*(shard.plan.units(shard.out) for shard in shards)))
    rest, units, parts = (unit for unit in listed if unit), dict[str, int](), dict[str, str]()
    for number, some in enumerate(iter(lambda: list(take(rest, LAST_PART)), [])):
        name = f"{number:05d}.parquet"
        refs, parts[name] = write_units(out, name, some)
        units.update((ref.id, ref.num_inputs) for ref in refs)
    whole = shards[0].plan
    if fingerprint(units) != whole.of_all_shards:
        raise AccountingError(f"{out}: the plans of its shards are not parts of one plan; score them again with --overwrite")
    if whole.ignored_digest:
        require_ignored(whole, shards[0].out)
        storage.write(storage.join(out, IGNORED), storage.read(storage.join(shards[0].out, IGNORED)))
    plan = replace(
        whole,
        shard="",
        of_all_shards="",
        parts=parts,
        num_units=len(units),
        num_inputs=sum(units.values()),
        fingerprint=whole.of_all_shards,
    )
    plan.save(out)
    return plan, units


def require_parts(shards: list[Shard]) -> None:
    """Raise AccountingError if the parts of a shard are not those that it has recorded. Reads all parts."""
    for shard in shards:
        for place, table in enumerate((PREDICTIONS, QUARANTINE)):
            recorded = {unit: both[place] for unit, both in shard.record["digests"].items() if both[place]}
            if dict(digests(shard.out, table)) != recorded:
                raise AccountingError(f"{shard.out}/{table}: has changed since the shard ended; run it again with --resume")


def copy_parts(shards: list[Shard], out: str) -> Iterator[UnitResult]:
    """Copy the parts of all shards to an output folder; yields the counts of each unit.

    Raises AccountingError if a part is not the one that its shard has recorded.
    """
    with ThreadPoolExecutor(_COPIERS) as pool:
        for shard in shards:
            job, recorded = Job.of(shard.plan, shard.out), shard.record["digests"]

            def copy(unit: str, job: Job = job, recorded: dict[str, list[str]] = recorded) -> UnitResult:
                try:
                    result = copy_part(job, unit, out)
                except PartError as error:
                    raise AccountingError(f"{error}; run its shard again with --resume") from None
                if list(result.digests) != recorded[unit]:
                    raise AccountingError(f"{job.out}: has changed since the shard ended; run it again with --resume")
                return result

            for units in batches(recorded, 1024):  # a pool holds all that it has been given
                yield from pool.map(copy, units)
