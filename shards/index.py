"""One row per utterance: where its bytes lie and what is known of it, by column and only as far as asked.

Columns are read when they are first needed, and words are kept as numbers: a plan over ten million utterances needs
lengths, speakers and splits, never their transcripts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import FilterError
from shards.indexcolumns import Alike, Codes, Columns
from shards.indexfile import INDEX_SCHEMA, NUMBERS, ROWS_PER_GROUP, parsed_extra, parsed_votes
from shards.labels import AGE_GROUP_BOUNDS_YEARS, AGE_GROUPS
from shards.numbers import number_of
from shards.schema import LABEL_FIELDS, METADATA_FIELDS, RATE_HZ

IDENTITY_FIELDS = ("key", "corpus", "source")
DERIVED_FIELDS = ("age_group", "duration_s")
NUMBER_FIELDS = (*NUMBERS, "duration_s")
"""Fields that hold numbers; all others but `emotion_votes` and `extra.*` hold text."""


@dataclass(frozen=True)
class Index:
    """Utterances of one or several shard folders: folders as given, rows by key within a folder.

    `speaker` and `session` are qualified by corpus (`emodb:03`), so that two corpora's "03" are two people.
    """

    columns: Columns
    shard_places: tuple[str, ...]
    """Paths or URLs of all tars; `shard` is a position here."""
    extra_names: tuple[str, ...] = ()
    """What may follow `extra.` in a field's name, whether or not these rows have it."""
    rows: np.ndarray | None = field(default=None, compare=False)
    """Positions in `columns`; None is all of them."""

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

    def number_table(self, names: Sequence[str]) -> np.ndarray:
        """Return what `numbers` does of several fields, shape (num_utterances, num_names); reads each `extra` once.

        Raises:
            FilterError: as `numbers` does.
        """
        table = np.full((len(self), len(names)), np.nan)
        inside = {}
        for place, name in enumerate(names):
            if name.startswith("extra."):
                self._check_field(name)
                inside[name] = place
            else:
                table[:, place] = self.numbers(name)
        if inside:
            codes = self._stored_codes("extra")
            words, rows = np.unique(codes.numbers, return_inverse=True)
            of_words = np.full((len(words), len(names)), np.nan)
            for number, values_V in zip(words.tolist(), of_words, strict=True):
                if number >= 0:
                    _read_numbers(parsed_extra(codes.words[number]), inside, values_V)
            places = list(inside.values())
            table[:, places] = of_words[rows][:, places]
        return table

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
            raise _no_number(name, no_number[0])
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
        for start in range(0, len(self), ROWS_PER_GROUP):
            yield from self.take(np.arange(start, min(start + ROWS_PER_GROUP, len(self)))).values(name)

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


def _read_numbers(extra: Mapping[str, Any], places: Mapping[str, int], values_V: np.ndarray) -> None:
    """Write the numbers that one row's `extra` holds to the places of their fields."""
    for name, place in places.items():
        value = extra.get(name.removeprefix("extra."))
        number = math.nan if value is None else number_of(value)
        if number is None:
            raise _no_number(name, value)
        values_V[place] = number


def _no_number(name: str, value: object) -> FilterError:
    return FilterError(f"{name} must be numbers, but one of its values is {value!r}")


def _inside(codes: Codes, name: str) -> Codes:
    """Return one value inside JSON objects that are coded as a whole."""
    values = [parsed_extra(word).get(name) for word in codes.words]
    # 1, 1.0 and True are one key of a dictionary, and three different values here.
    number_of: dict[tuple[type, Any], int] = {}
    numbers = [-1 if value is None else number_of.setdefault((type(value), value), len(number_of)) for value in values]
    return Codes(codes.lookup(numbers, -1).astype(np.int32), tuple(value for _, value in number_of))


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
