"""Changes of a finished table: `verify` notices them, and `--resume` mends them or refuses with status 6."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring import parts
from mnist_ray.scoring.parts import digest_of
from mnist_ray.scoring.plan import seal
from mnist_ray.scoring.verify import verify
from tests.scoring.conftest import Run, rows

UNIT_ROWS = 30


@pytest.fixture(scope="module")
def inputs(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 digits, 3 files that are no images, and a file that is ignored."""
    folder = tmp_path_factory.mktemp("inputs")
    for path in sorted(digit_folder.rglob("*.png"))[::3][:120]:
        (folder / path.name).write_bytes(path.read_bytes())
    for number in range(3):
        (folder / f"{number}-text.png").write_text(f"text {number}")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the table lies that the tests copy."""
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def table(run: Run, inputs: Path, finished: Path, out: Path) -> Path:
    """A finished table of four units."""
    if not finished.exists():
        run(inputs, out=finished, unit_rows=UNIT_ROWS)
        assert verify(str(finished)).units == 4
    shutil.copytree(finished, out)
    return out


def content(out: Path) -> list[list[dict[str, Any]]]:
    return [rows(out), rows(out, "quarantine")]


def proven_files(out: Path) -> list[Path]:
    """All files of a table but the owner record and the report, which `verify` does not look at."""
    unproven = ("owner.json", "report.html", "report.json")
    return sorted(path for path in out.rglob("*") if path.is_file() and path.name not in unproven)


def check_mended_or_refused(run: Run, inputs: Path, out: Path, before: list[list[dict[str, Any]]]) -> bool:
    """Resume the job; returns whether it mended the table. Otherwise, it must have refused."""
    try:
        run(inputs, out=out, unit_rows=UNIT_ROWS, resume=True)
    except (AccountingError, OutputError):  # an edited plan may be that of another job
        with pytest.raises(AccountingError):
            verify(str(out))
        return False
    verify(str(out))
    assert content(out) == before
    return True


@pytest.mark.slow
def test_every_flipped_bit_is_noticed_and_mended(run: Run, inputs: Path, table: Path, tmp_path: Path) -> None:
    """200 single bits, in all files of the table. One flip of each file is also resumed."""
    before, generator = content(table), random.Random(7)
    files = proven_files(table)
    mended = set()
    for trial in range(200):
        file = files[trial % len(files)]
        whole = file.read_bytes()
        broken = bytearray(whole)
        broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        file.write_bytes(broken)
        with pytest.raises(AccountingError):
            verify(str(table))
        if trial < len(files) and check_mended_or_refused(run, inputs, table, before):
            mended.add(file.relative_to(table).parts[0])
        else:
            file.write_bytes(whole)
    assert mended == {"predictions", "quarantine", "commit.json", "summary.json"}
    verify(str(table))


def _rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a Parquet file and keep its metadata, as a careful hand would."""
    found = pq.ParquetFile(file)
    metadata = found.metadata.metadata
    changed = change(found.read()).replace_schema_metadata(None)
    with pq.ParquetWriter(file, changed.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})


def _replace(name: str, values: Callable[[pa.Table], Any]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        return table.set_column(place, field, pa.array(list(values(table)), field.type))

    return change


def _reversed(name: str) -> Callable[[pa.Table], pa.Table]:
    return _replace(name, lambda table: table[name].to_pylist()[::-1])


CHANGES_OF_ROWS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a label": _replace("label", lambda table: [(table["label"][0].as_py() + 1) % 10, *table["label"].to_pylist()[1:]]),
    "labels swapped": _reversed("label"),
    "sources swapped": _reversed("source"),
    "a confidence": _replace("confidence", lambda table: table["confidence"].to_numpy() / 2),
    "probabilities": _reversed("probabilities"),
    "truths": _replace("truth", lambda table: np.full(table.num_rows, 3)),
    "a row less": lambda table: table.slice(1),
    "a row twice": lambda table: pa.concat_tables([table.slice(0, 1), table]),
    "a row instead of another": lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)]),
    "another order": lambda table: table.take(list(range(table.num_rows))[::-1]),
    "no rows": lambda table: table.slice(0, 0),
    "a column less": lambda table: table.drop_columns("truth"),
    "a column more": lambda table: table.append_column("more", table["label"]),
    "another type": lambda table: table.set_column(2, "label", table["label"].cast(pa.int32())),
}


@pytest.mark.parametrize("name", CHANGES_OF_ROWS)
def test_edited_rows_are_noticed_and_mended(name: str, run: Run, inputs: Path, table: Path) -> None:
    before = content(table)
    _rewrite(sorted((table / "predictions").iterdir())[1], CHANGES_OF_ROWS[name])
    with pytest.raises(AccountingError):
        verify(str(table))
    assert check_mended_or_refused(run, inputs, table, before)


def _quarantine(table: Path) -> Path:
    return next((table / "quarantine").iterdir())


def _other_part(table: Path) -> str:
    """A part of predictions whose unit has no part in the quarantine."""
    return min(set(os.listdir(table / "predictions")) - set(os.listdir(table / "quarantine")))


def _edit_json(file: Path, **changes: Any) -> None:
    """Change a record, and its digest too, as one who knows the format could."""
    record = json.loads(file.read_text()) | changes
    file.write_bytes(seal(record) if record.pop("digest", "") else json.dumps(record).encode())


def _swap_parts(table: Path) -> None:
    one, two = sorted((table / "predictions").iterdir())[:2]
    os.rename(one, table / "x")
    os.rename(two, one)
    os.rename(table / "x", two)


def _edit_plan_row(table: Path) -> None:
    _rewrite(next((table / "plan").iterdir()), _reversed("source"))


CHANGES_OF_FILES: dict[str, tuple[bool, Callable[[Path], Any]]] = {
    "a part less": (True, lambda out: next((out / "predictions").iterdir()).unlink()),
    "a part twice": (
        True,
        lambda out: shutil.copy(next((out / "predictions").iterdir()), out / "predictions" / "part-00.parquet"),
    ),
    "an empty part": (True, lambda out: next((out / "predictions").iterdir()).write_bytes(b"")),
    "parts swapped": (True, _swap_parts),
    "no predictions": (True, lambda out: shutil.rmtree(out / "predictions")),
    "no quarantine": (True, lambda out: shutil.rmtree(out / "quarantine")),
    "a reason": (
        True,
        lambda out: _rewrite(_quarantine(out), _replace("reason", lambda table: ["empty"] * table.num_rows)),
    ),
    "a quarantine row less": (True, lambda out: _rewrite(_quarantine(out), lambda table: table.slice(1))),
    "a quarantine part of another unit": (
        True,
        lambda out: shutil.copy(_quarantine(out), out / "quarantine" / _other_part(out)),
    ),
    "a stray quarantine part": (True, lambda out: shutil.copy(_quarantine(out), out / "quarantine" / "part-00.parquet")),
    "a folder among the parts": (False, lambda out: shutil.copytree(out / "plan", out / "predictions" / "more")),
    "a file among the parts": (False, lambda out: (out / "predictions" / "notes.txt").write_text("mine")),
    "no commit record": (True, lambda out: (out / "commit.json").unlink()),
    "another model in the commit record": (True, lambda out: _edit_json(out / "commit.json", model_digest="0" * 64)),
    "another job in the commit record": (True, lambda out: _edit_json(out / "commit.json", job="0" * 64)),
    "other counts in the commit record": (True, lambda out: _edit_json(out / "commit.json", predicted=121, quarantined=2)),
    "another accuracy in the summary": (True, lambda out: _edit_json(out / "summary.json", accuracy=1.0)),
    "no summary": (True, lambda out: (out / "summary.json").unlink()),
    "another model in the plan": (False, lambda out: _edit_json(out / "plan.json", model_digest="0" * 64)),
    "fewer inputs in the plan": (False, lambda out: _edit_json(out / "plan.json", num_inputs=1)),
    "a plan row": (False, _edit_plan_row),
    "another ignored file": (
        False,
        lambda out: _rewrite(out / "ignored.parquet", _replace("source", lambda table: ["x"] * table.num_rows)),
    ),
    "no list of ignored files": (False, lambda out: (out / "ignored.parquet").unlink()),
    "a file of the plan less": (False, lambda out: next((out / "plan").iterdir()).unlink()),
}
"""Changes of files, and whether `--resume` mends them."""


@pytest.mark.parametrize("name", CHANGES_OF_FILES)
def test_changed_files_are_noticed_and_mended_or_refused(name: str, run: Run, inputs: Path, table: Path) -> None:
    before = content(table)
    mends, change = CHANGES_OF_FILES[name]
    change(table)
    with pytest.raises(AccountingError):
        verify(str(table))
    assert check_mended_or_refused(run, inputs, table, before) is mends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys.slice(1), "1 inputs missing and 0 too many"),
        (lambda keys: pa.concat_tables([keys, keys.slice(0, 1)]), "0 inputs missing and 1 too many"),
        (lambda keys: pa.concat_tables([keys.slice(1), keys.slice(1, 1)]), "1 inputs missing and 1 too many"),
    ],
)
def test_verify_does_not_trust_the_writer(
    change: Callable[[pa.Table], pa.Table], message: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole parts whose rows are not the planned inputs: as if a worker had lost or doubled a row before it wrote the part."""
    read = parts.read_part

    def read_other(*args: Any) -> Any:
        predicted, *others = read(*args)
        return change(predicted), *others

    monkeypatch.setattr("mnist_ray.scoring.verify.read_part", read_other)
    with pytest.raises(AccountingError, match=message):
        verify(str(table))


def test_the_digest_of_a_part_covers_all_pages(table: Path) -> None:
    """Parquet writes nothing but its footer after the rows were hashed."""
    for file in (table / "predictions").iterdir():
        data = file.read_bytes()
        about = json.loads(pq.read_metadata(file).metadata[b"mnist_ray"])
        assert about["rows"] == digest_of(data[: -8 - int.from_bytes(data[-8:-4], "little")])
