"""Every path inside a run's folder, and the lock that keeps two writers out of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from metaser.errors import RunError


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.yaml"

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
    def profile(self) -> Path:
        """Traces and tables of `metaser train --profile`."""
        return self.root / "profile"

    @property
    def keys(self) -> Path:
        """Which utterances each process read in each step, if the experiment asks for it."""
        return self.root / "keys"

    @property
    def jobs(self) -> Path:
        """What was submitted for this run, and the output of its jobs."""
        return self.root / "jobs"

    @property
    def stop_file(self) -> Path:
        """Asks the training to save and stop for good, wherever it runs."""
        return self.root / ".stop"

    def checkpoints(self, stage: int) -> Path:
        """The checkpoints of the 1-based `stage`."""
        return self.root / f"stage{stage}" / "checkpoints"

    def is_run(self) -> bool:
        """Return whether a training has started here."""
        return self.config.is_file()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written.

    Raises:
        RunError: if the disk refuses (full, read-only).
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be written: {error}; earlier checkpoints are complete, free the disk and start again to "
            "continue"
        ) from error


def existing_run(path: str | Path) -> RunDir:
    """Return the run at `path`.

    Raises:
        RunError: if it does not exist or is not a run's folder.
    """
    run = RunDir(Path(path))
    if not run.root.is_dir():
        raise RunError(f"RUN must be a run's folder, but {str(path)!r} does not exist")
    if not run.is_run():
        raise RunError(f"RUN must be a run's folder, but {str(path)!r} holds no config.yaml")
    return run


LOCK_TRIES, LOCK_WAIT_S = 5, 0.1


class RunLock:
    """An exclusive hold on a run's folder for as long as the process lives."""

    def __init__(self, run: RunDir) -> None:
        """Take the lock.

        Raises:
            RunError: if another process holds it, naming host and process, or the folder cannot be written.
        """
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            self._file = _lock_path(run).open("a+")
        except OSError as error:
            raise RunError(f"output_dir must be writable, but {str(run.root)!r} is not: {error.strerror}") from error
        if not self._taken():
            holder = _read_holder(self._file)
            self._file.close()
            raise RunError(f"run {str(run.root)!r} is in use by {holder}; stop it or choose another output_dir")
        self._file.truncate(0)
        holder = LockHolder(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID"))
        self._file.write(json.dumps(asdict(holder)))
        self._file.flush()

    def _taken(self) -> bool:
        for attempt in range(LOCK_TRIES):
            if attempt:
                # `lock_holder` may be asking at this moment, which takes the lock for microseconds.
                time.sleep(LOCK_WAIT_S)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def release(self) -> None:
        """Give the folder free."""
        self._file.close()


@dataclass(frozen=True)
class LockHolder:
    """The process that trains in a run's folder."""

    host: str
    pid: int
    slurm_job: str | None = None

    def __str__(self) -> str:
        """Return words for a message."""
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}"


def lock_holder(run: RunDir) -> LockHolder | None:
    """Return who trains in the run's folder right now, None if nobody does."""
    try:
        file = _lock_path(run).open()
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(file)
    return None


def last_holder(run: RunDir) -> LockHolder | None:
    """Return who trained in the run's folder last, whether or not it still does; None if nobody ever did."""
    try:
        with _lock_path(run).open() as file:
            text = file.read()
    except FileNotFoundError:
        return None
    return LockHolder(**json.loads(text)) if text else None


def _lock_path(run: RunDir) -> Path:
    return run.root / ".lock"


def _read_holder(file: TextIO) -> LockHolder:
    file.seek(0)
    text = file.read()
    # Between taking the lock and writing its name the holder is unknown.
    return LockHolder(**json.loads(text)) if text else LockHolder("an unknown host", 0)
