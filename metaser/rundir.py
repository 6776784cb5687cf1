"""Every path inside a run's folder, and what may be in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metaser.errors import RunError
from metaser.runfiles import reading
from shards.inputfile import ABSENT, fault_of, is_there

REPORT, REPORT_PAGE, PREDICTIONS = "report.json", "report.md", "predictions.csv"
"""What the folder of a report holds, the run's own or one of another split."""
CONFUSION, CURVES = "confusion.png", "curves.png"
_STEP = re.compile(r"step-(\d{6,})")
_FOLD = re.compile(r"fold(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        """Corpora, licences, counts and splits that the run is made from."""
        return self.root / "data.json"

    @property
    def trained_on(self) -> Path:
        """Digests of the recordings that moved or chose the weights, and who speaks where in them."""
        return self.root / "trained_on.parquet"

    @property
    def environment(self) -> Path:
        """Git state, package versions and machine of every start."""
        return self.root / "environment.json"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.root / "train.log"

    @property
    def metrics(self) -> Path:
        """One JSON line per optimizer step and per evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same numbers as TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def best(self) -> Path:
        """The exported model with the best dev metric of the last stage."""
        return self.root / "best"

    @property
    def report(self) -> Path:
        """The evaluation on the test split."""
        return self.root / "report"

    @property
    def report_json(self) -> Path:
        """The numbers of that evaluation."""
        return self.report / REPORT

    @property
    def predictions(self) -> Path:
        """What the model answered for each utterance of that evaluation."""
        return self.report / PREDICTIONS

    @property
    def profile(self) -> Path:
        """Traces and tables of `metaser train --profile`."""
        return self.root / "profile"

    @property
    def keys(self) -> Path:
        """Which utterances each process read in each step, if the experiment asks for it."""
        return self.root / "keys"

    def key_log(self, rank: int) -> Path:
        """What the process `rank` read."""
        return self.keys / f"rank-{rank}.jsonl"

    def key_logs(self) -> list[Path]:
        """What each process read, as far as it is there."""
        return sorted(self.keys.glob("rank-*.jsonl"))

    @property
    def jobs(self) -> Path:
        """What was submitted for this run, and the output of its jobs."""
        return self.root / "jobs"

    @property
    def submissions(self) -> Path:
        """How this run was submitted, every time."""
        return self.jobs / "submissions.json"

    def submitted_experiment(self, time: str) -> Path:
        """The experiment that a job submitted at `time` reads."""
        return self.jobs / f"experiment-{time}.yaml"

    @property
    def console_log(self) -> Path:
        """What a fold said that `metaser crossval` trained on its own machine."""
        return self.jobs / "console.log"

    @property
    def crossval(self) -> Path:
        """The plan, where this is the folder of a whole cross-validation and not of a run."""
        return self.root / "crossval.json"

    def fold(self, number: int) -> RunDir:
        """The run of a fold, where this is the folder of a whole cross-validation."""
        return RunDir(self.root / f"fold{number}")

    def folds(self) -> dict[int, RunDir]:
        """The runs of the folds that have a folder, by their numbers in order."""
        found = {
            int(match[1]): RunDir(path) for path in self.root.glob("fold*") if (match := _FOLD.fullmatch(path.name))
        }
        return {number: found[number] for number in sorted(found) if found[number].root.is_dir()}

    def is_named_as_fold(self) -> bool:
        """Return whether this folder has the name of a fold."""
        return _FOLD.fullmatch(self.root.name) is not None

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.root / ".lock"

    @property
    def stop_file(self) -> Path:
        """Asks the training to save and stop for good, wherever it runs."""
        return self.root / ".stop"

    def checkpoints(self, stage: int) -> Path:
        """The checkpoints of the 1-based `stage`."""
        return self.root / f"stage{stage}" / "checkpoints"

    def is_run(self) -> bool:
        """Return whether a training has started here."""
        return is_there(self.config)

    def is_crossval(self) -> bool:
        """Return whether this is the folder of a whole cross-validation."""
        return is_there(self.crossval)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies in a stage's folder `checkpoints`."""
    return checkpoints / f"step-{step:06d}"


def step_paths(checkpoints: Path) -> dict[int, Path]:
    """Return what is called like a checkpoint in a stage's folder `checkpoints`, by its step."""
    return {int(match[1]): path for path in checkpoints.glob("step-*") if (match := _STEP.fullmatch(path.name))}


def step_draft(checkpoints: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies while it is written."""
    return checkpoints / f".step-{step:06d}.tmp"


def step_drafts(checkpoints: Path) -> Iterator[Path]:
    """Yield the checkpoints that are being written, or whose writer was killed."""
    return checkpoints.glob(".step-*.tmp")


def refuse_no_folder(path: str | Path) -> None:
    """Refuse what is no folder in the place of a run's.

    Raises:
        RunError: saying why it is none.
    """
    if (why := fault_of(path, "folder")) is not None:
        raise RunError(f"RUN must be a run's folder, but {str(path)!r} {why}")


def refuse_output_dir(run: RunDir) -> bool:
    """Refuse what is no folder where a run shall be written; return whether there is one already.

    Raises:
        RunError: saying why it is none.
    """
    why = fault_of(run.root, "folder")
    if why not in (None, ABSENT):
        raise RunError(f"output_dir must be a folder, but {str(run.root)!r} {why}")
    return why is None


def existing_run(path: str | Path) -> RunDir:
    """Return the run at `path`.

    Raises:
        RunError: if it does not exist or is not a run's folder.
    """
    run = RunDir(Path(path))
    refuse_no_folder(path)
    with reading(run.root):
        is_run = run.is_run()
    if not is_run:
        raise RunError(f"RUN must be a run's folder, but {str(path)!r} holds no config.yaml")
    return run


def refuse_crossval(run: RunDir) -> None:
    """Refuse the folder of a whole cross-validation, where no run could be seen or stopped.

    Raises:
        RunError: if it is one.
    """
    if run.is_crossval():
        raise RunError(
            f"a run must have a folder of its own, but {str(run.root)!r} holds a cross-validation; choose another "
            "output_dir"
        )
