"""What a shard folder holds: its files with checksums and counts.

The manifest is written last, so that a folder without one is not a corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import Field, ValidationError

from shards.config import RemoteConfig, Section
from shards.errors import ShardError
from shards.schema import READABLE_VERSIONS
from shards.store import is_url, join, read_file

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.jsonl"


class FileRecord(Section):
    """A file beside the manifest."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+\.[a-z]+$")
    num_bytes: int
    sha256: str


class ShardRecord(FileRecord):
    """One tar."""

    name: str = Field(pattern=r"^[^./\\\x00][^/\\\x00]*\.tar$")
    """An adopted tar keeps the name it has; whatever that is, it lies in its folder."""
    num_utterances: int
    duration_s: float


class IndexRecord(FileRecord):
    """The table of utterances."""

    num_utterances: int


class Settings(Section):
    """What decides a shard's bytes, beside the corpus itself."""

    seed: int
    shard_utterances: int
    max_duration_s: float
    versions: dict[str, str]
    """Of the packages that encode, resample and write tables."""


class Manifest(Section):
    """Contents of a shard folder."""

    schema_version: int
    corpus: str
    licence: str
    citation: str
    source: str | None
    """Base name of what was packed; None for a corpus that is made."""
    settings: Settings
    fingerprint: str
    """Hash of the settings and of every utterance's metadata and source file size."""
    shards: tuple[ShardRecord, ...]
    index: IndexRecord
    rejected: FileRecord
    labels: dict[str, dict[str, int]]
    """Field, value, number of utterances; fields without any value are left out."""
    extra_names: tuple[str, ...]
    """Names that occur in `extra`, sorted."""
    num_rejected_by_kind: dict[str, int]
    """What `rejected.jsonl` lists."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """How the corpus was read, where it could have been read otherwise."""
    tars: str | None = None
    """Folder of the tars where it is not the manifest's own: shards that somebody else wrote, adopted in place."""
    sources_sha256: str | None = None
    """Hash of the bytes of all files that the tars were packed from; None for adopted shards, which are their own."""
    sha256: str = ""
    """Of all other fields in canonical JSON; `write_manifest` fills it."""

    @property
    def num_rejected(self) -> int:
        """Number of things in the corpus that could not be packed."""
        return sum(self.num_rejected_by_kind.values())


def read_manifest(folder: str | Path, remote: RemoteConfig | None = None) -> Manifest:
    """Return the manifest of `folder`, a path or a URL.

    Raises:
        ShardError: if there is none, or it is of another schema version, malformed or changed since it was written.
    """
    path = join(str(folder), MANIFEST_NAME)
    if not is_url(path):
        if not Path(folder).is_dir():
            raise ShardError(f"{folder} is not a shard folder: no such directory; pack it with `metaser pack`")
        if not Path(path).is_file():
            raise ShardError(f"{folder} is not a shard folder: no {MANIFEST_NAME}; pack it with `metaser pack`")
    again = "pack or copy the folder again"
    try:
        content = json.loads(read_file(path, remote))
    except ValueError as error:
        raise ShardError(f"{path} must be JSON, but {error}; {again}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in READABLE_VERSIONS:
        raise ShardError(
            f"{path} must have a schema_version of {', '.join(map(str, READABLE_VERSIONS))}, got {version!r}; pack the "
            "corpus again, or update MetaSER"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ShardError(f"{path} is damaged at {where}: {first['msg']}; {again}") from error
    if manifest.sha256 != _digest(manifest):
        raise ShardError(f"{path} must match its own sha256 {manifest.sha256}, but was changed; {again}")
    return manifest


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `manifest`, with the sha256 of its other fields, into `folder`: whole or not at all."""
    with atomic_file(Path(folder) / MANIFEST_NAME) as file:
        file.write(manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the one serialisation of `manifest`."""
    signed = manifest.model_copy(update={"sha256": _digest(manifest)})
    return json.dumps(_fields(signed), indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _digest(manifest: Manifest) -> str:
    fields = _fields(manifest)
    del fields["sha256"]
    return hashlib.sha256(canonical_json(fields)).hexdigest()


def _fields(manifest: Manifest) -> dict[str, Any]:
    """Return what is written; what older folders do not know, only where it says something."""
    fields = manifest.model_dump(mode="json")
    for name in ("tars", "sources_sha256"):
        if fields[name] is None:
            del fields[name]
    if not manifest.notes:
        del fields["notes"]
    return fields


def canonical_json(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON with sorted keys.

    Raises:
        ValueError: if it holds a number that is not finite, or text that is not Unicode.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when the block ends well, and then survives a power cut.

    Raises:
        ShardError: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ShardError(
            f"{path} could not be written: {error.strerror or error}; whatever is finished is kept, so make room (or "
            "the folder writable) and run the same command again"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
