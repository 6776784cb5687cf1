"""A corpus turned into shards: whole files only, the same bytes every time, nothing redone after a kill.

Utterances are sorted by key and cut into shards by count before any audio is read, so that every shard depends on its
own utterances only: several processes can write them in any order, and a repeated run keeps the finished ones.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.audio import AudioFile, Sound, encode_pcm, pcm_sha256
from shards.corpora.base import OWNERS_LICENCE, CorpusReader, Found, corpus_reader
from shards.corpora.identities import composed
from shards.corpora.options import NO_OPTIONS, ReadOptions
from shards.errors import AudioError, CorpusError, ShardError
from shards.files import atomic_file, canonical_json, content_sha256, file_stamp
from shards.indexwrite import index_row
from shards.inputfile import fault_of, open_regular
from shards.jobs import Progress, run_jobs
from shards.manifest import MANIFEST_NAME, Settings, read_manifest
from shards.notes import ShardNote, shard_note
from shards.oddities import AudioCounts
from shards.packfolder import check_folder, locked, remove_leftovers
from shards.publish import Origin, PackSummary, complete_folder, package_versions, publish, sources_hash, summary_of
from shards.rejections import (
    OnBad,
    account_of_rows,
    audio_objection,
    check_max_duration,
    metadata_objection,
    no_utterances_error,
    rejections_error,
    with_relative_paths,
)
from shards.schema import (
    AUDIO_SUFFIX,
    META_SUFFIX,
    SCHEMA_VERSION,
    AudioSource,
    Note,
    Rejection,
    RowCount,
    SourceUtterance,
    Utterance,
    is_key,
)
from shards.shown import shown
from shards.tarmembers import BrokenTarError, TarMember, tar_members

MAX_COMPARED_BYTES = 8 << 30
"""Of a source file: six hours of stereo at 96 kHz and 32 bits."""
_MAX_SHOWN = 300
_SEEDS = (-(1 << 63), (1 << 64) - 1)


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
    fault = None if source is None else fault_of(source)
    if fault is not None:
        raise CorpusError(f"SOURCE must be where corpus {reader.name!r} lies, but {source} {fault}")
    check_max_duration(max_duration_s)
    if not _SEEDS[0] <= seed <= _SEEDS[1]:
        raise CorpusError(f"--seed must be {_SEEDS[0]} to {_SEEDS[1]}, got a number of {len(str(abs(seed)))} digits")
    _check_folder(out, reader.name)
    found = _collect(reader, source, seed, options.channel)
    items, rejections = found.sorted_items, found.rejections
    if rejections and on_bad == "raise":
        raise rejections_error(rejections)
    if not items:
        raise no_utterances_error(reader.name, source, rejections)
    settings = Settings(
        seed=seed, shard_utterances=shard_utterances, max_duration_s=max_duration_s, versions=package_versions()
    )
    rejections = [with_relative_paths(rejection, source) for rejection in rejections]
    fingerprint = _fingerprint(settings, reader, items, rejections)
    jobs = _plan(reader.name, items, out, settings)

    def complete() -> PackSummary:
        hashes = partial(_sources_now, jobs, num_workers)
        summary = complete_folder(out, fingerprint, on_bad, num_workers=num_workers, sources_sha256=hashes)
        longer = sum(file_stamp(path)[:1] > [MAX_COMPARED_BYTES] for path in dict.fromkeys(_source_files(items)))
        if longer and summary.not_compared is None:
            beyond = f"of {longer} source files the sound beyond {MAX_COMPARED_BYTES} bytes was not compared"
            return replace(summary, not_compared=beyond)
        return summary

    if (out / MANIFEST_NAME).exists():
        return complete()
    with locked(out, reader.name) as state:
        if (out / MANIFEST_NAME).exists():  # another process has published since
            return complete()
        remove_leftovers(out, reader.name, {job.name for job in jobs})
        done = run_jobs(jobs, state, on_bad=on_bad, num_workers=num_workers, progress=progress)
        rejections += [with_relative_paths(item, source) for note in done.notes for item in note.rejections]
        num_packed = sum(note.shard.num_utterances for note in done.notes)
        remarks = [*found.notes, *account_of_rows(found.row_counts, num_packed, len(rejections))]
        origin = Origin(reader.name, reader.licence, reader.citation, source, settings, fingerprint)
        manifest = publish(out, state, origin, done.notes, rejections, remarks)
    return summary_of(out, manifest, num_kept=done.num_kept, was_complete=False, doubts=done.doubts)


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
    for found in _read(reader, source, seed):
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


def _read(reader: CorpusReader, source: Path | None, seed: int) -> Iterator[Found]:
    """Yield what a reader finds.

    Raises:
        CorpusError: if a folder of the corpus cannot be read, whose files would be lost.
    """
    try:
        yield from reader.read(source, seed)
    except OSError as error:
        raise CorpusError(
            f"{error.filename or source} must be a file or folder that can be read, but cannot: {error.strerror}"
        ) from error


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
    return metadata_objection(name, utterance)


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
    values: list[Any] = [getattr(audio, part.name) for part in _parts_of(audio)]
    described = [_file_identity(value, with_times) if isinstance(value, Path) else repr(value) for value in values]
    return [type(audio).__name__, *described]


def _file_identity(path: Path, with_times: bool) -> str:
    """Return name and size; with the times of change only where it is not published, as every copy has its own."""
    stamp = file_stamp(path)
    if not stamp:
        return f"{path.name} missing"
    return " ".join([path.name, *map(str, stamp if with_times else stamp[:1])])


def _source_files(items: Iterable[SourceUtterance]) -> list[Path]:
    """Return the file of each utterance that has one."""
    values = (getattr(item.audio, part.name) for item in items for part in _parts_of(item.audio))
    return [value for value in values if isinstance(value, Path)]


def _parts_of(audio: AudioSource) -> tuple[Field[Any], ...]:
    return fields(audio) if is_dataclass(audio) else ()


@lru_cache(maxsize=4096)
def _content_of(path: Path, stamp: tuple[int, ...]) -> str:
    """Return a file's hash; each of a recording's utterances asks for it."""
    return content_sha256(path, MAX_COMPARED_BYTES)


def _sources_sha256(items: Iterable[SourceUtterance]) -> str:
    """Return a hash of the bytes of all files that the utterances lie in, whatever their names and times."""
    found = [_content_of(path, tuple(file_stamp(path))) for path in _source_files(items)]
    return hashlib.sha256(canonical_json(found)).hexdigest()


def _sources_now(jobs: Sequence[_PackJob], num_workers: int) -> str:
    """Return what the manifest would say of the sources as they lie there."""
    with ThreadPoolExecutor(num_workers) as pool:
        return str(sources_hash(pool.map(_sources_sha256, [job.items for job in jobs])))


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

    @cached_property
    def stamp(self) -> str:
        digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, self.settings.model_dump()]))
        for item in self.items:
            digest.update(_identity(item, with_times=True))
        return digest.hexdigest()

    def run(self) -> ShardNote:
        """Write the shard.

        Raises:
            ShardError: if the disk is full, or a source file is changed meanwhile.
        """
        stamp, files = self.stamp, _source_files(self.items)
        times = list(map(file_stamp, files))
        rows: list[dict[str, Any]] = []
        rejections = []
        counts = AudioCounts()
        with atomic_file(self.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for item in self.items:
                found = self._heard(item)
                if isinstance(found, Rejection):
                    rejections.append(found)
                    continue
                sound, pcm = found
                rows.append(_add_utterance(tar, item.utterance, encode_pcm(pcm), pcm))
                counts = counts.plus(_original_name(item.utterance), sound, pcm)
                duration_s = sound.num_samples / sound.rate_hz
                if item.stated is not None and not item.stated.agrees(duration_s):
                    counts = counts.plus_other_duration(
                        _original_name(item.utterance), item.stated.duration_s, duration_s
                    )
                if isinstance(item.audio, AudioFile) and item.audio.lacks_end():
                    counts = counts.plus_endless(_original_name(item.utterance))
        note = shard_note(self.path, stamp, rows, rejections, counts, sources_sha256=_sources_sha256(self.items))
        if list(map(file_stamp, files)) != times:
            raise ShardError(
                f"source files must stay as they are while they are packed, but some of {self.name} were changed; run "
                "the command again"
            )
        return note

    def _heard(self, item: SourceUtterance) -> tuple[Sound, np.ndarray] | Rejection:
        """Return what is heard of an utterance and its 16-bit samples, or why it cannot be used."""
        name = _original_name(item.utterance)
        try:
            sound = _sound_of(item)
        except AudioError as error:
            return Rejection(name, str(error), "unusable audio")
        pcm = sound.end()
        rejection = audio_objection(name, len(pcm), bool(pcm.any()), self.settings.max_duration_s)
        return (sound, pcm) if rejection is None else rejection

    def doubt(self, note: ShardNote) -> str | None:
        """Return why a note's rows cannot be those of the tar as it lies there, or None."""
        if len(note.rows) + len(note.rejections) != len(self.items):
            return (
                f"{len(self.items)} utterances must be packed or rejected, but it has {len(note.rows)} and "
                f"{len(note.rejections)}"
            )
        planned = {item.utterance.key: item.utterance for item in self.items}
        try:
            with open_regular(self.path) as file:
                members = list(tar_members(file, note.shard.num_bytes))
                if len(members) != 2 * len(note.rows):
                    return f"it has {len(note.rows)} rows, but the tar {len(members)} members"
                for row, audio, meta in zip(note.rows, members[::2], members[1::2], strict=True):
                    if row["key"] not in planned or row != _row_of(file, planned[row["key"]], audio, meta, row):
                        return f"its row {shown(row['key'], 100)} is not what the tar holds"
        except (OSError, BrokenTarError) as error:
            return f"its tar cannot be read: {error}"
        packed = {row["key"] for row in note.rows}
        rejected = [self._heard(item) for item in self.items if item.utterance.key not in packed]
        return None if rejected == list(note.rejections) else "what it rejects is not what cannot be used"


def _sound_of(item: SourceUtterance) -> Sound:
    """Return what is heard of an utterance, as 16-bit samples.

    Raises:
        AudioError: if its audio cannot be used.
    """
    if isinstance(item.audio, AudioFile):
        return item.audio.hear(as_pcm=True)
    sound = Sound(_original_name(item.utterance), as_pcm=True)
    sound.take(*item.audio.load())
    return sound


def _row_of(
    file: BinaryIO, utterance: Utterance, audio: TarMember, meta: TarMember, said: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the row of an utterance's two members, or None if they are not that; the audio is not decoded."""
    about_audio = {"num_samples": said["num_samples"], "pcm_sha256": said["pcm_sha256"]}
    names = (f"{utterance.key}.{AUDIO_SUFFIX}", f"{utterance.key}.{META_SUFFIX}")
    file.seek(meta.offset)
    if (audio.name, meta.name) != names or file.read(meta.num_bytes) != _described(utterance, about_audio):
        return None
    file.seek(audio.offset)
    return index_row(
        utterance,
        **about_audio,
        audio_sha256=hashlib.sha256(file.read(audio.num_bytes)).hexdigest(),
        audio_offset=audio.offset,
        audio_bytes=audio.num_bytes,
        meta_offset=meta.offset,
        meta_bytes=meta.num_bytes,
    )


def _described(utterance: Utterance, about_audio: dict[str, Any]) -> bytes:
    """Return what lies beside an utterance's audio."""
    return canonical_json({"schema_version": SCHEMA_VERSION, **utterance.model_dump(), **about_audio})


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
    meta = _described(utterance, audio)
    return index_row(
        utterance,
        **audio,
        audio_sha256=hashlib.sha256(flac).hexdigest(),
        audio_offset=audio_offset,
        audio_bytes=len(flac),
        meta_offset=_add(tar, f"{utterance.key}.{META_SUFFIX}", meta),
        meta_bytes=len(meta),
    )


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


def _check_folder(out: Path, corpus: str) -> None:
    """Refuse to write among files that are not this corpus's."""
    check_folder(out, corpus)
    if (out / MANIFEST_NAME).exists():
        found = read_manifest(out).corpus
        if found != corpus:
            raise ShardError(
                f"OUT must be empty or hold corpus {corpus!r}, but {out} holds {found!r}; choose another folder"
            )
