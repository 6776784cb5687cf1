"""A corpus turned into shards: whole files only, the same bytes every time, nothing redone after a kill.

Utterances are sorted by key and cut into shards by count before any audio is read, so that every shard depends on its
own utterances only: several processes can write them in any order, and a repeated run keeps the finished ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import OWNERS_LICENCE, CorpusReader, Found, corpus_reader
from shards.corpora.identities import composed
from shards.corpora.options import NO_OPTIONS, ReadOptions
from shards.errors import CorpusError, ShardError
from shards.files import canonical_json, file_stamp
from shards.inputfile import fault_of
from shards.jobs import Progress, run_jobs
from shards.manifest import MANIFEST_NAME, Settings, read_manifest
from shards.packfolder import check_folder, locked, remove_leftovers
from shards.packjob import PackJob
from shards.publish import Origin, PackSummary, complete_folder, package_versions, publish, sources_hash, summary_of
from shards.rejections import (
    OnBad,
    account_of_rows,
    check_max_duration,
    metadata_objection,
    no_utterances_error,
    rejections_error,
    with_relative_paths,
)
from shards.schema import SCHEMA_VERSION, Note, Rejection, RowCount, SourceUtterance, is_key
from shards.sources import MAX_COMPARED_BYTES, identity, original_name, source_files, sources_sha256
from shards.tarwrite import fits_tar

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
        longer = sum(file_stamp(path)[:1] > [MAX_COMPARED_BYTES] for path in dict.fromkeys(source_files(items)))
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
            f"{original_name(item.utterance)} has one or is no file; leave --channel or the column channel out"
        )
    key = f"{item.utterance.key}/channel{channel}"
    utterance = item.utterance.model_copy(update={"key": key})
    return replace(item, utterance=utterance, audio=replace(item.audio, channel=channel))


def _objection(found: SourceUtterance, items: dict[str, SourceUtterance]) -> Rejection | None:
    """Return why an utterance cannot be stored whatever its audio is, or None."""
    utterance = found.utterance
    name = original_name(utterance)
    if not is_key(utterance.key) or not utterance.key.startswith(f"{utterance.corpus}/"):
        return Rejection(name, f"a key must match {utterance.corpus}/[A-Za-z0-9_%-]+, got {utterance.key!r}", "bad key")
    if utterance.key in items:
        other = original_name(items[utterance.key].utterance)
        return Rejection(name, f"has the same key {utterance.key!r} as {other}", "duplicate key")
    if not fits_tar(utterance.key):
        return Rejection(name, f"the key {utterance.key!r} is too long for a tar member", "bad key")
    return metadata_objection(name, utterance)


def _fingerprint(
    settings: Settings, reader: CorpusReader, items: Iterable[SourceUtterance], rejections: Iterable[Rejection]
) -> str:
    # A licence is told apart only where the user named one, so that older folders stay what they are.
    said = [reader.licence] if "licence" in reader.obeys and reader.licence != OWNERS_LICENCE else []
    digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, reader.name, settings.model_dump(), *said]))
    for item in items:
        digest.update(identity(item, with_times=False))
    for rejection in rejections:
        digest.update(canonical_json([rejection.source, rejection.kind]))
    return digest.hexdigest()


def _sources_now(jobs: Sequence[PackJob], num_workers: int) -> str:
    """Return what the manifest would say of the sources as they lie there."""
    with ThreadPoolExecutor(num_workers) as pool:
        return str(sources_hash(pool.map(sources_sha256, [job.items for job in jobs])))


def _plan(corpus: str, items: Sequence[SourceUtterance], out: Path, settings: Settings) -> list[PackJob]:
    size = settings.shard_utterances
    return [
        PackJob(out / f"{corpus}-{number:06d}.tar", tuple(items[start : start + size]), settings)
        for number, start in enumerate(range(0, len(items), size))
    ]


def _check_folder(out: Path, corpus: str) -> None:
    """Refuse to write among files that are not this corpus's."""
    check_folder(out, corpus)
    if (out / MANIFEST_NAME).exists():
        found = read_manifest(out).corpus
        if found != corpus:
            raise ShardError(
                f"OUT must be empty or hold corpus {corpus!r}, but {out} holds {found!r}; choose another folder"
            )
