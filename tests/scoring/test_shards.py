"""`score --shard I/N` and `commit`: N jobs that do not know of each other make the table of one job."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray import score_job
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from tests.conftest import cli
from tests.scoring.conftest import KilledError, Run, killed

Score = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def inputs(digit_folder: Path, mnist5k: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 digits, a file that is no image, one that is ignored, and a table of 60 digits."""
    folder = tmp_path_factory.mktemp("in")
    for path in sorted(digit_folder.rglob("*.png"))[::2]:
        shutil.copy(path, folder)
    (folder / "text.png").write_text("text")
    (folder / "notes.txt").write_text("mine")
    table = pa.table({"image": [encode_png(image) for image in mnist5k.test.images[:60]], "site": np.arange(60)})
    pq.write_table(table, folder / "t.parquet", row_group_size=20)
    return folder


@pytest.fixture
def new_input(inputs: Path) -> Iterator[Path]:
    """Where a test may add an input."""
    path = inputs / "zzz.png"
    yield path
    path.unlink()


@pytest.fixture
def score(run: Run, inputs: Path, run_dir: Path) -> Score:
    """Runs `score` for the inputs in units of 20. `run` has replaced its processes by a thread."""

    def score(out: Path, *flags: str) -> CompletedProcess[str]:
        table = ["--out", str(out), "--unit-rows", "20", "--workers", "0", "--keep", "site"]
        return cli("score", str(inputs), "--model", str(run_dir), *table, *flags)

    return score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shards lie that the tests copy."""
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def shards(score: Score, finished: Path, out: Path) -> Path:
    """The output folder of three finished shards."""
    for number in () if finished.exists() else (1, 2, 3):
        done = score(finished, "--shard", f"{number}/3")
        assert done.returncode == 0, done.stderr
        assert f"predictions: {finished}/shards/{number}-of-3/predictions" in done.stdout
    return Path(shutil.copytree(finished, out))


def files(out: Path) -> dict[str, bytes]:
    """The content of the tables and of the plan."""
    found = [*out.glob("pr*/*"), *out.glob("quarantine/*"), *out.glob("plan/*"), out / "ignored.parquet", out / "plan.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def test_shards_make_the_table_of_one_job(score: Score, shards: Path, inputs: Path, new_input: Path, tmp_path: Path) -> None:
    counts = [summary(shards / "shards" / f"{number}-of-3")["inputs"] for number in (1, 2, 3)]
    assert (sum(counts), max(counts) < 90) == (211, True), "each shard scores its part"
    done = cli("commit", str(shards))
    assert done.returncode == 0, done.stderr
    assert f"report: {shards}/report.html" in done.stdout
    assert "211 inputs = 210 predicted + 1 quarantined" in done.stdout
    assert score(tmp_path / "one").returncode == 0
    assert files(shards) == files(tmp_path / "one")
    same = {"units", "plan", "job", "inputs", "reasons", "ignored", "confusion", "digits", "input_bytes", "model"}
    one, merged = summary(tmp_path / "one"), summary(shards)
    assert {name: one[name] for name in same} == {name: merged[name] for name in same}
    shutil.rmtree(shards / "shards")
    assert cli("verify", str(shards)).returncode == 0
    assert cli("diff", str(shards), str(tmp_path / "one"), "--out", str(tmp_path / "diff.html")).returncode == 0
    assert score(shards, "--resume").returncode == 0
    assert summary(shards)["scored_now"] == 0
    shutil.copy(inputs / "text.png", new_input)
    assert score(shards, "--extend").returncode == 0
    assert (summary(shards)["scored_now"], summary(shards)["inputs"]) == (1, 212)
    assert cli("verify", str(shards)).returncode == 0


def test_shards_that_listed_other_inputs_are_refused(score: Score, shards: Path, inputs: Path, new_input: Path) -> None:
    """A file is added after two shards have listed their inputs."""
    shutil.copy(inputs / "text.png", new_input)
    assert score(shards, "--shard", "3/3", "--overwrite").returncode == 0
    done = cli("commit", str(shards))
    assert (done.returncode, done.stderr.count("shards 1/3 and 3/3 have not listed the same inputs")) == (6, 1)
    assert not (shards / "plan.json").exists(), "nothing is written"
    for number in (1, 2):
        assert score(shards, "--shard", f"{number}/3", "--overwrite").returncode == 0
    assert cli("commit", str(shards)).returncode == 0
    assert summary(shards)["inputs"] == 212


def _make_unfinished(shards: Path) -> None:
    (shards / "shards/1-of-3/commit.json").unlink()


def _damage_a_part(shards: Path) -> None:
    part = next((shards / "shards/1-of-3/predictions").iterdir())
    part.write_bytes(part.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (_make_unfinished, 6, "shards/1-of-3: has no commit record: the job has not ended; run again with --resume"),
        (_damage_a_part, 6, "cannot be used"),
        (lambda out: (out / "shards/1-of-3/plan.json").unlink(), 6, "shards/1-of-3: has no plan: its job has not ended"),
        (lambda out: shutil.rmtree(out / "shards/2-of-3"), 6, "shards: lacks shards 2/3; score them with --shard"),
        (lambda out: (out / "shards/4-of-4").mkdir(), 6, "shards: holds shards of 3 and of 4; delete those of another job"),
        (lambda out: shutil.rmtree(out / "shards"), 5, "holds no shards; score them with --out"),
        (
            lambda out: shutil.copytree(out / "shards/1-of-3", out / "shards/2-of-3", dirs_exist_ok=True),
            6,
            "shards/2-of-3: is not the table of --shard 2/3",
        ),
    ],
    ids=["unfinished", "damaged", "no plan", "missing", "mixed", "none", "copied"],
)
def test_a_table_is_made_of_whole_shards_alone(
    change: Callable[[Path], None], status: int, message: str, score: Score, shards: Path
) -> None:
    change(shards)
    done = cli("commit", str(shards))
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert not (shards / "commit.json").exists()
    if change in (_make_unfinished, _damage_a_part):
        assert score(shards, "--shard", "1/3", "--resume").returncode == 0
        assert cli("commit", str(shards), "--overwrite").returncode == 0


def test_a_table_stays_if_its_shards_cannot_replace_it(shards: Path) -> None:
    assert cli("commit", str(shards)).returncode == 0
    next((shards / "shards" / "2-of-3" / "predictions").iterdir()).unlink()
    refused = cli("commit", str(shards), "--overwrite")
    assert refused.returncode == 6
    assert "2-of-3/predictions: has changed since the shard ended; run it again with --resume" in refused.stderr
    assert cli("verify", str(shards)).returncode == 0


def test_shards_of_different_jobs_are_refused(score: Score, shards: Path) -> None:
    done = score(shards, "--shard", "2/3", "--resume", "--probabilities", "none")
    assert (done.returncode, "probabilities all -> none" in done.stderr) == (5, True)
    assert score(shards, "--shard", "2/3", "--overwrite", "--probabilities", "none").returncode == 0
    done = cli("commit", str(shards))
    assert (done.returncode, "are not of one job (probabilities all and none)" in done.stderr) == (6, True)


@pytest.mark.parametrize("again", ["commit", "score"])
def test_a_killed_commit_is_done_again(again: str, monkeypatch: pytest.MonkeyPatch, score: Score, shards: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(score_job, "commit", killed)
        with pytest.raises(KilledError):
            cli("commit", str(shards))
    assert cli("verify", str(shards)).returncode == 6
    done = cli("commit", str(shards))
    assert (done.returncode, "holds a table already; give --overwrite" in done.stderr) == (5, True)
    done = cli("commit", str(shards), "--overwrite") if again == "commit" else score(shards, "--resume")
    assert done.returncode == 0, done.stderr
    assert cli("verify", str(shards)).returncode == 0


def test_there_may_be_more_shards_than_units(run: Run, digit_folder: Path, run_dir: Path, out: Path) -> None:
    """The output folder lies in the input folder: other shards' tables are not inputs."""
    folder = out / "in"
    shutil.copytree(digit_folder / "1", folder)
    for number in (2, 1, 3):
        flags = ["--model", str(run_dir), "--out", str(folder / "table"), "--workers", "0", "--target-error", "20%"]
        done = cli("score", str(folder), *flags, "--shard", f"{number}/3")
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stdout
    done = cli("commit", str(folder / "table"))
    assert done.returncode == 0, done.stderr
    assert cli("verify", str(folder / "table")).returncode == 0
    assert summary(folder / "table")["inputs"] == len(list((digit_folder / "1").iterdir()))


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "3", "1/0", "a/b"])
def test_a_wrong_shard_is_refused(wrong: str) -> None:
    done = cli("score", "in", "--model", "m", "--out", "o", "--shard", wrong)
    assert (done.returncode, f"--shard {wrong}: expected I/N with 1 <= I <= N" in done.stderr) == (2, True)
