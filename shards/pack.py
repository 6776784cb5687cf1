"""A corpus turned into shards: whole files only, the same bytes every time, nothing redone after a kill.

Utterances are sorted by key and cut into shards by count before any audio is read, so that every shard depends on its
own utterances only: several processes can write them in any order, and a repeated run keeps the finished ones.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.audio import AudioFile, encode_flac, pcm16, pcm_sha256, prepare
from shards.corpora.base import OWNERS_LICENCE, CorpusReader, corpus_reader
from shards.corpora.identities import composed
from shards.corpora.options import NO_OPTIONS, ReadOptions
from shards.errors import AudioError, CorpusError, ShardError
from shards.index import index_row, load_index
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    Settings,
    atomic_file,
    canonical_json,
    read_manifest,
)
from shards.publish import (
    STATE_FOLDER,
    AudioCounts,
    OnBad,
    Origin,
    PackSummary,
    Progress,
    ShardNote,
    accounts,
    as_one_error,
    locked,
    note_of,
    nothing_left,
    package_versions,
    publish,
    run_jobs,
    summary_of,
    without_place,
)
from shards.schema import (
    AUDIO_SUFFIX,
    META_SUFFIX,
    RATE_HZ,
    SCHEMA_VERSION,
    AudioSource,
    Note,
    Rejection,
    RowCount,
    SourceUtterance,
    Utterance,
    is_key,
)


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
    options: ReadOptions = NO_OPTIONS,
    progress: Progress | None = None,
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
        options: How data of one's own is read; of a corpus as published only `channel` may differ.
        progress: Called with the number of utterances done and that of all.

    Raises:
        CorpusError: if the corpus is unknown, `source` is not that corpus or has nothing usable, or something in it is
            unusable and `on_bad` is `raise`.
        ShardError: if `out` cannot be written or holds something else.
    """
    reader = corpus_reader(corpus, options) if isinstance(corpus, str) else corpus
    if source is not None and not source.exists():
        raise CorpusError(f"SOURCE must be where corpus {reader.name!r} lies, but {source} does not exist")
    _check_folder(out, reader.name)
    found = _collect(reader, source, seed, options.channel)
    items, rejections = found.sorted_items, found.rejections
    if rejections and on_bad == "raise":
        raise as_one_error(rejections)
    if not items:
        raise nothing_left(reader.name, source, rejections)
    settings = Settings(
        seed=seed, shard_utterances=shard_utterances, max_duration_s=max_duration_s, versions=package_versions()
    )
    rejections = [without_place(rejection, source) for rejection in rejections]
    fingerprint = _fingerprint(settings, reader, items, rejections)
    if (out / MANIFEST_NAME).exists():
        return complete_folder(out, fingerprint, on_bad)
    with locked(out) as state:
        jobs = _plan(reader.name, items, out, settings)
        _remove_leftovers(out, reader.name, jobs)
        notes, num_kept = run_jobs(jobs, state, on_bad=on_bad, num_workers=num_workers, progress=progress)
        rejections += [without_place(item, source) for note in notes for item in note.rejections]
        remarks = [*found.notes, *accounts(found.row_counts, notes, rejections)]
        origin = Origin(reader.name, reader.licence, reader.citation, source, settings, fingerprint)
        manifest = publish(out, state, origin, notes, rejections, remarks)
    return summary_of(out, manifest, num_kept=num_kept, was_complete=False)


# ---------------------------------------------------------------- what to pack


@dataclass
class _Collected:
    """What a reader found: utterances by key, what cannot be one, and what there is to say."""

    items: dict[str, SourceUtterance] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    row_counts: list[RowCount] = field(default_factory=list)

    @property
    def sorted_items(self) -> list[SourceUtterance]:
        return [self.items[key] for key in sorted(self.items)]


def _collect(reader: CorpusReader, source: Path | None, seed: int, channel: int | None) -> _Collected:
    collected = _Collected()
    for found in reader.read(source, seed):
        if isinstance(found, Note):
            collected.notes.append(found)
        elif isinstance(found, RowCount):
            collected.row_counts.append(found)
        elif isinstance(found, Rejection):
            collected.rejections.append(found)
        else:
            item = replace(found, utterance=composed(found.utterance))
            item = item if channel is None else _of_channel(item, channel)
            rejection = _objection(item, collected.items)
            if rejection is None:
                collected.items[item.utterance.key] = item
            else:
                collected.rejections.append(rejection)
    return collected


def _of_channel(item: SourceUtterance, channel: int) -> SourceUtterance:
    """Return the part of an utterance that one channel holds, under a key of its own."""
    if not isinstance(item.audio, AudioFile) or item.audio.channel is not None:
        raise CorpusError(
            "--channel must be about audio files whose channel nothing else says, but "
            f"{_original_name(item.utterance)} has one or is no file; leave --channel or the column channel out"
        )
    key = f"{item.utterance.key}/channel{channel}"
    utterance = item.utterance.model_copy(update={"key": key})
    return replace(item, utterance=utterance, audio=replace(item.audio, channel=channel))


def _objection(found: SourceUtterance, items: dict[str, SourceUtterance]) -> Rejection | None:
    """Return why an utterance cannot be stored whatever its audio is, or None."""
    utterance = found.utterance
    name = _original_name(utterance)
    if not is_key(utterance.key) or not utterance.key.startswith(f"{utterance.corpus}/"):
        return Rejection(name, f"a key must match {utterance.corpus}/[A-Za-z0-9_%-]+, got {utterance.key!r}", "bad key")
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


def _fingerprint(
    settings: Settings, reader: CorpusReader, items: Iterable[SourceUtterance], rejections: Iterable[Rejection]
) -> str:
    # A licence is told apart only where the user named one, so that older folders stay what they are.
    said = [reader.licence] if "licence" in reader.obeys and reader.licence != OWNERS_LICENCE else []
    digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, reader.name, settings.model_dump(), *said]))
    for item in items:
        digest.update(_identity(item, with_times=False))
    for rejection in rejections:
        digest.update(canonical_json([rejection.source, rejection.kind]))
    return digest.hexdigest()


def _identity(item: SourceUtterance, *, with_times: bool) -> bytes:
    """Return what tells an utterance from a changed one, without reading its audio."""
    return canonical_json([item.utterance.model_dump(), _audio_identity(item.audio, with_times)]) + b"\n"


def _audio_identity(audio: AudioSource, with_times: bool) -> list[str]:
    values: list[Any] = [getattr(audio, part.name) for part in fields(audio)] if is_dataclass(audio) else []
    described = [_file_identity(value, with_times) if isinstance(value, Path) else repr(value) for value in values]
    return [type(audio).__name__, *described]


def _file_identity(path: Path, with_times: bool) -> str:
    """Return name and size; with the time of change only where it is not published, as every copy has its own."""
    try:
        status = path.stat()
    except OSError:
        return f"{path.name} missing"
    return f"{path.name} {status.st_size}" + (f" {status.st_mtime_ns}" if with_times else "")


@dataclass(frozen=True)
class _PackJob:
    """One shard to write from its utterances."""

    path: Path
    items: tuple[SourceUtterance, ...]
    settings: Settings

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_bytes(self) -> int | None:
        return self.path.stat().st_size if self.path.is_file() else None

    @cached_property
    def stamp(self) -> str:
        digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, self.settings.model_dump()]))
        for item in self.items:
            digest.update(_identity(item, with_times=True))
        return digest.hexdigest()

    def run(self) -> ShardNote:
        """Write the shard."""
        rows: list[dict[str, Any]] = []
        rejections = []
        counts = AudioCounts()
        with atomic_file(self.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for item in self.items:
                try:
                    samples, rate_hz = item.audio.load()
                    prepared = prepare(samples, rate_hz)
                except AudioError as error:
                    rejections.append(Rejection(_original_name(item.utterance), str(error), "unusable audio"))
                    continue
                pcm = pcm16(prepared)
                rejection = audio_objection(
                    _original_name(item.utterance), len(pcm), bool(pcm.any()), self.settings.max_duration_s
                )
                if rejection is not None:
                    rejections.append(rejection)
                    continue
                rows.append(_add_utterance(tar, item.utterance, encode_flac(prepared), pcm))
                counts = counts.plus(_original_name(item.utterance), samples, rate_hz, pcm)
                if item.stated is not None and not item.stated.agrees(len(samples) / rate_hz):
                    counts = counts.plus_other_duration(
                        _original_name(item.utterance), item.stated.duration_s, len(samples) / rate_hz
                    )
                if isinstance(item.audio, AudioFile) and item.audio.lacks_end():
                    counts = counts.plus_endless(_original_name(item.utterance))
        return note_of(self.path, self.stamp, rows, rejections, counts)


def _plan(corpus: str, items: Sequence[SourceUtterance], out: Path, settings: Settings) -> list[_PackJob]:
    size = settings.shard_utterances
    return [
        _PackJob(out / f"{corpus}-{number:06d}.tar", tuple(items[start : start + size]), settings)
        for number, start in enumerate(range(0, len(items), size))
    ]


def _add_utterance(tar: tarfile.TarFile, utterance: Utterance, flac: bytes, pcm: Any) -> dict[str, Any]:
    """Append an utterance's two members; return its index row."""
    audio: dict[str, Any] = {"num_samples": len(pcm), "pcm_sha256": pcm_sha256(pcm).hex()}
    audio_offset = _add(tar, f"{utterance.key}.{AUDIO_SUFFIX}", flac)
    meta = canonical_json({"schema_version": SCHEMA_VERSION, **utterance.model_dump(), **audio})
    return index_row(
        utterance,
        **audio,
        audio_sha256=hashlib.sha256(flac).hexdigest(),
        audio_offset=audio_offset,
        audio_bytes=len(flac),
        meta_offset=_add(tar, f"{utterance.key}.{META_SUFFIX}", meta),
        meta_bytes=len(meta),
    )


def audio_objection(name: str, num_samples: int, is_audible: bool, max_duration_s: float) -> Rejection | None:
    """Return why decoded audio cannot be used, or None."""
    duration_s = num_samples / RATE_HZ
    if num_samples == 0:
        return Rejection(name, "holds less than one sample at 16 kHz", "unusable audio")
    if duration_s > max_duration_s:
        return Rejection(name, f"lasts {duration_s:.2f} s, longer than --max-duration {max_duration_s:g}", "too long")
    if not is_audible:
        return Rejection(name, f"all {num_samples} samples are zero", "silence")
    return None


def _member(name: str, data: bytes) -> tarfile.TarInfo:
    """Return a header whose owner, mode and time are fixed, so that bytes repeat."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; return where its data begins."""
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(_member(name, data), io.BytesIO(data))
    return offset


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


def complete_folder(out: Path, fingerprint: str, on_bad: OnBad) -> PackSummary:
    """Return the summary of a folder that holds the same corpus already.

    Raises:
        ShardError: if it holds something else, or leaves out what must not be left out.
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
    # A kill between the manifest and the end leaves it behind.
    shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    return summary_of(out, manifest, num_kept=len(manifest.shards), was_complete=True)


def _remove_leftovers(out: Path, corpus: str, jobs: Sequence[_PackJob]) -> None:
    """Remove unfinished files, and shards that the corpus no longer needs."""
    wanted = {job.name for job in jobs} | {STATE_FOLDER}
    for path in out.iterdir():
        if path.name not in wanted and _is_ours(path.name, corpus):
            path.unlink()
