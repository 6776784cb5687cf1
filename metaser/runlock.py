"""The lock that keeps two trainings out of one run's folder, and who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from dataclasses import asdict, dataclass

from pydantic import NonNegativeInt, TypeAdapter

from metaser.errors import RunError
from metaser.rundir import RunDir, refuse_crossval
from metaser.runfiles import parse_sealed, read_bytes, reading
from metaser.sums import sealed_json
from shards.inputfile import open_regular
from shards.shown import shown

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
            self._file = run.lock.open("a+", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or f"{run.lock.name} is no regular file"
            raise RunError(f"output_dir must be writable, but {str(run.root)!r} is not: {reason}") from error
        if not self._acquire():
            self._file.close()
            holder = _last_holder_named(run)
            raise RunError(f"run {str(run.root)!r} is in use by {holder}; stop it or choose another output_dir")
        self._file.truncate(0)
        holder = LockHolder(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID"))
        self._file.write(sealed_json(asdict(holder)))
        self._file.flush()

    def _acquire(self) -> bool:
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
        """Let another process train in the folder."""
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
    with reading(run.lock):
        try:
            file = open_regular(run.lock)
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
    path = run.lock
    data = read_bytes(path)
    return parse_sealed(data, _validate_holder, path) if data else None


def _last_holder_named(run: RunDir) -> LockHolder:
    # Between taking the lock and writing its name the holder is unknown.
    return last_holder(run) or LockHolder("an unknown host", 0)
