"""Shards written one by one by several processes, and the folder published when all are there.

What a finished shard holds is noted beside it, so that a killed run goes on where it was, and so that a large corpus's
rows never stand in memory together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import soundfile as sf
from pydantic import Field, ValidationError

from shards.audio import MIN_FLAT_SAMPLES, QUIET_PEAK, Sound, is_clipped
from shards.config import Section
from shards.corpora.identities import nearly_equal
from shards.errors import CorpusError, InputError, ShardError
from shards.index import (
    Index,
    duplicate_rows,
    label_tables,
    load_index,
    open_index,
    repeated_key,
    tar_place,
    write_index,
)
from shards.inputfile import MAX_TEXT_BYTES, open_regular, read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.limits import MAX_CLIP_S
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    REJECTED_NAME,
    FileRecord,
    IndexRecord,
    Manifest,
    Settings,
    ShardRecord,
    atomic_file,
    canonical_json,
    file_sha256,
    is_absent,
    manifest_bytes,
    parsed_manifest,
    read_manifest,
    write_manifest,
)
from shards.processes import end_with_parent
from shards.schema import MAX_FILE_BYTES, RATE_HZ, SCHEMA_VERSION, Note, Rejection, RowCount
from shards.shown import shown
from shards.verification import MAX_REJECTED_BYTES

STATE_FOLDER = ".packing"
"""Inside OUT while packing: what each finished shard holds."""
MAX_NOTE_BYTES = MAX_TEXT_BYTES
"""About one shard; ten thousand utterances have about 10 MB."""
_LOCK, _OWNER, _PUBLISHING = "lock", "owner", "publishing"
_STATE_NAME = re.compile(rf"{_LOCK}|\.?(?:{_OWNER}|{_PUBLISHING}|.+\.tar\.json)(?:\.tmp)?", re.DOTALL)
_PUBLISHED = (INDEX_NAME, REJECTED_NAME, MANIFEST_NAME)
_SIGNATURE = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\Z')
_SIGNATURE_BYTES = 77
_MAX_TRIES = 100
_READ_BYTES = 1 << 20
_SHOWN_DOUBT = 300
_DIGESTS = ("audio_sha256", "pcm_sha256")
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
    doubts: tuple[str, ...] = ()
    """Why shards that an earlier run had noted as finished were packed again."""
    not_compared: str | None = None
    """Of a complete folder: what was not looked at, and why."""


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

    def plus(self, name: str, sound: Sound, pcm: np.ndarray) -> AudioCounts:
        """Return the counts with one more clip: what its channels held, and its 16-bit samples."""
        is_mixed, silent, rate_hz = sound.num_channels > 1, sound.silent_channels, sound.rate_hz
        described = f"channel {', '.join(map(str, silent))} of {name}"
        highest, lowest = int(pcm.max()), int(pcm.min())
        return AudioCounts(
            num_mixed_down=self.num_mixed_down + is_mixed,
            first_mixed_down=self.first_mixed_down or (name if is_mixed else None),
            num_with_silent_channel=self.num_with_silent_channel + bool(silent),
            first_with_silent_channel=self.first_with_silent_channel or (described if silent else None),
            num_clipped=self.num_clipped + is_clipped(pcm),
            num_quiet=self.num_quiet + (max(highest, -lowest) < QUIET_PEAK),
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


class RepeatedKeyError(CorpusError):
    """Two utterances have one key."""


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
    sources_sha256: str | None = None
    """Of packed shards: hash of the bytes of all that they were packed from."""
    sha256: str = ""
    """Of all other fields as they are written; `_write_note` puts it behind them."""

    @property
    def without_rows(self) -> ShardNote:
        """The same note, small."""
        return self.model_copy(update={"rows": ()})


def note_of(
    path: Path,
    stamp: str,
    rows: Sequence[dict[str, Any]],
    rejections: Sequence[Rejection],
    audio: AudioCounts,
    tally: tuple[tuple[str, str, str, str, int], ...] = (),
    sources_sha256: str | None = None,
) -> ShardNote:
    """Return the note about the finished tar at `path`."""
    return ShardNote(
        stamp=stamp,
        shard=ShardRecord(
            name=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_utterances=len(rows),
            duration_s=_duration_s(rows),
        ),
        rows=tuple(rows),
        rejections=tuple(rejections),
        audio=audio,
        tally=tally,
        sources_sha256=sources_sha256,
    )


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


def file_stamp(path: Path) -> list[int]:
    """Return what changes when a file does, whatever is done to its time; nothing if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def check_max_duration(max_duration_s: float) -> None:
    """Refuse what is no duration of a clip.

    Raises:
        CorpusError: if it is not positive, or longer than an index may say.
    """
    if not 0 < max_duration_s <= MAX_CLIP_S:
        raise CorpusError(f"--max-duration must be a number of seconds up to {MAX_CLIP_S}, got {max_duration_s}")


# ---------------------------------------------------------------- the folder


def check_folder(out: Path, corpus: str, *, is_source: bool = False) -> None:
    """Refuse to write among files that are not ours, or over them.

    Args:
        out: The shard folder; may be absent, or complete, which is left to others.
        corpus: Whose unfinished packing it may hold.
        is_source: Whether it is the folder that is adopted, too: then only the names that are written must be free.

    Raises:
        ShardError: if something in it is not this corpus's.
    """
    if is_absent(out):
        return
    try:
        foreign = _foreign_names(out, corpus, is_source=is_source)
    except OSError as error:
        raise ShardError(f"OUT must be a folder that can be read, but {out} cannot: {error.strerror}") from error
    if foreign and is_source:
        raise ShardError(f"OUT must hold no {foreign[0]} of others, but {out} does; choose another folder or move it")
    if foreign:
        raise ShardError(
            f"OUT must be empty or hold an unfinished packing of {corpus!r}, but {out} has {foreign[0]!r} "
            f"({len(foreign)} such files); choose another folder"
        )


def _foreign_names(out: Path, corpus: str, *, is_source: bool) -> list[str]:
    """Return what lies in a folder that is not complete and is not this corpus's."""
    if (out / MANIFEST_NAME).is_file():
        return []
    state = out / STATE_FOLDER
    is_begun = _is_regular(state / _OWNER) and _owner(state) == corpus
    is_published = is_begun and _is_regular(state / _PUBLISHING)
    foreign = []
    for name in sorted(path.name for path in out.iterdir()):
        plain = name[1 : -len(".tmp")] if name.startswith(".") and name.endswith(".tmp") else name
        if name == STATE_FOLDER:
            is_ours = _is_state(state, is_begun)
        elif plain in _PUBLISHED:
            is_ours = is_published and _is_regular(out / name)
        elif is_source:
            is_ours = True
        else:
            is_ours = is_begun and is_shard_name(plain, corpus) and _is_regular(out / name)
        if not is_ours:
            foreign.append(name)
    return foreign


def is_shard_name(name: str, corpus: str) -> bool:
    """Return whether packing would call a tar of this corpus so."""
    return re.fullmatch(rf"{re.escape(corpus)}-\d{{6,}}\.tar", name) is not None


def _is_state(state: Path, is_begun: bool) -> bool:
    if state.is_symlink() or not state.is_dir():
        return False
    names = [path.name for path in state.iterdir()]
    # A kill may come before the owner is written.
    allowed = names if is_begun else [_LOCK, f".{_OWNER}.tmp"]
    return all(name in allowed and _STATE_NAME.fullmatch(name) and _is_regular(state / name) for name in names)


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _owner(state: Path) -> str | None:
    try:
        content = parse_json(read_regular(state / _OWNER, max_bytes=MAX_NOTE_BYTES))
    except (OSError, JsonTextError):
        return None
    corpus = content.get("corpus") if isinstance(content, dict) else None
    return corpus if isinstance(corpus, str) else None


@contextmanager
def locked(out: Path, corpus: str, *, is_source: bool = False) -> Iterator[Path]:
    """Make the folders and keep other packers out of them; the lock ends with the process, however that ends.

    Another process may have published before the lock was there, so that whoever has it must look for a manifest.

    Raises:
        ShardError: as `check_folder` does, or if the folder cannot be written or another packer is at work.
    """
    check_folder(out, corpus, is_source=is_source)
    state = out / STATE_FOLDER
    with _lock(out, state):
        # Again: another may have begun here.
        check_folder(out, corpus, is_source=is_source)
        if not (out / MANIFEST_NAME).is_file():
            with atomic_file(state / _OWNER) as file:
                file.write(canonical_json({"corpus": corpus}))
        try:
            yield state
        finally:
            if (out / MANIFEST_NAME).is_file():
                _remove_state(state)


@contextmanager
def _lock(out: Path, state: Path) -> Iterator[None]:
    for _ in range(_MAX_TRIES):
        try:
            state.mkdir(parents=True, exist_ok=True)
            # Neither through a link nor into a pipe, and nothing is cut.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(state / _LOCK, flags, 0o666)
        except FileNotFoundError as error:
            # Whoever published has just removed the state folder.
            problem = error
            continue
        except OSError as error:
            raise ShardError(f"OUT must be a folder that can be written, but {out} cannot: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ShardError(
                    f"one process at a time may pack into {out}, but another is at work; wait for it"
                ) from None
            except OSError:
                # Some network file systems have no locks; packing works there, unguarded.
                pass
            if not _is_still(state / _LOCK, descriptor):
                continue
            yield
            return
    raise ShardError(f"OUT must be a folder that can be written, but {out} cannot: {problem.strerror}")


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether a file is still the one that was opened: a lock on a removed one keeps nobody out."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_state(state: Path) -> None:
    """Remove what packing wrote into the state folder, and the folder if nothing else is in it."""
    # A folder that became read-only, or where others put something: it does no harm where it is.
    with suppress(OSError):
        names = [path.name for path in state.iterdir() if _STATE_NAME.fullmatch(path.name)]
        for name in sorted(names, key=(_OWNER, _LOCK).__contains__):
            (state / name).unlink(missing_ok=True)
        state.rmdir()


def complete_folder(
    out: Path, fingerprint: str, on_bad: OnBad, *, num_workers: int, sources_sha256: Callable[[], str] | None = None
) -> PackSummary:
    """Return the summary of a folder that holds the same corpus already: every byte of it, and of what it was made of.

    Args:
        out: The folder.
        fingerprint: As in the manifest.
        on_bad: As for packing.
        num_workers: Files to read at once.
        sources_sha256: Returns what the manifest would say of the sources, which costs reading them; None where
            the tars are the sources.

    Raises:
        ShardError: if it holds something else, lost something, or leaves out what must not be left out.
    """
    manifest = read_manifest(out)
    if manifest.fingerprint != fingerprint:
        raise ShardError(
            f"OUT must be empty or hold the same corpus, but {out} was packed from other utterances, with other "
            "settings or other package versions; choose another folder or remove it"
        )
    if on_bad == "raise" and manifest.num_rejected:
        raise ShardError(
            f"{out} was packed with --on-bad skip and leaves out {manifest.num_rejected} utterances (see "
            f"{REJECTED_NAME}); pass --on-bad skip to keep it so, or correct them and remove it"
        )
    load_index([out])
    places = {Path(tar_place(str(out), manifest, shard.name)): shard.sha256 for shard in manifest.shards}
    places[out / manifest.rejected.name] = manifest.rejected.sha256
    with ThreadPoolExecutor(num_workers) as pool:
        for path, found in zip(places, pool.map(content_sha256, places), strict=True):
            if found != places[path]:
                raise ShardError(
                    f"{path} must be as {out / MANIFEST_NAME} says, but its bytes were changed since; choose another "
                    "folder, or remove what was packed"
                )
    not_compared = None
    if sources_sha256 is not None and manifest.sources_sha256 is None:
        not_compared = "the sound of the source files was not compared, because an earlier version packed the folder"
    elif sources_sha256 is not None and sources_sha256() != manifest.sources_sha256:
        raise ShardError(
            f"OUT must be empty or hold the same corpus, but {out} was packed from other sound: source files have "
            "changed since, though names and sizes are the same; choose another folder or remove it"
        )
    # A kill between the manifest and the end leaves it behind.
    state = out / STATE_FOLDER
    if _is_state(state, is_begun=_is_regular(state / _OWNER)):
        _remove_state(state)
    summary = summary_of(out, manifest, num_kept=len(manifest.shards), was_complete=True)
    return replace(summary, not_compared=not_compared)


def content_sha256(path: Path, most: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `most` bytes, in hexadecimal; a word if it is unreadable."""
    digest = hashlib.sha256()
    left = MAX_FILE_BYTES if most is None else most
    try:
        with open_regular(path) as file:
            # Most files of sound are smaller than the piece that `hashlib.file_digest` makes room for.
            while piece := file.read(min(_READ_BYTES, left)):
                digest.update(piece)
                left -= len(piece)
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a shard's bytes."""
    packages = {name: version(name) for name in ("pyarrow", "soundfile", "soxr")}
    return {**packages, "libsndfile": sf.__libsndfile_version__}


# ---------------------------------------------------------------- the work


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
    with _mapper(min(num_workers, len(jobs))) as mapper:
        for job, outcome in zip(jobs, mapper(_finish, [(job, state, on_bad) for job in jobs]), strict=True):
            if on_bad == "raise" and outcome.note.rejections:
                raise as_error(outcome.note.rejections[0])
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
    path = _note_path(job.name, state)
    if path.exists():
        note, reason = _earlier_note(job, path)
        if note is not None and (on_bad == "skip" or not note.rejections):
            return _Outcome(note.without_rows, is_kept=True)
        doubt = reason and f"{job.name} was packed again, because {shown(reason, _SHOWN_DOUBT)}"
    return _Outcome(_write_note(job.run(), path), doubt=doubt)


def _earlier_note(job: ShardJob, path: Path) -> tuple[ShardNote | None, str | None]:
    """Return what an earlier run noted about a shard, if all of it is true; else why not."""
    try:
        note = _read_note(path)
    except ShardError as error:
        return None, str(error)
    if note.stamp != job.stamp:
        return None, "its utterances, their files or the settings are others than when it was noted as finished"
    if file_stamp(job.path)[:1] != [note.shard.num_bytes] or content_sha256(job.path) != note.shard.sha256:
        return None, "the tar is not the one that its note describes"
    duration_s = _duration_s(note.rows)
    if (note.shard.name, note.shard.num_utterances, note.shard.duration_s) != (job.name, len(note.rows), duration_s):
        return None, "its note contradicts itself"
    keys = [row["key"] for row in note.rows]
    if not all(first < second for first, second in pairwise(keys)):
        return None, "its note has keys out of order or twice"
    doubt = job.doubt(note)
    return (None, f"its note is wrong: {doubt}") if doubt else (note, None)


def _duration_s(rows: Sequence[dict[str, Any]]) -> float:
    return float(sum(row["num_samples"] for row in rows) / RATE_HZ)


def _note_path(name: str, state: Path) -> Path:
    return state / f"{name}.json"


def _write_note(note: ShardNote, path: Path) -> ShardNote:
    """Write a note with the hash of it all behind it; return it without its rows."""
    body = canonical_json(note.model_dump(mode="json", exclude={"sha256"}))
    sha256 = hashlib.sha256(body).hexdigest()
    data = body[:-1] + f',"sha256":"{sha256}"}}'.encode()
    if len(data) > MAX_NOTE_BYTES:
        raise ShardError(
            f"what is known of one shard must have at most {MAX_NOTE_BYTES} bytes, but of {note.shard.name} there are "
            f"{len(data)}; cut it into several"
        )
    with atomic_file(path) as file:
        file.write(data)
    return note.model_copy(update={"rows": (), "sha256": sha256})


def _note_body(path: Path) -> tuple[bytes, str]:
    """Return a note without its hash, and the hash, which is right.

    Raises:
        ShardError: if it is not.
    """
    try:
        data = read_regular(path, max_bytes=MAX_NOTE_BYTES)
    except OSError as error:
        raise ShardError(f"{path} must be readable, but is not: {error.strerror}") from error
    signed = _SIGNATURE.search(data, max(0, len(data) - _SIGNATURE_BYTES))
    body = data[: -len(signed[0])] + b"}" if signed else b""
    if signed is None or hashlib.sha256(body).hexdigest() != signed[1].decode():
        raise ShardError(f"{path} must match its own sha256, but was changed since it was written")
    return body, signed[1].decode()


def _read_note(path: Path) -> ShardNote:
    """Return a note whose hash is right and whose rows have what is computed with.

    Raises:
        ShardError: if it is not so.
    """
    body, sha256 = _note_body(path)
    try:
        note = ShardNote.model_validate_json(body).model_copy(update={"sha256": sha256})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ShardError(f"{path} is no note at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for row in note.rows:
        is_counted = type(row.get("num_samples")) is int and row["num_samples"] > 0
        is_digest = all(_is_digest(row.get(name)) for name in _DIGESTS)
        if not (is_counted and is_digest and isinstance(row.get("key"), str) and isinstance(row.get("extra"), str)):
            raise ShardError(f"{path} must have a key, a length and digests in every row, but has not")
    return note


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def repeated_keys(state: Path, notes: Sequence[ShardNote]) -> dict[str, set[str]]:
    """Return for each tar the keys of it that stand in one before it, too."""
    seen: set[str] = set()
    repeated: dict[str, set[str]] = {}
    for note in notes:
        keys = {row["key"] for row in _read_note(_note_path(note.shard.name, state)).rows}
        repeated[note.shard.name] = keys & seen
        seen |= keys
    return repeated


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable[..., Iterable[_Outcome]]]:
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
    """Write the index, the rejections and, last, the manifest with `remarks`.

    Raises:
        CorpusError: if nothing usable is left, or two utterances have one key.
        ShardError: if a tar or a note is not what it was when it was finished.
    """
    if not any(note.shard.num_utterances for note in notes):
        raise nothing_left(origin.corpus, origin.source, rejections)
    _check_tars(out if origin.tars is None else out / origin.tars, notes)
    _begin_publishing(out, state)
    extra_names: set[str] = set()
    write_index(out / INDEX_NAME, _numbered_rows(state, notes, extra_names))
    try:
        # As whoever reads the folder does.
        names, num_rows = [note.shard.name for note in notes], sum(note.shard.num_utterances for note in notes)
        index = open_index(out / INDEX_NAME, names, num_rows)
        _check_unique(index)
        index.check_columns()
    except InputError:
        (out / INDEX_NAME).unlink()
        raise
    with atomic_file(out / REJECTED_NAME) as file:
        file.writelines(canonical_json(asdict(rejection)) + b"\n" for rejection in rejections)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        corpus=origin.corpus,
        licence=origin.licence,
        citation=origin.citation,
        source=None if origin.source is None else shown(origin.source.resolve().name),
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
        sources_sha256=sources_hash(note.sources_sha256 for note in notes),
    )
    _check_readable(out, manifest)
    write_manifest(out, manifest)
    return manifest


def _check_readable(out: Path, manifest: Manifest) -> None:
    """Refuse to publish lists that are longer than any that is read, or a manifest that is not."""
    for name, num_bytes, most in (
        (REJECTED_NAME, manifest.rejected.num_bytes, MAX_REJECTED_BYTES),
        (MANIFEST_NAME, len(manifest_bytes(manifest)), MAX_MANIFEST_BYTES),
    ):
        if num_bytes > most:
            raise ShardError(
                f"{out / name} must have at most {most} bytes, but would have {num_bytes}; pack the corpus in parts, "
                "with fewer words of its own and fewer rejections in each"
            )
    parsed_manifest(manifest_bytes(manifest), str(out / MANIFEST_NAME))


def sources_hash(of_shards: Iterable[str | None]) -> str | None:
    """Return one hash of all sources from those of the shards, None where there are none."""
    hashes = list(of_shards)
    return None if None in hashes else hashlib.sha256(canonical_json(hashes)).hexdigest()


def _check_tars(folder: Path, notes: Sequence[ShardNote]) -> None:
    """Refuse to publish tars that were removed or cut since they were finished."""
    for note in notes:
        found = file_stamp(folder / note.shard.name)
        if not found or found[0] != note.shard.num_bytes:
            raise ShardError(
                f"{folder / note.shard.name} must keep its {note.shard.num_bytes} bytes until the folder is complete, "
                f"but {f'has {found[0]}' if found else 'is gone'}; run the command again"
            )


def _begin_publishing(out: Path, state: Path) -> None:
    """Note that index and list of rejections are ours from now on; refuse to write over those of others."""
    if _is_regular(state / _PUBLISHING):
        return
    foreign = [name for name in _PUBLISHED if os.path.lexists(out / name)]
    if foreign:
        raise ShardError(f"OUT must hold no {foreign[0]} of others, but {out} does; choose another folder or move it")
    with atomic_file(state / _PUBLISHING) as file:
        file.write(b"")


def _numbered_rows(state: Path, notes: Sequence[ShardNote], extra_names: set[str]) -> Iterator[dict[str, Any]]:
    """Yield all rows from the notes on disk, adding what stands in `extra` to `extra_names`."""
    for number, note in enumerate(notes):
        path = _note_path(note.shard.name, state)
        body, sha256 = _note_body(path)
        if sha256 != note.sha256:
            raise ShardError(f"{path} must stay as it is until the folder is complete, but was changed; run it again")
        for row in json.loads(body)["rows"]:
            extra_names.update(json.loads(row["extra"]))
            yield {**row, **{name: bytes.fromhex(row[name]) for name in _DIGESTS}, "shard": number}


def _check_unique(index: Index) -> None:
    repeated = repeated_key(index)
    if repeated is not None:
        key, count = repeated
        raise RepeatedKeyError(f"every key must stand once, but {key!r} occurs {count} times; rename one")


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
        yield f"{num_clipped} of {total} utterances are clipped ({MIN_FLAT_SAMPLES} or more samples at full scale)"
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


def summary_of(
    out: Path, manifest: Manifest, *, num_kept: int, was_complete: bool, doubts: tuple[str, ...] = ()
) -> PackSummary:
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
        doubts=doubts,
    )
