"""What a shard folder holds: its files with checksums and counts, and one row per utterance.

The manifest is written last, so that a folder without one is not a corpus. The index says where in which tar each
utterance's bytes lie, so that readers seek instead of scanning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from shards.config import Section
from shards.errors import FilterError, ShardError
from shards.labels import age_group
from shards.schema import METADATA_FIELDS, RATE_HZ, SCHEMA_VERSION, Utterance

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.jsonl"

_NUMBERS = ("valence", "arousal", "dominance", "age")
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("corpus", pa.string()),
        ("shard", pa.int32()),
        ("audio_offset", pa.int64()),
        ("audio_bytes", pa.int64()),
        ("meta_offset", pa.int64()),
        ("meta_bytes", pa.int64()),
        ("num_samples", pa.int64()),
        ("pcm_sha256", pa.string()),
        ("source", pa.string()),
        *((field, pa.float64() if field in _NUMBERS else pa.string()) for field in METADATA_FIELDS),
        ("extra", pa.string()),
    ]
)

IDENTITY_FIELDS = ("key", "corpus", "source")
DERIVED_FIELDS = ("age_group", "duration_s")
NUMBER_FIELDS = (*_NUMBERS, "duration_s")
"""Fields that hold numbers; all others but `emotion_votes` and `extra.*` hold text."""
LABEL_FIELDS = ("corpus", "emotion", "gender", "style", "language", "intensity", "session", "split", "age_group")
"""Fields whose values are few enough to count one by one."""


class FileRecord(Section):
    """A file beside the manifest."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+\.[a-z]+$")
    num_bytes: int
    sha256: str


class ShardRecord(FileRecord):
    """One tar."""

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
    sha256: str = ""
    """Of all other fields in canonical JSON; `write_manifest` fills it."""

    @property
    def num_rejected(self) -> int:
        """Number of things in the corpus that could not be packed."""
        return sum(self.num_rejected_by_kind.values())


@dataclass(frozen=True)
class Index:
    """One row per utterance of one or several shard folders: folders as given, rows by key within a folder.

    `speaker` and `session` are qualified by corpus (`emodb:03`), so that two corpora's "03" are two people.
    """

    table: pa.Table
    """Columns of `INDEX_SCHEMA`; `shard` counts over all folders."""
    shard_paths: tuple[Path, ...]
    extra_names: tuple[str, ...] = ()
    """What may follow `extra.` in a field's name, whether or not these rows have it."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def shard(self) -> np.ndarray:
        """Positions in `shard_paths`, shape (num_utterances,)."""
        return self._numbers("shard")

    @cached_property
    def audio_offset(self) -> np.ndarray:
        """First byte of each FLAC stream in its shard."""
        return self._numbers("audio_offset")

    @cached_property
    def audio_bytes(self) -> np.ndarray:
        """Length of each FLAC stream in bytes."""
        return self._numbers("audio_bytes")

    @cached_property
    def num_samples(self) -> np.ndarray:
        """Audio samples of each utterance at 16 kHz."""
        return self._numbers("num_samples")

    @cached_property
    def duration_s(self) -> np.ndarray:
        """Length of each utterance in seconds."""
        return self.num_samples / RATE_HZ

    @property
    def fields(self) -> tuple[str, ...]:
        """Every name that `values` knows."""
        return (*IDENTITY_FIELDS, *METADATA_FIELDS, *DERIVED_FIELDS, *(f"extra.{name}" for name in self.extra_names))

    def values(self, field: str) -> list[Any]:
        """Return `field` of every row, None where it is absent; `emotion_votes` as dictionaries.

        Raises:
            FilterError: if no utterance of the corpus could have such a field.
        """
        if field not in self.fields:
            raise FilterError(f"a metadata field must be one of {', '.join(self.fields)}; got {field!r}")
        if field == "duration_s":
            return list(self.duration_s.tolist())
        if field == "age_group":
            return [None if age is None else age_group(age) for age in self._column("age")]
        if field == "emotion_votes":
            return [None if votes is None else json.loads(votes) for votes in self._column(field)]
        if field.startswith("extra."):
            name = field.removeprefix("extra.")
            return [json.loads(extra).get(name) for extra in self._column("extra")]
        return self._column(field)

    def take(self, rows: np.ndarray) -> Index:
        """Return the utterances at positions `rows`, in that order."""
        return Index(self.table.take(pa.array(rows, pa.int64())), self.shard_paths, self.extra_names)

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def _numbers(self, name: str) -> np.ndarray:
        return np.asarray(self.table.column(name).to_numpy())


def index_row(utterance: Utterance, **where: int | str) -> dict[str, Any]:
    """Return an utterance's row; `where` gives shard, offsets, sizes, `num_samples` and `pcm_sha256`."""
    fields = utterance.model_dump(mode="json")
    for name in ("speaker", "session"):
        if fields[name] is not None:
            fields[name] = f"{utterance.corpus}:{fields[name]}"
    if utterance.emotion_votes is not None:
        fields["emotion_votes"] = canonical_json(utterance.emotion_votes).decode()
    fields["extra"] = canonical_json(utterance.extra).decode()
    return {**fields, **where}


def label_tables(index: Index) -> dict[str, dict[str, int]]:
    """Return, for every label field with any value, the number of utterances per value, values sorted."""
    tables = {field: count_values(index.values(field)) for field in LABEL_FIELDS}
    return {field: table for field, table in tables.items() if table}


def duplicate_rows(index: Index) -> list[list[int]]:
    """Return groups of rows whose decoded audio is identical, in order of their first row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(index.table.column("pcm_sha256").to_pylist()):
        groups[digest].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def count_values(values: Iterable[str | None]) -> dict[str, int]:
    """Return how often each value but None occurs, values sorted."""
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def load_index(folders: Sequence[str | Path]) -> Index:
    """Return the utterances of `folders` as one table, after checking that each folder is whole.

    Shard files are checked by size only; `survey.verify` reads them.

    Raises:
        ShardError: if a folder is not a shard folder, a file is missing or differs, or a key stands in two folders.
    """
    tables = []
    paths: list[Path] = []
    extra_names: set[str] = set()
    for folder in map(Path, folders):
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            _check_size(folder / shard.name, shard)
        table = _read_table(folder / manifest.index.name, manifest.index)
        position = table.schema.get_field_index("shard")
        shifted = pa.array(table.column("shard").to_numpy() + len(paths), pa.int32())
        tables.append(table.set_column(position, INDEX_SCHEMA.field("shard"), shifted))
        paths += [folder / shard.name for shard in manifest.shards]
        extra_names |= set(manifest.extra_names)
    if not tables:
        raise ShardError("at least one shard folder must be given, got none")
    whole = pa.concat_tables(tables).combine_chunks()
    _check_keys(whole.column("key").to_pylist(), folders)
    return Index(whole, tuple(paths), tuple(sorted(extra_names)))


def _check_keys(keys: list[str], folders: Sequence[str | Path]) -> None:
    if len(set(keys)) == len(keys):
        return
    key = next(key for key, count in Counter(keys).items() if count > 1)
    raise ShardError(
        f"every utterance must stand in one shard folder only, but {key!r} occurs {keys.count(key)} times in "
        f"{', '.join(map(str, folders))}; give each corpus once"
    )


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path} must exist: {MANIFEST_NAME} lists it; pack or copy the folder again") from None
    if num_bytes != record.num_bytes:
        raise ShardError(
            f"{path} must have {record.num_bytes} bytes as {MANIFEST_NAME} says, but has {num_bytes}; pack or copy "
            "the folder again"
        )


def _read_table(path: Path, record: IndexRecord) -> pa.Table:
    _check_size(path, record)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise ShardError(
            f"{path} must have sha256 {record.sha256} as {MANIFEST_NAME} says, but has {digest}; pack or copy the "
            "folder again"
        )
    return pq.read_table(pa.BufferReader(data), schema=INDEX_SCHEMA)


def write_index(path: Path, table: pa.Table) -> None:
    """Write `table` (columns of `INDEX_SCHEMA`) so that equal tables give equal bytes."""
    with atomic_file(path) as file:
        pq.write_table(
            table,
            file,
            version="2.6",
            compression="zstd",
            compression_level=3,
            row_group_size=1 << 20,
            store_schema=False,
        )


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of `folder`.

    Raises:
        ShardError: if there is none, or it is of another schema version, malformed or changed since it was written.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ShardError(f"{folder} is not a shard folder: no such directory; pack it with `metaser pack`")
    if not path.is_file():
        raise ShardError(f"{folder} is not a shard folder: no {MANIFEST_NAME}; pack it with `metaser pack`")
    again = "pack or copy the folder again"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path} must be JSON, but {error}; {again}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ShardError(f"{path} must have schema_version {SCHEMA_VERSION}, got {version!r}; pack the corpus again")
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
    return json.dumps(signed.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(canonical_json(manifest.model_dump(mode="json", exclude={"sha256"}))).hexdigest()


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
