"""One shard written from its utterances, and compared with what an earlier run noted of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.audio import AudioFile, Sound, encode_pcm
from shards.errors import AudioError, ShardError
from shards.files import atomic_file, canonical_json, file_stamp
from shards.indexwrite import index_row
from shards.inputfile import open_regular
from shards.manifest import Settings
from shards.notes import ShardNote, shard_note
from shards.oddities import AudioCounts
from shards.rejections import audio_objection
from shards.schema import AUDIO_SUFFIX, META_SUFFIX, SCHEMA_VERSION, Rejection, SourceUtterance, Utterance
from shards.shown import shown
from shards.sources import identity, original_name, source_files, sources_sha256
from shards.tarmembers import BrokenTarError, TarMember, tar_members
from shards.tarwrite import add_utterance, described, tar_writer


@dataclass(frozen=True)
class PackJob:
    """One shard to write from its utterances."""

    path: Path
    items: tuple[SourceUtterance, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """The tar's name."""
        return self.path.name

    @property
    def num_items(self) -> int:
        """Progress is counted in utterances."""
        return len(self.items)

    @cached_property
    def stamp(self) -> str:
        """Hash of the settings, the utterances' metadata, and the sizes and times of their source files."""
        digest = hashlib.sha256(canonical_json([SCHEMA_VERSION, self.settings.model_dump()]))
        for item in self.items:
            digest.update(identity(item, with_times=True))
        return digest.hexdigest()

    def run(self) -> ShardNote:
        """Write the shard.

        Raises:
            ShardError: if the disk is full, or a source file is changed meanwhile.
        """
        stamp, files = self.stamp, source_files(self.items)
        times = list(map(file_stamp, files))
        rows: list[dict[str, Any]] = []
        rejections = []
        counts = AudioCounts()
        with atomic_file(self.path) as file, tar_writer(file) as writer:
            for item in self.items:
                found = self._heard(item)
                if isinstance(found, Rejection):
                    rejections.append(found)
                    continue
                sound, pcm = found
                rows.append(add_utterance(writer, item.utterance, encode_pcm(pcm), pcm))
                counts = counts.plus(original_name(item.utterance), sound, pcm)
                duration_s = sound.num_samples / sound.rate_hz
                if item.stated is not None and not item.stated.agrees(duration_s):
                    counts = counts.plus_other_duration(
                        original_name(item.utterance), item.stated.duration_s, duration_s
                    )
                if isinstance(item.audio, AudioFile) and item.audio.lacks_end():
                    counts = counts.plus_endless(original_name(item.utterance))
        note = shard_note(self.path, stamp, rows, rejections, counts, sources_sha256=sources_sha256(self.items))
        if list(map(file_stamp, files)) != times:
            raise ShardError(
                f"source files must stay as they are while they are packed, but some of {self.name} were changed; run "
                "the command again"
            )
        return note

    def _heard(self, item: SourceUtterance) -> tuple[Sound, np.ndarray] | Rejection:
        """Return what is heard of an utterance and its 16-bit samples, or why it cannot be used."""
        name = original_name(item.utterance)
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
    sound = Sound(original_name(item.utterance), as_pcm=True)
    sound.take(*item.audio.load())
    return sound


def _row_of(
    file: BinaryIO, utterance: Utterance, audio: TarMember, meta: TarMember, said: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the row of an utterance's two members, or None if they are not that; the audio is not decoded."""
    about_audio = {"num_samples": said["num_samples"], "pcm_sha256": said["pcm_sha256"]}
    names = (f"{utterance.key}.{AUDIO_SUFFIX}", f"{utterance.key}.{META_SUFFIX}")
    file.seek(meta.offset)
    if (audio.name, meta.name) != names or file.read(meta.num_bytes) != described(utterance, about_audio):
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
