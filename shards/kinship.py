"""What utterances that judge a model have in common with those that made it: recordings, files, people, texts.

A `Material` is small enough to be kept with a model, so that the question can be answered when the shards are gone.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import ShardError
from shards.files import atomic_file
from shards.index import Index
from shards.inputfile import open_regular
from shards.splits import file_names

_DIGEST_BYTES = 16
_LEAST_ROW_BYTES = 4
"""Each recording's digest is its own, so that a row has 16 of them or so."""
_DIGEST = pa.binary(_DIGEST_BYTES)
_SCHEMA = pa.schema(
    [
        ("split", pa.large_string()),
        ("speaker", pa.large_string()),
        ("session", pa.large_string()),
        ("dialogue", pa.large_string()),
        ("file", pa.large_string()),
        ("recording", _DIGEST),
        ("text", _DIGEST),
    ]
)
START = "start"
"""The split of what made the model whose weights a run started from."""
_PLACES = ("session", "dialogue", "file")
"""Where people meet."""


@dataclass(frozen=True)
class Material:
    """What tells utterances, their speakers and their words apart; a row per utterance.

    Speakers, sessions, dialogues and files are qualified by corpus. Of samples and texts there are digests only.
    """

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def of(cls, index: Index, rows_by_split: Mapping[str, np.ndarray]) -> Material:
        """Return the material of some rows of `index`."""
        empty = _SCHEMA.empty_table()
        return cls(
            pa.concat_tables([empty, *(_table(index.take(rows), split) for split, rows in rows_by_split.items())])
        )

    @classmethod
    def nothing(cls) -> Material:
        """Return no utterances."""
        return cls(_SCHEMA.empty_table())

    def of_split(self, *splits: str) -> Material:
        """Return the utterances of `splits`."""
        return Material(self.table.filter(pc.is_in(self.table["split"], value_set=pa.array(splits, pa.large_string()))))

    def as_split(self, split: str) -> Material:
        """Return the same utterances, all of them of `split`."""
        column = pa.array([split] * len(self), pa.large_string())
        return Material(self.table.set_column(_SCHEMA.get_field_index("split"), _SCHEMA.field("split"), column))

    def joined(self, other: Material) -> Material:
        """Return the utterances of both, equal ones once."""
        both = pa.concat_tables([self.table, other.table])
        return Material(both.group_by(_SCHEMA.names).aggregate([]).select(_SCHEMA.names))

    def values(self, name: str) -> set[str]:
        """Return the values of a column that occur."""
        return set(self.table[name].unique().drop_null().to_pylist())

    def num_without(self, name: str) -> int:
        """Return how many utterances have no value in a column."""
        return int(self.table[name].null_count)

    def with_value_in(self, name: str, other: Material) -> np.ndarray:
        """Return which utterances have a value of a column that stands in `other`, too."""
        found = pc.is_in(self.table[name], value_set=other.table[name].combine_chunks(), skip_nulls=True)
        return np.asarray(found.to_numpy())

    def write(self, path: Path) -> None:
        """Write the table to `path`, whole or not at all.

        Raises:
            ShardError: if the disk refuses.
        """
        with atomic_file(path) as file:
            pq.write_table(self.table, file, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Material:
        """Return what `write` wrote.

        Raises:
            ShardError: if it is damaged.
        """
        try:
            with open_regular(path) as file, pq.ParquetFile(file) as stored:
                num_bytes, num_rows = path.stat().st_size, stored.metadata.num_rows
                if num_rows * _LEAST_ROW_BYTES > num_bytes:
                    raise pa.ArrowInvalid(f"{num_rows} rows cannot lie in its {num_bytes} bytes")
                if stored.schema_arrow.remove_metadata() != _SCHEMA:
                    raise pa.ArrowInvalid("its columns are others")
                table = stored.read()
            table.validate(full=True)
            return cls(table)
        except (pa.ArrowException, OSError) as error:
            raise ShardError(
                f"{path} must be the record of what a run was trained on, but cannot be read: {error}; restore it or "
                "move it away"
            ) from error


@dataclass(frozen=True)
class Kinship:
    """What judged utterances have in common with those that made a model; counts are judged utterances."""

    num_judged: int
    num_recordings: int
    """Whose samples the model was made from."""
    speakers: tuple[str, ...]
    """Known speakers of both."""
    names: tuple[str, ...]
    """Speakers whose names, though not their corpora, are those of speakers that made the model; same shards: none."""
    num_files: int
    """Cut from a file of a name that others were cut from, and not these; same shards: the file itself."""
    num_without_speaker: int
    num_made: int
    num_made_without_speaker: int
    partners: tuple[str, ...]
    """Other people of the training set who share a session, dialogue or file with judged ones."""
    num_with_text: int
    num_texts: int
    """Whose text the training set has, too."""
    same_shards: bool

    @property
    def speaker_overlap(self) -> bool | None:
        """Whether people who made the model are judged; None: cannot be told."""
        if self.num_recordings or self.speakers:
            return True
        unsure = self.names or (self.num_files and not self.same_shards)
        return None if unsure or self.num_without_speaker or self.num_made_without_speaker else False


def kinship(made: Material, judged: Material, *, same_shards: bool) -> Kinship:
    """Compare what a model was made from (splits `train`, `dev` and `start`) with what judges it.

    Args:
        made: utterances that moved or chose weights.
        judged: utterances to be judged.
        same_shards: whether both come from the same shards; otherwise equal names prove less.
    """
    training = made.of_split("train", START)
    speakers, others = judged.values("speaker"), made.values("speaker")
    known_names = {_name(speaker) for speaker in others}
    named = {speaker for speaker in speakers - others if _name(speaker) in known_names}
    return Kinship(
        num_judged=len(judged),
        num_recordings=int(judged.with_value_in("recording", made).sum()),
        speakers=tuple(sorted(speakers & others)),
        names=() if same_shards else tuple(sorted(named)),
        num_files=int((judged.with_value_in("file", made) & ~judged.with_value_in("recording", made)).sum()),
        num_without_speaker=judged.num_without("speaker"),
        num_made=len(made),
        num_made_without_speaker=made.num_without("speaker"),
        partners=tuple(sorted(_near(training, judged) - speakers)),
        num_with_text=len(judged) - judged.num_without("text"),
        num_texts=int(judged.with_value_in("text", training).sum()),
        same_shards=same_shards,
    )


def _near(training: Material, judged: Material) -> set[str]:
    is_near = np.logical_or.reduce([training.with_value_in(place, judged) for place in _PLACES])
    return Material(training.table.filter(pa.array(is_near))).values("speaker")


def _name(speaker: str) -> str:
    return speaker.split(":", 1)[-1].casefold()


def _table(part: Index, split: str) -> pa.Table:
    digests = [None if digest is None else digest[:_DIGEST_BYTES] for digest in part.stream("pcm_sha256")]
    columns = {
        "split": pa.array([split] * len(part), pa.large_string()),
        "speaker": part.column("speaker"),
        "session": part.column("session"),
        "dialogue": part.qualified(part.column("dialogue")),
        "file": file_names(part),
        "recording": pa.array(digests, _DIGEST),
        "text": pa.array([_text_digest(text) for text in part.stream("text")], _DIGEST),
    }
    return pa.table({name: column.cast(_SCHEMA.field(name).type) for name, column in columns.items()}, schema=_SCHEMA)


def _text_digest(text: str | None) -> bytes | None:
    """Return the digest of a text's words, case, punctuation and Unicode form aside; None without words."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text or "").casefold())
    return hashlib.blake2b(" ".join(words).encode(), digest_size=_DIGEST_BYTES).digest() if words else None
