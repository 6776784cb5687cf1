"""Shards written one by one by several processes, and the folder published when all are there.

What a finished shard holds is noted beside it, so that a killed run goes on where it was, and so that a large corpus's
rows never stand in memory together.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf
from pydantic import Field

from shards.audio import QUIET_PEAK, silent_channels
from shards.config import Section
from shards.corpora.identities import nearly_equal
from shards.errors import CorpusError, ShardError
from shards.index import Index, duplicate_rows, label_tables, open_index, repeated_key, write_index
from shards.manifest import (
    INDEX_NAME,
    REJECTED_NAME,
    FileRecord,
    IndexRecord,
    Manifest,
    Settings,
    ShardRecord,
    atomic_file,
    canonical_json,
    file_sha256,
    write_manifest,
)
from shards.processes import end_with_parent
from shards.schema import RATE_HZ, SCHEMA_VERSION, Note, Rejection, RowCount

STATE_FOLDER = ".packing"
"""Inside OUT while packing: what each finished shard holds."""
_DIGESTS = ("audio_sha256", "pcm_sha256")
_MIN_FLAT_SAMPLES = 3
_MIN_CLIPS_TO_WARN = 20
_NUM_SHOWN_DUPLICATES = 5
_NUM_SHOWN_REASONS = 12
_NAMED_FIELDS = ("speaker", "session", "dialogue", "emotion", "gender", "intensity")

OnBad = Literal["raise", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackSummary:
    """What packing did."""

    folder: Path
    corpus: str
    num_utterances: int
    num_shards: int
    num_kept_shards: int
    """Shards that an earlier, interrupted run had finished."""
    duration_s: float
    num_rejected_by_kind: dict[str, int]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """How the corpus was read, where it could have been read otherwise."""
    was_complete: bool
    """True if the folder held exactly this corpus already and nothing was written."""


class AudioCounts(Section):
    """What is odd about a shard's audio."""

    num_mixed_down: int = 0
    first_mixed_down: str | None = None
    num_with_silent_channel: int = 0
    first_with_silent_channel: str | None = None
    """Its name, and which of its channels."""
    num_clipped: int = 0
    num_quiet: int = 0
    num_endless: int = 0
    """OGG files whose last page is not marked as such."""
    first_endless: str | None = None
    num_other_duration: int = 0
    """Whole files that do not last as long as the corpus states."""
    first_other_duration: str | None = None
    """Its name and both durations."""
    rates_hz: dict[int, int] = Field(default_factory=dict)
    """Number of utterances per original rate."""

    def plus(self, name: str, samples: np.ndarray, rate_hz: int, pcm: np.ndarray) -> AudioCounts:
        """Return the counts with one more clip: as it was decoded, and as 16-bit samples."""
        is_mixed, silent = samples.ndim > 1, silent_channels(samples)
        described = f"channel {', '.join(map(str, silent))} of {name}"
        is_full = (pcm >= 32_767) | (pcm <= -32_767)
        runs = np.convolve(is_full, np.ones(_MIN_FLAT_SAMPLES, int)) if is_full.any() else np.zeros(1)
        return AudioCounts(
            num_mixed_down=self.num_mixed_down + is_mixed,
            first_mixed_down=self.first_mixed_down or (name if is_mixed else None),
            num_with_silent_channel=self.num_with_silent_channel + bool(silent),
            first_with_silent_channel=self.first_with_silent_channel or (described if silent else None),
            num_clipped=self.num_clipped + bool((runs == _MIN_FLAT_SAMPLES).any()),
            num_quiet=self.num_quiet + bool(max(int(pcm.max()), -int(pcm.min())) < QUIET_PEAK),
            num_endless=self.num_endless,
            first_endless=self.first_endless,
            num_other_duration=self.num_other_duration,
            first_other_duration=self.first_other_duration,
            rates_hz={**self.rates_hz, rate_hz: self.rates_hz.get(rate_hz, 0) + 1},
        )

    def plus_other_duration(self, name: str, stated_s: float, found_s: float) -> AudioCounts:
        """Return the counts with one more file that lasts `found_s` instead of `stated_s`."""
        described = f"{name} ({stated_s:g} s stated, {found_s:.3f} s found)"
        return self.model_copy(
            update={
                "num_other_duration": self.num_other_duration + 1,
                "first_other_duration": self.first_other_duration or described,
            }
        )

    def plus_endless(self, name: str) -> AudioCounts:
        """Return the counts with one more OGG file that may have been cut between two pages."""
        return self.model_copy(
            update={"num_endless": self.num_endless + 1, "first_endless": self.first_endless or name}
        )


class ShardNote(Section):
    """What a finished shard holds, kept beside it until the manifest is written."""

    stamp: str
    """Hash of all that decides the shard's contents, and of its source files' times."""
    shard: ShardRecord
    rows: tuple[dict[str, Any], ...]
    """Index rows without the shard's number, digests in hexadecimal."""
    rejections: tuple[Rejection, ...]
    audio: AudioCounts
    tally: tuple[tuple[str, str, str, str, int], ...] = ()
    """Of adopted shards: what was read as something else than it says, as `Tally` counts it."""


def note_of(
    path: Path,
    stamp: str,
    rows: Sequence[dict[str, Any]],
    rejections: Sequence[Rejection],
    audio: AudioCounts,
    tally: tuple[tuple[str, str, str, str, int], ...] = (),
) -> ShardNote:
    """Return the note about the finished tar at `path`."""
    return ShardNote(
        stamp=stamp,
        shard=ShardRecord(
            name=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_utterances=len(rows),
            duration_s=sum(row["num_samples"] for row in rows) / RATE_HZ,
        ),
        rows=tuple(rows),
        rejections=tuple(rejections),
        audio=audio,
        tally=tally,
    )


class ShardJob(Protocol):
    """One shard to write or to read through; must be picklable."""

    @property
    def name(self) -> str:
        """The tar's name."""
        ...

    @property
    def stamp(self) -> str:
        """As in `ShardNote`."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """Size of the tar as it lies there; None if there is none."""
        ...

    @property
    def num_items(self) -> int:
        """Size of the work, in the units of progress."""
        ...

    def run(self) -> ShardNote:
        """Do the work."""
        ...


# ---------------------------------------------------------------- the folder


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Make the folders and keep other packers out of them; the lock ends with the process, however that ends."""
    state = out / STATE_FOLDER
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("wb")
    except OSError as error:
        raise ShardError(f"OUT must be a folder that can be written, but {out} cannot: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"one process at a time may pack into {out}, but another is at work; wait for it"
            ) from None
        except OSError:
            # Some network file systems have no locks; packing works there, unguarded.
            pass
        yield state


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a shard's bytes."""
    packages = {name: version(name) for name in ("pyarrow", "soundfile", "soxr")}
    return {**packages, "libsndfile": sf.__libsndfile_version__}


# ---------------------------------------------------------------- the work


def run_jobs(
    jobs: Sequence[ShardJob], state: Path, *, on_bad: OnBad, num_workers: int, progress: Progress | None
) -> tuple[list[ShardNote], int]:
    """Do what no earlier run has done; return the notes, without their rows, and how many an earlier run had left.

    Raises:
        CorpusError: if something is unusable and `on_bad` is `raise`.
        ShardError: if a process dies or the disk is full.
    """
    kept = {job.name: note for job in jobs if (note := _earlier_note(job, state, on_bad)) is not None}
    pending = [(job, state) for job in jobs if job.name not in kept]
    num_all, num_done = sum(job.num_items for job in jobs), 0
    notes = []
    with _mapper(min(num_workers, len(pending))) as mapper:
        fresh = iter(mapper(_run_job, pending))
        for job in jobs:
            note = kept.get(job.name) or next(fresh)
            if on_bad == "raise" and note.rejections:
                raise as_error(note.rejections[0])
            notes.append(note)
            num_done += job.num_items
            if progress is not None:
                progress(num_done, num_all)
    return notes, len(kept)


def _run_job(job_and_state: tuple[ShardJob, Path]) -> ShardNote:
    job, state = job_and_state
    note = job.run()
    with atomic_file(_note_path(job.name, state)) as file:
        file.write(canonical_json(note.model_dump(mode="json")))
    return note.model_copy(update={"rows": ()})


def _earlier_note(job: ShardJob, state: Path, on_bad: OnBad) -> ShardNote | None:
    """Return what an earlier run noted about this shard, if the shard is still what it would become."""
    try:
        note = _read_note(job.name, state)
    except (FileNotFoundError, ValueError):
        return None
    if note.stamp != job.stamp or note.shard.num_bytes != job.num_bytes:
        return None
    return None if on_bad == "raise" and note.rejections else note.model_copy(update={"rows": ()})


def _note_path(name: str, state: Path) -> Path:
    return state / f"{name}.json"


def _read_note(name: str, state: Path) -> ShardNote:
    return ShardNote.model_validate_json(_note_path(name, state).read_bytes())


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable[..., Iterable[ShardNote]]]:
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
    end_with_parent()


# ---------------------------------------------------------------- what is unusable


def as_error(rejection: Rejection) -> CorpusError:
    """Return what `--on-bad raise` says of a rejection."""
    return CorpusError(
        f"{rejection.source}: {rejection.reason.rstrip('.')} ({rejection.kind}); correct it, or pass --on-bad skip to "
        "leave such utterances out"
    )


def without_place(rejection: Rejection, source: Path | None) -> Rejection:
    """Return `rejection` with paths relative to the corpus, so that bytes repeat wherever the corpus lies."""
    if source is None:
        return rejection
    folder = source if source.is_dir() else source.parent
    if not folder.name:
        return rejection
    prefix = f"{folder}{os.sep}"
    return Rejection(rejection.source.replace(prefix, ""), rejection.reason.replace(prefix, ""), rejection.kind)


def nothing_left(corpus: str, source: Path | None, rejections: Sequence[Rejection]) -> CorpusError:
    """Return the error of a corpus without any usable utterance."""
    where = f"corpus {corpus!r}" if source is None else f"corpus {corpus!r} in {source}"
    if not rejections:
        return CorpusError(f"there must be at least one utterance to pack, but {where} has none; check SOURCE")
    counts = sorted(Counter(rejection.kind for rejection in rejections).items())
    return CorpusError(
        f"there must be at least one usable utterance, but all of {where} were rejected "
        f"({', '.join(f'{kind}: {count}' for kind, count in counts)}); the first was {rejections[0].source}: "
        f"{rejections[0].reason}"
    )


def as_one_error(rejections: Sequence[Rejection]) -> CorpusError:
    """Return what `--on-bad raise` says of all that cannot be used: each reason, how often, and where first."""
    if len(rejections) == 1:
        return as_error(rejections[0])
    by_reason: dict[tuple[str, str], list[Rejection]] = defaultdict(list)
    for rejection in rejections:
        by_reason[rejection.kind, rejection.reason].append(rejection)
    kinds = Counter(rejection.kind for rejection in rejections)
    # The first of every kind before the second of any.
    order = {kind: iter(range(len(rejections))) for kind in kinds}
    ranked = sorted(by_reason.values(), key=lambda found: next(order[found[0].kind]))
    shown = "; ".join(_reason_and_count(found) for found in ranked[:_NUM_SHOWN_REASONS])
    more = f"; and {len(ranked) - _NUM_SHOWN_REASONS} more" if len(ranked) > _NUM_SHOWN_REASONS else ""
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    return CorpusError(
        f"{len(rejections)} utterances cannot be used ({counts}): {shown}{more}; correct them, or pass --on-bad skip "
        "to leave such utterances out"
    )


def _reason_and_count(rejections: Sequence[Rejection]) -> str:
    first = rejections[0]
    times = f", {len(rejections)} times" if len(rejections) > 1 else ""
    return f"{first.source}: {first.reason.rstrip('.')} ({first.kind}{times})"


def accounts(row_counts: Sequence[RowCount], notes: Sequence[ShardNote], rejections: Sequence[Rejection]) -> list[Note]:
    """Return the sentence that accounts for every row of a corpus that says how many it has.

    Raises:
        ShardError: if a row is neither packed nor rejected.
    """
    if not row_counts:
        return []
    num_packed = sum(note.shard.num_utterances for note in notes)
    num_announced = sum(count.number for count in row_counts)
    by_unit: Counter[str] = Counter()
    for count in row_counts:
        by_unit[count.unit] += count.number
    found = " and ".join(f"{number} {unit}" for unit, number in by_unit.items())
    if num_packed + len(rejections) != num_announced:
        raise ShardError(
            f"each of {found} must be packed or rejected, but {num_packed} were packed and {len(rejections)} rejected; "
            "this is a fault of MetaSER, so please report it with the table"
        )
    return [Note(f"{found}: {num_packed} packed, {len(rejections)} rejected")]


# ---------------------------------------------------------------- publishing


@dataclass(frozen=True)
class Origin:
    """What the manifest says of where the utterances come from."""

    corpus: str
    licence: str
    citation: str
    source: Path | None
    settings: Settings
    fingerprint: str
    tars: str | None = None


def publish(
    out: Path,
    state: Path,
    origin: Origin,
    notes: Sequence[ShardNote],
    rejections: Sequence[Rejection],
    remarks: Sequence[Note] = (),
) -> Manifest:
    """Write the index, the rejections and, last, the manifest with `remarks`; then remove the notes.

    Raises:
        CorpusError: if nothing usable is left, or two utterances have one key.
    """
    if not any(note.shard.num_utterances for note in notes):
        raise nothing_left(origin.corpus, origin.source, rejections)
    extra_names: set[str] = set()
    write_index(out / INDEX_NAME, _numbered_rows(state, notes, extra_names))
    index = open_index(pq.ParquetFile(out / INDEX_NAME), [note.shard.name for note in notes])
    try:
        _check_unique(index)
    except CorpusError:
        (out / INDEX_NAME).unlink()
        raise
    with atomic_file(out / REJECTED_NAME) as file:
        file.writelines(canonical_json(asdict(rejection)) + b"\n" for rejection in rejections)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        corpus=origin.corpus,
        licence=origin.licence,
        citation=origin.citation,
        source=None if origin.source is None else origin.source.resolve().name,
        settings=origin.settings,
        fingerprint=origin.fingerprint,
        shards=tuple(note.shard for note in notes),
        index=IndexRecord(**_file_record(out / INDEX_NAME), num_utterances=len(index)),
        rejected=FileRecord(**_file_record(out / REJECTED_NAME)),
        labels=label_tables(index),
        extra_names=tuple(sorted(extra_names)),
        num_rejected_by_kind=dict(sorted(Counter(rejection.kind for rejection in rejections).items())),
        warnings=(*(remark.text for remark in remarks if remark.is_warning), *_warnings(index, notes)),
        notes=tuple(remark.text for remark in remarks if not remark.is_warning),
        tars=origin.tars,
    )
    write_manifest(out, manifest)
    shutil.rmtree(state)
    return manifest


def _numbered_rows(state: Path, notes: Sequence[ShardNote], extra_names: set[str]) -> Iterator[dict[str, Any]]:
    """Yield all rows from the notes on disk, adding what stands in `extra` to `extra_names`."""
    for number, note in enumerate(notes):
        for row in _read_note(note.shard.name, state).rows:
            extra_names.update(json.loads(row["extra"]))
            yield {**row, **{name: bytes.fromhex(row[name]) for name in _DIGESTS}, "shard": number}


def _check_unique(index: Index) -> None:
    repeated = repeated_key(index)
    if repeated is not None:
        key, count = repeated
        raise CorpusError(f"every key must stand once, but {key!r} occurs {count} times; rename one")


def _file_record(path: Path) -> dict[str, Any]:
    return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _warnings(index: Index, notes: Sequence[ShardNote]) -> Iterator[str]:
    total = len(index)
    num_clipped, num_quiet = (sum(getattr(note.audio, name) for note in notes) for name in ("num_clipped", "num_quiet"))
    yield from _channel_warnings(total, [note.audio for note in notes])
    rates_hz: Counter[int] = Counter()
    for note in notes:
        rates_hz.update(note.audio.rates_hz)
    if len(rates_hz) > 1:
        found = ", ".join(f"{rates_hz[rate]} at {rate} Hz" for rate in sorted(rates_hz))
        yield f"the sources have several sample rates ({found}); all are brought to {RATE_HZ} Hz"
    if num_clipped:
        yield f"{num_clipped} of {total} utterances are clipped ({_MIN_FLAT_SAMPLES} or more samples at full scale)"
    num_endless = sum(note.audio.num_endless for note in notes)
    if num_endless:
        first = next(note.audio.first_endless for note in notes if note.audio.first_endless is not None)
        yield (
            f"{num_endless} of {total} utterances are of OGG files without a mark at their end, the first {first}; "
            "some recorders never set it, but a copy that was cut between two pages lacks it as well"
        )
    num_other_duration = sum(note.audio.num_other_duration for note in notes)
    if num_other_duration:
        first = next(note.audio.first_other_duration for note in notes if note.audio.first_other_duration is not None)
        yield (
            f"{num_other_duration} of {total} utterances last longer or shorter than the column of durations says, the "
            f"first {first}; they are whole files, because only beside a column start is a duration that of a part"
        )
    if num_quiet:
        yield f"{num_quiet} of {total} utterances are all but silent (peak below -60 dB of full scale)"
    yield from _near_names(index)
    yield from _duplicate_warning(index)
    lengths, counts = np.unique(index.num_samples, return_counts=True)
    if total >= _MIN_CLIPS_TO_WARN and counts.max() > total / 2:
        yield (
            f"{counts.max()} of {total} utterances last exactly {lengths[counts.argmax()] / RATE_HZ:.3f} s; was this "
            "copy of the corpus cut or padded?"
        )
    emotions = index.codes("emotion").counts()
    if len(emotions) == 1 and sum(emotions.values()) >= _MIN_CLIPS_TO_WARN:
        yield f"all {sum(emotions.values())} emotion labels are {next(iter(emotions))!r}, which teaches nothing"


def _near_names(index: Index) -> Iterator[str]:
    """Yield a sentence for every field in which one thing may have two names."""
    for name in _NAMED_FIELDS:
        counts = index.codes(name).counts()
        groups = nearly_equal(counts)
        if groups:
            shown = "; ".join(" and ".join(f"{word!r} ({counts[word]})" for word in group) for group in groups[:5])
            more = f"; and {len(groups) - 5} more" if len(groups) > 5 else ""
            yield (
                f"{name} has values that differ only in case, blanks, punctuation or how a number is written: "
                f"{shown}{more}; if they are one, spell them alike"
            )


def _channel_warnings(total: int, counts: Sequence[AudioCounts]) -> Iterator[str]:
    num_mixed_down = sum(count.num_mixed_down for count in counts)
    num_half_silent = sum(count.num_with_silent_channel for count in counts)
    if num_mixed_down:
        first = next(count.first_mixed_down for count in counts if count.first_mixed_down)
        yield (
            f"{num_mixed_down} of {total} utterances had several channels and were mixed down to one, the first "
            f"{first}; where each channel is another person, take one with --channel or a column channel"
        )
    if num_half_silent:
        first = next(count.first_with_silent_channel for count in counts if count.first_with_silent_channel)
        yield f"{num_half_silent} of {total} utterances had a channel without sound, the first {first}"


def _duplicate_warning(index: Index) -> Iterator[str]:
    groups = duplicate_rows(index)
    if not groups:
        return
    shown = "; ".join(" = ".join(index.take(group).values("key")) for group in groups[:_NUM_SHOWN_DUPLICATES])
    more = f"; and {len(groups) - _NUM_SHOWN_DUPLICATES} more" if len(groups) > _NUM_SHOWN_DUPLICATES else ""
    num_across = sum(len(set(index.take(group).values("split"))) > 1 for group in groups)
    across = f", {num_across} of them across splits" if num_across else ""
    yield f"{len(groups)} groups of utterances have identical audio{across}: {shown}{more}"


def summary_of(out: Path, manifest: Manifest, *, num_kept: int, was_complete: bool) -> PackSummary:
    """Return what a finished folder holds."""
    return PackSummary(
        folder=out,
        corpus=manifest.corpus,
        num_utterances=manifest.index.num_utterances,
        num_shards=len(manifest.shards),
        num_kept_shards=num_kept,
        duration_s=sum(shard.duration_s for shard in manifest.shards),
        num_rejected_by_kind=manifest.num_rejected_by_kind,
        warnings=manifest.warnings,
        notes=manifest.notes,
        was_complete=was_complete,
    )
