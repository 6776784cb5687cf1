"""nEMO: nine Polish actors speak ninety sentences in six emotions; all labels stand in one table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import audio_files, has_file, read_table
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.labels import canonical_emotion, canonical_gender
from shards.numbers import finite_number
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

_COLUMNS = ("file_id", "emotion", "raw_text", "normalized_text", "speaker_id", "gender", "age")
_NAME = re.compile(r"(?P<speaker>[A-Za-z0-9]{1,16})_(?P<emotion>[a-z]{1,16})_(?P<sentence>[0-9]{1,6})")


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    table = None if source is None else source / "data.tsv"
    wavs = {} if source is None else {path.stem: path for path in audio_files(source / "samples")}
    if table is None or not has_file(table) or not wavs:
        raise CorpusError(
            f"not an nEMO folder: {source} must hold data.tsv and samples with .wav files; give the clone of the "
            "repository"
        )
    named = set()
    for row in read_table(table, _COLUMNS, options, key="file_id", is_key=_is_name, usual_encoding="cp1250"):
        if not isinstance(row, tuple):
            yield row
            continue
        named.add(_stem(row[1]))
        yield _item(*row, wavs)
    for stem, path in wavs.items():
        if stem not in named:
            yield Rejection(str(path), f"no row of data.tsv is about {path.name}", "audio without row")


def _stem(cells: dict[str, str]) -> str:
    return _without_suffix(cells["file_id"])


def _is_name(cell: str) -> bool:
    return _NAME.fullmatch(_without_suffix(cell)) is not None


def _without_suffix(file_id: str) -> str:
    return re.sub(r"\.wav$", "", file_id, flags=re.IGNORECASE)


def _item(name: str, cells: dict[str, str], wavs: dict[str, Path]) -> SourceUtterance | Rejection:
    stem = _stem(cells)
    match = _NAME.fullmatch(stem)
    if match is None:
        return Rejection(
            name, f"file_id must be like WR0_surprised_64.wav, got {cells['file_id'][:120]!r}", "unknown file name"
        )
    if stem not in wavs:
        return Rejection(name, f"{cells['file_id']} is not in samples", "row without audio")
    if (match["speaker"], match["emotion"]) != (cells["speaker_id"], cells["emotion"]):
        return Rejection(
            name,
            f"{stem} must name the row's speaker and emotion, which are {cells['speaker_id'][:40]!r} and "
            f"{cells['emotion'][:40]!r}",
            "contradiction",
        )
    try:
        labels = {"emotion": canonical_emotion(cells["emotion"]), "gender": canonical_gender(cells["gender"])}
    except CorpusError as error:
        return Rejection(name, str(error), "unknown label")
    try:
        age_years = finite_number(cells["age"])
    except ValueError:
        return Rejection(name, f"age must be a number, got {cells['age'][:40]!r}", "bad number")
    utterance = Utterance(
        key=make_key("nemo", stem),
        corpus="nemo",
        source=f"samples/{wavs[stem].name}",
        text=cells["raw_text"] or None,
        language="pl",
        speaker=cells["speaker_id"],
        age=age_years,
        style="scripted",
        extra={"normalized_text": cells["normalized_text"]},
        **labels,
    )
    return SourceUtterance(utterance, AudioFile(wavs[stem]))


READER = published_reader(
    name="nemo",
    title="nEMO, a dataset of emotional speech in Polish",
    licence="CC-BY-NC-SA-4.0",
    citation="I. Christop: nEMO: Dataset of Emotional Speech in Polish. LREC-COLING 2024, arXiv:2404.06292",
    read=_read,
)
