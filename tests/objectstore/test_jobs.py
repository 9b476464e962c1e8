"""Both jobs with everything in a bucket."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data import datasets
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from tests.conftest import ROOT, cli
from tests.objectstore.bucket import Bucket
from tests.objectstore.conftest import Inputs

pytestmark = pytest.mark.usefixtures("in_threads")


def test_train_evaluate_score_verify_resume_and_predict_in_a_bucket(bucket: Bucket, inputs: Inputs) -> None:
    run, out = f"{bucket.uri}/run", f"{bucket.uri}/deep/out"
    training = ["train", "--data", inputs.idx, "--out", run, "--workers", "0", "--epochs", "2"]
    done = cli(*training)
    assert done.returncode == 0, done.stderr
    assert bucket.json("run/metrics.json")["samples_seen"] == 1200
    again = cli(*training)
    assert (again.returncode, "nothing to train" in again.stdout) == (0, True)
    evaluated = cli("evaluate", "--model", run, "--data", inputs.idx)
    assert evaluated.returncode == 0, evaluated.stderr
    assert bucket.json("run/evaluation.json")["num_images"] == 100

    scoring = ["score", inputs.digits, inputs.tables, "--model", run, "--out", out, "--workers", "0", "--unit-rows", "50"]
    done = cli(*scoring)
    assert done.returncode == 0, done.stderr
    summary = bucket.json("deep/out/summary.json")
    assert (summary["inputs"], summary["quarantined"]) == (inputs.num_digits + inputs.num_rows, 0)
    assert cli("verify", out).returncode == 0
    refused = cli(*scoring)
    assert (refused.returncode, "is not empty" in refused.stderr) == (5, True)
    bucket.delete(bucket.keys("deep/out/predictions/")[0])
    assert cli("verify", out).returncode == 6
    before = summary["units"]
    assert cli(*scoring, "--resume").returncode == 0
    assert bucket.json("deep/out/summary.json")["units"] == before
    assert cli("verify", out).returncode == 0
    assert {row["source"] for row in bucket.rows("deep/out")} >= {f"{inputs.tables}/{name}.parquet" for name in "abc"}

    facts = bucket.json("deep/out/report.json")
    assert facts["accounting"]["verified"]
    assert all(row["picture"] for rows in facts["examples"].values() for row in rows)
    assert bucket.get("deep/out/report.html").startswith(b"<!doctype html>")
    compared = cli("diff", out, out, "--out", f"{bucket.uri}/diff.html")
    assert (compared.returncode, "changed labels: 0 of" in compared.stdout) == (0, True), compared.stderr
    assert b"deep/out" in bucket.get("diff.html")

    image = bucket.rows("deep/out")[0]["source"]
    predicted = cli("predict", image, f"{bucket.uri}/none.png", "--model", run)
    assert predicted.returncode == 3
    assert f"{image}: " in predicted.stdout
    assert f"{bucket.uri}/none.png: missing" in predicted.stdout


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_training_data_of_every_kind(kind: str, bucket: Bucket, inputs: Inputs, small: Splits, tmp_path: Path) -> None:
    data = inputs.tables
    if kind == "folder":
        datasets.write_folder(small.train.take(np.arange(0, 600, 4)), str(tmp_path))
        data = bucket.upload(tmp_path, "digits")
    done = cli("train", "--data", data, "--out", f"{bucket.uri}/run", "--workers", "0", "--epochs", "0.2")
    assert done.returncode == 0, done.stderr


def test_an_image_costs_one_get_and_no_head(bucket: Bucket, inputs: Inputs) -> None:
    """The listing of a folder tells the sizes. The report reads the images that it shows once more."""
    images = rf"^/{inputs.bucket.name}/digits/.*\.png$"
    before = bucket.proxy.count("GET", images), bucket.proxy.count("HEAD", images)
    done = cli("score", inputs.digits, "--model", inputs.model, "--out", f"{bucket.uri}/out", "--workers", "0")
    assert done.returncode == 0, done.stderr
    examples = bucket.json("out/report.json")["examples"]
    shown = {row["source"] for rows in examples.values() for row in rows}
    assert bucket.proxy.count("GET", images) - before[0] == inputs.num_digits + len(shown)
    assert bucket.proxy.count("HEAD", images) == before[1]


NAMES = ["a b.png", "50%.png", "50%20.png", "a+b.png", "é/数.png", "a#b?c&d=e.png", "x'y\"z.png", "(1)[2]{3}.png", "s /t .png"]


def test_keys_with_special_characters(bucket: Bucket, inputs: Inputs, mnist5k: Splits) -> None:
    """They are listed, looked up, read and named in the table as they are."""
    for position, name in enumerate(NAMES):
        bucket.put(f"in/{name}", encode_png(mnist5k.test.images[position]))
    uris = sorted(f"{bucket.uri}/in/{name}" for name in NAMES)
    manifest = bucket.put("list.txt", "\n".join(uris).encode())
    for source in (f"{bucket.uri}/in", manifest):
        out = f"out-{len(source)}"
        done = cli("score", source, "--model", inputs.model, "--out", f"{bucket.uri}/{out}", "--workers", "0")
        assert done.returncode == 0, done.stderr
        assert [row["source"] for row in bucket.rows(out)] == uris
        assert cli("verify", f"{bucket.uri}/{out}").returncode == 0


def test_a_manifest_lists_objects_and_local_files(bucket: Bucket, inputs: Inputs, digit_folder: Path) -> None:
    remote = [f"{inputs.bucket.uri}/{key}" for key in inputs.bucket.keys("digits/")[:5]]
    local = sorted(map(str, digit_folder.rglob("*.png")))[:5]
    bucket.put("lists/near.png", inputs.bucket.get(inputs.bucket.keys("digits/")[7]))
    lines = [*remote, *local, "near.png", f"{bucket.uri}/gone.png", f"{digit_folder}/gone.png"]
    manifest = bucket.put("lists/list.csv", "\n".join(["path", *lines]).encode())
    done = cli("score", manifest, "--model", inputs.model, "--out", f"{bucket.uri}/out", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert {row["source"] for row in bucket.rows("out")} == {*remote, *local, f"{bucket.uri}/lists/near.png"}
    quarantined = {row["source"]: row["reason"] for row in bucket.rows("out", "quarantine")}
    assert quarantined == dict.fromkeys([f"{bucket.uri}/gone.png", f"{digit_folder}/gone.png"], "missing")


def test_globs(bucket: Bucket, inputs: Inputs) -> None:
    done = cli(
        "score",
        f"{inputs.digits}/[37]/*.png",
        "--model",
        inputs.model,
        "--out",
        f"{bucket.uri}/out",
        "--workers",
        "0",
        "--truth",
        "folder",
    )
    assert done.returncode == 0, done.stderr
    assert {row["truth"] for row in bucket.rows("out")} == {3, 7}


LATE_CREDENTIALS = """
import multiprocessing, os, sys
import mnist_ray
from mnist_ray.errors import StorageError

digits, model, out, *keys = sys.argv[1:]

def score():
    return mnist_ray.score(digits, model=model, out=out, workers=0, processes=1)

if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=print)
    process.start()
    process.join()
    try:
        score()
    except StorageError as error:
        print(error, file=sys.stderr)
    os.environ.update(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), keys))
    print(score()["predicted"])
"""


def test_credentials_that_a_program_sets_late_count(
    bucket: Bucket, inputs: Inputs, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    """Both after a failed call, and after the program itself has started the process that others are forked from."""
    (tmp_path / "program.py").write_text(LATE_CREDENTIALS)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    without = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [
            sys.executable,
            "program.py",
            inputs.digits,
            inputs.model,
            f"{bucket.uri}/out",
            *(s3_environment[name] for name in names),
        ],
        env={**without, "PYTHONPATH": str(ROOT), "MNIST_RAY_STORAGE_PATIENCE_S": "1"},
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert "no credentials found" in done.stderr
    assert done.stdout.split()[-1:] == [str(inputs.num_digits)], done.stderr
