"""What a shard folder holds: its files with checksums and counts.

The manifest is written last, so that a folder without one is not a corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shards.config import RemoteConfig
from shards.errors import ShardError
from shards.files import atomic_file, canonical_json
from shards.inputfile import ABSENT, fault_of, read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.record import Section
from shards.schema import LABEL_FIELDS, MAX_FILE_BYTES, MIN_TAR_BYTES, READABLE_VERSIONS
from shards.shown import shown
from shards.store import file_size, read_file
from shards.urls import is_url, join

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.jsonl"
MAX_MANIFEST_BYTES = 16 << 20
"""Names and hashes of 90,000 tars, which hold 23 million utterances."""
_MAX_VALUES = 1 << 20
"""In a manifest; parsed and found to be of a wrong type, each takes some hundred bytes."""
_MAX_SHOWN_CHARS = 100
_AGAIN = "pack or copy the folder again"

_Count = Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
_Positive = Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileRecord(Section):
    """A file beside the manifest."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+\.[a-z]+$")
    num_bytes: _Count
    sha256: _Sha256


class ShardRecord(FileRecord):
    """One tar."""

    name: str = Field(pattern=r"^[^./\\\x00][^/\\\x00]*\.tar$", max_length=255)
    """An adopted tar keeps the name it has; whatever that is, it lies in its folder."""
    num_utterances: _Count
    duration_s: float = Field(ge=0)


class IndexRecord(FileRecord):
    """The table of utterances."""

    num_utterances: _Positive


class Settings(Section):
    """What decides a shard's bytes, beside the corpus itself."""

    seed: int = Field(ge=-(1 << 63), lt=1 << 64)
    shard_utterances: _Count
    """0: the tars are somebody else's, adopted as they are."""
    max_duration_s: float = Field(gt=0)
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
    shards: tuple[ShardRecord, ...] = Field(min_length=1)
    index: IndexRecord
    rejected: FileRecord
    labels: dict[str, dict[str, _Positive]]
    """Field, value, number of utterances; fields without any value are left out."""
    extra_names: tuple[str, ...]
    """Names that occur in `extra`, sorted."""
    num_rejected_by_kind: dict[str, _Positive]
    """What `rejected.jsonl` lists."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """How the corpus was read, where it could have been read otherwise."""
    tars: str | None = Field(default=None, min_length=1, max_length=4096)
    """Folder of the tars where it is not the manifest's own: shards that somebody else wrote, adopted in place."""
    sources_sha256: _Sha256 | None = None
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
        fault = fault_of(folder, "folder")
        if fault is not None:
            why = "no such directory" if fault == ABSENT else f"it {fault}"
            raise ShardError(f"{folder} is not a shard folder: {why}; pack it with `metaser pack`")
        # What is wrong with it otherwise is told where it is read.
        if fault_of(path) == ABSENT:
            raise ShardError(f"{folder} is not a shard folder: no {MANIFEST_NAME}; pack it with `metaser pack`")
    return parsed_manifest(_manifest_data(path, remote), path)


def parsed_manifest(data: bytes, path: str) -> Manifest:
    """Return the manifest that a file at `path` holds.

    Raises:
        ShardError: if it is none, or contradicts itself.
    """
    num_values = sum(map(data.count, (b",", b"[", b"{")))
    if num_values > _MAX_VALUES:
        raise ShardError(f"{path} must hold at most {_MAX_VALUES} values, but has about {num_values}; {_AGAIN}")
    try:
        content = parse_json(data)
    except JsonTextError as error:
        raise ShardError(f"{path} must be JSON, but {shown(str(error))}; {_AGAIN}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    # True and 1.0 are equal to 1.
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise ShardError(
            f"{path} must have a schema_version of {', '.join(map(str, READABLE_VERSIONS))}, got "
            f"{shown(repr(version), _MAX_SHOWN_CHARS)}; pack the corpus again, or update MetaSER"
        )
    try:
        # Not `content` itself: lists are tuples in JSON only.
        manifest = Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = shown(".".join(map(str, first["loc"])), _MAX_SHOWN_CHARS)
        raise ShardError(f"{path} is damaged at {where}: {shown(first['msg'], 200)}; {_AGAIN}") from error
    content.pop("sha256", None)
    if manifest.sha256 != hashlib.sha256(canonical_json(content)).hexdigest():
        sha256 = shown(manifest.sha256, _MAX_SHOWN_CHARS)
        raise ShardError(f"{path} must match its own sha256 {sha256}, but was changed; {_AGAIN}")
    contradiction = _contradiction(manifest)
    if contradiction is not None:
        raise ShardError(f"{path} must agree with itself, but {contradiction}; {_AGAIN}")
    return manifest


def _manifest_data(path: str, remote: RemoteConfig | None) -> bytes:
    if is_url(path):
        num_bytes = file_size(path, remote)
        if num_bytes > MAX_MANIFEST_BYTES:
            raise ShardError(f"{path} must have at most {MAX_MANIFEST_BYTES} bytes, got {num_bytes}; {_AGAIN}")
        return read_file(path, remote)
    try:
        return read_regular(path, max_bytes=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ShardError(f"{path} must be readable, but {error.strerror or error}; {_AGAIN}") from error


def _contradiction(manifest: Manifest) -> str | None:
    """Return what cannot be true of a manifest whose values are of the right types, or None."""
    num_utterances = manifest.index.num_utterances
    names = [shard.name for shard in manifest.shards]
    in_shards = sum(shard.num_utterances for shard in manifest.shards)
    corpora = manifest.labels.get("corpus", {})
    full = [shard for shard in manifest.shards if shard.num_utterances * MIN_TAR_BYTES > shard.num_bytes]
    idle = [shard for shard in manifest.shards if (shard.num_utterances == 0) != (shard.duration_s == 0)]
    unknown = sorted(manifest.labels.keys() - set(LABEL_FIELDS))
    more = [name for name, counts in manifest.labels.items() if sum(counts.values()) > num_utterances or not counts]
    if (manifest.index.name, manifest.rejected.name) != (INDEX_NAME, REJECTED_NAME):
        found = f"{manifest.index.name} and {manifest.rejected.name}"
        return f"it names {found}, not {INDEX_NAME} and {REJECTED_NAME}"
    if len(set(names)) < len(names):
        ((twice, count),) = Counter(names).most_common(1)
        return f"it lists {shown(twice, _MAX_SHOWN_CHARS)} {count} times among {len(names)} shards"
    if in_shards != num_utterances:
        return f"its {len(names)} shards have {in_shards} utterances and its index {num_utterances}"
    if num_utterances > manifest.index.num_bytes:
        return f"its index has {num_utterances} utterances in {manifest.index.num_bytes} bytes"
    if full:
        name = shown(full[0].name, _MAX_SHOWN_CHARS)
        return f"{name} has {full[0].num_utterances} utterances in {full[0].num_bytes} bytes"
    if idle:
        name = shown(idle[0].name, _MAX_SHOWN_CHARS)
        return f"{name} has {idle[0].num_utterances} utterances of {idle[0].duration_s:g} s"
    if unknown:
        return f"its labels have {shown(unknown[0], _MAX_SHOWN_CHARS)!r}, which is none of {', '.join(LABEL_FIELDS)}"
    if sum(corpora.values()) != num_utterances:
        return f"its labels name the corpus of {sum(corpora.values())} of {num_utterances} utterances"
    if more:
        return f"its labels count {more[0]} in {sum(manifest.labels[more[0]].values())} of {num_utterances} utterances"
    if list(manifest.extra_names) != sorted(set(manifest.extra_names)):
        return "its extra_names are not in order, or not different"
    if manifest.tars is not None and (manifest.tars.startswith("/") or "\0" in manifest.tars):
        return f"its tars lie in {shown(manifest.tars, _MAX_SHOWN_CHARS)!r}, which is no relative way there"
    return None


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `manifest`, with the sha256 of its other fields, into `folder`: whole or not at all."""
    with atomic_file(Path(folder) / MANIFEST_NAME) as file:
        file.write(manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the one serialisation of `manifest`."""
    # What older folders do not know is written only where it says something.
    unsaid = {"sha256", *(name for name in ("tars", "notes", "sources_sha256") if not getattr(manifest, name))}
    fields = manifest.model_dump(mode="json", exclude=unsaid)
    return as_written({**fields, "sha256": hashlib.sha256(canonical_json(fields)).hexdigest()})


def as_written(content: Any) -> bytes:
    """Return the content of a manifest in the form in which packing writes it."""
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"
