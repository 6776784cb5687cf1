"""Samples of a WebDataset tar that somebody else wrote: what one key holds, read when it is asked for.

That is audio in any format that packing reads, and beside it any of `.json`, `.txt` and members named like a field
(`.speaker`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from shards.corpora.cells import CellError
from shards.jsontext import JsonTextError, parse_json
from shards.schema import METADATA_FIELDS, Rejection
from shards.shown import shown
from shards.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from shards.tarmembers import BrokenTarError, Forward, TarMember, tar_members

_META_SUFFIXES = ("json", "txt", *METADATA_FIELDS)
MAX_BESIDE_BYTES = 1 << 20
"""Of a member beside a recording."""
MAX_RECORDING_BYTES = 1 << 28
"""Of a recording in a tar, because it is read at once: 25 minutes of a CD's WAV."""
SHOWN_CHARS = 300


@dataclass
class Member:
    """Where something lies in a tar; read when it is asked for."""

    file: Forward
    offset: int
    num_bytes: int

    @cached_property
    def data(self) -> bytes:
        """All its bytes."""
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
class Sample:
    """What one key holds; nothing of it is read before it is asked for."""

    name: str
    audio: dict[str, Member] = field(default_factory=dict)
    meta: dict[str, Member] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    """Suffixes of members that mean nothing here."""
    repeated: set[str] = field(default_factory=set)
    """Suffixes of members that stand there twice."""
    rejections: list[Rejection] = field(default_factory=list)
    """Members that cannot be used."""
    is_unusable: bool = False
    """Whether the rejections speak for the whole of it."""

    @property
    def sounds(self) -> dict[str, Member]:
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
        kind, called = member.suffix.lower(), shown(member.name.rpartition("/")[2], SHOWN_CHARS)
        is_audio = f".{kind}" in AUDIO_SUFFIXES
        kept = self.audio if is_audio else self.meta if kind in _META_SUFFIXES else None
        most = MAX_RECORDING_BYTES if is_audio else MAX_BESIDE_BYTES
        if member.fault is not None:
            self._refuse(path, f"{called}: {member.fault}", "bad member")
        elif kept is None and f".{kind.rpartition('.')[2]}" in AUDIO_SUFFIXES - VIDEO_SUFFIXES:
            reason = f"a recording must be called KEY.SUFFIX, but its suffix is .{shown(kind, SHOWN_CHARS)}; rename it"
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
            kept[kind] = Member(file, member.offset, member.num_bytes)

    def _refuse(self, path: Path, reason: str, kind: str, count: int = 1) -> None:
        self.rejections += [Rejection(f"{path}: {self.name}", reason, kind)] * count
        self.is_unusable = True

    def end(self) -> Sample:
        """Return the whole sample: where all its recordings were rejected one by one, nothing else is said of it."""
        self.is_unusable = self.is_unusable or (bool(self.rejections) and not self.audio)
        return self


def tar_samples(file: BinaryIO, path: Path) -> Iterator[Sample]:
    """Yield what the keys of a tar hold, as WebDataset reads it: neighbours with one name up to its first dot."""
    current: Sample | None = None
    try:
        for member in tar_members(file, os.fstat(file.fileno()).st_size):
            if member.is_folder:
                continue
            if current is None or member.stem != current.name:
                if current is not None:
                    yield current.end()
                current = Sample(member.stem)
            current.take(member, file, path)
    except BrokenTarError as fault:
        reason = f"a shard must be a whole, uncompressed tar, but {fault}"
        broken = Sample("", rejections=[Rejection(str(path), reason, "broken tar")], is_unusable=True)
        if current is not None and not fault.is_behind_end:
            reason = "the tar is broken behind it, so that members of it may be missing"
            lost = Rejection(f"{path}: {current.name}", reason, "broken tar")
            broken.rejections += [*current.rejections, lost]
            current = None
        yield broken
    if current is not None:
        yield current.end()
