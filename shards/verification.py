"""A packed folder compared with itself: rows with the tars, members of the tars with rows, counts with both."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from shards.audio import decode_stored, samples_sha256
from shards.config import RemoteConfig
from shards.corpora.identities import composed
from shards.errors import AudioError, ShardError
from shards.index import Index, label_tables, repeated_key
from shards.indexfile import MAX_META_BYTES, parsed_extra, parsed_votes
from shards.indexwrite import index_row
from shards.inputfile import read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.manifest import MANIFEST_NAME, Manifest, ShardRecord
from shards.schema import (
    AGES_YEARS,
    AUDIO_SUFFIX,
    META_SUFFIX,
    RATE_HZ,
    READABLE_VERSIONS,
    Utterance,
    is_key,
    visible,
)
from shards.shown import shown
from shards.store import RangeReader, read_file
from shards.suffixes import AUDIO_SUFFIXES
from shards.tarmembers import BrokenTarError, Forward, TarMember, tar_members
from shards.tarwalk import TarStream
from shards.urls import is_url, join

MAX_REJECTED_BYTES = 512 << 20
"""Of `rejected.jsonl`; a million rejections take 0.2 GB."""
_REJECTION_FIELDS = {"source", "reason", "kind"}
_MAX_SHOWN_CHARS = 100
PACKED_FORM = f"is FLAC of {RATE_HZ} Hz, 1 channels and 16 bits"
"""In the words of `stored_form`."""
_FORM_AT, _STREAMINFO_END = 18, 22


# ---------------------------------------------------------------- the index and the lists beside it


def index_problems(index: Index, manifest: Manifest, place: str) -> Iterator[str]:
    """Yield what the index of one folder holds that is not allowed, or not as the manifest counts it.

    Raises:
        ShardError: if a column cannot be read, or holds a value that it may not have.
    """
    index.check_columns()
    repeated = repeated_key(index)
    if repeated is not None:
        yield f"{place} must have every key once, but {repeated[0]!r} stands in {repeated[1]} rows"
    found = label_tables(index)
    for name in sorted({*found, *manifest.labels}):
        if found.get(name) != manifest.labels.get(name):
            yield f"{place} must have the labels that {MANIFEST_NAME} counts, but {_other_count(name, found, manifest)}"
            break
    extra = index.codes("extra")
    names = sorted({name for word in extra.counts() for name in parsed_extra(word)})
    if names != list(manifest.extra_names):
        strange = sorted({*names} ^ {*manifest.extra_names})[0]
        where = "the index" if strange in names else "the manifest"
        name = shown(strange, _MAX_SHOWN_CHARS)
        yield f"{place} must have the names in extra that {MANIFEST_NAME} lists, but only {where} has {name!r}"


def _other_count(name: str, found: dict[str, dict[str, int]], manifest: Manifest) -> str:
    in_index, stated = found.get(name, {}), manifest.labels.get(name, {})
    word = min(word for word in {*in_index, *stated} if in_index.get(word) != stated.get(word))
    return f"{name} is {shown(word, 60)!r} in {in_index.get(word, 0)} rows and not in {stated.get(word, 0)}"


def rejected_sources(folder: str, manifest: Manifest, remote: RemoteConfig | None) -> set[str]:
    """Return what the list of rejections names.

    Raises:
        ShardError: if the list is not the one of the manifest, or no such list.
    """
    record = manifest.rejected
    place = join(folder, record.name)
    if record.num_bytes > MAX_REJECTED_BYTES:
        raise ShardError(f"{place} must have at most {MAX_REJECTED_BYTES} bytes, but {MANIFEST_NAME} states more")
    if is_url(place):
        data = read_file(place, remote, num_bytes=record.num_bytes, sha256=record.sha256)
    else:
        try:
            data = read_regular(place, max_bytes=MAX_REJECTED_BYTES)
        except OSError as error:
            raise ShardError(f"{place} must be readable, but {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != record.sha256 or len(data) != record.num_bytes:
        raise ShardError(f"{place} must have sha256 {record.sha256} and {record.num_bytes} bytes, but was changed")
    kinds: Counter[str] = Counter()
    sources: set[str] = set()
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) > MAX_META_BYTES:
            raise ShardError(f"line {number} of {place} must have at most {MAX_META_BYTES} bytes, got {len(line)}")
        try:
            rejection = parse_json(line)
        except JsonTextError as error:
            raise ShardError(f"line {number} of {place} must be JSON, but {shown(str(error), 200)}") from error
        if not isinstance(rejection, dict) or rejection.keys() != _REJECTION_FIELDS:
            raise ShardError(f"line {number} of {place} must have {', '.join(sorted(_REJECTION_FIELDS))} and no more")
        if not all(isinstance(value, str) for value in rejection.values()):
            raise ShardError(f"line {number} of {place} must have words only")
        kinds[rejection["kind"]] += 1
        sources.add(rejection["source"])
    if kinds != manifest.num_rejected_by_kind:
        raise ShardError(
            f"{place} must hold what {MANIFEST_NAME} counts, but has {sum(kinds.values())} rejections of "
            f"{len(kinds)} kinds and not {manifest.num_rejected} of {len(manifest.num_rejected_by_kind)}"
        )
    return sources


# ---------------------------------------------------------------- a tar and its rows


class RowsRemade(Protocol):
    """What makes the rows of an adopted tar again, as its members come, and compares them with those of the index."""

    def begin(self, place: str, rows: Sequence[dict[str, Any]]) -> None:
        """Begin with the tar at `place`, and its rows."""
        ...

    def take(self, member: TarMember, file: Forward, is_ours: bool) -> tuple[dict[str, Any], str] | None:
        """Take the next member; return a row of which all came, and what is wrong with it, or None."""
        ...

    def end(self) -> tuple[dict[str, Any], str] | None:
        """Return what `take` does, of the last row."""
        ...


class TarCheck:
    """One tar compared with its rows."""

    def __init__(
        self,
        place: str,
        record: ShardRecord,
        rows: Sequence[dict[str, Any]],
        ranges: RangeReader,
        rejected: set[str] | None,
        remade: RowsRemade | None = None,
    ) -> None:
        """Set up the comparison; nothing is read yet.

        Args:
            place: Path or URL of the tar.
            record: What the manifest says of it.
            rows: Those of the index that lie in it.
            ranges: Reads it.
            rejected: Of an adopted tar, what the list of rejections names; None: packing wrote the tar.
            remade: Of an adopted tar, what makes its rows again.
        """
        self._place = place
        self._record = record
        self._rows = rows
        self._ranges = ranges
        self._rejected = rejected
        self._remade = remade
        self._by_audio = {row["audio_offset"]: row for row in rows}
        self._by_meta = {row["meta_offset"]: row for row in rows if row["meta_offset"] is not None}
        self._is_explained = False
        """Whether the bytes of an utterance are changed, which changes the tar's hash, too."""
        self.other_forms: list[str] = []
        """Of a packed tar, utterances whose audio is not stored as it must be, each with what it is."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, reading every byte once.

        Raises:
            ShardError: if bytes cannot be read.
        """
        for row in self._rows:
            yield from self._of_utterance(row, _row_problem(row, is_packed=self._rejected is None))
        stream = TarStream(self._ranges, self._place, self._record.num_bytes)
        if self._remade is not None:
            self._remade.begin(self._place, self._rows)
        found: list[TarMember] = []
        fault: BrokenTarError | None = None
        try:
            for member in tar_members(stream, stream.num_bytes):
                if self._remade is not None:
                    yield from self._of_beside(self._remade.take(member, stream, member.offset in self._by_meta))
                yield from self._of_member(member, stream, found[-1] if found else None)
                found.append(member)
        except BrokenTarError as error:
            fault = error
        if self._remade is not None and fault is None:
            yield from self._of_beside(self._remade.end())
        yield from self._of_rows_left(is_whole=fault is None)
        is_known_broken = self._rejected is not None and self._record.name in _base_names(self._rejected)
        if self._rejected is not None and not is_known_broken:
            yield from self._of_samples_without_row(found, self._rejected)
        if stream.hexdigest() != self._record.sha256:
            if not self._is_explained:
                yield (
                    f"{self._place} must have sha256 {self._record.sha256}, but was changed outside its samples and "
                    "metadata"
                )
        elif fault is not None and not is_known_broken:
            yield f"{self._place} must be a whole tar, but {fault}"

    def _of_member(self, member: TarMember, stream: TarStream, before: TarMember | None) -> Iterator[str]:
        is_packed = self._rejected is None
        is_audio = member.offset in self._by_audio
        row = (self._by_audio if is_audio else self._by_meta).pop(member.offset, None)
        name = shown(member.name, _MAX_SHOWN_CHARS)
        if row is None:
            if is_packed:
                yield f"member {name!r} of {self._place} must belong to a row of the index, but no row names it"
            return
        if not member.is_plain:
            yield from self._of_utterance(row, f"its member {name!r} is no plain file")
            return
        if not _is_called_right(member, row, is_audio=is_audio, is_packed=is_packed):
            yield from self._of_utterance(row, f"its member is called {name!r}")
        if not is_audio and (before is None or before.stem != member.stem) and is_packed:
            yield from self._of_utterance(row, "its metadata do not follow its audio")
        num_bytes = row["audio_bytes" if is_audio else "meta_bytes"]
        if member.num_bytes != num_bytes:
            yield from self._of_utterance(
                row, f"its member has {member.num_bytes} bytes, and the index says {num_bytes}"
            )
            return
        data = stream.read(num_bytes)
        if is_audio and is_packed:
            self._note_form(data, row)
        problem = (_audio_problem if is_audio else _meta_problem)(data, row)
        self._is_explained |= problem is not None
        yield from self._of_utterance(row, problem)

    def _of_beside(self, found: tuple[dict[str, Any], str] | None) -> Iterator[str]:
        if found is not None:
            yield from self._of_utterance(*found)

    def _note_form(self, data: bytes, row: dict[str, Any]) -> None:
        form = stored_form(data)
        if form != PACKED_FORM:
            self.other_forms.append(f"{row['key']!r} in {self._place} {form}")

    def _of_rows_left(self, *, is_whole: bool) -> Iterator[str]:
        """Yield the rows at whose places no member begins; where the tar is broken, those with damaged audio."""
        left = {row["key"]: row for row in (*self._by_audio.values(), *self._by_meta.values())}
        for row in left.values():
            problem: str | None = "no member of the tar begins where the index says that its bytes do"
            if not is_whole:
                data = self._ranges.read(self._place, row["audio_offset"], row["audio_bytes"], fresh=True)
                problem = _audio_problem(data, row)
                self._is_explained |= problem is not None
            yield from self._of_utterance(row, problem)

    def _of_samples_without_row(self, found: Sequence[TarMember], rejected: set[str]) -> Iterator[str]:
        """Yield samples of an adopted tar that hold audio, and are neither rows nor rejected."""
        offsets = {row["audio_offset"] for row in self._rows}
        known = {member.stem for member in found if member.offset in offsets}
        tar = f"{visible(self._record.name)}: "
        named = {source[source.index(tar) :] for source in rejected if tar in source}
        for member in found:
            is_audio = member.is_plain and f".{member.suffix.lower()}" in AUDIO_SUFFIXES
            if (
                is_audio
                and member.stem not in known
                and not {tar + visible(member.stem), tar + visible(member.name)} & named
            ):
                name = shown(member.name, _MAX_SHOWN_CHARS)
                yield f"member {name!r} of {self._place} must have a row or be rejected, but neither list names it"

    def _of_utterance(self, row: dict[str, Any], problem: str | None) -> Iterator[str]:
        if problem is not None:
            yield f"utterance {row['key']!r} in {self._place}: {problem}"


def stored_form(data: bytes) -> str:
    """Return what the first bytes of stored audio say of it."""
    if not data.startswith(b"fLaC") or len(data) < _STREAMINFO_END:
        return f"begins with {data[:4]!r}"
    # 20 bits of rate, 3 of channels and 5 of bits, the latter two less one.
    packed = int.from_bytes(data[_FORM_AT:_STREAMINFO_END], "big") >> 4
    return f"is FLAC of {packed >> 8} Hz, {(packed >> 5 & 7) + 1} channels and {(packed & 31) + 1} bits"


def forms_problem(others: Sequence[str]) -> str | None:
    """Return what is wrong where some utterances of a packed folder are stored otherwise than they must be."""
    if not others:
        return None
    more = f" ({len(others)} such utterances)" if len(others) > 1 else ""
    return f"all audio must be stored as {PACKED_FORM.removeprefix('is ')}, but {others[0]}{more}"


def _base_names(sources: set[str]) -> set[str]:
    return {source.rpartition("/")[2] for source in sources}


def _is_called_right(member: TarMember, row: dict[str, Any], *, is_audio: bool, is_packed: bool) -> bool:
    if is_packed:
        return member.name == f"{row['key']}.{AUDIO_SUFFIX if is_audio else META_SUFFIX}"
    # Where an adopted sample has MetaSER's own JSON, that says what it is called.
    return not is_audio or row["meta_offset"] is not None or member.stem == row["source"]


def _row_problem(row: dict[str, Any], *, is_packed: bool) -> str | None:
    """Return what no row may hold, whatever lies in the tar."""
    if not is_key(row["key"]) or not row["key"].startswith(f"{row['corpus']}/"):
        return f"its key is no key of corpus {shown(row['corpus'], _MAX_SHOWN_CHARS)!r}"
    if (row["meta_offset"] is None) != (row["meta_bytes"] is None) or (is_packed and row["meta_offset"] is None):
        return "the index does not say where its metadata lie"
    if row["age"] is not None and not AGES_YEARS[0] <= row["age"] <= AGES_YEARS[1]:
        return f"its age must be {AGES_YEARS[0]} to {AGES_YEARS[1]} years, but is {row['age']:g}"
    for name in ("speaker", "session"):
        if row[name] is not None and not row[name].startswith(f"{row['corpus']}:"):
            return f"its {name} must begin with its corpus, but is {shown(row[name], _MAX_SHOWN_CHARS)!r}"
    try:
        parsed_extra(row["extra"])
        if row["emotion_votes"] is not None:
            parsed_votes(row["emotion_votes"])
    except ShardError as error:
        return str(error)
    return None


def _audio_problem(data: bytes, row: dict[str, Any]) -> str | None:
    if row["audio_sha256"] is not None and hashlib.sha256(data).digest() != row["audio_sha256"]:
        return "its audio's bytes are not those that were packed"
    samples = np.empty(row["num_samples"], np.float32)
    try:
        decode_stored(data, samples)
    except AudioError as error:
        return f"audio does not decode ({error})"
    is_same = samples_sha256(samples) == row["pcm_sha256"]
    return None if is_same else "audio does not decode to the samples that were packed"


def _meta_problem(data: bytes, row: dict[str, Any]) -> str | None:
    try:
        meta = parse_json(data)
        version, *audio = (meta.pop(name) for name in ("schema_version", "num_samples", "pcm_sha256"))
        utterance = Utterance.model_validate(meta)
        found = [index_row(form) for form in (utterance, composed(utterance))]
    except JsonTextError as error:
        return f"metadata must be JSON, but {shown(str(error), _MAX_SHOWN_CHARS)}"
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return f"metadata cannot be read ({type(error).__name__})"
    expected = {name: value for name, value in row.items() if name in found[0]}
    is_same = version in READABLE_VERSIONS and audio == [row["num_samples"], row["pcm_sha256"].hex()]
    if is_same and expected in found:
        return None
    differing = [name for name, value in expected.items() if value != found[0][name]]
    what = f"the {differing[0]} of its" if is_same and differing else "its"
    return f"{what} metadata differs from the index"
