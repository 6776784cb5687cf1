"""RAVDESS: 24 actors speak and sing two sentences in eight emotions; all labels stand in the file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import CorpusReader, in_folder
from shards.corpora.files import audio_files
from shards.errors import CorpusError
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

_CODES: dict[str, dict[str, str]] = {
    # 01 and 02 are videos with and without sound; the audio of 01 is published again as 03.
    "modality": {"03": "audio-only"},
    "vocal channel": {"01": "speech", "02": "song"},
    "emotion": {
        "01": "neutral",
        "02": "calm",
        "03": "happiness",
        "04": "sadness",
        "05": "anger",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
    "intensity": {"01": "normal", "02": "strong"},
    "statement": {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."},
    "repetition": {"01": "1", "02": "2"},
    # Odd actors are men, even ones women.
    "actor": {f"{number:02d}": "male" if number % 2 else "female" for number in range(1, 25)},
}
"""The seven parts of a name, in order, and what their codes mean."""
_NAME = re.compile("-".join(["([0-9]{2})"] * len(_CODES)))


def _read(source: Path | None, _seed: int) -> Iterator[SourceUtterance | Rejection]:
    if source is None or not any(audio_files(folder) for folder in _actor_folders(source)):
        raise CorpusError(
            f"not a RAVDESS folder: neither {source} nor a folder in it has folders Actor_01 to Actor_24 with .wav "
            "files; give the folder that the archives were unpacked into"
        )
    for folder in _actor_folders(source):
        for path in audio_files(folder):
            yield _item(path, path.relative_to(source).as_posix())


def _actor_folders(source: Path) -> list[Path]:
    """Return the actors' folders in `source` and in its folders: speech and song are two archives with equal ones."""
    return [folder for pattern in ("Actor_*", "*/Actor_*") for folder in sorted(source.glob(pattern))]


def _item(path: Path, name: str) -> SourceUtterance | Rejection:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return Rejection(
            str(path),
            f"a name must have {len(_CODES)} numbers like 03-01-06-01-02-01-12, got {path.stem!r}",
            "unknown file name",
        )
    codes = dict(zip(_CODES, match.groups(), strict=True))
    unknown = [
        f"{part} {code!r} is none of {', '.join(_CODES[part])}"
        for part, code in codes.items()
        if code not in _CODES[part]
    ]
    if unknown:
        return Rejection(str(path), "; ".join(unknown), "unknown label")
    actor = codes["actor"]
    if path.parent.name != f"Actor_{actor}":
        return Rejection(str(path), f"a file of actor {actor} must not lie in {path.parent.name}", "wrong folder")
    value = {part: _CODES[part][code] for part, code in codes.items()}
    utterance = Utterance(
        key=make_key("ravdess", path.stem),
        corpus="ravdess",
        source=name,
        text=value["statement"],
        language="en",
        emotion=value["emotion"],
        gender=value["actor"],
        speaker=actor,
        style="scripted",
        intensity=value["intensity"],
        extra={"vocal_channel": value["vocal channel"], "repetition": int(value["repetition"])},
    )
    return SourceUtterance(utterance, AudioFile(path))


READER = CorpusReader(
    name="ravdess",
    title="RAVDESS, Ryerson Audio-Visual Database of Emotional Speech and Song",
    licence="CC-BY-NC-SA-4.0",
    citation="S. R. Livingstone, F. A. Russo: The Ryerson Audio-Visual Database of Emotional Speech and Song "
    "(RAVDESS). PLoS ONE 13(5), 2018, doi:10.1371/journal.pone.0196391",
    read=in_folder("RAVDESS", _read),
)
