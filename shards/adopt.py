"""WebDataset shards that somebody else wrote, made a corpus where they lie: nothing is copied, only looked through.

An utterance is what one key of a tar holds: audio in any format that packing reads, and beside it any of `.json` (our
own, or an object with fields named like ours; the rest is kept in `extra`), `.txt` (the text), and members named like a
field (`.speaker`, `.emotion`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from shards import oggpages
from shards.audio import Sound, pcm_sha256
from shards.corpora.base import OWNERS_LICENCE
from shards.corpora.cells import CellError, CellReader, cell_of, labels_of
from shards.corpora.columns import metadata_columns, nearest_field
from shards.corpora.identities import composed
from shards.corpora.options import NO_OPTIONS, ReadOptions, flag
from shards.corpora.tally import Tally
from shards.decoding import DECODER_ERRORS, UNKNOWN_FRAMES, SequentialFile, decode_to
from shards.errors import AudioError, CorpusError, ShardError
from shards.files import canonical_json, file_stamp
from shards.indexwrite import index_row
from shards.inputfile import fault_of, open_regular
from shards.jobs import Progress, run_jobs
from shards.jsontext import JsonTextError, parse_json
from shards.manifest import MANIFEST_NAME, Manifest, Settings
from shards.notes import ShardNote, repeated_keys, shard_note
from shards.oddities import AudioCounts
from shards.packfolder import is_absent, locked
from shards.publish import Origin, PackSummary, RepeatedKeyError, complete_folder, package_versions, publish, summary_of
from shards.rejections import (
    OnBad,
    audio_objection,
    check_max_duration,
    metadata_objection,
    no_utterances_error,
    rejections_error,
    with_relative_paths,
)
from shards.schema import (
    METADATA_FIELDS,
    RATE_HZ,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    Rejection,
    Utterance,
    is_key,
    make_key,
)
from shards.shown import shown
from shards.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from shards.tarmembers import BrokenTarError, Forward, TarMember, tar_members

ADOPTED = "wds"
"""What `metaser pack` calls this instead of a corpus."""
_META_SUFFIXES = ("json", "txt", *METADATA_FIELDS)
MAX_BESIDE_BYTES = 1 << 20
"""Of a member beside a recording."""
MAX_RECORDING_BYTES = 1 << 28
"""Of a recording in a tar, because it is read at once: 25 minutes of a CD's WAV."""
_MAX_TAR_NAME_BYTES = 200
"""Notes about a tar have a longer name, and file systems allow 255 bytes."""
_TAR_NAME = re.compile(r"\.(?:tar(?:\.(?:bz2|gz|lz4|xz|z|zst))?|tbz2?|tgz|txz|tzst)$", re.IGNORECASE)
"""Of what holds shards, whether or not they can be adopted."""
_MAX_SHOWN = 300
_ABOUT_AUDIO = ("schema_version", "num_samples", "pcm_sha256")
"""What our own JSON says of the audio beside it."""


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
    jobs = [_AdoptJob(tar, source.resolve().name, settings, tuple(labels.items())) for tar in tars]
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


@dataclass(frozen=True)
class _AdoptJob:
    """One tar to look through."""

    path: Path
    folder_name: str
    """Names the corpus of utterances that name none."""
    settings: Settings
    labels: tuple[tuple[str, str | None], ...] = ()
    """What emotions' words mean here."""
    taken: frozenset[str] = frozenset()
    """Keys that stand in a tar before this one."""

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
    def corpus(self) -> str:
        """What utterances that name none belong to."""
        return make_key(self.folder_name)

    @cached_property
    def stamp(self) -> str:
        return self._stamp()

    def _stamp(self) -> str:
        said: list[Any] = [self.labels] if self.labels else []
        said += [sorted(self.taken)] if self.taken else []
        identity = [SCHEMA_VERSION, self.settings.model_dump(), self.name, file_stamp(self.path), *said]
        return hashlib.sha256(canonical_json(identity)).hexdigest()

    def run(self) -> ShardNote:
        """Decode every utterance once.

        Raises:
            ShardError: if the tar is changed meanwhile.
        """
        stamp = self.stamp
        rows: list[dict[str, Any]] = []
        rejections: list[Rejection] = []
        counts = AudioCounts()
        cells = CellReader(dict(self.labels))
        keys = set(self.taken)
        for sample in self._samples():
            rejections += sample.rejections
            found = None if sample.is_unusable else self._row(sample, counts, cells, keys)
            if isinstance(found, Rejection):
                rejections.append(found)
            elif found is not None:
                row, counts = found
                rows.append(row)
                keys.add(row["key"])
        rows.sort(key=lambda row: row["key"])
        note = shard_note(self.path, stamp, rows, rejections, counts, cells.tally.as_rows())
        if self._stamp() != stamp:
            raise ShardError(f"{self.path} must stay as it is while it is read, but was changed; run the command again")
        return note

    def doubt(self, note: ShardNote) -> str | None:
        """Return why a note's rows cannot be those of the tar, or None.

        All is done again but for decoding what it has a row of; that the samples are those of the row, beyond their
        number where a header states it, only `inspect --verify` finds out.
        """
        rows, reader = {row.get("audio_offset"): row for row in note.rows}, CellReader(dict(self.labels))
        keys, rejections = set(self.taken), list[Rejection]()
        for sample in self._samples():
            rejections += sample.rejections
            if sample.is_unusable:
                continue
            row = next((rows.pop(sound.offset) for sound in sample.sounds.values() if sound.offset in rows), None)
            if row is None:
                found = self._row(sample, AudioCounts(), reader, keys)
                if not isinstance(found, Rejection):
                    return f"it has no row of {shown(sample.name, _MAX_SHOWN)}"
                rejections.append(found)
            elif row["key"] in keys or row != self._row_without_decoding(sample, row, reader):
                return f"its row {shown(row['key'], _MAX_SHOWN)} is not what the tar holds"
            else:
                keys.add(row["key"])
        if rows:
            return f"{len(rows)} of its rows are about no recording of the tar"
        if rejections != list(note.rejections):
            return f"it rejects {len(note.rejections)} things, and they are not the {len(rejections)} of the tar"
        return None if reader.tally.as_rows() == note.tally else "it counts other words than the tar has"

    def _row_without_decoding(self, sample: _Sample, said: dict[str, Any], reader: CellReader) -> dict[str, Any] | None:
        """Return the row of a sample, or None if it has none."""
        if len(sample.sounds) != 1 or said["num_samples"] > self.settings.max_duration_s * RATE_HZ:
            return None
        try:
            utterance = self.utterance(sample, reader)
        except (CellError, CorpusError):
            return None
        (sound,) = sample.sounds.values()
        if _states_other_length(sound.data, said["num_samples"]):
            return None
        about_audio = {"num_samples": said["num_samples"], "pcm_sha256": said["pcm_sha256"]}
        return None if _is_about_other_audio(sample, about_audio) else _index_row(sample, utterance, about_audio)

    def _samples(self) -> Iterator[_Sample]:
        try:
            with open_regular(self.path) as file:
                yield from _samples(file, self.path)
        except OSError as error:
            raise ShardError(f"{self.path} must be readable, but is not: {error.strerror}") from error

    def _row(
        self, sample: _Sample, counts: AudioCounts, cells: CellReader, keys: set[str]
    ) -> tuple[dict[str, Any], AudioCounts] | Rejection:
        name = f"{self.path}: {sample.name}"
        audio = sample.sounds
        if len(audio) != 1:
            held = ", ".join(f".{suffix}" for suffix in sorted({*sample.audio, *sample.meta})) or "nothing of use"
            return Rejection(name, f"a key must hold one audio member, got {held}", "row without audio")
        try:
            utterance = self.utterance(sample, cells)
        except CellError as error:
            return Rejection(name, shown(str(error), _MAX_SHOWN), error.kind)
        except CorpusError as error:
            return Rejection(name, shown(str(error), _MAX_SHOWN), "bad key")
        objection = metadata_objection(name, utterance)
        if objection is not None:
            return objection
        if utterance.key in keys:
            return Rejection(name, f"has the same key {utterance.key!r} as one before it", "duplicate key")
        (member,) = audio.values()
        data, sound = member.data, Sound(name, as_pcm=True)
        try:
            decode_to(data, name, sound)
            sound.check_mixable()
        except AudioError as error:
            return Rejection(name, str(error), "unusable audio")
        pcm = sound.end()
        objection = audio_objection(name, len(pcm), bool(pcm.any()), self.settings.max_duration_s)
        if objection is not None:
            return objection
        about_audio: dict[str, Any] = {"num_samples": len(pcm), "pcm_sha256": pcm_sha256(pcm).hex()}
        if _is_about_other_audio(sample, about_audio):
            return Rejection(name, "its .json is MetaSER's, but about other audio than lies beside it", "bad metadata")
        row = _index_row(sample, utterance, about_audio)
        counts = counts.plus(shown(sample.name, _MAX_SHOWN), sound, pcm)
        return row, counts.plus_endless(sample.name) if oggpages.bytes_lack_end(data) else counts

    def utterance(self, sample: _Sample, reader: CellReader) -> Utterance:
        """Return what lies beside a recording.

        Raises:
            CellError: if a value cannot be what it should be.
            CorpusError: if it makes no key.
        """
        described = sample.description
        if sample.is_ours:
            version = described["schema_version"]
            if type(version) is not int or version not in READABLE_VERSIONS:
                raise CellError(
                    "bad metadata",
                    f"schema_version must be one of {', '.join(map(str, READABLE_VERSIONS))}, got {version!r}",
                )
            fields = {name: value for name, value in described.items() if name not in _ABOUT_AUDIO}
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
        cells = _cells(sample, fields)
        parts = [part for part in sample.name.removeprefix("./").split("/") if part]
        if not parts:
            raise CorpusError("a key must be a name before the first dot, got none")
        utterance = Utterance(
            key=make_key(self.folder_name, *parts),
            corpus=self.corpus,
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
            reader.tally.add("unread", "member", f".{shown(suffix, _MAX_SHOWN)}")
        return composed(utterance)


def _cells(sample: _Sample, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each field of a sample, `fields` naming those in its JSON."""
    cells = {field_name: cell_of(name, field_name, sample.description[name]) for name, field_name in fields.items()}
    cells |= {name: member.text for name, member in sample.meta.items() if name in METADATA_FIELDS}
    if "txt" in sample.meta:
        cells.setdefault("text", sample.meta["txt"].text)
    return cells


def _states_other_length(data: bytes, num_samples: int) -> bool:
    """Return whether a header that is exact about it says another length."""
    if not data.startswith((b"fLaC", b"RIFF")):
        return False
    try:
        with SequentialFile(data) as file:
            is_exact = 0 < file.frames < UNKNOWN_FRAMES and (file.format == "FLAC" or file.subtype.startswith("PCM_"))
            length = float(file.frames * RATE_HZ / file.samplerate)
    except DECODER_ERRORS:
        return False
    return bool(is_exact) and abs(num_samples - length) > 1


def _is_about_other_audio(sample: _Sample, about_audio: dict[str, Any]) -> bool:
    return sample.is_ours and {name: sample.description.get(name) for name in about_audio} != about_audio


def _index_row(sample: _Sample, utterance: Utterance, about_audio: dict[str, Any]) -> dict[str, Any]:
    (sound,) = sample.sounds.values()
    ours = sample.meta["json"] if sample.is_ours else None
    return index_row(
        utterance,
        **about_audio,
        audio_sha256=hashlib.sha256(sound.data).hexdigest(),
        audio_offset=sound.offset,
        audio_bytes=sound.num_bytes,
        meta_offset=None if ours is None else ours.offset,
        meta_bytes=None if ours is None else ours.num_bytes,
    )


@dataclass
class _Member:
    """Where something lies in a tar; read when it is asked for."""

    file: Forward
    offset: int
    num_bytes: int

    @cached_property
    def data(self) -> bytes:
        self.file.seek(self.offset)
        return self.file.read(self.num_bytes)

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
    """What one key holds; nothing of it is read before it is asked for."""

    name: str
    audio: dict[str, _Member] = field(default_factory=dict)
    meta: dict[str, _Member] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    """Suffixes of members that mean nothing here."""
    repeated: set[str] = field(default_factory=set)
    """Suffixes of members that stand there twice."""
    rejections: list[Rejection] = field(default_factory=list)
    """Members that cannot be used."""
    is_unusable: bool = False
    """Whether the rejections speak for the whole of it."""

    @property
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
            described = parse_json(self.meta["json"].data, allow_nan=True)
        except JsonTextError as error:
            raise CellError("bad metadata", f".json must be JSON in Unicode text, but {error}") from error
        if not isinstance(described, dict):
            raise CellError("bad metadata", f".json must hold an object, got {str(described)[:60]!r}")
        return described

    @property
    def is_ours(self) -> bool:
        """Whether MetaSER wrote it."""
        return {"schema_version", "key", "corpus"} <= self.description.keys()

    def take(self, member: TarMember, file: Forward, path: Path) -> None:
        """Add a member of the tar at `path`."""
        kind, called = member.suffix.lower(), shown(member.name.rpartition("/")[2], _MAX_SHOWN)
        is_audio = f".{kind}" in AUDIO_SUFFIXES
        kept = self.audio if is_audio else self.meta if kind in _META_SUFFIXES else None
        most = MAX_RECORDING_BYTES if is_audio else MAX_BESIDE_BYTES
        if member.fault is not None:
            self._refuse(path, f"{called}: {member.fault}", "bad member")
        elif kept is None and f".{kind.rpartition('.')[2]}" in AUDIO_SUFFIXES - VIDEO_SUFFIXES:
            reason = f"a recording must be called KEY.SUFFIX, but its suffix is .{shown(kind, _MAX_SHOWN)}; rename it"
            self.rejections.append(Rejection(f"{path}: {member.name}", reason, "audio without row"))
        elif kept is None:
            self.unread.append(kind)
        elif member.num_bytes > most:
            reason = f"{called} has {member.num_bytes} bytes, but at most {most} are read of a .{kind}"
            self._refuse(path, reason, "too large")
        elif kind in kept:
            # Of recordings each is counted, the first included.
            count = 2 if is_audio and kind not in self.repeated else 1
            self._refuse(path, f"a key must hold each member once, got .{kind} twice", "repeated member", count)
            self.repeated.add(kind)
        else:
            kept[kind] = _Member(file, member.offset, member.num_bytes)

    def _refuse(self, path: Path, reason: str, kind: str, count: int = 1) -> None:
        self.rejections += [Rejection(f"{path}: {self.name}", reason, kind)] * count
        self.is_unusable = True

    def end(self) -> _Sample:
        """Return the whole sample: where all its recordings were rejected one by one, nothing else is said of it."""
        self.is_unusable = self.is_unusable or (bool(self.rejections) and not self.audio)
        return self


def _samples(file: BinaryIO, path: Path) -> Iterator[_Sample]:
    """Yield what the keys of a tar hold, as WebDataset reads it: neighbours with one name up to its first dot."""
    current: _Sample | None = None
    try:
        for member in tar_members(file, os.fstat(file.fileno()).st_size):
            if member.is_folder:
                continue
            if current is None or member.stem != current.name:
                if current is not None:
                    yield current.end()
                current = _Sample(member.stem)
            current.take(member, file, path)
    except BrokenTarError as fault:
        reason = f"a shard must be a whole, uncompressed tar, but {fault}"
        broken = _Sample("", rejections=[Rejection(str(path), reason, "broken tar")], is_unusable=True)
        if current is not None and not fault.is_behind_end:
            reason = "the tar is broken behind it, so that members of it may be missing"
            lost = Rejection(f"{path}: {current.name}", reason, "broken tar")
            broken.rejections += [*current.rejections, lost]
            current = None
        yield broken
    if current is not None:
        yield current.end()


# ---------------------------------------------------------------- verification


class Remade:
    """What adopting would make of a tar's samples again, decoding aside, compared with their rows.

    What emotions' words mean here (`--labels`) is not kept: one word must have one meaning in all rows.
    """

    def __init__(self, folder_name: str, settings: Settings) -> None:
        """Set up for the tars of a folder with the name that it had when they were adopted."""
        self._folder_name = folder_name
        self._settings = settings
        self._meanings: dict[str, str | None] = {}
        self._reader = CellReader()
        self.begin("", ())

    @classmethod
    def of(cls, manifest: Manifest) -> Remade | None:
        """Return what compares the rows of an adopted folder, None where its name is not known to the letter."""
        if manifest.settings.shard_utterances or manifest.source is None:
            return None
        is_known = manifest.source.isascii() and make_key(manifest.source) == manifest.corpus
        return cls(manifest.source, manifest.settings) if is_known else None

    def begin(self, place: str, rows: Sequence[dict[str, Any]]) -> None:
        """Begin with the tar at `place`, and its rows."""
        self._job = _AdoptJob(Path(place), self._folder_name, self._settings)
        self._rows = {row["audio_offset"]: row for row in rows}
        self._sample: _Sample | None = None

    def take(self, member: TarMember, file: Forward, is_ours: bool) -> tuple[dict[str, Any], str] | None:
        """Take the next member, where `file` stands at its data.

        Args:
            member: What is there.
            file: The tar, which is read forward.
            is_ours: Whether it is MetaSER's own JSON, with which a row is compared elsewhere.

        Returns:
            The row of the sample before, and what is wrong with it; None if nothing is, or the sample goes on.
        """
        if member.is_folder:
            return None
        found = None
        if self._sample is None or member.stem != self._sample.name:
            found = self.end()
            self._sample = _Sample(member.stem)
        self._sample.take(member, file, self._job.path)
        beside = self._sample.meta.get(member.suffix.lower())
        if beside is not None and not is_ours and beside.offset == member.offset:
            # Now, because the tar is read forward only.
            len(beside.data)
        return found

    def end(self) -> tuple[dict[str, Any], str] | None:
        """Return what `take` does, of the last sample."""
        sample, self._sample = self._sample, None
        row = None if sample is None else next(filter(None, map(self._row_at, sample.audio.values())), None)
        if sample is None or row is None or row["meta_offset"] is not None:
            return None
        problem = self._problem(sample.end(), row)
        return None if problem is None else (row, problem)

    def _row_at(self, sound: _Member) -> dict[str, Any] | None:
        return self._rows.get(sound.offset)

    def _problem(self, sample: _Sample, row: dict[str, Any]) -> str | None:
        if sample.is_unusable:
            return f"adopting would reject it ({sample.rejections[0].reason})"
        try:
            utterance = self._job.utterance(sample, self._reader)
            cells = _cells(sample, {} if sample.is_ours else metadata_columns(tuple(sample.description)))
        except (CellError, CorpusError) as error:
            return f"adopting would reject it ({shown(str(error), _MAX_SHOWN)})"
        expected = index_row(utterance)
        # With which the member's name is compared already.
        del expected["source"]
        if not sample.is_ours and "emotion" in cells:
            expected["emotion"] = self._meanings.setdefault(cells["emotion"], row["emotion"])
        if not sample.is_ours and "emotion_votes" in cells:
            expected["emotion_votes"] = row["emotion_votes"]
        name = next((name for name, value in expected.items() if row[name] != value), None)
        return None if name is None else f"its {name} is not what lies beside its audio"
