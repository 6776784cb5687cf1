"""AN4: people spell and say names, numbers and commands; transcripts without emotion, for the first stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import TextFiles, has_file
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_TRANSCRIPT = re.compile(r"(?P<words>.*)\((?P<id>[^()]+)\)")
_SPLIT_OF_SET: dict[str, Literal["train", "test"]] = {"an4_clstk": "train", "an4test_clstk": "test"}
_GENDERS = {"f": "female", "m": "male"}


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    if source is None or not all(has_file(source / "etc" / f"an4_{split}.fileids") for split in _SPLITS):
        raise CorpusError(
            f"not an AN4 folder: {source}/etc must hold an4_train.fileids and an4_test.fileids; "
            "give the folder that has etc and wav"
        )
    rows = {}
    files = TextFiles(options)
    for split in _SPLITS:
        transcripts = _transcripts(source / "etc" / f"an4_{split}.transcription", files)
        for file_id in _lines(source / "etc" / f"an4_{split}.fileids", files):
            rows[file_id] = (split, transcripts.get(file_id.rpartition("/")[2]))
    for file_id, (split, text) in sorted(rows.items()):
        item = _item(source, file_id, split, text)
        if text is None and isinstance(item, SourceUtterance):
            name = f"an4_{split}.transcription"
            item = Rejection(str(source / "etc" / name), f"{file_id} has no words in {name}", "audio without row")
        yield item
    for path in sorted((source / "wav").glob("*/*/*.sph")):
        file_id = path.relative_to(source / "wav").with_suffix("").as_posix()
        if file_id not in rows:
            # The published lists leave a test speaker (fcaw) out: real speech whose words are not known.
            yield _item(source, file_id, _SPLIT_OF_SET.get(file_id.split("/")[0]), None)
    yield from files.notes()


def _item(
    source: Path, file_id: str, split: Literal["train", "test"] | None, text: str | None
) -> SourceUtterance | Rejection:
    path = source / "wav" / f"{file_id}.sph"
    parts = file_id.split("/")
    if len(parts) != 3 or ".." in parts:
        return Rejection(
            f"an4_{split}.fileids", f"a row must be set/speaker/utterance, got {file_id!r}", "unknown file name"
        )
    fault = fault_of(path, "file")
    if fault is not None:
        reason = f"row {file_id} has no file {path}" if fault == ABSENT else f"the file {path} of row {file_id} {fault}"
        return Rejection(f"an4_{split}.fileids", reason, "row without audio")
    _, speaker, name = parts
    utterance = Utterance(
        key=make_key("an4", speaker, name),
        corpus="an4",
        source=f"{file_id}.sph",
        text=text,
        language="en",
        gender=_GENDERS.get(speaker[:1]),
        speaker=speaker,
        split=split,
    )
    return SourceUtterance(utterance, AudioFile(path))


def _lines(path: Path, files: TextFiles) -> list[str]:
    return [line.strip() for line in files.read(path).splitlines() if line.strip()]


def _transcripts(path: Path, files: TextFiles) -> dict[str, str]:
    """Return the words of each utterance by its id; they stand as `<s> YES </s> (an251-fash-b)` or without marks."""
    if not has_file(path):
        raise CorpusError(f"not an AN4 folder: {path} is missing; give the folder that has etc and wav")
    transcripts = {}
    for line in _lines(path, files):
        match = _TRANSCRIPT.fullmatch(line)
        if match is None:
            raise CorpusError(
                f"{path} must hold words and an id in brackets per line, got {line[:120]!r}; restore the file"
            )
        transcripts[match["id"]] = match["words"].strip().removesuffix("</s>").removeprefix("<s>").strip()
    return transcripts


READER = published_reader(
    name="an4",
    title="CMU Census (AN4)",
    licence="free for any use, with the notice of Carnegie Mellon University",
    citation="A. Acero: Acoustical and Environmental Robustness in Automatic Speech Recognition. Kluwer, 1993",
    read=_read,
    obeys=frozenset({"encoding"}),
)
