"""EMO-DB: ten German actors speak ten sentences in seven emotions; all labels stand in the file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import CorpusReader, in_folder
from shards.corpora.files import audio_files, has_file
from shards.errors import CorpusError
from shards.inputfile import MAX_TEXT_BYTES, read_regular
from shards.numbers import finite_number
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

# The letters are German words: A is Angst (fear), not anger.
_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
_SPEAKERS: dict[str, tuple[str, float]] = {
    "03": ("male", 31),
    "08": ("female", 34),
    "09": ("female", 21),
    "10": ("male", 32),
    "11": ("male", 26),
    "12": ("male", 30),
    "13": ("female", 32),
    "14": ("female", 35),
    "15": ("male", 25),
    "16": ("female", 31),
}
"""Gender and age in years."""
_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[A-Z])[a-z]")


def _read(source: Path | None, _seed: int) -> Iterator[SourceUtterance | Rejection]:
    folder = _wav_folder(source)
    listening = _listening_test(folder)
    for path in audio_files(folder):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            yield Rejection(
                str(path),
                f"a name must be speaker, text, emotion and take like 03a01Fa, got {path.stem!r}",
                "unknown file name",
            )
            continue
        unknown = [
            f"{part} {match[part]!r} is none of {', '.join(known)}"
            for part, known in (("speaker", _SPEAKERS), ("text", _TEXTS), ("emotion", _EMOTIONS))
            if match[part] not in known
        ]
        if unknown:
            yield Rejection(str(path), "; ".join(unknown), "unknown label")
            continue
        gender, age_years = _SPEAKERS[match["speaker"]]
        utterance = Utterance(
            key=make_key("emodb", path.stem),
            corpus="emodb",
            source=path.name,
            text=_TEXTS[match["text"]],
            language="de",
            emotion=_EMOTIONS[match["emotion"]],
            gender=gender,
            speaker=match["speaker"],
            age=age_years,
            style="scripted",
            extra=dict(listening.get(path.stem, {})),
        )
        yield SourceUtterance(utterance, AudioFile(path))


def _wav_folder(source: Path | None) -> Path:
    if source is not None:
        for folder in (source / "wav", source):
            if audio_files(folder):
                return folder
    raise CorpusError(f"not an EMO-DB folder: neither {source}/wav nor {source} holds a .wav file; give its folder")


def _listening_test(folder: Path) -> dict[str, dict[str, float]]:
    """Return the percentages of `erkennung.txt` by take, where the file is; it lists takes without audio, too."""
    places = [place / "erkennung.txt" for place in (folder, folder.parent)]
    table = next((place for place in places if has_file(place)), None)
    if table is None:
        return {}
    percentages = {}
    try:
        lines = read_regular(table, max_bytes=MAX_TEXT_BYTES).decode("latin-1").splitlines()
    except OSError as error:
        raise CorpusError(f"{table} must be text that can be read, but cannot: {error.strerror}") from error
    for number, line in enumerate(lines[1:], start=2):
        # Cells are padded with no-break spaces, which strip() takes away.
        cells = [cell.strip() for cell in line.split("\t")]
        if not any(cells):
            continue
        try:
            _, name, recognised, natural = cells
            percentages[name.removesuffix(".wav")] = {
                "recognised_percent": finite_number(recognised),
                "natural_percent": finite_number(natural),
            }
        except ValueError as error:
            raise CorpusError(
                f"{table} must hold a number, a file and two percentages per line, but line {number} is {line[:80]!r}; "
                "restore or remove the file"
            ) from error
    return percentages


READER = CorpusReader(
    name="emodb",
    title="EMO-DB, Berlin Database of Emotional Speech",
    licence="CC0-1.0",
    citation="F. Burkhardt, A. Paeschke, M. Rolfes, W. F. Sendlmeier, B. Weiss: A Database of German Emotional Speech. "
    "Interspeech 2005, doi:10.21437/Interspeech.2005-446",
    read=in_folder("EMO-DB", _read),
)
