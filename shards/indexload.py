"""The index of whole shard folders, loaded after it is compared with their manifests and tars."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG

import numpy as np
import pyarrow as pa

from shards.config import RemoteConfig
from shards.errors import ShardError
from shards.index import Index, repeated_key
from shards.indexcolumns import Columns
from shards.indexfile import AGAIN, IndexFile
from shards.inputfile import open_regular
from shards.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest
from shards.schema import RATE_HZ, SCHEMA_VERSION
from shards.store import read_file
from shards.urls import is_url, join

_DURATION_TOLERANCE = 1e-6
"""Sums of samples are exact, but another writer may add seconds."""


def load_index(folders: Sequence[str | Path], remote: RemoteConfig | None = None) -> Index:
    """Return the utterances of `folders`, paths or URLs, as one, after checking that each folder is whole.

    Local tars are checked by size here, remote ones as their bytes are read; `survey.verify` reads them all.

    Raises:
        ShardError: if a folder is not a shard folder, a file is missing or differs, or a key stands in two folders.
    """
    if not folders:
        raise ShardError("at least one shard folder must be given, got none")
    manifests = [read_manifest(folder, remote) for folder in folders]
    tables: list[IndexFile] = []
    first_shards: list[int] = []
    places: list[str] = []
    for folder, manifest in zip(map(str, folders), manifests, strict=True):
        first_shards.append(len(places))
        for shard in manifest.shards:
            place = tar_place(folder, manifest, shard.name)
            if not is_url(place):
                _check_size(Path(place), shard)
            places.append(place)
        tables.append(_open_table(join(folder, manifest.index.name), manifest, remote))
    extra_names = {name for manifest in manifests for name in manifest.extra_names}
    index = Index(Columns(tables, first_shards), tuple(places), tuple(sorted(extra_names)))
    _check_rows(index, folders, manifests)
    _check_keys(index, folders, manifests)
    return index


def open_index(path: Path, shard_places: Sequence[str], num_rows: int) -> Index:
    """Return the utterances of one table, not compared with any tar; `extra.*` fields are not known.

    Raises:
        ShardError: if it is no table with so many rows that whoever opens the folder would read.
    """
    num_shards = len(shard_places)
    table = IndexFile.opened(path, str(path), version=SCHEMA_VERSION, num_shards=num_shards, num_rows=num_rows)
    return Index(Columns([table], [0]), tuple(shard_places))


def tar_place(folder: str, manifest: Manifest, name: str) -> str:
    """Return where a tar of the shard folder `folder` lies.

    Raises:
        ShardError: if the folder is remote and was adopted from tars elsewhere.
    """
    if manifest.tars is None:
        return join(folder, name)
    if is_url(folder):
        raise ShardError(
            f"{folder} must hold its tars to be read by URL, but its manifest says that they lie in {manifest.tars!r}; "
            "adopt the shards in place and copy the folder"
        )
    return str(Path(folder) / manifest.tars / name)


def _check_rows(index: Index, folders: Sequence[str | Path], manifests: Sequence[Manifest]) -> None:
    """Refuse rows that do not lie in the tars as the manifests say: how many in each, how long, one behind another."""
    columns = [index.numbers(name) for name in ("shard", "audio_offset", "audio_bytes", "num_samples")]
    row = first_shard = 0
    for folder, manifest in zip(folders, manifests, strict=True):
        end = row + manifest.index.num_utterances
        shards, offsets, sizes, num_samples = (column[row:end] for column in columns)
        fault = _place_fault(manifest, shards - first_shard, offsets, sizes, num_samples)
        if fault is not None:
            place = join(str(folder), manifest.index.name)
            raise ShardError(f"{place} must agree with {MANIFEST_NAME} and the tars, but {fault}; {AGAIN}")
        row, first_shard = end, first_shard + len(manifest.shards)


def _place_fault(
    manifest: Manifest, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, num_samples: np.ndarray
) -> str | None:
    """Return what is wrong with the places and lengths of one folder's audio."""
    records = manifest.shards
    if (shards[1:] < shards[:-1]).any():
        return f"its rows are not in the order of the {len(records)} tars"
    starts = np.searchsorted(shards, np.arange(len(records) + 1))
    for record, count in zip(records, np.diff(starts).tolist(), strict=True):
        if count != record.num_utterances:
            return f"{count} rows lie in {record.name}, which has {record.num_utterances} utterances"
    filled = [record for record in records if record.num_utterances]
    starts = np.unique(starts[:-1])[: len(filled)]
    durations_s = np.add.reduceat(num_samples, starts) / RATE_HZ
    for record, duration_s in zip(filled, durations_s.tolist(), strict=True):
        if abs(duration_s - record.duration_s) > _DURATION_TOLERANCE * max(1.0, duration_s):
            return f"the rows of {record.name} last {duration_s:g} s, and the manifest says {record.duration_s:g}"
    ends = offsets + sizes
    if (np.maximum.reduceat(ends, starts) > [record.num_bytes for record in filled]).any():
        outside = np.flatnonzero(ends > np.asarray([record.num_bytes for record in records])[shards])
        first = outside[0]
        where = f"{sizes[first]} bytes at {offsets[first]} of {records[shards[first]].name}"
        return f"row {first} names {where}, behind its end ({len(outside)} such rows)"
    longest_s = float(num_samples.max()) / RATE_HZ
    if longest_s > manifest.settings.max_duration_s:
        return f"an utterance lasts {longest_s:g} s, and the manifest allows {manifest.settings.max_duration_s:g}"
    is_overlapping = offsets[1:] < ends[:-1]
    is_overlapping[starts[1:] - 1] = False
    if is_overlapping.any():
        # Adopted tars need not have their keys in order.
        order = np.lexsort((offsets, shards))
        is_overlapping = offsets[order][1:] < ends[order][:-1]
        is_overlapping[starts[1:] - 1] = False
        pairs = np.flatnonzero(is_overlapping)
        if len(pairs):
            rows = sorted(order[pairs[0] : pairs[0] + 2].tolist())
            return f"rows {rows[0]} and {rows[1]} have the same bytes ({len(pairs)} such pairs)"
    return None


def _check_keys(index: Index, folders: Sequence[str | Path], manifests: Sequence[Manifest]) -> None:
    """Refuse keys that are not in order, as in packed folders they are, and a key in two folders.

    Of adopted folders `survey.verify` looks whether a key stands twice: their tars have any order.
    """
    ranges = index.columns.key_ranges()
    for folder, manifest, found in zip(folders, manifests, ranges, strict=True):
        if manifest.settings.shard_utterances and not found.is_ascending:
            place = join(str(folder), manifest.index.name)
            raise ShardError(f"{place} must have its rows in the order of their keys, each once, but has not; {AGAIN}")
    ordered = sorted(ranges, key=lambda found: found.lowest)
    if all(before.highest < after.lowest for before, after in pairwise(ordered)):
        return
    repeated = repeated_key(index)
    if repeated is not None:
        key, count = repeated
        raise ShardError(
            f"every utterance must stand in one shard folder only, but {key!r} occurs {count} times in "
            f"{', '.join(map(str, folders))}; give each corpus once"
        )


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ShardError(f"{path} must exist: {MANIFEST_NAME} lists it; {AGAIN}") from None
    except OSError as error:
        raise ShardError(f"{path} must be readable, but {error.strerror}; {AGAIN}") from error
    if not S_ISREG(status.st_mode):
        raise ShardError(f"{path} must be a plain file, but is a folder, a pipe or a device; {AGAIN}")
    if status.st_size != record.num_bytes:
        raise ShardError(
            f"{path} must have {record.num_bytes} bytes as {MANIFEST_NAME} says, but has {status.st_size}; {AGAIN}"
        )


def _open_table(place: str, manifest: Manifest, remote: RemoteConfig | None) -> IndexFile:
    record = manifest.index
    source: Path | pa.Buffer = Path(place)
    if is_url(place):
        source = pa.py_buffer(read_file(place, remote, num_bytes=record.num_bytes, sha256=record.sha256))
    else:
        _check_size(Path(place), record)
        try:
            with open_regular(place) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ShardError(f"{place} must be readable, but {error.strerror or error}; {AGAIN}") from error
        if digest != record.sha256:
            raise ShardError(
                f"{place} must have sha256 {record.sha256} as {MANIFEST_NAME} says, but has {digest}; {AGAIN}"
            )
    return IndexFile.opened(
        source,
        place,
        version=manifest.schema_version,
        num_shards=len(manifest.shards),
        num_rows=record.num_utterances,
    )
