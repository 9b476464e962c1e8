"""`score --dry-run`: what it counts and measures, what it refuses, and that it writes nothing."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.run.owner import Owner, owning
from mnist_ray.score_job import estimate, score
from mnist_ray.scoring.estimate import DRAWN, PIECE, Estimate, Inventory, Kind, Workers
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.schema import PLAN
from tests.conftest import RayCluster, cli, start_cli


@pytest.fixture
def mixed(digit_folder: Path, mnist5k: Splits, tmp_path: Path) -> Path:
    """21 image files, one of them damaged; a Parquet file of 100 rows, and one that cannot be opened; a text file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted(digit_folder.rglob("*.png"))[:20]:
        shutil.copy(path, folder)
    (folder / "cut.png").write_bytes((folder / "00000.png").read_bytes()[:100])
    images = [encode_png(image) for image in mnist5k.test.images[:100]]
    pq.write_table(pa.table({"image": images}), folder / "t.parquet", row_group_size=40)
    (folder / "torn.parquet").write_bytes(b"PAR1")
    (folder / "notes.txt").write_text("hello\n")
    return folder


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def config(folder: Path, model: Path, out: Path, **options: object) -> ScoreConfig:
    values = {"inputs": (str(folder),), "model": str(model), "out": str(out), "workers": "0", **options}
    return ScoreConfig(**values)  # type: ignore[arg-type]


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def test_it_counts_what_the_job_then_scores(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    options = config(mixed, run_dir, tmp_path / "out", unit_rows=10)
    found = estimate(options, Console())
    assert state(tmp_path) == before, "a dry run must not write anything"
    images, rows = found.inventory.images, found.inventory.rows
    assert (images.inputs, images.files, images.bytes) == (21, 21, size(*mixed.glob("*.png")))
    assert (rows.inputs, rows.files, rows.bytes) == (101, 2, size(*mixed.glob("*.parquet")))
    summary = score(options, Console())
    assert (found.inventory.inputs, found.inventory.units) == (summary["inputs"], summary["units"])
    assert found.ignored == summary["ignored"] == 1


def test_a_small_job_is_scored_whole(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    found = estimate(config(mixed, run_dir, tmp_path / "out"), Console())
    images, rows = found.inventory.images, found.inventory.rows
    assert (images.sample.inputs, rows.sample.inputs) == (21, 101)
    assert images.sample.reasons == {"truncated": 1}
    assert rows.sample.reasons == {"corrupt": 1}
    assert images.seconds == pytest.approx(images.sample_s)
    assert rows.seconds == pytest.approx(rows.sample_s)


def test_it_prints_the_inputs_the_workers_the_speed_and_the_cost(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    args = ["score", str(mixed), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--dry-run"]
    done = cli(*args, "--price-per-node-hour", "3600")
    assert done.returncode == 0, done.stderr
    assert "inputs: 21 image files (" in done.stdout
    assert "and 101 rows of 2 tables (" in done.stdout
    assert re.search(r"workers: \d+ with 1 CPU each; they are processes of this machine", done.stdout)
    assert re.search(r"sample: 21 image files .* images/s; 1 quarantined \(truncated 1\)\n", done.stdout)
    assert re.search(r"cost: [\d.]+ for [\de.-]+ node hours \(1 x 3600 per hour\)\n", done.stdout)
    assert done.stdout.endswith("nothing was written: this was a dry run\n")
    assert "cost" not in cli(*args).stdout
    assert not (tmp_path / "out").exists()


def test_only_what_is_left_of_a_job_counts(digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(config(digit_folder, run_dir, out, unit_rows=50), Console())
    for part in sorted((out / "predictions").iterdir())[:2]:
        part.unlink()
    before = state(out)
    found = estimate(config(digit_folder, run_dir, out, unit_rows=50, resume=True), Console())
    assert (found.inventory.inputs, found.inventory.units) == (100, 2)
    assert state(out) == before
    score(config(digit_folder, run_dir, out, unit_rows=50, resume=True), Console())
    nothing = estimate(config(digit_folder, run_dir, out, unit_rows=50, resume=True), Console())
    assert nothing.inventory.inputs == 0
    assert "0 image files" in nothing.to_text()


def test_new_inputs_of_an_extended_job_count(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(config(mixed, run_dir, out), Console())
    shutil.copy(mixed / "00000.png", mixed / "new.png")
    before = state(tmp_path)
    found = estimate(config(mixed, run_dir, out, extend=True), Console())
    assert (found.inventory.inputs, found.inventory.images.inputs) == (1, 1)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ("IN/nowhere --model RUN --out OUT", 3),
        ("IN --model IN --out OUT", 4),
        ("IN --model RUN --out IN", 5),
        ("IN --model RUN --out OUT --keep nothing", 3),
        ("IN --model RUN --out OUT --image-column nothing", 3),
        pytest.param("IN --model RUN --out OUT --workers 100000", 7, marks=pytest.mark.slow),
        ("IN --model RUN --out OUT --workers 2 --address ray://127.0.0.1:1", 7),
        ("IN --model RUN --out OUT --device cuda", 2),
    ],
)
def test_it_refuses_what_the_job_refuses(args: str, status: int, mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    places = {"IN": str(mixed), "RUN": str(run_dir), "OUT": str(tmp_path / "out")}
    words = re.sub("IN|RUN|OUT", lambda found: places[found[0]], args).split()
    before = state(tmp_path)
    dry = cli("score", *words, "--dry-run")
    assert (dry.returncode, state(tmp_path)) == (status, before)
    real = cli("score", *words)
    assert (real.returncode, real.stderr) == (dry.returncode, dry.stderr)


def test_it_refuses_a_folder_that_another_job_writes_to(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    with owning(Owner(str(tmp_path / "out"))):
        done = cli("score", str(mixed), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--dry-run")
    assert (done.returncode, "is writing here" in done.stderr) == (5, True)


@pytest.mark.slow
def test_a_cluster_is_asked_for_its_resources(ray_cluster: RayCluster, mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    words = ["--address", ray_cluster.address, "--workers", "2", "--dry-run", "--price-per-node-hour", "1"]
    job = start_cli("score", str(mixed), "--model", str(run_dir), "--out", str(tmp_path / "out"), *words)
    printed, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert "workers: 2 with 1 CPU each; the cluster has 2 CPUs" in printed
    assert "node hours (1 x 1 per hour)" in printed
    assert not (tmp_path / "out").exists()


class _ClusterWithAGpu(RayCluster):
    """A cluster of 2 CPUs, which says that it has a GPU."""

    def _head_flags(self) -> list[str]:
        return ["--num-gpus=1"]


@pytest.mark.slow
def test_the_actors_of_a_node_share_its_gpu(mixed: Path, run_dir: Path, tmp_path: Path) -> None:
    cluster = _ClusterWithAGpu()
    try:
        shared, alone = "2 with 1 CPU and 0.5 GPU each", "1 with 1 CPU and 1 GPU each"
        for flags, workers in (([], shared), (["--gpus-per-actor", "1"], alone)):
            words = ["--address", cluster.address, "--dry-run", *flags]
            done = cli("score", str(mixed), "--model", str(run_dir), "--out", str(tmp_path / "out"), *words)
            assert done.returncode == 0, done.stderr
            assert f"workers: {workers}; the cluster has 2 CPUs (2 free) and 1 GPUs" in done.stdout
    finally:
        cluster.stop()


def unit(number: int, rows: int) -> WorkUnit:
    """A unit of image files of 1,000 bytes each."""
    names = [f"{number}/{row}.png" for row in range(rows)]
    columns = [
        [str(number)] * rows,
        names,
        [1000] * rows,
        ["1"] * rows,
        [None] * rows,
        [None] * rows,
        [1] * rows,
        [None] * rows,
    ]
    return WorkUnit(str(number), pa.table(columns, schema=PLAN))


def test_the_sample_comes_from_everywhere_and_stays_small() -> None:
    kind = Kind(1, 0)
    for number in range(1000):
        kind.add(unit(number, 300), 300, 300_000)
    drawn = kind.drawn()
    assert len({piece.id for piece in drawn}) == DRAWN
    assert {piece.rows.num_rows for piece in drawn} == {PIECE}
    tenths = {int(piece.id) // 100 for piece in drawn}
    assert len(tenths) == 10
    assert len({piece.rows["source"][0].as_py().partition("/")[2] for piece in drawn}) > 10
    assert max(piece.rows.nbytes for piece in drawn) < 2 * unit(0, 300).rows.nbytes


def estimated(listing_s: float, workers: Workers) -> Estimate:
    """A job of 1,000 files, of which one process scored 100 in a second."""
    inventory = Inventory(seconds=listing_s)
    for number in range(10):
        inventory.images.add(unit(number, 100), 100, 100_000)
    inventory.images.sample.predicted, inventory.images.sample.input_bytes = 100, 100_000
    inventory.images.sample_s = 1.0
    return Estimate(inventory, 0, workers, 0.5)


def test_the_slower_of_listing_and_work_decides() -> None:
    workers = Workers(4, {"CPU": 1}, 2, "")
    assert estimated(0.5, Workers(1000, {"CPU": 1}, 2, "")).number == 10, "a unit has one worker"
    assert estimated(0.5, workers).seconds == pytest.approx(2.5)
    assert estimated(36.0, workers).seconds == pytest.approx(36.0)
    assert "cost: 0.01 for 0.02 node hours (2 x 0.5 per hour)" in estimated(36.0, workers).to_text()
    unknown = Workers(4, {"CPU": 1}, 0, "")
    assert (
        "cost: 0.02, divided by the number of workers that fit on a node; there is no node"
        in estimated(36.0, unknown).to_text()
    )
