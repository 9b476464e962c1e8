import gzip
import os
import re
import runpy
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.data import datasets, images, storage
from mnist_ray.data.digits import CLASSES, Splits
from mnist_ray.data.images import encode_png
from mnist_ray.errors import DataError
from tests.conftest import ROOT, write_pickled_table


def same(found: Splits, expected: Splits) -> bool:
    return (found.train.digest, found.test.digest) == (expected.train.digest, expected.test.digest)


def test_mnist5k_is_a_fixed_stratified_split(mnist5k: Splits) -> None:
    assert np.bincount(mnist5k.train.labels).tolist() == [450] * 10
    assert np.bincount(mnist5k.test.labels).tolist() == [50] * 10
    assert same(datasets.load("mnist5k"), mnist5k)
    assert mnist5k.name == "mnist5k"


def test_full_mnist_contains_mnist5k(mnist: Splits, mnist5k: Splits) -> None:
    assert (mnist.name, len(mnist.train), len(mnist.test)) == ("mnist", 60_000, 10_000)
    assert same(datasets.load(os.environ["MNIST_RAY_DATA"]), mnist)
    published = {image.tobytes() for image in mnist.train.images}
    assert all(image.tobytes() in published for image in mnist5k.train.images)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_loaded(zipped: bool, small_idx: Path, small: Splits, tmp_path: Path) -> None:
    for file in small_idx.iterdir():
        data = file.read_bytes()
        (tmp_path / (file.name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    loaded = datasets.load(str(tmp_path))
    assert same(loaded, small)
    assert loaded.name == str(tmp_path), "only the published images may have the name mnist"


def test_folders_per_digit_are_loaded(small: Splits, tmp_path: Path) -> None:
    datasets.write_folder(small.train, str(tmp_path / "train"))
    datasets.write_folder(small.test, str(tmp_path / "test"))
    loaded = datasets.load(str(tmp_path))
    assert sorted(map(bytes, loaded.train.images)) == sorted(map(bytes, small.train.images))
    assert np.bincount(loaded.test.labels).tolist() == np.bincount(small.test.labels).tolist()
    held_out = datasets.load(str(tmp_path / "train"))
    assert (len(held_out.train), len(held_out.test)) == (540, 60)
    assert np.bincount(held_out.test.labels).tolist() == [6] * 10
    assert same(datasets.load(str(tmp_path / "train")), held_out), "the test part must be the same each time"


def test_parquet_files_are_loaded(small: Splits, tmp_path: Path) -> None:
    for part, digits in (("train-0", small.train), ("test-0", small.test)):
        images = [{"bytes": encode_png(image), "path": None} for image in digits.images]
        pq.write_table(pa.table({"image": images, "label": digits.labels.astype(np.int64)}), tmp_path / f"{part}.parquet")
    assert same(datasets.load(str(tmp_path)), small)
    alone = datasets.load(str(tmp_path / "train-0.parquet"))
    assert (len(alone.train), len(alone.test)) == (540, 60)


def _damage(folder: Path, kind: str) -> None:
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    data, marks = images.read_bytes(), labels.read_bytes()
    match kind:
        case "wrong magic":
            images.write_bytes(b"\0\0\x08\x04" + data[4:])
        case "short":
            images.write_bytes(data[:-1])
        case "cut in the header":
            images.write_bytes(data[:7])
        case "counts disagree":
            labels.write_bytes(marks[:4] + (599).to_bytes(4, "big") + marks[8:-1])
        case "label 10":
            labels.write_bytes(marks[:-1] + b"\x0a")
        case "class missing":
            labels.write_bytes(marks[:8] + marks[8:].replace(b"\x03", b"\x04"))
        case "labels missing":
            labels.unlink()
        case "broken gzip":
            (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data)[:-9])
            images.unlink()
        case "other size":
            images.write_bytes(data[:8] + (b"\0\0\0\x1b" * 2) + data[16:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong magic", "train-images-idx3-ubyte: begins with 0x00000804; expected the IDX magic number 0x00000803"),
        ("short", "train-images-idx3-ubyte: has 470415 bytes; its header announces 470416"),
        ("cut in the header", "less than the 16 of an IDX header"),
        ("counts disagree", "train-labels-idx1-ubyte: has 599 labels for the 600 images of"),
        ("label 10", "train-labels-idx1-ubyte: label 10 of image 599; expected 0 to 9"),
        ("class missing", "has no training image of class 3; expected all 10 classes"),
        ("labels missing", "train-labels-idx1-ubyte: is missing"),
        ("broken gzip", "train-images-idx3-ubyte.gz: is not a complete gzip file"),
        ("other size", "holds images of 27 x 27; expected 28 x 28"),
    ],
)
def test_errors_name_the_damaged_idx_file(kind: str, message: str, small_idx: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_idx, tmp_path / "idx")
    _damage(folder, kind)
    with pytest.raises(DataError) as error:
        datasets.load(str(folder))
    assert message in str(error.value)


def test_a_folder_without_digits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="holds no IDX files, no Parquet files and no images in folders named 0 to 9"):
        datasets.load(str(tmp_path))


def test_errors_name_the_damaged_training_image(small: Splits, tmp_path: Path) -> None:
    datasets.write_folder(small.train, str(tmp_path))
    (tmp_path / "3" / "bad.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"3/bad.png: not_an_image.*repair or remove this one"):
        datasets.load(str(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_a_pipe_or_a_broken_link_among_images_is_an_error_of_the_data(make: Any, small: Splits, tmp_path: Path) -> None:
    datasets.write_folder(small.test, str(tmp_path))
    make(tmp_path / "3" / "a.png")
    with pytest.raises(DataError, match=r"3/a\.png: .*; training needs every image, so repair or remove this one"):
        datasets.load(str(tmp_path))


@pytest.mark.parametrize("folder", ["test", "Testing"])
def test_a_folder_of_test_images_is_the_test_part(folder: str, small: Splits, tmp_path: Path) -> None:
    datasets.write_folder(small.train, str(tmp_path / "training"))
    datasets.write_folder(small.test, str(tmp_path / folder))
    (tmp_path / "training" / "7").rename(tmp_path / "7")
    for number, file in enumerate((tmp_path / "7").iterdir()):
        file.rename(file.with_name(f"test{number}.png"))
    found = datasets.load(str(tmp_path))
    assert (len(found.train), len(found.test)) == (len(small.train), len(small.test))


def test_large_images_are_converted_as_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them are in memory at the same time."""
    page = np.full((300, 300), 255, np.uint8)
    page[100:200, 140:160] = 0
    for name in CLASSES:
        for number in range(3):
            storage.write(str(tmp_path / name / f"{number}.png"), encode_png(page))
    decoded: list[weakref.ref[Any]] = []
    alive = []

    def decode(data: bytes) -> Any:
        grey = images.decode(data)
        decoded.append(weakref.ref(grey))
        alive.append(sum(image() is not None for image in decoded))
        return grey

    monkeypatch.setattr(datasets, "decode", decode)
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 2 * page.size)
    assert len(datasets.load(str(tmp_path)).train) == 20
    assert max(alive) <= 5


@pytest.mark.parametrize("hidden", ["3/._17.png", ".cache/3/17.png", ".cache/train.parquet"])
def test_hidden_files_are_left_out(hidden: str, small: Splits, tmp_path: Path) -> None:
    folder = tmp_path / ".digits"
    datasets.write_folder(small.train, str(folder))
    before = datasets.load(str(folder))
    (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
    (folder / hidden).write_bytes(b"no image")
    assert same(datasets.load(str(folder)), before)


def test_parquet_without_labels_is_an_error_that_lists_the_columns(small: Splits, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encode_png(small.train.images[0])]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: has no column of digits named .*; its columns: image \(binary\)"):
        datasets.load(str(tmp_path))


def test_auto_uses_mnist_ray_data(small_idx: Path, small: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_DATA", str(small_idx))
    assert same(datasets.load("auto"), small)
    assert datasets.load("auto").name != "mnist"
    for wrong in ("nowhere", "train-labels-idx1-ubyte"):
        monkeypatch.setenv("MNIST_RAY_DATA", str(small_idx / wrong))
        with pytest.raises(DataError, match=rf"MNIST_RAY_DATA=.*{wrong}: holds no"):
            datasets.load("auto")


def test_workers_import_no_unneeded_packages() -> None:
    program = (
        "import sys, mnist_ray.train_job, mnist_ray.score_job, mnist_ray.learn.loop, mnist_ray.artifact.finish\n"
        "assert not {'torchvision', 'matplotlib', 'mlxtend', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pickled_objects_in_parquet_are_refused_and_not_unpickled(small: Splits, tmp_path: Path) -> None:
    """The program imports Ray Data, which registers the extension type that unpickles its values."""
    write_pickled_table(tmp_path / "t.parquet", small.train, tmp_path / "it-ran")
    program = (
        "import ray.data\nfrom mnist_ray.cli import main\n"
        f"main(['train', '--workers', '0', '--data', {str(tmp_path / 't.parquet')!r}, '--out', {str(tmp_path / 'run')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not (tmp_path / "it-ran").exists(), "an object of the table was unpickled"
    assert "column 'image' holds values of the extension type 'ray.data.arrow_pickled_object'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_job_that_writes_digits_ends_with_the_status_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["write_digits", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "write_digits.py"), run_name="__main__")
    assert ended.value.code == DataError.exit_status
    assert re.fullmatch("error: .*gone: there is no such file or folder; .*\n", capsys.readouterr().err)


def test_a_file_of_another_kind_is_told_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"label,pixel0\n"))
    with pytest.raises(
        DataError, match=r"csv\.gz: cannot be read as a table: .* or a file that ends with \.parquet, \.csv, \.tsv"
    ):
        datasets.load(str(tmp_path / "train.csv.gz"))
