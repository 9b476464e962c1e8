"""The functions of `import mnist_ray`."""

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mnist_ray
from mnist_ray import library
from mnist_ray.config import ScoreConfig, TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import Splits
from mnist_ray.errors import AccountingError, DataError, MnistRayError, ModelError, OutputError, UsageError
from tests.conftest import ROOT

FUNCTIONS = ["load_model", "read_table", "score", "train"]


def _modules_after(code: str) -> set[str]:
    """The top-level modules that a new process has imported after this code."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{code}; {show}"], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    return set(done.stdout.split())


def test_the_import_loads_no_other_package() -> None:
    assert _modules_after("import mnist_ray") & {"numpy", "pyarrow", "pandas", "torch", "ray", "tyro"} == set()


def test_reading_a_table_loads_neither_torch_nor_ray(table: Path) -> None:
    read = f"import mnist_ray; mnist_ray.read_table({str(table)!r})"
    assert _modules_after(read) & {"torch", "ray", "pandas", "pyarrow"} == {"pandas", "pyarrow"}


def test_dir_lists_the_functions() -> None:
    assert set(FUNCTIONS) <= set(dir(mnist_ray))
    assert set(FUNCTIONS) == set(mnist_ray.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        mnist_ray.trian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("first", ["mnist_ray.train_job", "mnist_ray.score_job", "mnist_ray.cli", "mnist_ray.library"])
def test_the_functions_stay_callable_after_other_imports(first: str) -> None:
    check = f"import mnist_ray; import {first}; assert all(callable(getattr(mnist_ray, n)) for n in {FUNCTIONS})"
    assert "mnist_ray" in _modules_after(check)


PRINTED = {"log_format", "quiet"}


@pytest.mark.parametrize(
    ("function", "config", "without"),
    [(library.train, TrainConfig, PRINTED), (library.score, ScoreConfig, PRINTED | {"dry_run", "price_per_node_hour"})],
)
def test_the_arguments_are_the_fields_of_the_configuration(function: Any, config: Any, without: set[str]) -> None:
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("show_progress")
    wanted = {field.name: field for field in fields(config) if field.name not in without}
    assert sorted(parameters) == sorted(wanted)
    for name, parameter in parameters.items():
        default = wanted[name].default
        same = str(parameter.default) == str(default) if name == "workers" else parameter.default == default
        assert same or parameter.default is inspect.Parameter.empty, name


def test_the_page_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The code of docs/reference/library.md, from top to bottom."""
    shutil.rmtree("runs")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference" / "library.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/reference/library.md", "exec"), names)
    assert re.fullmatch(
        r"9\d\.\d% of 500 test images are right\n"
        r"53 inputs = 52 predicted \+ 1 quarantined\n"
        r"\[7 3\] \[[01]\.\d* +[01]\.\d* *\]\n"
        r"1 \(1, 10\)\n"
        r"52 \d+ \['source', 'row', 'reason', 'detail', 'size_bytes'\]\n"
        r"scans/missing\.png: missing: there is no such file\n",
        capsys.readouterr().out,
    )


def test_the_examples_in_docstrings_run(place: Path) -> None:
    finder = doctest.DocTestFinder()
    tests = {test.name: test for test in finder.find(library, extraglobs={"mnist_ray": mnist_ray}) if test.examples}
    assert set(tests) == {"mnist_ray.library." + name for name in [*FUNCTIONS, "Model.predict"]}
    for name in ("train", "score", "load_model", "Model.predict", "read_table"):
        assert doctest.DocTestRunner().run(tests[f"mnist_ray.library.{name}"]).failed == 0, name


@pytest.fixture(scope="module")
def model(run_dir: Path) -> library.Model:
    return mnist_ray.load_model(run_dir)


def test_a_bundle_folder_gives_the_same_model(model: library.Model, run_dir: Path) -> None:
    other = mnist_ray.load_model(str(run_dir / "model"), device="cpu")
    assert other.digest == model.digest
    with pytest.raises(ModelError, match="neither a model bundle nor a finished run"):
        mnist_ray.load_model(run_dir.parent / "nothing")


def test_digits_in_an_array(model: library.Model, mnist5k: Splits) -> None:
    images = mnist5k.test.images
    found = model.predict(images)
    kinds = [array.dtype.name for array in (found.labels, found.confidence, found.probabilities)]
    assert kinds == ["uint8", "float32", "float32"]
    assert (found.labels.shape, found.confidence.shape, found.probabilities.shape) == ((500,), (500,), (500, 10))
    assert (found.labels == mnist5k.test.labels).mean() > 0.9
    assert np.array_equal(found.labels, model.predictor(images).labels), "digits that look like MNIST are used unchanged"
    assert np.array_equal(model.predict(images[:, ::-1]).labels, model.predict(images[:, ::-1].copy()).labels)
    one = model.predict(images[0])
    assert one.labels.shape == (1,)
    assert one.labels[0] == found.labels[0]
    assert model.predict(images[:0]).probabilities.shape == (0, 10)
    assert model.predict([]).labels.shape == (0,)


def _forms(grey: Any, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """One picture, uint8[H, W], in every form that `predict` takes."""
    path = tmp_path / "picture.png"
    picture = Image.fromarray(grey)
    picture.save(path)
    colour = np.stack([grey] * 3, axis=-1)
    yield from {"path": path, "text": str(path), "list": [str(path)], "tuple": (path,)}.items()
    yield from {"array": grey, "stack": grey[None], "uint16": grey.astype(np.uint16) * 257, "float": grey / 255}.items()
    yield from {"int64": grey.astype(np.int64), "bool": grey > 127, "one channel": grey[..., None]}.items()
    yield from {
        "colour": colour,
        "colours": colour[None],
        "channel": grey[None, ..., None],
        "tensor": [torch.tensor(grey)],
    }.items()
    yield from ((mode, picture.convert(mode)) for mode in ("L", "P", "RGB", "RGBA", "LA", "CMYK", "F", "I"))
    yield "generator", (item for item in [picture])


def test_every_form_of_an_image_gives_the_same_prediction(model: library.Model, mnist5k: Splits, tmp_path: Path) -> None:
    seven = mnist5k.test.images[350]
    large = 255 - np.kron(seven, np.ones((4, 4), np.uint8))  # dark ink on white paper, 112x112
    expected = model.predict(seven)
    assert expected.labels[0] == 7
    for name, form in _forms(large, tmp_path):
        found = model.predict(form)
        assert found.labels.tolist() == [7], name
        assert found.confidence == pytest.approx(expected.confidence, abs=0.1), name


def test_red_and_blue_are_not_exchanged() -> None:
    """Red has another luminance than blue, so a red picture tells whether an array is read as RGB, like a PIL image."""
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[..., 0] = np.arange(60)
    from_array = library._array_to_grey(picture)
    from_file = next(library._decoded([Image.fromarray(picture)]))
    assert isinstance(from_array, np.ndarray)
    assert isinstance(from_file, np.ndarray)
    assert np.array_equal(from_array, from_file)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["seven.png", "gone.png"], "gone.png: missing"),
        (["scans/damaged.png"], "scans/damaged.png: not_an_image"),
        ([np.zeros((28, 28), np.uint8), np.zeros((2, 28, 28, 3), np.uint8)], "image 1: wrong_shape: has shape"),
        (np.zeros((5, 28, 28), np.int64) - 1, "image 0: bad_pixels: pixels of type int64 outside 0 to 255"),
        (np.zeros((5, 28, 28), np.complex64), "image 0: bad_pixels: pixels of type complex64"),
        ([None], "image 0: wrong_shape"),
        (np.zeros((0, 5), np.uint8), "image 0: wrong_shape"),
        (np.zeros(784, np.uint8), "image 0: wrong_shape"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(place: Path, model: library.Model, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        model.predict(images)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, run_dir: Path, digit_folder: Path) -> Path:
    """A table of 300 predictions in units of 64, and of one damaged file."""
    place = tmp_path_factory.mktemp("library")
    (place / "damaged.png").write_bytes(b"")
    inputs = (str(digit_folder), str(place / "damaged.png"))
    summary = mnist_ray.score(inputs, model=run_dir, out=place / "table", workers=0, unit_rows=64)
    assert (summary["inputs"], summary["predicted"], summary["quarantined"]) == (301, 300, 1)
    return place / "table"


def test_a_table_is_read_as_pandas_reads_it(table: Path) -> None:
    found = mnist_ray.read_table(table).sort_values("source", ignore_index=True)
    expected = pq.read_table(table / "predictions").to_pandas().sort_values("source", ignore_index=True)
    assert found.drop(columns="probabilities").equals(expected.drop(columns="probabilities"))
    assert np.array_equal(np.stack(found.probabilities), np.stack(expected.probabilities))
    assert (found.label == found.truth).mean() > 0.9


def test_columns_and_rows_of_a_table_are_selected(table: Path) -> None:
    everything = mnist_ray.read_table(str(table))
    limit = everything.confidence.median()
    few = mnist_ray.read_table(table, columns=["label", "source"], where=pc.field("confidence") < float(limit))
    assert list(few.columns) == ["label", "source"]
    assert set(few.source) == set(everything[everything.confidence < limit].source)
    tuples = mnist_ray.read_table(table, where=[("label", "in", [3, 8]), ("confidence", ">=", float(limit))])
    assert set(tuples.source) == set(everything[everything.label.isin([3, 8]) & (everything.confidence >= limit)].source)
    none = mnist_ray.read_table(table, where=pc.field("confidence") > 2)
    assert (len(none), list(none.columns)) == (0, list(everything.columns))
    rejected = mnist_ray.read_table(table, columns=["source", "reason"], quarantine=True)
    assert rejected.values.tolist() == [[str(table.parent / "damaged.png"), "empty"]]


def _damage_probabilities(table: Path) -> None:
    """Overwrite the pages of the column `probabilities` in every part."""
    for part in (table / "predictions").iterdir():
        data = bytearray(part.read_bytes())
        columns = pq.read_metadata(part).row_group(0)
        for chunk in map(columns.column, range(columns.num_columns)):
            if chunk.path_in_schema.startswith("probabilities"):
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                data[start : start + chunk.total_compressed_size] = b"x" * chunk.total_compressed_size
        part.write_bytes(data)


def test_only_the_needed_columns_are_read(table: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(table, tmp_path / "table"))
    _damage_probabilities(copy)
    found = mnist_ray.read_table(copy, columns=["label"], where=[("confidence", ">", 0.0)])
    assert len(found) == 300
    with pytest.raises(AccountingError, match=r"part-\w+\.parquet: cannot be read"):
        mnist_ray.read_table(copy)


def test_only_the_needed_row_groups_are_read(tmp_path: Path) -> None:
    """Of two row groups, the damaged second one holds no row that the filter selects."""
    schema = pa.schema([("confidence", pa.float32())])
    file = tmp_path / "part.parquet"
    pq.write_table(pa.table({"confidence": [0.1, 0.2, 0.8, 0.9]}, schema), file, row_group_size=2, use_dictionary=False)
    chunk = pq.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = b"x" * chunk.total_compressed_size
    file.write_bytes(data)
    with storage.open_file(str(file)) as stream:
        assert pq.read_table(stream, filters=pc.field("confidence") < 0.5).num_rows == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["label", "lable"]}, "columns lable: the table has only source, row, label"),
        ({"where": pc.field("conf") < 0.5}, "where: does not fit the columns source, row, label"),
        ({"where": pc.field("source") < 0.5}, "where: does not fit the columns"),
    ],
)
def test_an_unknown_column_is_a_usage_error(table: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mnist_ray.read_table(table, **options)


def test_one_column_may_be_named_without_a_list(table: Path) -> None:
    assert list(mnist_ray.read_table(table, columns="label").columns) == ["label"]


def test_the_part_of_another_unit_is_refused(table: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(table, tmp_path / "table"))
    first, second, *_ = sorted((copy / "predictions").iterdir())
    shutil.copy(first, second)
    with pytest.raises(AccountingError, match=rf"{second.name}: cannot be read \(it is of unit"):
        mnist_ray.read_table(copy)


def test_a_changed_byte_of_the_rows_is_noticed(table: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(table, tmp_path / "table"))
    part = next((copy / "predictions").iterdir())
    chunk = pq.read_metadata(part).row_group(0).column(2)
    data = bytearray(part.read_bytes())
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1] ^= 1
    part.write_bytes(data)
    with pytest.raises(AccountingError, match=rf"{part.name}: cannot be read"):
        mnist_ray.read_table(copy)


def test_an_unfinished_table_is_refused(table: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(table, tmp_path / "table"))
    part = next((copy / "predictions").iterdir())
    part.unlink()
    with pytest.raises(AccountingError, match=f"{part.name}: cannot be read"):
        mnist_ray.read_table(copy)
    (copy / "commit.json").unlink()
    with pytest.raises(AccountingError, match="the job has not ended"):
        mnist_ray.read_table(copy)
    with pytest.raises(OutputError, match="holds no scoring job"):
        mnist_ray.read_table(tmp_path)


def test_a_table_in_a_bucket_is_read(table: Path) -> None:
    for file in table.rglob("*.*"):
        storage.write(f"memory://bucket/table/{file.relative_to(table)}", file.read_bytes())
    found = mnist_ray.read_table("memory://bucket/table", columns=["source", "label"])
    assert sorted(found.source) == sorted(mnist_ray.read_table(table).source)


def test_a_table_without_rejected_inputs_has_an_empty_quarantine(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    mnist_ray.score([digit_folder / "1"], model=run_dir, out=tmp_path, workers="0", probabilities="top2")
    assert mnist_ray.read_table(tmp_path, quarantine=True).empty
    assert "top_labels" in mnist_ray.read_table(tmp_path).columns


def test_progress_is_printed_only_if_wanted(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    options: Any = {"out": tmp_path / "run", "data": "mnist5k", "recipe": "fast", "workers": 0, "epochs": 3}
    metrics = mnist_ray.train(**options)
    assert metrics["num_images"] == 500
    assert capsys.readouterr().out == ""
    assert mnist_ray.train(**options, show_progress=True) == metrics
    assert "is done: nothing to train" in capsys.readouterr().out


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_of_it(place: Path) -> None:
    Path("job.py").write_text('import mnist_ray\nmnist_ray.score("scans", model="runs/digits", out="out")\n')
    done = subprocess.run(
        [sys.executable, "job.py"], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert 'a script of your own calls `score` below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert not Path("out").exists()


def test_mistakes_raise_the_errors_of_the_commands(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--lr -1"):
        mnist_ray.train(out=tmp_path, lr=-1)
    with pytest.raises(UsageError, match="--workers -1"):
        mnist_ray.train(out=tmp_path, workers=-1)
    with pytest.raises(MnistRayError, match="INPUT is missing"):
        mnist_ray.score([], model=run_dir, out=tmp_path)
    device: Any = "gpu"
    with pytest.raises(UsageError, match="--device 'gpu': expected one of auto, cpu, cuda"):
        mnist_ray.load_model(run_dir, device=device)
    nowhere: Any = None
    with pytest.raises(UsageError, match="None: expected a path or a URI"):
        mnist_ray.score(nowhere, model=run_dir, out=tmp_path)
    with pytest.raises(UsageError, match="None: expected a path or a URI"):
        mnist_ray.train(out=nowhere)


def test_jobs_in_two_threads_do_not_disturb_each_other(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    def score(number: int) -> int:
        out = tmp_path / f"{number}"
        return int(mnist_ray.score(digit_folder / "1", model=run_dir, out=out, workers=0, processes=1)["predicted"])

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(score, range(6))) == {len(list((digit_folder / "1").iterdir()))}


def test_a_deleted_working_directory_is_named(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    call = f"mnist_ray.score({str(digit_folder)!r}, model={str(run_dir)!r}, out={str(tmp_path / 'out')!r})"
    code = f"import os, mnist_ray; os.rmdir(os.getcwd()); {call}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, env=environment, text=True, capture_output=True)
    assert done.stderr.splitlines()[-1] == (
        "mnist_ray.errors.UsageError: the working directory was deleted; change to another folder"
    )


def test_numbers_of_numpy_are_numbers(small_idx: Path, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"epochs": np.int64(1), "lr": np.float32(0.01), "seed": np.arange(3)[2], "augment": np.False_}
    metrics = mnist_ray.train(out=tmp_path, data=small_idx, recipe="fast", workers=np.int64(0), **numbers)  # type: ignore[arg-type]
    assert metrics["epochs"] == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # one thread restores the filters while another one traces a network
def test_trainings_in_several_threads_learn_what_one_learns(small_idx: Path, tmp_path: Path) -> None:
    def weights(number: int) -> bytes:
        mnist_ray.train(out=tmp_path / f"{number}", data=small_idx, recipe="fast", epochs=0.5, workers=0)
        mnist_ray.load_model(tmp_path / f"{number}")
        return (tmp_path / f"{number}" / "model" / "weights.safetensors").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(weights, range(6))) == {weights(6)}


def test_the_callers_torch_stays_as_it_is(small_idx: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    try:
        before = torch.get_rng_state()
        mnist_ray.train(out=tmp_path, data=small_idx, recipe="fast", epochs=1, workers=0)
        model = mnist_ray.load_model(tmp_path)
        assert len(model.predict([np.zeros((28, 28), np.uint8) + np.eye(28, dtype=np.uint8) * 255]).labels) == 1
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_default_dtype() == torch.float64
        assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
