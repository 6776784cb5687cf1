"""One row per utterance: where its bytes lie and what is known of it, by column and only as far as asked.

Columns are read when they are first needed, and words are kept as numbers: a plan over ten million utterances needs
lengths, speakers and splits, never their transcripts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.config import RemoteConfig
from shards.errors import FilterError, ShardError
from shards.files import atomic_file, canonical_json
from shards.indexfile import (
    AGAIN,
    DIGEST,
    FEW_WORDS,
    INDEX_SCHEMA,
    LONG_WORDS,
    NUMBERS,
    IndexFile,
    parsed_extra,
    parsed_votes,
)
from shards.inputfile import open_regular
from shards.labels import AGE_GROUP_BOUNDS_YEARS, AGE_GROUPS
from shards.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest
from shards.numbers import number_of
from shards.schema import LABEL_FIELDS, METADATA_FIELDS, RATE_HZ, SCHEMA_VERSION, Utterance
from shards.store import read_file
from shards.urls import is_url, join

_ROWS_PER_GROUP = 1 << 17
_MAX_GROUP_CHARS = 64 << 20
"""Of texts and the like, whose characters have up to four bytes: a quarter of a gigabyte at most."""
_DURATION_TOLERANCE = 1e-6
"""Sums of samples are exact, but another writer may add seconds."""

IDENTITY_FIELDS = ("key", "corpus", "source")
DERIVED_FIELDS = ("age_group", "duration_s")
NUMBER_FIELDS = (*NUMBERS, "duration_s")
"""Fields that hold numbers; all others but `emotion_votes` and `extra.*` hold text."""

Alike = Callable[[pa.Array], pa.Array]


class Codes(NamedTuple):
    """A field as numbers, so that what is done to a word is done once."""

    numbers: np.ndarray
    """Positions in `words`, shape (num_utterances,), of an integer type that just holds them; -1: absent."""
    words: tuple[Any, ...]
    """Different values; some may occur in no row."""

    def counts(self) -> dict[Any, int]:
        """Return how often each value that occurs does, values sorted."""
        present = np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.words))
        found = [(word, int(count)) for word, count in zip(self.words, present, strict=True) if count]
        return dict(sorted(found, key=lambda item: (isinstance(item[0], str), item[0])))

    def without_number(self) -> list[Any]:
        """Return the values that occur and are no numbers, as `number_of` reads them."""
        return [word for word in self.counts() if number_of(word) is None]

    def lookup(self, by_word: Iterable[Any], absent: Any) -> np.ndarray:
        """Return for every row what `by_word` (in the order of `words`) has for its word, else `absent`."""
        found: np.ndarray = np.asarray([*by_word, absent])[self.numbers]
        return found


class KeyRange(NamedTuple):
    """The keys of a folder."""

    lowest: str
    highest: str
    is_ascending: bool
    """Which no key that stands twice can be."""

    @classmethod
    def of(cls, pieces: Iterable[pa.Array]) -> KeyRange:
        """Return the range of keys that stand in several pieces, of which one is not empty."""
        found = [_piece_range(piece) for piece in pieces if len(piece)]
        is_ascending = all(part.is_ascending for part in found)
        is_ascending &= all(before.highest < after.lowest for before, after in pairwise(found))
        return cls(min(part.lowest for part in found), max(part.highest for part in found), is_ascending)


def _piece_range(piece: pa.Array) -> KeyRange:
    if pc.all(pc.less(piece[:-1], piece[1:])).as_py() is not False:
        return KeyRange(piece[0].as_py(), piece[-1].as_py(), True)
    bounds = pc.min_max(piece).as_py()
    return KeyRange(bounds["min"], bounds["max"], False)


class _Columns:
    """The columns of several tables, one below the other; each is read once, when it is first needed.

    Columns stay in the pieces in which they are stored: putting ten million keys into one array would hold them twice.
    """

    def __init__(self, tables: Sequence[pa.Table | IndexFile], first_shards: Sequence[int]) -> None:
        self._tables = tables
        self._first_shards = first_shards
        self._read: dict[str, tuple[list[pa.Array], np.ndarray]] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self._codes: dict[str, Codes] = {}
        self.num_rows = sum(table.num_rows for table in tables)

    def take(self, name: str, rows: np.ndarray | None) -> pa.Array:
        """Return some rows of a column, or all."""
        pieces, starts = self._pieces(name)
        if rows is None:
            wide = _wide(INDEX_SCHEMA.field(name).type)
            return pa.concat_arrays([pa.array([], wide), *(piece.cast(wide) for piece in pieces)])
        kind = INDEX_SCHEMA.field(name).type
        if len(pieces) == 1:
            return pieces[0].take(pa.array(rows)).cast(kind)
        piece_of = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(piece_of, kind="stable")
        cuts = np.flatnonzero(np.diff(piece_of[order])) + 1
        taken = [pa.array([], kind)]
        for part in np.split(order, cuts) if len(rows) else []:
            number = piece_of[part[0]]
            taken.append(pieces[number].take(pa.array(rows[part] - starts[number])).cast(kind))
        place_of = np.empty(len(rows), np.int64)
        place_of[order] = np.arange(len(rows))
        if len(rows) > _ROWS_PER_GROUP:
            taken = [piece.cast(_wide(piece.type)) for piece in taken]
        return pa.concat_arrays(taken).take(pa.array(place_of))

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers; NaN where an optional one is absent."""
        if name not in self._numbers:
            column = np.empty(self.num_rows, pa.array([], INDEX_SCHEMA.field(name).type).to_numpy().dtype)
            end = 0
            for table, first_shard in zip(self._tables, self._first_shards, strict=True):
                for piece in _stored_pieces(table, name):
                    start, end = end, end + len(piece)
                    column[start:end] = piece.to_numpy(zero_copy_only=False)
                    if name == "shard":
                        column[start:end] += first_shard
            self._numbers[name] = column
        return self._numbers[name]

    def codes(self, name: str) -> Codes:
        """Return a column of words as numbers."""
        if name not in self._codes:
            numbers: list[np.ndarray] = [np.empty(0, np.int8)]
            words: dict[str, int] = {}
            for table in self._tables:
                for piece in _stored_pieces(table, name):
                    encoded = piece.dictionary_encode()
                    of_word = [words.setdefault(word, len(words)) for word in encoded.dictionary.to_pylist()]
                    positions = encoded.indices.fill_null(len(of_word)).to_numpy()
                    numbers.append(np.asarray([*of_word, -1], np.min_scalar_type(-len(words) - 1))[positions])
            self._codes[name] = Codes(np.concatenate(numbers), tuple(words))
        return self._codes[name]

    def heads(self, name: str, alike: Alike) -> np.ndarray:
        """Return 64 bits of each value, of a digest its first, of a word its hash in this process; 0: absent."""
        heads = np.zeros(self.num_rows, np.uint64)
        end = 0
        for table in self._tables:
            for piece in _stored_pieces(table, name):
                start, end = end, end + len(piece)
                plain = piece.cast(INDEX_SCHEMA.field(name).type)
                heads[start:end] = np.where(plain.is_null().to_numpy(zero_copy_only=False), 0, _heads(alike(plain)))
        return heads

    def check(self) -> None:
        """Read every column once, and keep nothing."""
        for table in self._tables:
            for name in INDEX_SCHEMA.names:
                for _ in _stored_pieces(table, name):
                    pass

    def key_ranges(self) -> list[KeyRange]:
        """Return of each table, none of them empty, the first and the last key, and whether they ascend.

        The keys are not kept: ten million take 0.4 GB, which splitting needs first.
        """
        return [KeyRange.of(_stored_pieces(table, "key")) for table in self._tables]

    def _pieces(self, name: str) -> tuple[list[pa.Array], np.ndarray]:
        if name not in self._read:
            pieces = [piece for table in self._tables for piece in _stored_pieces(table, name)]
            self._read[name] = pieces, np.cumsum([0, *map(len, pieces)])[:-1]
        return self._read[name]


def _heads(piece: pa.Array) -> np.ndarray:
    if not len(piece):
        return np.empty(0, np.uint64)
    if piece.type == DIGEST:
        whole: np.ndarray = np.frombuffer(piece.buffers()[1], dtype="<u8")[:: 32 // 8]
        return whole[piece.offset :][: len(piece)]
    encoded = piece.dictionary_encode()
    of_word = np.asarray([*(hash(word) for word in encoded.dictionary.to_pylist()), 0], np.int64)
    heads: np.ndarray = of_word[encoded.indices.fill_null(len(of_word) - 1).to_numpy()].view(np.uint64)
    return heads


def _wide(kind: pa.DataType) -> pa.DataType:
    """Positions in 32 bits would end at 2 GiB of text."""
    return pa.large_string() if kind == pa.string() else kind


def _stored_pieces(table: pa.Table | IndexFile, name: str) -> Iterable[pa.Array]:
    """Yield one column piece by piece, words as strings or as a dictionary of strings."""
    return table.column(name).chunks if isinstance(table, pa.Table) else table.pieces(name)


@dataclass(frozen=True)
class Index:
    """Utterances of one or several shard folders: folders as given, rows by key within a folder.

    `speaker` and `session` are qualified by corpus (`emodb:03`), so that two corpora's "03" are two people.
    """

    columns: _Columns
    shard_places: tuple[str, ...]
    """Paths or URLs of all tars; `shard` is a position here."""
    extra_names: tuple[str, ...] = ()
    """What may follow `extra.` in a field's name, whether or not these rows have it."""
    rows: np.ndarray | None = field(default=None, compare=False)
    """Positions in `columns`; None is all of them."""

    @classmethod
    def of_table(cls, table: pa.Table, shard_places: Sequence[str] = (), extra_names: Sequence[str] = ()) -> Index:
        """Return the rows of a table with the columns of `INDEX_SCHEMA`."""
        return cls(_Columns([table], [0]), tuple(shard_places), tuple(extra_names))

    def __len__(self) -> int:
        return self.columns.num_rows if self.rows is None else len(self.rows)

    @cached_property
    def num_samples(self) -> np.ndarray:
        """Audio samples of each utterance at 16 kHz, shape (num_utterances,)."""
        return self.numbers("num_samples")

    @property
    def duration_s(self) -> np.ndarray:
        """Length of each utterance in seconds."""
        return self.num_samples / RATE_HZ

    @property
    def fields(self) -> tuple[str, ...]:
        """Every name that `values` knows."""
        return (*IDENTITY_FIELDS, *METADATA_FIELDS, *DERIVED_FIELDS, *(f"extra.{name}" for name in self.extra_names))

    def column(self, name: str) -> pa.Array:
        """Return a column of `INDEX_SCHEMA` as it is stored."""
        return self.columns.take(name, self.rows)

    def qualified(self, names: pa.Array) -> pa.Array:
        """Return each row's name as `corpus:name`; absent where it is."""
        texts = [texts.cast(pa.large_string()) for texts in (self.column("corpus"), names)]
        return pc.binary_join_element_wise(*texts, pa.scalar(":", pa.large_string()))

    def numbers(self, name: str) -> np.ndarray:
        """Return a field of numbers, shape (num_utterances,); NaN where an optional one is absent.

        Raises:
            FilterError: if no utterance of the corpus could have such a field, or one has no number in it.
        """
        self._check_field(name)
        if name == "duration_s":
            return self.duration_s
        if name.startswith("extra."):
            return self._extra_numbers(name)
        if name in DERIVED_FIELDS or INDEX_SCHEMA.field(name).type == pa.string():
            raise FilterError(f"{name} must be a field of numbers ({', '.join(NUMBER_FIELDS)} or extra.NAME)")
        whole = self.columns.numbers(name)
        return whole if self.rows is None else whole[self.rows]

    def codes(self, name: str) -> Codes:
        """Return a field as numbers and the words they stand for.

        Raises:
            FilterError: if no utterance of the corpus could have such a field.
        """
        self._check_field(name)
        if name == "age_group":
            ages = self.numbers("age")
            groups = np.digitize(ages, AGE_GROUP_BOUNDS_YEARS).astype(np.int32)
            return Codes(np.where(np.isnan(ages), np.int32(-1), groups), AGE_GROUPS)
        if name in NUMBER_FIELDS:
            values = self.numbers(name)
            different, positions = np.unique(values[~np.isnan(values)], return_inverse=True)
            numbers = np.full(len(values), -1, np.int32)
            numbers[~np.isnan(values)] = positions
            return Codes(numbers, tuple(different.tolist()))
        if name.startswith("extra."):
            return _inside(self._stored_codes("extra"), name.removeprefix("extra."))
        return self._stored_codes(name)

    def _extra_numbers(self, name: str) -> np.ndarray:
        codes = self.codes(name)
        no_number = codes.without_number()
        if no_number:
            raise FilterError(f"{name} must be numbers, but one of its values is {no_number[0]!r}")
        return codes.lookup((number_of(word) for word in codes.words), np.nan).astype(np.float64)

    def values(self, name: str) -> list[Any]:
        """Return a field of every row, None where it is absent; `emotion_votes` as dictionaries.

        Raises:
            FilterError: if no utterance of the corpus could have such a field.
        """
        self._check_field(name)
        if name in ("age_group", "duration_s") or name.startswith("extra."):
            codes = self.codes(name)
            return [None if number < 0 else codes.words[number] for number in codes.numbers.tolist()]
        stored: list[Any] = self.column(name).to_pylist()
        if name == "emotion_votes":
            return [None if votes is None else parsed_votes(votes) for votes in stored]
        return stored

    def check_columns(self) -> None:
        """Read every column of the tables, those that no plan needs, too.

        Raises:
            ShardError: if one cannot be read or holds a value that it may not have.
        """
        self.columns.check()

    def repeated_rows(self, name: str, alike: Alike = lambda piece: piece) -> np.ndarray:
        """Return the rows whose value of a stored column of words or digests may stand in another row as well.

        Rarely a value that stands once is among them, because only 64 bits of each are compared: ten million keys or
        digests would otherwise fill the memory. Absent values are left out. `alike` writes values that count as the
        same in one way.
        """
        whole = self.columns.heads(name, alike)
        heads = whole if self.rows is None else whole[self.rows]
        order = np.argsort(heads, kind="stable")
        twin_of_last = np.flatnonzero(heads[order[1:]] == heads[order[:-1]])
        rows = np.unique(order[np.concatenate([twin_of_last, twin_of_last + 1])])
        found: np.ndarray = rows[heads[rows] != 0]
        return found

    def stream(self, name: str) -> Iterator[Any]:
        """Yield what `values` returns, never holding more than a part of it as Python objects."""
        for start in range(0, len(self), _ROWS_PER_GROUP):
            yield from self.take(np.arange(start, min(start + _ROWS_PER_GROUP, len(self)))).values(name)

    def take(self, rows: np.ndarray | Sequence[int]) -> Index:
        """Return the utterances at positions `rows`, in that order; costs as much as there are rows."""
        rows = np.asarray(rows, np.int64)
        return Index(self.columns, self.shard_places, self.extra_names, rows if self.rows is None else self.rows[rows])

    def _check_field(self, name: str) -> None:
        if name not in self.fields and name not in INDEX_SCHEMA.names:
            raise FilterError(f"a metadata field must be one of {', '.join(self.fields)}; got {name!r}")

    def _stored_codes(self, name: str) -> Codes:
        whole = self.columns.codes(name)
        return whole if self.rows is None else Codes(whole.numbers[self.rows], whole.words)


def _inside(codes: Codes, name: str) -> Codes:
    """Return one value inside JSON objects that are coded as a whole."""
    values = [parsed_extra(word).get(name) for word in codes.words]
    # 1, 1.0 and True are one key of a dictionary, and three different values here.
    number_of: dict[tuple[type, Any], int] = {}
    numbers = [-1 if value is None else number_of.setdefault((type(value), value), len(number_of)) for value in values]
    return Codes(codes.lookup(numbers, -1).astype(np.int32), tuple(value for _, value in number_of))


def index_row(utterance: Utterance, **where: int | str | bytes | None) -> dict[str, Any]:
    """Return an utterance's row; `where` gives shard, offsets, sizes, `num_samples` and digests."""
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
    tables = {name: index.codes(name).counts() for name in LABEL_FIELDS}
    return {name: table for name, table in tables.items() if table}


def duplicate_rows(index: Index) -> list[list[int]]:
    """Return groups of rows whose decoded audio is identical, in order of their first row."""
    candidates = index.repeated_rows("pcm_sha256")
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(candidates.tolist(), index.take(candidates).values("pcm_sha256"), strict=True):
        groups[digest].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def repeated_key(index: Index) -> tuple[str, int] | None:
    """Return a key that stands in several rows, and in how many; None if each stands once."""
    counts = pc.value_counts(index.column("key"))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return (repeated[0]["values"].as_py(), repeated[0]["counts"].as_py()) if len(repeated) else None


# ---------------------------------------------------------------- files


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
    index = Index(_Columns(tables, first_shards), tuple(places), tuple(sorted(extra_names)))
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
    return Index(_Columns([table], [0]), tuple(shard_places))


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


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows`, in the order of their keys, whole or not at all; equal rows give equal bytes.

    A large corpus's rows never stand in memory together.
    """
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            INDEX_SCHEMA,
            version="2.6",
            compression="zstd",
            compression_level=3,
            store_schema=False,
            use_dictionary=list(FEW_WORDS),
        ) as writer,
    ):
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=INDEX_SCHEMA), row_group_size=_ROWS_PER_GROUP)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in groups of which no column takes more than is read."""
    group: list[dict[str, Any]] = []
    num_chars = 0
    for row in rows:
        length = sum(len(row[name] or "") for name in LONG_WORDS)
        if len(group) == _ROWS_PER_GROUP or (group and num_chars + length > _MAX_GROUP_CHARS):
            yield group
            group, num_chars = [], 0
        group.append(row)
        num_chars += length
    if group:
        yield group
