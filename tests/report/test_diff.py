"""`mnist-ray diff`: two tables of the same inputs, against pandas, and the page in a browser."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.data.statistics import mcnemar
from mnist_ray.learn.control import RunControl
from mnist_ray.report.diff import compare
from mnist_ray.run.worker import work
from tests.conftest import cli

CheckPage = Callable[[Path], str]


def score(*inputs: Path, run: Path, out: Path) -> Path:
    done = cli("score", *map(str, inputs), "--model", str(run), "--out", str(out), "--workers", "0", "--unit-rows", "50")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def weak_run(tmp_path_factory: pytest.TempPathFactory, small: Splits) -> Path:
    """A model that makes many mistakes."""
    run = tmp_path_factory.mktemp("weak")
    assert work(str(run), TrainConfig(data="mnist5k", workers="0", epochs=2), "cpu", small, RunControl())
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digit_folder: Path, mnist5k: Splits) -> Path:
    """300 image files of known digits, 30 rows of a Parquet file, and an empty file."""
    folder = tmp_path_factory.mktemp("inputs") / "in"
    shutil.copytree(digit_folder, folder)
    digits = mnist5k.test.take(np.arange(300, 330))
    pq.write_table(pa.table({"image": list(map(encode_png, digits.images)), "label": digits.labels}), folder / "rows.parquet")
    (folder / "empty<b>.png").touch()
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, weak_run: Path, run_dir: Path, folder: Path) -> tuple[Path, Path]:
    """The tables of a weak and of a better model."""
    root = tmp_path_factory.mktemp("tables")
    return score(folder, run=weak_run, out=root / "old"), score(folder, run=run_dir, out=root / "new")


def pandas_join(old: Path, new: Path) -> pd.DataFrame:
    both = [pd.read_parquet(out / "predictions").fillna({"row": -1}) for out in (old, new)]
    return both[0].merge(both[1], on=["source", "row"], suffixes=("_old", "_new"))


def test_the_facts_are_those_of_pandas(tables: tuple[Path, Path]) -> None:
    facts = compare(*map(str, tables))
    joined = pandas_join(*tables)
    assert (facts["in_both"], facts["compared"], facts["only_old"], facts["only_new"], facts["repeated"]) == (331, 330, 0, 0, 0)
    assert facts["changed"] == (joined.label_old != joined.label_new).sum() > 10
    labels = (
        pd.crosstab(joined.label_old, joined.label_new)
        .reindex(range(10), fill_value=0)
        .reindex(columns=range(10), fill_value=0)
    )
    assert facts["labels"] == labels.to_numpy().tolist()
    old, new = joined.label_old == joined.truth_old, joined.label_new == joined.truth_new
    truth = facts["truth"]
    assert (truth["images"], truth["right_old"], truth["right_new"]) == (330, old.sum(), new.sum())
    assert (truth["fixed"], truth["broken"]) == ((new & ~old).sum(), (old & ~new).sum())
    assert truth["p_value"] == mcnemar(truth["fixed"], truth["broken"])
    for digit in range(10):
        of_digit = joined.truth_old == digit
        counts = {"images": of_digit, "right_old": old & of_digit, "right_new": new & of_digit}
        counts |= {"fixed": new & ~old & of_digit, "broken": old & ~new & of_digit}
        assert truth["digits"][digit] == {name: mask.sum() for name, mask in counts.items()}
    changes = {kind: found["count"] for kind, found in facts["changes"].items()}
    wrong = (~old & ~new & (joined.label_old != joined.label_new)).sum()
    assert changes == {"broken": truth["broken"], "fixed": truth["fixed"], "both wrong": wrong, "truth unknown": 0}
    assert all(row["picture"] for found in facts["changes"].values() for row in found["examples"])


@pytest.mark.slow
def test_the_command_prints_and_writes_a_page(tables: tuple[Path, Path], tmp_path: Path, check_page: CheckPage) -> None:
    old, new = map(str, tables)
    done = cli("diff", old, new, "--out", str(tmp_path / "diff.html"))
    assert done.returncode == 0, done.stderr
    facts = compare(old, new)
    assert "331 inputs in both, 0 only in OLD, 0 only in NEW" in done.stdout
    assert f"changed labels: {facts['changed']} of 330" in done.stdout
    assert "NEW is better." in done.stdout
    text = check_page(tmp_path / "diff.html")
    assert "NEW is better." in text
    assert f"Fixed by NEW: {facts['truth']['fixed']}" in text


def test_the_other_way_round(tables: tuple[Path, Path], tmp_path: Path) -> None:
    there, back = compare(*map(str, tables)), compare(*map(str, reversed(tables)))
    assert back["truth"]["fixed"] == there["truth"]["broken"]
    assert np.array_equal(np.transpose(back["labels"]), there["labels"])
    assert (there["truth"]["verdict"], back["truth"]["verdict"]) == ("new is better", "old is better")


def test_json_is_one_document_without_pictures(tables: tuple[Path, Path], tmp_path: Path) -> None:
    done = cli("diff", *map(str, tables), "--json", "--out", str(tmp_path / "diff.html"))
    facts = json.loads(done.stdout)
    assert facts["truth"]["fixed"] == compare(*map(str, tables))["truth"]["fixed"]
    assert "data:image" not in done.stdout
    assert (tmp_path / "diff.html").exists()


@pytest.mark.slow
def test_a_table_and_itself(tables: tuple[Path, Path], tmp_path: Path, check_page: CheckPage) -> None:
    done = cli("diff", str(tables[0]), str(tables[0]), "--out", str(tmp_path / "diff.html"))
    assert "changed labels: 0 of 330" in done.stdout
    assert "OLD and NEW are right on the same inputs." in check_page(tmp_path / "diff.html")


def test_inputs_in_one_table_repeated_inputs_and_rejected_ones(run_dir: Path, mnist5k: Splits, tmp_path: Path) -> None:
    """The lists name inputs in different orders, and some twice. One file is damaged between the two jobs."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encode_png(mnist5k.test.images[number]))
    (tmp_path / "old.txt").write_text("\n".join(f"in/{n}.png" for n in (0, 1, 2, 3, 0)))
    (tmp_path / "new.txt").write_text("\n".join(f"in/{n}.png" for n in (5, 3, 2, 1, 3, 3)))
    old = score(tmp_path / "old.txt", run=run_dir, out=tmp_path / "old")
    (folder / "1.png").write_bytes(b"")
    new = score(tmp_path / "new.txt", run=run_dir, out=tmp_path / "new")
    facts = compare(str(old), str(new))
    counts = {"in_both": 3, "only_old": 1, "only_new": 1, "repeated": 3, "compared": 2, "changed": 0}
    counts |= {"predicted_only_by_old": 1, "predicted_only_by_new": 0}
    assert {name: facts[name] for name in counts} == counts
    assert facts["truth"] is None
    done = cli("diff", str(old), str(new), "--out", str(tmp_path / "diff.html"))
    assert "1 predicted in OLD and quarantined in NEW" in done.stdout
    assert "3 rows repeat" in done.stdout


@pytest.mark.slow
def test_unknown_truth_and_sources_that_are_gone(
    run_dir: Path, weak_run: Path, mnist5k: Splits, tmp_path: Path, check_page: CheckPage
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, image in enumerate(mnist5k.test.images[::3]):
        (folder / f"<i>{number}.png").write_bytes(encode_png(image))
    old, new = score(folder, run=weak_run, out=tmp_path / "old"), score(folder, run=run_dir, out=tmp_path / "new")
    shutil.rmtree(folder)
    facts = compare(str(old), str(new))
    found = facts["changes"]["truth unknown"]
    assert found["count"] == facts["changed"] > 0
    assert {row["note"] for row in found["examples"]} == {"the source is gone"}
    assert cli("diff", str(old), str(new), "--out", str(tmp_path / "diff.html")).returncode == 0
    text = check_page(tmp_path / "diff.html")
    assert "No true digit is known" in text
    assert "the source is gone" in text


def test_errors_say_what_is_wrong(tables: tuple[Path, Path], run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    def diff(*outs: Path) -> tuple[int, str]:
        done = cli("diff", *map(str, outs), "--out", str(tmp_path / "diff.html"))
        return done.returncode, done.stderr

    assert diff(tables[0], digit_folder) == (5, f"error: {digit_folder}: holds no scoring job: plan.json is missing\n")
    copy = tmp_path / "copy"
    shutil.copytree(tables[1], copy)
    (copy / "commit.json").unlink()
    status, message = diff(tables[0], copy)
    assert (status, "has no commit record" in message) == (6, True)
    shutil.copy(tables[1] / "commit.json", copy)
    part = max((copy / "predictions").iterdir(), key=lambda path: path.stat().st_size)
    part.unlink()
    status, message = diff(tables[0], copy)
    assert (status, part.name in message) == (6, True)
    pq.write_table(pq.read_table(tables[1] / "predictions" / part.name).slice(1), part)
    status, message = diff(tables[0], copy)
    assert (status, "has not the rows that were committed" in message) == (6, True)
    other = score(digit_folder / "0", run=run_dir, out=tmp_path / "other")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(digit_folder / "0", elsewhere / "0")
    status, message = diff(other, score(elsewhere, run=run_dir, out=tmp_path / "more"))
    assert (status, "has no input in common" in message) == (3, True)
    assert not (tmp_path / "diff.html").exists()


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (1, 9), (9, 15), (12, 12), (20, 6), (29, 284), (101, 59)])
def test_mcnemar_against_mlxtend(fixed: int, broken: int) -> None:
    """Two implementations of the same test. Without discordant pairs, mlxtend divides by zero."""
    from mlxtend.evaluate import mcnemar as other

    if not fixed + broken:
        assert mcnemar(fixed, broken) == 1
        return
    exact = fixed + broken < 25
    _, expected = other(ary=np.array([[10, broken], [fixed, 10]]), corrected=True, exact=exact)
    assert mcnemar(fixed, broken) == pytest.approx(min(1, expected), rel=1e-6)


def test_mcnemar_against_published_values() -> None:
    """A. Agresti, Categorical Data Analysis (2002), section 10.1: 150 and 86 opinions changed."""
    from statistics import NormalDist

    assert mcnemar(150, 86) == pytest.approx(2 * (1 - NormalDist().cdf(((150 - 86 - 1) ** 2 / 236) ** 0.5)), rel=1e-6)
    assert mcnemar(0, 6) == 2 / 2**6
