"""A packed folder published: index, rejections and, last, the manifest; and what a complete folder is compared with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile as sf

from shards.errors import CorpusError, InputError, ShardError
from shards.files import atomic_file, canonical_json, content_sha256, file_sha256, file_stamp
from shards.index import Index, label_tables, repeated_key
from shards.indexload import load_index, open_index, tar_place
from shards.indexwrite import write_index
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    REJECTED_NAME,
    FileRecord,
    IndexRecord,
    Manifest,
    Settings,
    manifest_bytes,
    parsed_manifest,
    read_manifest,
    write_manifest,
)
from shards.notes import ShardNote, noted_rows
from shards.oddities import corpus_warnings
from shards.packfolder import begin_publishing, remove_ended_state
from shards.rejections import OnBad, no_utterances_error
from shards.schema import SCHEMA_VERSION, Note, Rejection
from shards.shown import shown
from shards.verification import MAX_REJECTED_BYTES


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


class RepeatedKeyError(CorpusError):
    """Two utterances have one key."""


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
    remove_ended_state(out)
    summary = summary_of(out, manifest, num_kept=len(manifest.shards), was_complete=True)
    return replace(summary, not_compared=not_compared)


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a shard's bytes."""
    packages = {name: version(name) for name in ("pyarrow", "soundfile", "soxr")}
    return {**packages, "libsndfile": sf.__libsndfile_version__}


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
        raise no_utterances_error(origin.corpus, origin.source, rejections)
    _check_tars(out if origin.tars is None else out / origin.tars, notes)
    begin_publishing(out, state)
    extra_names: set[str] = set()
    write_index(out / INDEX_NAME, noted_rows(state, notes, extra_names))
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
        warnings=(
            *(remark.text for remark in remarks if remark.is_warning),
            *corpus_warnings(index, [note.audio for note in notes]),
        ),
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


def _check_unique(index: Index) -> None:
    repeated = repeated_key(index)
    if repeated is not None:
        key, count = repeated
        raise RepeatedKeyError(f"every key must stand once, but {key!r} occurs {count} times; rename one")


def _file_record(path: Path) -> dict[str, Any]:
    return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


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
