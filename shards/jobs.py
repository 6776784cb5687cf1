"""Shards worked on by several processes, one job each; those that an earlier, interrupted run finished are kept."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from shards.errors import ShardError
from shards.files import content_sha256, file_stamp
from shards.notes import ShardNote, note_path, read_note, total_duration_s, write_note
from shards.parentdeath import exit_with_parent
from shards.rejections import OnBad, rejection_error
from shards.shown import shown

_SHOWN_DOUBT = 300
Progress = Callable[[int, int], None]


class ShardJob(Protocol):
    """One shard to write or to read through; must be picklable."""

    @property
    def path(self) -> Path:
        """The tar."""
        ...

    @property
    def name(self) -> str:
        """The tar's name."""
        ...

    @property
    def stamp(self) -> str:
        """As in `ShardNote`."""
        ...

    @property
    def num_items(self) -> int:
        """Size of the work, in the units of progress."""
        ...

    def run(self) -> ShardNote:
        """Do the work."""
        ...

    def doubt(self, note: ShardNote) -> str | None:
        """Return why a note's rows cannot be those of the tar as it lies there, or None."""
        ...


@dataclass(frozen=True)
class Done:
    """All shards, finished."""

    notes: list[ShardNote]
    """Without their rows."""
    num_kept: int
    """Shards that an earlier run had left."""
    doubts: tuple[str, ...]
    """Why shards that an earlier run had left were not kept."""


def run_jobs(
    jobs: Sequence[ShardJob], state: Path, *, on_bad: OnBad, num_workers: int, progress: Progress | None
) -> Done:
    """Do what no earlier run has done.

    Raises:
        CorpusError: if something is unusable and `on_bad` is `raise`.
        ShardError: if a process dies or the disk is full.
    """
    num_all, num_done = sum(job.num_items for job in jobs), 0
    outcomes: list[_Outcome] = []
    with _worker_map(min(num_workers, len(jobs))) as mapper:
        for job, outcome in zip(jobs, mapper(_finish, [(job, state, on_bad) for job in jobs]), strict=True):
            if on_bad == "raise" and outcome.note.rejections:
                raise rejection_error(outcome.note.rejections[0])
            outcomes.append(outcome)
            num_done += job.num_items
            if progress is not None:
                progress(num_done, num_all)
    return Done(
        [outcome.note for outcome in outcomes],
        sum(outcome.is_kept for outcome in outcomes),
        tuple(outcome.doubt for outcome in outcomes if outcome.doubt is not None),
    )


@dataclass(frozen=True)
class _Outcome:
    note: ShardNote
    is_kept: bool = False
    doubt: str | None = None
    """Why an earlier run's shard was not kept."""


def _finish(task: tuple[ShardJob, Path, OnBad]) -> _Outcome:
    """Take over what an earlier run left of a shard, or do it."""
    job, state, on_bad = task
    doubt = None
    path = note_path(job.name, state)
    if path.exists():
        note, reason = _earlier_note(job, path)
        if note is not None and (on_bad == "skip" or not note.rejections):
            return _Outcome(note.without_rows, is_kept=True)
        doubt = reason and f"{job.name} was packed again, because {shown(reason, _SHOWN_DOUBT)}"
    return _Outcome(write_note(job.run(), path), doubt=doubt)


def _earlier_note(job: ShardJob, path: Path) -> tuple[ShardNote | None, str | None]:
    """Return what an earlier run noted about a shard, if all of it is true; else why not."""
    try:
        note = read_note(path)
    except ShardError as error:
        return None, str(error)
    if note.stamp != job.stamp:
        return None, "its utterances, their files or the settings are others than when it was noted as finished"
    if file_stamp(job.path)[:1] != [note.shard.num_bytes] or content_sha256(job.path) != note.shard.sha256:
        return None, "the tar is not the one that its note describes"
    duration_s = total_duration_s(note.rows)
    if (note.shard.name, note.shard.num_utterances, note.shard.duration_s) != (job.name, len(note.rows), duration_s):
        return None, "its note contradicts itself"
    keys = [row["key"] for row in note.rows]
    if not all(first < second for first, second in pairwise(keys)):
        return None, "its note has keys out of order or twice"
    doubt = job.doubt(note)
    return (None, f"its note is wrong: {doubt}") if doubt else (note, None)


@contextmanager
def _worker_map(num_workers: int) -> Iterator[Callable[..., Iterable[_Outcome]]]:
    if num_workers <= 1:
        yield map
        return
    # Not forkserver: a training in this process starts its readers from that one server, and sets it up for them.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise ShardError(
            f"{num_workers} packing processes must stay alive, but one was killed (out of memory?); finished shards "
            "are kept, so run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
