"""CREMA-D: 91 actors speak twelve sentences in six emotions; labels stand in the names, age and sex in a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import audio_files, has_file, read_table
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.labels import canonical_gender
from shards.numbers import finite_number
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
_TEXTS = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
# One published file, 1040_ITH_SAD_X, has lost a letter of XX, which means that no level was asked for.
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": None, "X": None}
_NAME = re.compile(r"(?P<actor>[0-9]{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{1,2})")
_DEMOGRAPHICS = "VideoDemographics.csv"


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    wavs = [] if source is None else audio_files(source / "AudioWAV")
    if source is None or not wavs or not has_file(source / _DEMOGRAPHICS):
        raise CorpusError(
            f"not a CREMA-D folder: {source} must hold AudioWAV with .wav files and {_DEMOGRAPHICS}; give the clone of "
            "the repository"
        )
    actors: dict[str, tuple[str, float]] = {}
    for row in read_table(
        source / _DEMOGRAPHICS, ("ActorID", "Age", "Sex"), options, key="ActorID", is_key=str.isdecimal
    ):
        if not isinstance(row, tuple):
            yield row
            continue
        name, cells = row
        try:
            actors[cells["ActorID"]] = (canonical_gender(cells["Sex"]), finite_number(cells["Age"]))
        except (CorpusError, ValueError):
            yield Rejection(name, f"a row must have sex and age, got {cells['Sex']!r} and {cells['Age']!r}", "bad row")
    for path in wavs:
        yield _item(path, actors)


def _item(path: Path, actors: dict[str, tuple[str, float]]) -> SourceUtterance | Rejection:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return Rejection(
            str(path),
            f"a name must be actor, sentence, emotion and level like 1001_DFA_ANG_XX, got {path.stem!r}",
            "unknown file name",
        )
    unknown = [
        f"{part} {match[part]!r} is none of {', '.join(known)}"
        for part, known in (("sentence", _TEXTS), ("emotion", _EMOTIONS), ("level", _LEVELS))
        if match[part] not in known
    ]
    if unknown:
        return Rejection(str(path), "; ".join(unknown), "unknown label")
    if match["actor"] not in actors:
        return Rejection(str(path), f"actor {match['actor']} has no usable row in {_DEMOGRAPHICS}", "audio without row")
    gender, age_years = actors[match["actor"]]
    utterance = Utterance(
        key=make_key("crema-d", path.stem),
        corpus="crema-d",
        source=f"AudioWAV/{path.name}",
        text=_TEXTS[match["sentence"]],
        language="en",
        emotion=_EMOTIONS[match["emotion"]],
        gender=gender,
        speaker=match["actor"],
        age=age_years,
        style="scripted",
        intensity=_LEVELS[match["level"]],
    )
    return SourceUtterance(utterance, AudioFile(path))


READER = published_reader(
    name="crema-d",
    title="CREMA-D, Crowd-sourced Emotional Multimodal Actors Dataset",
    licence="ODbL-1.0, contents under DbCL-1.0",
    citation="H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova, R. Verma: CREMA-D: Crowd-sourced Emotional "
    "Multimodal Actors Dataset. IEEE Transactions on Affective Computing 5(4), 2014, doi:10.1109/TAFFC.2014.2336244",
    read=_read,
)
