"""Notes of an interrupted packing: what each finished shard holds, in a file of its own until the manifest is written.

A killed run goes on where it was, and a large corpus's rows never stand in memory together. A note ends with the
sha256 of the rest of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shards.errors import ShardError
from shards.files import atomic_file, canonical_json, file_sha256
from shards.inputfile import MAX_TEXT_BYTES, read_regular
from shards.manifest import ShardRecord
from shards.oddities import AudioCounts
from shards.record import Section
from shards.schema import RATE_HZ, Rejection

MAX_NOTE_BYTES = MAX_TEXT_BYTES
"""About one shard; ten thousand utterances have about 10 MB."""
_SIGNATURE = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\Z')
_SIGNATURE_BYTES = 77
_DIGESTS = ("audio_sha256", "pcm_sha256")


class ShardNote(Section):
    """What a finished shard holds, kept beside it until the manifest is written."""

    stamp: str
    """Hash of all that decides the shard's contents, and of its source files' times."""
    shard: ShardRecord
    rows: tuple[dict[str, Any], ...]
    """Index rows without the shard's number, digests in hexadecimal."""
    rejections: tuple[Rejection, ...]
    audio: AudioCounts
    tally: tuple[tuple[str, str, str, str, int], ...] = ()
    """Of adopted shards: what was read as something else than it says, as `Tally` counts it."""
    sources_sha256: str | None = None
    """Of packed shards: hash of the bytes of all that they were packed from."""
    sha256: str = ""
    """Of all other fields as they are written; `write_note` puts it behind them."""

    @property
    def without_rows(self) -> ShardNote:
        """The same note, small."""
        return self.model_copy(update={"rows": ()})


def shard_note(
    path: Path,
    stamp: str,
    rows: Sequence[dict[str, Any]],
    rejections: Sequence[Rejection],
    audio: AudioCounts,
    tally: tuple[tuple[str, str, str, str, int], ...] = (),
    sources_sha256: str | None = None,
) -> ShardNote:
    """Return the note about the finished tar at `path`."""
    return ShardNote(
        stamp=stamp,
        shard=ShardRecord(
            name=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_utterances=len(rows),
            duration_s=total_duration_s(rows),
        ),
        rows=tuple(rows),
        rejections=tuple(rejections),
        audio=audio,
        tally=tally,
        sources_sha256=sources_sha256,
    )


def total_duration_s(rows: Sequence[dict[str, Any]]) -> float:
    """Return how many seconds the utterances of these index rows last together."""
    return float(sum(row["num_samples"] for row in rows) / RATE_HZ)


def note_path(name: str, state: Path) -> Path:
    """Return where in the state folder the note of the tar `name` stands."""
    return state / f"{name}.json"


def write_note(note: ShardNote, path: Path) -> ShardNote:
    """Write a note with the hash of it all behind it; return it without its rows."""
    body = canonical_json(note.model_dump(mode="json", exclude={"sha256"}))
    sha256 = hashlib.sha256(body).hexdigest()
    data = body[:-1] + f',"sha256":"{sha256}"}}'.encode()
    if len(data) > MAX_NOTE_BYTES:
        raise ShardError(
            f"what is known of one shard must have at most {MAX_NOTE_BYTES} bytes, but of {note.shard.name} there are "
            f"{len(data)}; cut it into several"
        )
    with atomic_file(path) as file:
        file.write(data)
    return note.model_copy(update={"rows": (), "sha256": sha256})


def _note_body(path: Path) -> tuple[bytes, str]:
    """Return a note without its hash, and the hash, which is right.

    Raises:
        ShardError: if it is not.
    """
    try:
        data = read_regular(path, max_bytes=MAX_NOTE_BYTES)
    except OSError as error:
        raise ShardError(f"{path} must be readable, but is not: {error.strerror}") from error
    signed = _SIGNATURE.search(data, max(0, len(data) - _SIGNATURE_BYTES))
    body = data[: -len(signed[0])] + b"}" if signed else b""
    if signed is None or hashlib.sha256(body).hexdigest() != signed[1].decode():
        raise ShardError(f"{path} must match its own sha256, but was changed since it was written")
    return body, signed[1].decode()


def read_note(path: Path) -> ShardNote:
    """Return a note whose hash is right and whose rows have what is computed with.

    Raises:
        ShardError: if it is not so.
    """
    body, sha256 = _note_body(path)
    try:
        note = ShardNote.model_validate_json(body).model_copy(update={"sha256": sha256})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ShardError(f"{path} is no note at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for row in note.rows:
        is_counted = type(row.get("num_samples")) is int and row["num_samples"] > 0
        is_digest = all(_is_digest(row.get(name)) for name in _DIGESTS)
        if not (is_counted and is_digest and isinstance(row.get("key"), str) and isinstance(row.get("extra"), str)):
            raise ShardError(f"{path} must have a key, a length and digests in every row, but has not")
    return note


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def repeated_keys(state: Path, notes: Sequence[ShardNote]) -> dict[str, set[str]]:
    """Return for each tar the keys of it that stand in one before it, too."""
    seen: set[str] = set()
    repeated: dict[str, set[str]] = {}
    for note in notes:
        keys = {row["key"] for row in read_note(note_path(note.shard.name, state)).rows}
        repeated[note.shard.name] = keys & seen
        seen |= keys
    return repeated


def noted_rows(state: Path, notes: Sequence[ShardNote], extra_names: set[str]) -> Iterator[dict[str, Any]]:
    """Yield all rows from the notes on disk, adding what stands in `extra` to `extra_names`."""
    for number, note in enumerate(notes):
        path = note_path(note.shard.name, state)
        body, sha256 = _note_body(path)
        if sha256 != note.sha256:
            raise ShardError(f"{path} must stay as it is until the folder is complete, but was changed; run it again")
        for row in json.loads(body)["rows"]:
            extra_names.update(json.loads(row["extra"]))
            yield {**row, **{name: bytes.fromhex(row[name]) for name in _DIGESTS}, "shard": number}
