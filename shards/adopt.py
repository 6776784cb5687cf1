"""WebDataset shards that somebody else wrote, made a corpus where they lie: nothing is copied, only looked through.

An utterance is what one key of a tar holds: audio in any format that packing reads, and beside it any of `.json` (our
own, or an object with fields named like ours; the rest is kept in `extra`), `.txt` (the text), and members named like a
field (`.speaker`, `.emotion`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from shards.adoptjob import AdoptJob
from shards.corpora.base import OWNERS_LICENCE
from shards.corpora.cells import labels_of
from shards.corpora.options import NO_OPTIONS, ReadOptions, flag
from shards.corpora.tally import Tally
from shards.errors import CorpusError
from shards.files import canonical_json
from shards.inputfile import fault_of, open_regular
from shards.jobs import Progress, run_jobs
from shards.manifest import MANIFEST_NAME, Manifest, Settings
from shards.notes import ShardNote, repeated_keys
from shards.packfolder import is_absent, locked
from shards.publish import Origin, PackSummary, RepeatedKeyError, complete_folder, package_versions, publish, summary_of
from shards.rejections import OnBad, check_max_duration, no_utterances_error, rejections_error, with_relative_paths
from shards.schema import SCHEMA_VERSION, Rejection, make_key

ADOPTED = "wds"
"""What `metaser pack` calls this instead of a corpus."""
_MAX_TAR_NAME_BYTES = 200
"""Notes about a tar have a longer name, and file systems allow 255 bytes."""
_TAR_NAME = re.compile(r"\.(?:tar(?:\.(?:bz2|gz|lz4|xz|z|zst))?|tbz2?|tgz|txz|tzst)$", re.IGNORECASE)
"""Of what holds shards, whether or not they can be adopted."""


def adopt_shards(
    source: Path,
    out: Path,
    *,
    on_bad: OnBad = "raise",
    num_workers: int = 1,
    max_duration_s: float = 60.0,
    options: ReadOptions = NO_OPTIONS,
    progress: Progress | None = None,
) -> PackSummary:
    """Write index and manifest over the tars in `source` into `out`, which may be `source` itself.

    Args:
        source: Folder of `*.tar`; they are only read.
        out: Absent, empty, `source`, or the folder of an earlier, perhaps interrupted call. Where it is another folder,
            the manifest holds the way to `source`, so that both must move together.
        on_bad: `raise` stops at the first unusable thing, `skip` lists it in `rejected.jsonl` and goes on.
        num_workers: Processes that decode.
        max_duration_s: Longer clips are rejected.
        options: Of these, `labels` and `licence` are obeyed.
        progress: Called with the number of bytes looked through and that of all.

    Raises:
        CorpusError: if there are no tars or nothing usable, or something is unusable and `on_bad` is `raise`.
        ShardError: if `out` cannot be written or holds something else.
    """
    strange = [flag(option) for option in options.given if option not in ("labels", "licence")]
    if strange:
        raise CorpusError(
            f"shards to adopt must be taken as they are, but for --labels and --licence, got {', '.join(strange)}; "
            "leave it out"
        )
    check_max_duration(max_duration_s)
    labels = labels_of(options.labels)
    corpus = _corpus_of(source)
    tars, unreadable = _tars(source)
    if unreadable and on_bad == "raise":
        raise rejections_error(unreadable)
    if not tars:
        raise no_utterances_error(corpus, source, unreadable)
    settings = Settings(seed=0, shard_utterances=0, max_duration_s=max_duration_s, versions=package_versions())
    jobs = [AdoptJob(tar, source.resolve().name, settings, tuple(labels.items())) for tar in tars]
    said = [[labels, options.licence]] if options.given else []
    files = [[job.name, job.num_bytes] for job in jobs]
    identity = [SCHEMA_VERSION, corpus, settings.model_dump(), files, *said]
    fingerprint = hashlib.sha256(canonical_json(identity)).hexdigest()
    is_in_place = not is_absent(out) and out.resolve() == source.resolve()
    if (out / MANIFEST_NAME).exists():
        return complete_folder(out, fingerprint, on_bad, num_workers=num_workers)
    origin = Origin(
        corpus=corpus,
        licence=options.licence or OWNERS_LICENCE,
        citation="",
        source=source,
        settings=settings,
        fingerprint=fingerprint,
        tars=None if is_in_place else _way(out, source),
    )
    with locked(out, corpus, is_source=is_in_place) as state:
        if (out / MANIFEST_NAME).exists():  # another process has published since
            return complete_folder(out, fingerprint, on_bad, num_workers=num_workers)
        work = partial(run_jobs, state=state, on_bad=on_bad, num_workers=num_workers, progress=progress)
        done = first = work(jobs)
        try:
            manifest = _publish(out, state, origin, done.notes, unreadable, labels)
        except RepeatedKeyError:
            if on_bad == "raise":
                raise
            # So rare that keys of several tars are not compared before.
            repeated = repeated_keys(state, done.notes)
            done = work([replace(job, taken=frozenset(repeated[job.name])) for job in jobs])
            manifest = _publish(out, state, origin, done.notes, unreadable, labels)
    return summary_of(out, manifest, num_kept=first.num_kept, was_complete=False, doubts=first.doubts)


def _publish(
    out: Path,
    state: Path,
    origin: Origin,
    notes: Sequence[ShardNote],
    unreadable: Sequence[Rejection],
    labels: Mapping[str, str | None],
) -> Manifest:
    tally = Tally()
    for note in notes:
        tally.add_rows(note.tally)
    rejections = [*unreadable, *(item for note in notes for item in note.rejections)]
    placeless = [with_relative_paths(item, origin.source) for item in rejections]
    return publish(out, state, origin, notes, placeless, tuple(tally.notes(labels)))


def _way(out: Path, source: Path) -> str:
    """Return the way from `out` to the tars.

    Raises:
        CorpusError: if a manifest cannot hold it.
    """
    way = os.path.relpath(source.resolve(), out.resolve())
    if not way.isprintable():
        raise CorpusError(f"the way from OUT to SOURCE must be printable Unicode text, got {way!a}; rename a folder")
    return way


def _corpus_of(source: Path) -> str:
    fault = fault_of(source, "folder")
    if fault is not None:
        raise CorpusError(f"SOURCE of {ADOPTED} must be a folder of WebDataset shards, but {source} {fault}")
    return make_key(source.resolve().name)


def _tars(source: Path) -> tuple[list[Path], list[Rejection]]:
    """Return the tars of a folder, and what is called like one and cannot be read."""
    try:
        paths = list(source.iterdir())
    except OSError as error:
        raise CorpusError(f"SOURCE must be a folder that can be read, but {source} cannot: {error.strerror}") from error
    found = sorted(path for path in paths if _TAR_NAME.search(path.name) and not path.name.startswith("."))
    if not any(path.name.endswith(".tar") for path in found):
        also = f" ({found[0].name} is compressed, and bytes inside it cannot be reached: unpack it)" if found else ""
        raise CorpusError(f"SOURCE of {ADOPTED} must hold WebDataset shards (*.tar), but {source} has none{also}")
    objections = {path: _objection(path) for path in found}
    rejections = [Rejection(str(path), reason, "broken tar") for path, reason in objections.items() if reason]
    return [path for path, reason in objections.items() if reason is None], rejections


def _objection(path: Path) -> str | None:
    """Return why what is called a tar cannot be read, or None."""
    if not path.name.endswith(".tar"):
        return "a shard must be an uncompressed tar that is called *.tar; unpack or rename it"
    try:
        num_bytes = len(path.name.encode())
    except UnicodeEncodeError:
        return "a shard must have a name that is Unicode text; rename it"
    if num_bytes > _MAX_TAR_NAME_BYTES or "\\" in path.name or not path.name.isprintable():
        return (
            f"a shard's name must have at most {_MAX_TAR_NAME_BYTES} bytes, {num_bytes} here, and no control "
            "character or backslash; rename it"
        )
    try:
        open_regular(path).close()
    except OSError as error:
        return f"a shard must be a file that can be read, but {error.strerror}"
    return None
