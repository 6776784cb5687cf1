"""MSP-Podcast: natural speech cut from podcasts, with the annotators' consensus in one table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import TextFiles, audio_files, has_file, read_table
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.labels import canonical_gender
from shards.numbers import finite_number
from shards.schema import Rejection, SourceUtterance, Split, Utterance, make_key

_EMOTIONS: dict[str, str | None] = {
    "A": "anger",
    "C": "contempt",
    "D": "disgust",
    "F": "fear",
    "H": "happiness",
    "N": "neutral",
    "O": "other",
    "S": "sadness",
    "U": "surprise",
    # The annotators did not agree.
    "X": None,
    "": None,
}
_SPLITS: dict[str, Split] = {
    "Train": "train",
    "Development": "dev",
    # The name of Development in early releases.
    "Validation": "dev",
    "Test1": "test",
    "Test2": "test",
    "Test3": "test",
}
_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
_TABLES = ("labels_consensus.csv", "labels_concensus.csv")
"""Early releases have the second spelling."""
_UNKNOWN = ("", "unknown")
_NAME = re.compile(r"(?P<recording>MSP-PODCAST_[A-Za-z0-9]{1,16})_(?P<turn>[A-Za-z0-9_]{1,40})")
_HIDDEN = "MSP-PODCAST_test3"
"""Recording part of the names of the third test set, whose labels are not published."""


@dataclass(frozen=True)
class _Transcripts:
    """A file of words for each utterance, where there is one."""

    folder: Path
    files: TextFiles

    def words(self, stem: str) -> str | None:
        try:
            return " ".join(self.files.read(self.folder / f"{stem}.txt").split()) or None
        except FileNotFoundError:
            return None


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    table, wavs = _parts(source)
    transcripts = _Transcripts(table.parent.parent / "Transcripts", TextFiles(options))
    named = set()
    for row in read_table(table, _COLUMNS, options, key="FileName", is_key=_is_name):
        if not isinstance(row, tuple):
            yield row
            continue
        named.add(Path(row[1]["FileName"]).stem)
        yield _item(*row, wavs, transcripts)
    for stem, path in wavs.items():
        if stem in named:
            continue
        match = _NAME.fullmatch(stem)
        if match is not None and match["recording"] == _HIDDEN:
            yield _utterance(path, match, transcripts, split="test", extra={"split_set": "Test3"})
        else:
            yield Rejection(str(path), f"no row of {table.name} is about {path.name}", "audio without row")
    yield from transcripts.files.notes()


def _parts(source: Path | None) -> tuple[Path, dict[str, Path]]:
    """Return the table of labels and the audio files by name without suffix."""
    if source is not None:
        tables = [source / "Labels" / name for name in _TABLES if has_file(source / "Labels" / name)]
        wavs = [path for name in ("Audios", "Audio") for path in audio_files(source / name)]
        if tables and wavs:
            return tables[0], {path.stem: path for path in wavs}
    raise CorpusError(
        f"not an MSP-Podcast folder: {source} must hold Labels/{_TABLES[0]} and .wav files in Audios (or Audio); give "
        "the folder of the release with its archives unpacked"
    )


def _item(
    name: str, cells: dict[str, str], wavs: dict[str, Path], transcripts: _Transcripts
) -> SourceUtterance | Rejection:
    file = cells["FileName"]
    match = _NAME.fullmatch(Path(file).stem)
    if match is None:
        return Rejection(
            name, f"FileName must be like MSP-PODCAST_0001_0008.wav, got {file[:120]!r}", "unknown file name"
        )
    if match[0] not in wavs:
        return Rejection(name, f"{file} is not in Audios", "row without audio")
    unknown = [
        f"{column} {cells[column][:40]!r} is none of {', '.join(filter(None, known))}"
        for column, known in (("EmoClass", _EMOTIONS), ("Split_Set", _SPLITS))
        if cells[column] not in known
    ]
    if unknown:
        return Rejection(name, "; ".join(unknown), "unknown label")
    try:
        numbers = {
            field: finite_number(cells[column])
            for field, column in (("valence", "EmoVal"), ("arousal", "EmoAct"), ("dominance", "EmoDom"))
            if cells[column]
        }
    except ValueError as error:
        return Rejection(name, f"the ratings of {file} must be numbers, but {error}", "bad number")
    is_known = {column: cells[column].lower() not in _UNKNOWN for column in ("SpkrID", "Gender")}
    return _utterance(
        wavs[match[0]],
        match,
        transcripts,
        emotion=_EMOTIONS[cells["EmoClass"]],
        gender=canonical_gender(cells["Gender"]) if is_known["Gender"] else None,
        speaker=cells["SpkrID"] if is_known["SpkrID"] else None,
        split=_SPLITS[cells["Split_Set"]],
        extra={"split_set": cells["Split_Set"]},
        **numbers,
    )


def _utterance(path: Path, match: re.Match[str], transcripts: _Transcripts, **metadata: object) -> SourceUtterance:
    utterance = Utterance.model_validate(
        {
            "key": make_key("msp-podcast", match["recording"], match["turn"]),
            "corpus": "msp-podcast",
            "source": f"{path.parent.name}/{path.name}",
            "text": transcripts.words(match[0]),
            "language": "en",
            "dialogue": match["recording"],
            "turn": match["turn"],
            **metadata,
        }
    )
    return SourceUtterance(utterance, AudioFile(path))


def _is_name(cell: str) -> bool:
    return _NAME.fullmatch(Path(cell).stem) is not None


READER = published_reader(
    name="msp-podcast",
    title="MSP-Podcast",
    licence="by agreement with the MSP laboratory, for research",
    citation="R. Lotfian, C. Busso: Building Naturalistic Emotionally Balanced Speech Corpus by Retrieving Emotional "
    "Speech From Existing Podcast Recordings. IEEE Transactions on Affective Computing 10(4), 2019, "
    "doi:10.1109/TAFFC.2017.2736999",
    read=_read,
)
