"""The command line: one function per command. Only this module prints results and converts errors to exit statuses."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import tyro
from tyro.extras import subcommand_cli_from_dict

from mnist_ray.config import (
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    ScoreConfig,
    TrainConfig,
    VerifyConfig,
)
from mnist_ray.console import Console
from mnist_ray.errors import EXIT_STATUSES, MnistRayError
from mnist_ray.flags import output_path

DESCRIPTION = f"""Distributed training and batch scoring of handwritten digits on Ray.

Exit statuses: {"; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())}. Images that cannot be read are
listed in the quarantine table and do not fail a job."""


def train(config: TrainConfig, console: Console) -> None:
    """Train a model, and print its accuracy, where it is, and where its report is."""
    from mnist_ray.data import storage
    from mnist_ray.train_job import train as run_training

    metrics = run_training(config, console)
    low, high = metrics["interval_95"]
    console.line(
        f"test accuracy {metrics['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}) "
        f"on {metrics['num_images']:,} images of {metrics['data']}"
    )
    console.line(f"trained {metrics['samples_seen']:,} samples in {metrics['train_seconds']:.1f} s")
    run = output_path(config.run_directory())
    console.line(f"run directory: {run}, model bundle: {run}/model")
    with suppress(MnistRayError):  # the run is finished, whatever the storage says about its report
        if storage.is_file(f"{run}/report.html"):
            console.line(f"report: {run}/report.html")


def score(config: ScoreConfig, console: Console) -> None:
    """Score images, and print the counts and where the table is; or only what the job would take."""
    from mnist_ray.score_job import estimate
    from mnist_ray.score_job import score as run_scoring

    if config.dry_run:
        console.line(estimate(config, console).to_text())
        console.line("nothing was written: this was a dry run")
        return
    summary, out = run_scoring(config, console), output_path(config.out)
    accuracy = "" if summary["accuracy"] is None else f", accuracy {summary['accuracy']:.2%}"
    console.line(
        f"{summary['inputs']:,} inputs = {summary['predicted']:,} predicted + {summary['quarantined']:,} quarantined{accuracy}"
    )
    if stale := summary.get("changed", 0) + summary.get("vanished", 0):
        console.line(f"{stale:,} inputs have changed or are gone since they were scored: {out}/changes.parquet")
    for reason, count in summary["reasons"].items():
        console.line(f"  quarantined, {reason}: {count:,}")
    console.line(f"{summary['images_per_second']:,.0f} images/s over {summary['seconds']['total']:.1f} s")
    console.line(f"predictions: {out}/predictions, summary: {out}/summary.json")


def evaluate(config: EvaluateConfig, console: Console) -> None:
    """Measure a model on the test digits of a dataset, and write and print the result."""
    from mnist_ray.artifact import bundle, seal
    from mnist_ray.artifact.evaluate import evaluate as measure
    from mnist_ray.artifact.predictor import Predictor, pick_device
    from mnist_ray.data import storage
    from mnist_ray.data.datasets import load

    model = bundle.load(config.model)
    splits = load(config.data, console.line)
    report = measure(splits.test, Predictor.ready(model, pick_device(config.device)))
    out = output_path(config.out or storage.join(seal.find(config.model).rpartition("/")[0], "evaluation.json"))
    storage.write_json(out, {**report.to_json(), "data": splits.card, "model_digest": model.digest})
    console.line(report.to_text())
    console.line(f"written to {out}")


def predict(config: PredictConfig, console: Console) -> None:
    """Print the label and the confidence of a few image files."""
    from mnist_ray.artifact import bundle
    from mnist_ray.artifact.predictor import Predictor, pick_device
    from mnist_ray.data.bulk import read_many
    from mnist_ray.data.containers import MAX_BYTES, Rejection
    from mnist_ray.data.images import to_digits
    from mnist_ray.errors import DataError
    from mnist_ray.scoring.read import to_grey

    predictor = Predictor.ready(bundle.load(config.model), pick_device("auto"))
    num_rejected = 0
    for name, data in zip(config.images, read_many(list(config.images), MAX_BYTES), strict=True):
        grey = to_grey(name, data)
        if isinstance(grey, Rejection):
            num_rejected += 1
            console.line(f"{name}: {grey.reason}: {grey.detail}")
            continue
        predictions = predictor(to_digits([grey]))
        console.line(f"{name}: {predictions.labels[0]} (confidence {predictions.confidence[0]:.1%})")
    if num_rejected:
        raise DataError(f"{num_rejected} of {len(config.images)} images could not be read; the reasons are printed above")


def verify(config: VerifyConfig, console: Console) -> None:
    """Prove that a prediction table is complete, and print its counts."""
    from mnist_ray.scoring.verify import verify as prove

    proof = prove(config.out)
    console.line(
        f"{config.out}: every one of {proof.inputs:,} inputs is there exactly once: "
        f"{proof.predicted:,} predicted + {proof.quarantined:,} quarantined, in {proof.units:,} units"
    )


def report(config: ReportConfig, console: Console) -> None:
    """Draw the page of a training run again, or compare several runs, and print where the page is."""
    from mnist_ray.report.comparison import report as draw_report

    console.line(f"written to {draw_report(config)}")


def diff(config: DiffConfig, console: Console) -> None:
    """Compare two prediction tables, print what differs, and write the page."""
    from mnist_ray.data import storage
    from mnist_ray.report.diff import compare, page, to_lines, without_pictures

    facts, out = compare(config.old, config.new), output_path(config.out)
    storage.write(out, page(facts))
    if config.json:
        console.line(storage.to_json(without_pictures(facts)).decode().rstrip())
        return
    for line in to_lines(facts):
        console.line(line)
    console.line(f"page: {out}")


def doctor(config: DoctorConfig, console: Console) -> int:
    """Check the set-up, and print a line per check; returns the exit status, 1 if there is a problem."""
    from mnist_ray.cluster.doctor import examine

    findings = []
    for finding in examine(config):
        findings.append(finding)
        if not config.json:
            console.line(finding.to_text())
    num_problems = sum(finding.state == "problem" for finding in findings)
    if config.json:
        document = {"problems": num_problems, "findings": [asdict(finding) for finding in findings]}
        console.line(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        console.line(f"{num_problems} problem{'s' if num_problems > 1 else ''} found" if num_problems else "no problem found")
    return int(num_problems > 0)


_COMMANDS: dict[type, Callable[[Any, Console], int | None]] = {
    TrainConfig: train,
    ScoreConfig: score,
    EvaluateConfig: evaluate,
    PredictConfig: predict,
    VerifyConfig: verify,
    ReportConfig: report,
    DiffConfig: diff,
    DoctorConfig: doctor,
}


def main(args: list[str] | None = None) -> int:
    """Run the command that `args` (default: those of this process) name, and return its exit status."""
    try:
        kinds: dict[str, Callable[..., Any]] = {command.__name__: kind for kind, command in _COMMANDS.items()}
        flat = (tyro.conf.OmitArgPrefixes,)
        config = subcommand_cli_from_dict(kinds, args=args, prog="mnist-ray", description=DESCRIPTION, config=flat)
        return _COMMANDS[type(config)](config, Console()) or 0
    except MnistRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
