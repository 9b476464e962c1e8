"""The command line: one function per command. Only this module prints results and converts errors to exit statuses."""

import gc
import inspect
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import tyro
from tyro.extras import subcommand_cli_from_dict

import mnist_ray
from mnist_ray.config import (
    CommitConfig,
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    ScoreConfig,
    TrainConfig,
    VerifyConfig,
)
from mnist_ray.console import Console, StandardFile, standard_streams
from mnist_ray.errors import EXIT_STATUSES, MnistRayError, StorageError, UsageError, first_line
from mnist_ray.flags import expand_home, output_path, require_working_directory, table_path
from mnist_ray.run.lean import leave_compiler_out
from mnist_ray.run.signals import raising

if TYPE_CHECKING:
    from rich.table import Table

    from mnist_ray.artifact.evaluate import EvalReport

DESCRIPTION = f"""Distributed training and batch scoring of handwritten digits on Ray.

Use `mnist-ray COMMAND --help` for the flags of a command, and `mnist-ray --version` for the version.

Exit statuses: {"; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())}. Images that cannot be read are
listed in the quarantine table and do not fail a job."""
ANSWERS_WIDTH = 49
"""Characters of a terminal that the columns of predictions may take."""


def train(config: TrainConfig, console: Console) -> None:
    """Train a model, and print its accuracy, where it is, and where its report is."""
    console.progress("starting")
    from mnist_ray.data import storage
    from mnist_ray.train_job import train as run_training

    metrics = run_training(config, console)
    low, high = metrics["interval_95"]
    run = output_path(config.run_directory())
    report = f"{run}/report.html"
    written = False
    with suppress(MnistRayError):  # the run is finished, whatever the storage says about its report
        written = storage.is_file(report)
    console.result(
        f"test accuracy {metrics['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}) "
        f"on {metrics['num_images']:,} images of {metrics['data']}\n"
        f"trained {metrics['samples_seen']:,} samples in {metrics['train_seconds']:.1f} s\n"
        f"run directory: {run}, model bundle: {run}/model" + (f"\nreport: {report}" if written else ""),
        run=run,
        **metrics,
    )


def score(config: ScoreConfig, console: Console) -> None:
    """Score images, and print the counts and where the table is; or only what the job would take."""
    console.progress("starting")
    if not (config.dry_run or config.needs_ray()):
        from mnist_ray.run import forkserver

        with suppress(OSError):  # the job tries it again, and says what is wrong
            forkserver.start()
    from mnist_ray.score_job import estimate
    from mnist_ray.score_job import score as run_scoring

    if config.dry_run:
        console.result(f"{estimate(config, console).to_text()}\nnothing was written: this was a dry run")
        return
    summary = run_scoring(config, console)
    rate = summary["images_per_second"]
    speed = f"{rate:,.{0 if rate >= 10 else 1}f} images/s over {summary['seconds']['total']:.1f} s"
    _show_table(summary, table_path(config.out, config.shard), console, speed)


def commit(config: CommitConfig, console: Console) -> None:
    """Make one table of the shards in an output folder, and print its counts and where it is."""
    from mnist_ray.score_job import commit_shards

    _show_table(commit_shards(config, console), output_path(config.out), console)


def _show_table(summary: dict[str, Any], out: str, console: Console, *speed: str) -> None:
    """Print the counts of a table, and where it is."""
    accuracy = "" if summary["accuracy"] is None else f", accuracy {summary['accuracy']:.2%}"
    counts = f"{summary['predicted']:,} predicted + {summary['quarantined']:,} quarantined"
    lines = [f"{summary['inputs']:,} inputs = {counts}{accuracy}"]
    if stale := summary.get("changed", 0) + summary.get("vanished", 0):
        lines.append(f"{stale:,} inputs have changed or are gone since they were scored: {out}/changes.parquet")
    if summary["ignored"]:
        lines.append(f"{summary['ignored']:,} other files were ignored: {out}/ignored.parquet lists them")
    if summary["unlike"]:
        lines.append(
            f"  not like a digit: {summary['unlike']:,} ({summary['unlike'] / summary['predicted']:.1%}; 1 % is usual)"
        )
    lines += [f"  drift: {found['words']}" for found in summary["drift"].values() if found["words"]]
    if summary["needs_review"] is not None and summary["predicted"]:
        lines.append(f"  to be reviewed: {summary['needs_review']:,} ({summary['needs_review'] / summary['predicted']:.1%})")
    lines += [f"  quarantined, {reason}: {count:,}" for reason, count in summary["reasons"].items()]
    lines += [*speed, f"predictions: {out}/predictions, summary: {out}/summary.json"]
    console.result("\n".join(lines), out=out, **summary)


def evaluate(config: EvaluateConfig, console: Console) -> None:
    """Measure a model on the test digits of a dataset, and write and print the result."""
    from mnist_ray.artifact import bundle, seal
    from mnist_ray.artifact.evaluate import evaluate as measure
    from mnist_ray.artifact.predictor import Predictor, pick_device
    from mnist_ray.data import storage
    from mnist_ray.data.datasets import load

    console.progress("loading the model")
    model = bundle.load(config.model)
    splits = load(config.data, console.line)
    console.progress("measuring")
    report = measure(splits.test, Predictor.ready(model, pick_device(config.device)))
    out = output_path(config.out or storage.join(seal.find(config.model).rpartition("/")[0], "evaluation.json"))
    try:
        storage.write_json(out, {**report.to_json(), "data": splits.card, "model_digest": model.digest})
    except StorageError as error:
        console.result(report.to_text(), **report.to_json())
        raise StorageError(f"{error}; give another --out") from None
    if console.on_terminal:
        console.draw(_drawing(report))
        console.result(f"{report.headline()}\nwritten to {out}")
    else:
        console.result(f"{report.to_text()}\nwritten to {out}", out=out, **report.to_json())


def _drawing(report: "EvalReport") -> "Table":
    """A report as a table for a terminal of 80 columns: a row for each true class. Wrong predictions are red.

    If the predictions do not fit beside precision and recall, they are left out.
    """
    from rich.table import Table
    from rich.text import Text

    from mnist_ray.data.digits import CLASSES

    answers = [f"as {name}" for name in CLASSES]
    if len(" ".join(answers)) > ANSWERS_WIDTH:
        answers = []
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("digit", "images", "precision", "recall", *answers):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row, counts in zip(CLASSES, report.per_class(), report.confusion.tolist(), strict=True):
        cells = [Text(f"{count}", "red" if count and other != row["class"] else "") for other, count in enumerate(counts)]
        figures = (f"{row['images']}", f"{row['precision']:.2%}", f"{row['recall']:.2%}")
        table.add_row(name, *figures, *cells[: len(answers)])
    return table


def predict(config: PredictConfig, console: Console) -> None:
    """Print the label and the confidence of a few image files."""
    from mnist_ray.artifact import bundle
    from mnist_ray.artifact.predictor import Predictor, pick_device
    from mnist_ray.data.bulk import read_many
    from mnist_ray.data.containers import MAX_BYTES, Reason
    from mnist_ray.data.digits import CLASSES, UNLIKE
    from mnist_ray.data.images import normalise
    from mnist_ray.errors import DataError
    from mnist_ray.scoring.read import to_grey

    predictor = Predictor.ready(bundle.load(config.model), pick_device("auto"))
    num_rejected = 0
    for name, data in zip(config.images, read_many(list(config.images), MAX_BYTES), strict=True):
        digits, rejected = normalise([to_grey(name, data)])
        if rejected:
            _require_no_inputs_of_score(name, rejected[0].reason in (Reason.MISSING, Reason.UNREADABLE), config.model)
            num_rejected += 1
            console.line(f"{name}: {rejected[0].reason}: {rejected[0].detail}")
            continue
        predictions = predictor(digits)
        doubt = ", does not look like a digit" if predictions.likeness[0] < UNLIKE else ""
        console.line(f"{name}: {CLASSES[predictions.labels[0]]} (confidence {predictions.confidence[0]:.1%}{doubt})")
    if num_rejected:
        raise DataError(f"{num_rejected} of {len(config.images)} images could not be read; the reasons are printed above")


def _require_no_inputs_of_score(name: str, unread: bool, model: str) -> None:
    """Raise UsageError if what is no image is an input of `score`: a table, a manifest, or, if it was not read, a folder."""
    from mnist_ray.data import storage

    is_folder = False
    with suppress(StorageError):  # such as one whose storage may not be listed
        is_folder = unread and storage.is_folder(name)
    if is_folder or name.lower().endswith((".parquet", ".csv", ".tsv", ".txt", ".lst")):
        command = shlex.join(["mnist-ray", "score", name, "--model", model, "--out", "TABLE"])
        raise UsageError(f"{name}: predict takes image files; for a folder, a table or a manifest, use `{command}`")


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
    CommitConfig: commit,
    EvaluateConfig: evaluate,
    PredictConfig: predict,
    VerifyConfig: verify,
    ReportConfig: report,
    DiffConfig: diff,
    DoctorConfig: doctor,
}


_GO_ON: dict[type, str] = {
    TrainConfig: "; run the same command again to continue from its newest checkpoint",
    ScoreConfig: "; run again with --resume to score the rest",
    CommitConfig: "; run again with --overwrite",
}
"""How to go on after Ctrl-C, or when memory ran out."""


def _similar(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question whether a similar known word was meant. If there is none, `otherwise`."""
    names = {name.lstrip("-"): name for name in known}
    found = get_close_matches(word.lstrip("-"), names, n=1)
    return f"did you mean {names[found[0]]}?" if found else otherwise


def _require_flags(command: str, kind: type, args: list[str]) -> None:
    """Raise UsageError for the first flag that the command does not have."""
    known = ["--help", *(f"--{field.name}".replace("_", "-") for field in fields(kind))]
    for arg in takewhile("--".__ne__, args):
        name = arg.partition("=")[0].replace("_", "-")
        if re.match("--?[A-Za-z]", name) and name not in (*known, "-h"):
            advice = _similar(name, known, f"`mnist-ray {command} --help` lists the flags")
            raise UsageError(f"{name}: {command} has no such flag; {advice}")


def _parse(args: list[str]) -> Any:
    """The settings of the command that `args` name. Raises UsageError, and SystemExit after --help and for wrong values."""
    kinds: dict[str, type] = {command.__name__: kind for kind, command in _COMMANDS.items()}
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if not args:
        raise UsageError(f"the command is missing: give one of {', '.join(kinds)}; `mnist-ray --help` explains them")
    command = args[0]
    if command in ("-h", "--help"):
        return subcommand_cli_from_dict(dict(kinds), args=args, prog="mnist-ray", description=DESCRIPTION, config=style)
    if command not in kinds:
        advice = _similar(command, [*kinds, "--version", "--help"], f"the commands are {', '.join(kinds)}")
        raise UsageError(f"{command}: is not a command; {advice}")
    kind = kinds[command]
    _require_flags(command, kind, args[1:])
    groups = [base for base in reversed(kind.__bases__) if is_dataclass(base)]
    grouped = make_dataclass(kind.__name__, [(base.__name__.strip("_").lower(), base) for base in groups], kw_only=True)
    examples = "".join(f"\n  {line}" for line in getattr(kind, "EXAMPLES", ()))
    parsed: Any = tyro.cli(
        grouped if groups else kind,
        prog=f"mnist-ray {command}",
        description=str(inspect.getdoc(kind)) + (f"\n\nExamples:{examples}" if examples else ""),
        args=args[1:],
        config=style,
    )
    if not groups:
        return parsed
    return kind(**{field.name: getattr(group, field.name) for group in vars(parsed).values() for field in fields(group)})


def main(args: list[str] | None = None) -> int:
    """Run the command that `args` (default: those of this process) name, and return its exit status."""
    if args is None:
        _take_names_for_utf8()
        # Threads that wait actively take time from other programs (docs/decisions/0011). OpenMP reads it with torch.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        leave_compiler_out()
    with standard_streams() as out:
        status = _run([expand_home(arg) for arg in (sys.argv[1:] if args is None else args)], out)
    if args is None:
        gc.freeze()  # at its end, Python would look for cycles among all objects of PyTorch, for 0.6 s
        if "mnist_ray.run.forkserver" in sys.modules:
            from mnist_ray.run import forkserver

            forkserver.kill()  # it would end a second later, and keep this program's output open until then
    return status


def _take_names_for_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if file names have another encoding here, because of the locale."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def _run(args: list[str], out: StandardFile) -> int:
    console, config = Console(), None
    try:
        if args == ["--version"]:
            console.line(f"mnist-ray {mnist_ray.__version__}")
            return 0
        require_working_directory()
        config = _parse(args)
        console = Console(getattr(config, "log_format", "text"), quiet=getattr(config, "quiet", False))
        with console, raising(signal.SIGINT, KeyboardInterrupt):
            status = _COMMANDS[type(config)](config, console) or 0
        _require_printed(config, out, console)
        return status
    except MnistRayError as error:
        console.error(f"error: {error}", exit_status=error.exit_status)
        return error.exit_status
    except KeyboardInterrupt:
        console.error(f"interrupted{_GO_ON.get(type(config), '')}", exit_status=130)
        return 130
    except (MemoryError, ImportError, RuntimeError) as error:
        if not _says_memory_ran_out(error):
            raise
        console.error(f"error: memory ran out: {first_line(error)}{_GO_ON.get(type(config), '')}", exit_status=7)
        return 7


def _says_memory_ran_out(error: Exception) -> bool:
    """Whether memory ran out: for Python, for the dynamic linker while it loads a library, or for PyTorch on the CPU."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("failed to map segment", "can't allocate memory")
    )


def _require_printed(config: Any, out: StandardFile, console: Console) -> None:
    """Raise StorageError if standard output has failed, unless the result is in a folder: then print a warning."""
    if out.lost is None:
        return
    text = f"standard output: cannot be written: {out.lost.strerror}; a part of its output is lost"
    if isinstance(config, TrainConfig | ScoreConfig) and not getattr(config, "dry_run", False):
        console.error(f"warning: {text}, and the results are complete")
    else:
        raise StorageError(text)
