"""A corpus turned into shards: whole files only, the same bytes every time, nothing redone after a kill.

Utterances are sorted by key and cut into shards by count before any audio is read, so that every shard depends on its
own utterances only: several processes can write them in any order, and a repeated run keeps the finished ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import soundfile as sf

from shards.audio import encode_flac, pcm16, pcm_sha256, prepare
from shards.config import Section
from shards.corpora.base import CorpusReader, corpus_reader
from shards.errors import AudioError, CorpusError, ShardError
from shards.manifest import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    REJECTED_NAME,
    FileRecord,
    Index,
    IndexRecord,
    Manifest,
    Settings,
    ShardRecord,
    atomic_file,
    canonical_json,
    duplicate_rows,
    file_sha256,
    index_row,
    label_tables,
    load_index,
    read_manifest,
    write_index,
    write_manifest,
)
from shards.schema import (
    AUDIO_SUFFIX,
    META_SUFFIX,
    RATE_HZ,
    SCHEMA_VERSION,
    AudioSource,
    Rejection,
    SourceUtterance,
    Utterance,
    is_key,
)

STATE_FOLDER = ".packing"
"""Inside OUT while packing: what each finished shard holds."""
_MIN_CLIPS_TO_WARN = 20
_NUM_SHOWN_DUPLICATES = 5

OnBad = Literal["raise", "skip"]


@dataclass(frozen=True)
class PackSummary:
    """What `pack_corpus` did."""

    folder: Path
    corpus: str
    num_utterances: int
    num_shards: int
    num_kept_shards: int
    """Shards that an earlier, interrupted run had finished."""
    duration_s: float
    num_rejected_by_kind: dict[str, int]
    warnings: tuple[str, ...]
    was_complete: bool
    """True if the folder held exactly this corpus already and nothing was written."""


class _ShardContents(Section):
    """What a finished shard holds, kept beside it until the manifest is written."""

    stamp: str
    shard: ShardRecord
    rows: tuple[dict[str, Any], ...]
    """Index rows without the shard's number."""
    rejections: tuple[Rejection, ...]
    num_mixed_down: int
    rates_hz: dict[int, int]
    """Number of utterances per original rate."""


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    path: Path
    items: tuple[SourceUtterance, ...]
    max_duration_s: float
    stamp: str
    """Hash of all that decides the shard's bytes, and of its source files' times."""

    @property
    def contents_path(self) -> Path:
        return self.path.parent / STATE_FOLDER / f"{self.path.stem}.json"


def pack_corpus(
    corpus: str | CorpusReader,
    source: Path | None,
    out: Path,
    *,
    on_bad: OnBad = "raise",
    num_workers: int = 1,
    seed: int = 0,
    shard_utterances: int = 256,
    max_duration_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write all utterances of a corpus as a shard folder, or finish what an interrupted call began.

    Args:
        corpus: A name that `corpus_reader` knows, or a reader of one's own.
        source: Where the corpus lies; None for one that is made.
        out: The shard folder; absent, empty, or of the same corpus.
        on_bad: `raise` stops at the first unusable thing, `skip` lists it in `rejected.jsonl` and goes on.
        num_workers: Processes that decode and encode.
        seed: Passed to the reader.
        shard_utterances: Utterances per tar.
        max_duration_s: Longer clips are rejected.
        progress: Called with the number of utterances done and that of all.

    Raises:
        CorpusError: if the corpus is unknown, `source` is not that corpus or has nothing usable, or something in it is
            unusable and `on_bad` is `raise`.
        ShardError: if `out` cannot be written or holds something else.
    """
    reader = corpus_reader(corpus) if isinstance(corpus, str) else corpus
    if source is not None and not source.exists():
        raise CorpusError(f"SOURCE must be where corpus {reader.name!r} lies, but {source} does not exist")
    _check_folder(out, reader.name)
    items, rejections = _collect(reader, source, seed, on_bad)
    settings = Settings(
        seed=seed, shard_utterances=shard_utterances, max_duration_s=max_duration_s, versions=_package_versions()
    )
    fingerprint = _fingerprint(settings, reader.name, items, rejections)
    if (out / MANIFEST_NAME).exists():
        return _complete_folder(out, fingerprint, on_bad)
    with _locked(out):
        jobs = _plan(reader.name, items, out, settings)
        _remove_leftovers(out, reader.name, jobs)
        kept = {job.path.name: contents for job in jobs if (contents := _finished(job, on_bad)) is not None}
        done: list[_ShardContents] = []
        with closing(_pack_all(jobs, kept, num_workers)) as packed:
            for contents in packed:
                if on_bad == "raise" and contents.rejections:
                    raise _as_error(contents.rejections[0])
                done.append(contents)
                if progress is not None:
                    progress(min(len(done) * shard_utterances, len(items)), len(items))
        rejections += [_without_place(item, source) for contents in done for item in contents.rejections]
        manifest = _publish(reader, source, out, settings, fingerprint, done, rejections)
        shutil.rmtree(out / STATE_FOLDER)
    return _summary(out, manifest, num_kept=len(kept), was_complete=False)


# ---------------------------------------------------------------- what to pack


def _collect(
    reader: CorpusReader, source: Path | None, seed: int, on_bad: OnBad
) -> tuple[list[SourceUtterance], list[Rejection]]:
    """Return the corpus's utterances sorted by key, and what cannot be one."""
    items: dict[str, SourceUtterance] = {}
    rejections = []
    for found in reader.read(source, seed):
        rejection = found if isinstance(found, Rejection) else _objection(found, items)
        if isinstance(found, SourceUtterance) and rejection is None:
            items[found.utterance.key] = found
        elif rejection is not None:
            if on_bad == "raise":
                raise _as_error(rejection)
            rejections.append(_without_place(rejection, source))
    if not items:
        raise _nothing_left(reader.name, source, rejections)
    return [items[key] for key in sorted(items)], rejections


def _objection(found: SourceUtterance, items: dict[str, SourceUtterance]) -> Rejection | None:
    """Return why an utterance cannot be stored whatever its audio is, or None."""
    utterance = found.utterance
    name = _original_name(utterance)
    if not is_key(utterance.key):
        return Rejection(name, f"a key must match corpus/[A-Za-z0-9_%-]+, got {utterance.key!r}", "bad key")
    if utterance.key in items:
        other = _original_name(items[utterance.key].utterance)
        return Rejection(name, f"has the same key {utterance.key!r} as {other}", "duplicate key")
    try:
        _member(f"{utterance.key}.{AUDIO_SUFFIX}", b"").tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        return Rejection(name, f"the key {utterance.key!r} is too long for a tar member", "bad key")
    try:
        canonical_json(utterance.model_dump(mode="python"))
    except ValueError as error:
        return Rejection(name, f"metadata must be Unicode text and finite numbers, but {error}", "bad metadata")
    return None


def _original_name(utterance: Utterance) -> str:
    return utterance.source or utterance.key


def _without_place(rejection: Rejection, source: Path | None) -> Rejection:
    """Return `rejection` with paths relative to the corpus, so that bytes repeat wherever the corpus lies."""
    if source is None:
        return rejection
    folder = source if source.is_dir() else source.parent
    if not folder.name:
        return rejection
    prefix = f"{folder}{os.sep}"
    return Rejection(rejection.source.replace(prefix, ""), rejection.reason.replace(prefix, ""), rejection.kind)


def _as_error(rejection: Rejection) -> CorpusError:
    return CorpusError(
        f"{rejection.source}: {rejection.reason.rstrip('.')} ({rejection.kind}); correct it, or pass --on-bad skip to "
        "leave such utterances out"
    )


def _nothing_left(corpus: str, source: Path | None, rejections: Sequence[Rejection]) -> CorpusError:
    where = f"corpus {corpus!r}" if source is None else f"corpus {corpus!r} in {source}"
    if not rejections:
        return CorpusError(f"there must be at least one utterance to pack, but {where} has none; check SOURCE")
    return CorpusError(
        f"there must be at least one usable utterance, but all of {where} were rejected "
        f"({_join_counts(Counter(rejection.kind for rejection in rejections))}); the first was {rejections[0].source}: "
        f"{rejections[0].reason}"
    )


def _join_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def _package_versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("pyarrow", "soundfile", "soxr")}
    return {**packages, "libsndfile": sf.__libsndfile_version__}


def _fingerprint(
    settings: Settings, corpus: str, items: Iterable[SourceUtterance], rejections: Iterable[Rejection]
) -> str:
    digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, corpus, settings.model_dump()]))
    for item in items:
        digest.update(_identity(item, with_times=False))
    for rejection in rejections:
        digest.update(canonical_json([rejection.source, rejection.kind]))
    return digest.hexdigest()


def _identity(item: SourceUtterance, *, with_times: bool) -> bytes:
    """Return what tells an utterance from a changed one, without reading its audio."""
    return canonical_json([item.utterance.model_dump(), _audio_identity(item.audio, with_times)]) + b"\n"


def _audio_identity(audio: AudioSource, with_times: bool) -> list[str]:
    values: list[Any] = [getattr(audio, field.name) for field in fields(audio)] if is_dataclass(audio) else []
    described = [_file_identity(value, with_times) if isinstance(value, Path) else repr(value) for value in values]
    return [type(audio).__name__, *described]


def _file_identity(path: Path, with_times: bool) -> str:
    """Return name and size; with the time of change only where it is not published, as every copy has its own."""
    try:
        status = path.stat()
    except OSError:
        return f"{path.name} missing"
    return f"{path.name} {status.st_size}" + (f" {status.st_mtime_ns}" if with_times else "")


def _plan(corpus: str, items: Sequence[SourceUtterance], out: Path, settings: Settings) -> list[_Job]:
    size = settings.shard_utterances
    jobs = []
    for number, start in enumerate(range(0, len(items), size)):
        part = tuple(items[start : start + size])
        digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, settings.model_dump()]))
        for item in part:
            digest.update(_identity(item, with_times=True))
        path = out / f"{corpus}-{number:06d}.tar"
        jobs.append(_Job(path, part, settings.max_duration_s, digest.hexdigest()))
    return jobs


# ---------------------------------------------------------------- the folder


def _check_folder(out: Path, corpus: str) -> None:
    """Refuse to write among files that are not this corpus's."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ShardError(f"OUT must be a folder, but {out} is a file; choose another")
    if (out / MANIFEST_NAME).exists():
        found = read_manifest(out).corpus
        if found != corpus:
            raise ShardError(
                f"OUT must be empty or hold corpus {corpus!r}, but {out} holds {found!r}; choose another folder"
            )
        return
    foreign = sorted(path.name for path in out.iterdir() if not _is_ours(path.name, corpus))
    if foreign:
        raise ShardError(
            f"OUT must be empty or hold an unfinished packing of {corpus!r}, but {out} has {foreign[0]!r} "
            f"({len(foreign)} such files); choose another folder"
        )


def _is_ours(name: str, corpus: str) -> bool:
    if name.startswith(".") and name.endswith(".tmp"):
        name = name[1 : -len(".tmp")]
    whole = (STATE_FOLDER, INDEX_NAME, REJECTED_NAME, MANIFEST_NAME)
    return name in whole or re.fullmatch(rf"{re.escape(corpus)}-\d{{6}}\.tar", name) is not None


def _complete_folder(out: Path, fingerprint: str, on_bad: OnBad) -> PackSummary:
    """Return the summary of a folder that holds the same corpus already."""
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
    # A kill between the manifest and the end leaves it behind.
    shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    return _summary(out, manifest, num_kept=len(manifest.shards), was_complete=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
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
        yield


def _remove_leftovers(out: Path, corpus: str, jobs: Sequence[_Job]) -> None:
    """Remove unfinished files, and shards that the corpus no longer needs."""
    wanted = {job.path.name for job in jobs} | {STATE_FOLDER}
    for path in out.iterdir():
        if path.name not in wanted and _is_ours(path.name, corpus):
            path.unlink()


def _finished(job: _Job, on_bad: OnBad) -> _ShardContents | None:
    """Return what an earlier run noted about this shard, if the shard is still what it would become."""
    try:
        contents = _ShardContents.model_validate_json(job.contents_path.read_bytes())
        num_bytes = job.path.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    if contents.stamp != job.stamp or contents.shard.num_bytes != num_bytes:
        return None
    return None if on_bad == "raise" and contents.rejections else contents


# ---------------------------------------------------------------- packing


def _pack_all(
    jobs: Sequence[_Job], kept: dict[str, _ShardContents], num_workers: int
) -> Generator[_ShardContents, None, None]:
    """Yield every shard's contents in order, writing those that are not kept."""
    pending = [job for job in jobs if job.path.name not in kept]
    with _mapper(min(num_workers, len(pending))) as mapper:
        fresh = iter(mapper(_pack_shard, pending))
        for job in jobs:
            contents = kept.get(job.path.name)
            yield next(fresh) if contents is None else contents


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable[..., Iterable[_ShardContents]]]:
    if num_workers <= 1:
        yield map
        return
    # Not forkserver: a training in this process starts its readers from that one server, and sets it up for them.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise ShardError(
            f"{num_workers} packing processes must stay alive, but one was killed (out of memory?); finished shards "
            "are kept, so run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Make a worker end with its parent: a pool's workers outlive a killed one and wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _pack_shard(job: _Job) -> _ShardContents:
    """Write one shard and the note about it."""
    rows: list[dict[str, Any]] = []
    rejections = []
    num_mixed_down = 0
    rates_hz: Counter[int] = Counter()
    with atomic_file(job.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item in job.items:
            try:
                samples, rate_hz = item.audio.load()
                prepared = prepare(samples, rate_hz)
            except AudioError as error:
                rejections.append(Rejection(_original_name(item.utterance), str(error), "unusable audio"))
                continue
            pcm = pcm16(prepared)
            rejection = _audio_objection(item.utterance, len(pcm), bool(pcm.any()), job.max_duration_s)
            if rejection is not None:
                rejections.append(rejection)
                continue
            audio: dict[str, Any] = {"num_samples": len(pcm), "pcm_sha256": pcm_sha256(pcm)}
            _add(tar, f"{item.utterance.key}.{AUDIO_SUFFIX}", encode_flac(prepared))
            meta = {"schema_version": SCHEMA_VERSION, **item.utterance.model_dump(), **audio}
            _add(tar, f"{item.utterance.key}.{META_SUFFIX}", canonical_json(meta))
            rows.append(index_row(item.utterance, **audio))
            num_mixed_down += samples.ndim > 1 and samples.shape[1] > 1
            rates_hz[rate_hz] += 1
    contents = _ShardContents(
        stamp=job.stamp,
        shard=ShardRecord(
            name=job.path.name,
            num_bytes=job.path.stat().st_size,
            sha256=file_sha256(job.path),
            num_utterances=len(rows),
            duration_s=sum(row["num_samples"] for row in rows) / RATE_HZ,
        ),
        rows=tuple(_with_places(rows, job.path)),
        rejections=tuple(rejections),
        num_mixed_down=num_mixed_down,
        rates_hz=dict(sorted(rates_hz.items())),
    )
    with atomic_file(job.contents_path) as note:
        note.write(canonical_json(contents.model_dump(mode="json")))
    return contents


def _audio_objection(
    utterance: Utterance, num_samples: int, is_audible: bool, max_duration_s: float
) -> Rejection | None:
    duration_s = num_samples / RATE_HZ
    name = _original_name(utterance)
    if num_samples == 0:
        return Rejection(name, "holds less than one sample at 16 kHz", "unusable audio")
    if duration_s > max_duration_s:
        return Rejection(name, f"lasts {duration_s:.2f} s, longer than max_duration_s {max_duration_s:g}", "too long")
    if not is_audible:
        return Rejection(name, f"all {num_samples} samples are zero", "silence")
    return None


def _member(name: str, data: bytes) -> tarfile.TarInfo:
    """Return a header whose owner, mode and time are fixed, so that bytes repeat."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_member(name, data), io.BytesIO(data))


def _with_places(rows: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Yield `rows` with the byte ranges that the finished tar really has."""
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar.getmembers()}
    for row in rows:
        audio, meta = members[f"{row['key']}.{AUDIO_SUFFIX}"], members[f"{row['key']}.{META_SUFFIX}"]
        yield {
            **row,
            "audio_offset": audio.offset_data,
            "audio_bytes": audio.size,
            "meta_offset": meta.offset_data,
            "meta_bytes": meta.size,
        }


# ---------------------------------------------------------------- publishing


def _publish(
    reader: CorpusReader,
    source: Path | None,
    out: Path,
    settings: Settings,
    fingerprint: str,
    done: Sequence[_ShardContents],
    rejections: Sequence[Rejection],
) -> Manifest:
    """Write the index, the rejections and, last, the manifest."""
    rows = [{**row, "shard": number} for number, contents in enumerate(done) for row in contents.rows]
    if not rows:
        raise _nothing_left(reader.name, source, rejections)
    index = Index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), tuple(out / part.shard.name for part in done))
    write_index(out / INDEX_NAME, index.table)
    with atomic_file(out / REJECTED_NAME) as file:
        file.writelines(canonical_json(asdict(rejection)) + b"\n" for rejection in rejections)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        corpus=reader.name,
        licence=reader.licence,
        citation=reader.citation,
        source=None if source is None else source.resolve().name,
        settings=settings,
        fingerprint=fingerprint,
        shards=tuple(contents.shard for contents in done),
        index=IndexRecord(**_file_record(out / INDEX_NAME), num_utterances=len(index)),
        rejected=FileRecord(**_file_record(out / REJECTED_NAME)),
        labels=label_tables(index),
        extra_names=tuple(sorted({name for row in rows for name in json.loads(row["extra"])})),
        num_rejected_by_kind=dict(sorted(Counter(rejection.kind for rejection in rejections).items())),
        warnings=tuple(_warnings(index, done)),
    )
    write_manifest(out, manifest)
    return manifest


def _file_record(path: Path) -> dict[str, Any]:
    return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _warnings(index: Index, done: Sequence[_ShardContents]) -> Iterator[str]:
    num_mixed_down = sum(contents.num_mixed_down for contents in done)
    if num_mixed_down:
        yield f"{num_mixed_down} of {len(index)} utterances had several channels and were mixed down to one"
    rates_hz: Counter[int] = Counter()
    for contents in done:
        rates_hz.update(contents.rates_hz)
    if len(rates_hz) > 1:
        counts = ", ".join(f"{rates_hz[rate]} at {rate} Hz" for rate in sorted(rates_hz))
        yield f"the sources have several sample rates ({counts}); all are stored at {RATE_HZ} Hz"
    yield from _duplicate_warning(index)
    length, num_equal = Counter(index.num_samples.tolist()).most_common(1)[0]
    if len(index) >= _MIN_CLIPS_TO_WARN and num_equal > len(index) / 2:
        yield (
            f"{num_equal} of {len(index)} utterances last exactly {length / RATE_HZ:.3f} s; was this copy of the "
            "corpus cut or padded?"
        )
    emotions = Counter(emotion for emotion in index.values("emotion") if emotion is not None)
    if len(emotions) == 1 and emotions.total() >= _MIN_CLIPS_TO_WARN:
        yield f"all {emotions.total()} emotion labels are {next(iter(emotions))!r}, which teaches nothing"


def _duplicate_warning(index: Index) -> Iterator[str]:
    groups = duplicate_rows(index)
    if not groups:
        return
    keys, splits = index.values("key"), index.values("split")
    shown = "; ".join(" = ".join(keys[row] for row in group) for group in groups[:_NUM_SHOWN_DUPLICATES])
    more = f"; and {len(groups) - _NUM_SHOWN_DUPLICATES} more" if len(groups) > _NUM_SHOWN_DUPLICATES else ""
    num_across = sum(len({splits[row] for row in group}) > 1 for group in groups)
    across = f", {num_across} of them across splits" if num_across else ""
    yield f"{len(groups)} groups of utterances have identical audio{across}: {shown}{more}"


def _summary(out: Path, manifest: Manifest, *, num_kept: int, was_complete: bool) -> PackSummary:
    return PackSummary(
        folder=out,
        corpus=manifest.corpus,
        num_utterances=manifest.index.num_utterances,
        num_shards=len(manifest.shards),
        num_kept_shards=num_kept,
        duration_s=sum(shard.duration_s for shard in manifest.shards),
        num_rejected_by_kind=manifest.num_rejected_by_kind,
        warnings=manifest.warnings,
        was_complete=was_complete,
    )
