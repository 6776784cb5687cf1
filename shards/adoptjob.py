"""One tar of somebody else's looked through: its samples as rows of an index, or why they are rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shards import oggpages
from shards.audio import Sound, pcm_sha256
from shards.corpora.cells import CellError, CellReader, cell_of
from shards.corpora.columns import metadata_columns, nearest_field
from shards.corpora.identities import composed
from shards.decoding import DECODER_ERRORS, UNKNOWN_FRAMES, SequentialFile, decode_to
from shards.errors import AudioError, CorpusError, ShardError
from shards.files import canonical_json, file_stamp
from shards.indexwrite import index_row
from shards.inputfile import open_regular
from shards.manifest import Settings
from shards.notes import ShardNote, shard_note
from shards.oddities import AudioCounts
from shards.rejections import audio_objection, metadata_objection
from shards.samples import SHOWN_CHARS, Sample, tar_samples
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

_ABOUT_AUDIO = ("schema_version", "num_samples", "pcm_sha256")
"""What our own JSON says of the audio beside it."""


@dataclass(frozen=True)
class AdoptJob:
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
        """The tar's name."""
        return self.path.name

    @property
    def num_bytes(self) -> int:
        """Length of the tar."""
        return self.path.stat().st_size

    @property
    def num_items(self) -> int:
        """Progress is counted in bytes."""
        return self.num_bytes

    @cached_property
    def corpus(self) -> str:
        """What utterances that name none belong to."""
        return make_key(self.folder_name)

    @cached_property
    def stamp(self) -> str:
        """Hash of the tar's size and times, and of what else decides its rows; as it was when first asked for."""
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
                    return f"it has no row of {shown(sample.name, SHOWN_CHARS)}"
                rejections.append(found)
            elif row["key"] in keys or row != self._row_without_decoding(sample, row, reader):
                return f"its row {shown(row['key'], SHOWN_CHARS)} is not what the tar holds"
            else:
                keys.add(row["key"])
        if rows:
            return f"{len(rows)} of its rows are about no recording of the tar"
        if rejections != list(note.rejections):
            return f"it rejects {len(note.rejections)} things, and they are not the {len(rejections)} of the tar"
        return None if reader.tally.as_rows() == note.tally else "it counts other words than the tar has"

    def _row_without_decoding(self, sample: Sample, said: dict[str, Any], reader: CellReader) -> dict[str, Any] | None:
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

    def _samples(self) -> Iterator[Sample]:
        try:
            with open_regular(self.path) as file:
                yield from tar_samples(file, self.path)
        except OSError as error:
            raise ShardError(f"{self.path} must be readable, but is not: {error.strerror}") from error

    def _row(
        self, sample: Sample, counts: AudioCounts, cells: CellReader, keys: set[str]
    ) -> tuple[dict[str, Any], AudioCounts] | Rejection:
        name = f"{self.path}: {sample.name}"
        audio = sample.sounds
        if len(audio) != 1:
            held = ", ".join(f".{suffix}" for suffix in sorted({*sample.audio, *sample.meta})) or "nothing of use"
            return Rejection(name, f"a key must hold one audio member, got {held}", "row without audio")
        try:
            utterance = self.utterance(sample, cells)
        except CellError as error:
            return Rejection(name, shown(str(error), SHOWN_CHARS), error.kind)
        except CorpusError as error:
            return Rejection(name, shown(str(error), SHOWN_CHARS), "bad key")
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
        counts = counts.plus(shown(sample.name, SHOWN_CHARS), sound, pcm)
        return row, counts.plus_endless(sample.name) if oggpages.bytes_lack_end(data) else counts

    def utterance(self, sample: Sample, reader: CellReader) -> Utterance:
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
        cells = cells_of(sample, fields)
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
            reader.tally.add("unread", "member", f".{shown(suffix, SHOWN_CHARS)}")
        return composed(utterance)


def cells_of(sample: Sample, fields: Mapping[str, str]) -> dict[str, str]:
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


def _is_about_other_audio(sample: Sample, about_audio: dict[str, Any]) -> bool:
    return sample.is_ours and {name: sample.description.get(name) for name in about_audio} != about_audio


def _index_row(sample: Sample, utterance: Utterance, about_audio: dict[str, Any]) -> dict[str, Any]:
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
