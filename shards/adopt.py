"""WebDataset shards that somebody else wrote, made a corpus where they lie: nothing is copied, only looked through.

An utterance is what one key of a tar holds: audio in any format that packing reads, and beside it any of `.json` (our
own, or an object with fields named like ours; the rest is kept in `extra`), `.txt` (the text), and members named like a
field (`.speaker`, `.emotion`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shards import oggpages
from shards.audio import check_mixable, pcm16, pcm_sha256, prepare
from shards.corpora.base import OWNERS_LICENCE
from shards.corpora.cells import CellError, CellReader, cell_of, labels_of
from shards.corpora.columns import metadata_columns, nearest_field
from shards.corpora.identities import composed
from shards.corpora.options import NO_OPTIONS, ReadOptions, flag
from shards.corpora.tally import Tally
from shards.decoding import decode
from shards.errors import AudioError, CorpusError, ShardError
from shards.index import index_row
from shards.manifest import INDEX_NAME, MANIFEST_NAME, REJECTED_NAME, Settings, canonical_json
from shards.pack import audio_objection, complete_folder
from shards.publish import (
    STATE_FOLDER,
    AudioCounts,
    OnBad,
    Origin,
    PackSummary,
    Progress,
    ShardNote,
    locked,
    note_of,
    package_versions,
    publish,
    run_jobs,
    summary_of,
    without_place,
)
from shards.schema import METADATA_FIELDS, SCHEMA_VERSION, Rejection, Utterance, is_key, make_key
from shards.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES

ADOPTED = "wds"
"""What `metaser pack` calls this instead of a corpus."""
_META_SUFFIXES = ("json", "txt", *METADATA_FIELDS)
_MAX_META_BYTES = 1 << 20


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
    labels = labels_of(options.labels)
    tars = _tars(source)
    folder_name = source.resolve().name
    corpus = make_key(folder_name)
    settings = Settings(seed=0, shard_utterances=0, max_duration_s=max_duration_s, versions=package_versions())
    jobs = [_AdoptJob(tar, folder_name, settings, tuple(labels.items())) for tar in tars]
    said = [[labels, options.licence]] if options.given else []
    files = [[job.name, job.num_bytes] for job in jobs]
    identity = [SCHEMA_VERSION, corpus, settings.model_dump(), files, *said]
    fingerprint = hashlib.sha256(canonical_json(identity)).hexdigest()
    if (out / MANIFEST_NAME).exists():
        return complete_folder(out, fingerprint, on_bad)
    if out.exists() and not out.is_dir():
        raise ShardError(f"OUT must be a folder, but {out} is a file; choose another")
    _check_foreign(out)
    with locked(out) as state:
        notes, num_kept = run_jobs(jobs, state, on_bad=on_bad, num_workers=num_workers, progress=progress)
        rejections = [without_place(item, source) for note in notes for item in note.rejections]
        is_in_place = out.resolve() == source.resolve()
        origin = Origin(
            corpus=corpus,
            licence=options.licence or OWNERS_LICENCE,
            citation="",
            source=source,
            settings=settings,
            fingerprint=fingerprint,
            tars=None if is_in_place else os.path.relpath(source.resolve(), out.resolve()),
        )
        tally = Tally()
        for note in notes:
            tally.add_rows(note.tally)
        manifest = publish(out, state, origin, notes, rejections, tuple(tally.notes(labels)))
    return summary_of(out, manifest, num_kept=num_kept, was_complete=False)


def _check_foreign(out: Path) -> None:
    """Refuse to overwrite what is not ours: without a manifest or unfinished work, nothing of ours can be there."""
    foreign = [name for name in (INDEX_NAME, REJECTED_NAME) if (out / name).exists()]
    if foreign and not (out / STATE_FOLDER).exists():
        raise ShardError(f"OUT must hold no {foreign[0]} of others, but {out} does; choose another folder or move it")


def _tars(source: Path) -> list[Path]:
    if not source.is_dir():
        raise CorpusError(f"SOURCE of {ADOPTED} must be a folder of WebDataset shards, but {source} is none")
    tars = sorted(path for path in source.glob("*.tar") if not path.name.startswith("."))
    if not tars:
        packed = sorted(path.name for path in source.glob("*.tar.*"))
        also = f" ({packed[0]} is compressed, and bytes inside it cannot be reached: unpack it)" if packed else ""
        raise CorpusError(f"SOURCE of {ADOPTED} must hold WebDataset shards (*.tar), but {source} has none{also}")
    return tars


@dataclass(frozen=True)
class _AdoptJob:
    """One tar to look through."""

    path: Path
    folder_name: str
    """Names the corpus of utterances that name none."""
    settings: Settings
    labels: tuple[tuple[str, str | None], ...] = ()
    """What emotions' words mean here."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def num_items(self) -> int:
        return self.num_bytes

    @cached_property
    def stamp(self) -> str:
        said = [self.labels] if self.labels else []
        identity = [SCHEMA_VERSION, self.settings.model_dump(), self.name, self.path.stat().st_mtime_ns, *said]
        return hashlib.sha256(canonical_json(identity)).hexdigest()

    def run(self) -> ShardNote:
        """Decode every utterance once."""
        rows: list[dict[str, Any]] = []
        rejections: list[Rejection] = []
        counts = AudioCounts()
        cells = CellReader(dict(self.labels))
        for sample in _samples(self.path):
            found = sample if isinstance(sample, Rejection) else self._row(sample, counts, cells)
            if isinstance(found, Rejection):
                rejections.append(found)
            else:
                row, counts = found
                rows.append(row)
        rows.sort(key=lambda row: row["key"])
        return note_of(self.path, self.stamp, rows, rejections, counts, cells.tally.as_rows())

    def _row(
        self, sample: _Sample, counts: AudioCounts, cells: CellReader
    ) -> tuple[dict[str, Any], AudioCounts] | Rejection:
        name = f"{self.path}: {sample.name}"
        audio = sample.sounds
        if len(audio) != 1:
            held = ", ".join(f".{suffix}" for suffix in sorted({*sample.audio, *sample.meta})) or "nothing of use"
            return Rejection(name, f"a key must hold one audio member, got {held}", "row without audio")
        if sample.repeated:
            return Rejection(
                name, f"a key must hold each member once, got .{sample.repeated[0]} twice", "repeated member"
            )
        try:
            utterance = self._utterance(sample, cells)
            canonical_json(utterance.model_dump())
        except CellError as error:
            return Rejection(name, str(error), error.kind)
        except CorpusError as error:
            return Rejection(name, str(error), "bad key")
        except ValueError as error:
            return Rejection(name, f"metadata must be Unicode text and finite numbers, but {error}", "bad metadata")
        (member,) = audio.values()
        try:
            samples, rate_hz = decode(member.data, name)
            check_mixable(samples, name)
        except AudioError as error:
            return Rejection(name, str(error), "unusable audio")
        pcm = pcm16(prepare(samples, rate_hz))
        objection = audio_objection(name, len(pcm), bool(pcm.any()), self.settings.max_duration_s)
        if objection is not None:
            return objection
        ours = sample.meta.get("json") if sample.is_ours else None
        row = index_row(
            utterance,
            num_samples=len(pcm),
            pcm_sha256=pcm_sha256(pcm).hex(),
            audio_sha256=hashlib.sha256(member.data).hexdigest(),
            audio_offset=member.offset,
            audio_bytes=len(member.data),
            meta_offset=None if ours is None else ours.offset,
            meta_bytes=None if ours is None else len(ours.data),
        )
        counts = counts.plus(sample.name, samples, rate_hz, pcm)
        return row, counts.plus_endless(sample.name) if oggpages.bytes_lack_end(member.data) else counts

    def _utterance(self, sample: _Sample, reader: CellReader) -> Utterance:
        described = sample.description
        if sample.is_ours:
            about_audio = ("schema_version", "num_samples", "pcm_sha256")
            fields = {name: value for name, value in described.items() if name not in about_audio}
            try:
                utterance = Utterance.model_validate(fields)
            except ValidationError as error:
                first = error.errors()[0]
                raise CellError("bad metadata", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
            if not is_key(utterance.key) or not utterance.key.startswith(f"{utterance.corpus}/"):
                raise CorpusError(f"a key must match {utterance.corpus}/[A-Za-z0-9_%-]+, got {utterance.key!r}")
            return composed(utterance)
        fields = metadata_columns(tuple(described))
        for name, field_name in fields.items():
            if name != field_name:
                reader.tally.add("column", field_name, name)
        cells = {field_name: cell_of(name, field_name, described[name]) for name, field_name in fields.items()}
        cells |= {name: member.text for name, member in sample.meta.items() if name in METADATA_FIELDS}
        if "txt" in sample.meta:
            cells.setdefault("text", sample.meta["txt"].text)
        utterance = Utterance(
            key=make_key(self.folder_name, *filter(None, sample.name.removeprefix("./").split("/"))),
            corpus=make_key(self.folder_name),
            source=sample.name,
            extra={
                name: value
                for name, value in described.items()
                if name not in fields and isinstance(value, str | int | float | bool)
            },
            **reader.metadata(reader.present(cells)),
        )
        for name in utterance.extra:
            reader.tally.add("extra", "extra", name, nearest_field(name) or "")
        for suffix in (*sample.unread, *(kind for kind in sample.audio if kind not in sample.sounds)):
            reader.tally.add("unread", "member", f".{suffix}")
        return composed(utterance)


@dataclass(frozen=True)
class _Member:
    offset: int
    data: bytes

    @property
    def text(self) -> str:
        """What the member says.

        Raises:
            CellError: if it is not UTF-8, which WebDataset's own writer makes of every text.
        """
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CellError("bad metadata", f"text must be UTF-8, but {self.data[:40]!r} is not") from error


@dataclass
class _Sample:
    """What one key holds."""

    name: str
    audio: dict[str, _Member] = field(default_factory=dict)
    meta: dict[str, _Member] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    """Suffixes of members that stand there twice."""
    unread: list[str] = field(default_factory=list)
    """Suffixes of members that mean nothing here."""

    @cached_property
    def sounds(self) -> dict[str, _Member]:
        """The audio members without a video that stands beside others."""
        plain = {kind: member for kind, member in self.audio.items() if f".{kind}" not in VIDEO_SUFFIXES}
        return plain or self.audio

    @cached_property
    def description(self) -> dict[str, Any]:
        """The object in `.json`.

        Raises:
            CellError: if it is none.
        """
        if "json" not in self.meta:
            return {}
        try:
            described = json.loads(self.meta["json"].data)
        except (ValueError, RecursionError) as error:
            raise CellError("bad metadata", f".json must be JSON, but {error}") from error
        if not isinstance(described, dict):
            raise CellError("bad metadata", f".json must hold an object, got {str(described)[:60]!r}")
        return described

    @property
    def is_ours(self) -> bool:
        """Whether MetaSER wrote it."""
        return {"schema_version", "key", "corpus"} <= self.description.keys()


def _samples(path: Path) -> Iterator[_Sample | Rejection]:
    """Yield what the keys of a tar hold, as WebDataset reads it: neighbours with one name up to its first dot."""
    current: _Sample | None = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                if not member.isreg() or member.issparse():
                    yield Rejection(f"{path}: {member.name}", "a member must be a plain file, not a link", "bad member")
                    continue
                if current is None or name != current.name:
                    if current is not None:
                        yield current
                    current = _Sample(name)
                kind = suffix.lower()
                kept = (
                    current.audio if f".{kind}" in AUDIO_SUFFIXES else current.meta if kind in _META_SUFFIXES else None
                )
                if kept is None or (kept is current.meta and member.size > _MAX_META_BYTES):
                    current.unread.append(kind)
                    continue
                if kind in kept:
                    current.repeated.append(kind)
                data = tar.extractfile(member)
                kept[kind] = _Member(member.offset_data, b"" if data is None else data.read())
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        yield Rejection(str(path), f"a shard must be a whole, uncompressed tar, but {error}", "broken tar")
        return
    if current is not None:
        yield current
