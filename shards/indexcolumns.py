"""Columns of the index files of several folders as one: read when first needed, words kept as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.indexfile import DIGEST, INDEX_SCHEMA, ROWS_PER_GROUP, IndexFile
from shards.numbers import number_of

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


class Columns:
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
        if len(rows) > ROWS_PER_GROUP:
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
