"""Every path inside a run's folder, how its files are read, and the lock that keeps two writers out of it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError

from metaser.errors import RunError
from metaser.sums import SEAL, is_as_sealed, is_sealed, sealed_json
from shards.inputfile import ABSENT, fault_of, is_there, open_regular, read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.shown import shown

MAX_JSON_BYTES = 1 << 28
"""Of a JSON file of a run: `environment.json` keeps the changed code of every start."""
Parsed = TypeVar("Parsed")


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
    def submissions(self) -> Path:
        """How this run was submitted, every time."""
        return self.jobs / "submissions.json"

    @property
    def crossval(self) -> Path:
        """The plan, where this is the folder of a whole cross-validation and not of a run."""
        return self.root / "crossval.json"

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


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; readers see what was there or all of it."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be read; that it does not exist is left to the caller.

    Raises:
        RunError: if the system refuses.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path} must be readable, but is not: {error.strerror}") from error


def read_bytes(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> bytes | None:
    """Return what the regular file at `path` holds, None if there is no such file.

    Raises:
        RunError: if it cannot be read, is no regular file, or is longer than `max_bytes`.
    """
    with reading(path):
        try:
            return read_regular(path, max_bytes=max_bytes)
        except FileNotFoundError:
            return None


def read_json(path: Path, validate: Callable[..., Parsed]) -> Parsed | None:
    """Return what the JSON file at `path` holds, None if there is no such file.

    `validate` is the `validate_json` of a pydantic `TypeAdapter`. An object that is sealed must be as it was sealed;
    those of earlier versions are not.

    Raises:
        RunError: if it cannot be read or does not hold what it must.
    """
    data = read_bytes(path)
    return None if data is None else _whole(data, validate, path)


def _whole(data: bytes, validate: Callable[..., Parsed], path: Path) -> Parsed:
    if not is_as_sealed(data):
        try:
            values = parse_json(data)
        except JsonTextError as error:
            raise RunError(f"{path} is damaged: {error}; restore it or move it away") from None
        if is_sealed(values):
            raise RunError(f"{path} is damaged: it is not what its {SEAL} is of; restore it or move it away")
    return validated_json(data, validate, str(path))


def validated_json(data: bytes, validate: Callable[..., Parsed], where: str) -> Parsed:
    """Return the JSON in `data`, which stands in `where`; no value is taken for one of another type.

    Raises:
        RunError: if it is damaged.
    """
    try:
        return validate(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise RunError(
            f"{where} is damaged: {shown(place, 100)}{shown(first['msg'], 200)}, got "
            f"{shown(repr(first['input']), 60)}; restore it or move it away"
        ) from None


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


LOCK_TRIES, LOCK_WAIT_S = 5, 0.1


class RunLock:
    """An exclusive hold on a run's folder for as long as the process lives."""

    def __init__(self, run: RunDir) -> None:
        """Take the lock.

        Raises:
            RunError: if another process holds it, naming host and process, the folder cannot be written, or it is
                that of a cross-validation.
        """
        try:
            refuse_crossval(run)
            run.root.mkdir(parents=True, exist_ok=True)
            self._file = _lock_path(run).open("a+", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or f"{_lock_path(run).name} is no regular file"
            raise RunError(f"output_dir must be writable, but {str(run.root)!r} is not: {reason}") from error
        if not self._taken():
            self._file.close()
            holder = _last_holder_named(run)
            raise RunError(f"run {str(run.root)!r} is in use by {holder}; stop it or choose another output_dir")
        self._file.truncate(0)
        holder = LockHolder(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID"))
        self._file.write(sealed_json(asdict(holder)))
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
    pid: NonNegativeInt
    slurm_job: str | None = None

    def __str__(self) -> str:
        """Return words for a message."""
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return shown(f"process {self.pid} on {self.host}{job}", 200)


_validate_holder = TypeAdapter(LockHolder).validate_json


def lock_holder(run: RunDir) -> LockHolder | None:
    """Return who trains in the run's folder right now, None if nobody does.

    Raises:
        RunError: if the lock cannot be read.
    """
    with reading(_lock_path(run)):
        try:
            file = open_regular(_lock_path(run))
        except FileNotFoundError:
            return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _last_holder_named(run)
    return None


def last_holder(run: RunDir) -> LockHolder | None:
    """Return who trained in the run's folder last, whether or not it still does; None if nobody ever did.

    Raises:
        RunError: if the lock cannot be read.
    """
    path = _lock_path(run)
    data = read_bytes(path)
    return _whole(data, _validate_holder, path) if data else None


def _last_holder_named(run: RunDir) -> LockHolder:
    # Between taking the lock and writing its name the holder is unknown.
    return last_holder(run) or LockHolder("an unknown host", 0)


def _lock_path(run: RunDir) -> Path:
    return run.root / ".lock"


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
