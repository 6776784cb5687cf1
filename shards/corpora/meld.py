"""MELD: dialogues of the series Friends, one video clip per utterance, labels and words in three tables.

The clips are published as .mp4. Their sound must lie beside them as .wav or .flac, because nothing here reads video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import audio_files, read_table
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.inputfile import ABSENT, fault_of
from shards.labels import canonical_emotion
from shards.schema import SPLITS, Rejection, SourceUtterance, Split, Utterance, make_key

_CLIP_FOLDERS: dict[Split, str] = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode")
_SUFFIXES = (".wav", ".flac")
"""Of extracted sound; the first one there is taken."""
_SECOND_CUT = "final_videos_test"
"""Prefix of clips in the test folder that exist a second time under their plain name."""
_KNOWN_TO_BE_MISSING = {
    "train_splits/dia125_utt3": "the published dia125_utt3.mp4 is damaged and has no sound",
    "dev_splits_complete/dia110_utt7": "the published archive has no clip of this utterance",
}
_EXTRACT = 'for f in */*.mp4; do ffmpeg -i "$f" -vn -ac 1 -ar 16000 "${f%.mp4}.wav"; done'
_CONTROLS = {
    byte: bytes([byte]).decode("cp1252") for byte in range(0x80, 0xA0) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
"""The training table has Windows' quotation marks and dashes as the control characters of the same number."""


@dataclass(frozen=True)
class _Clips:
    """The clips of one split, by name without suffix."""

    folder: Path
    audio: dict[str, Path]
    videos: frozenset[str]


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    if source is None:
        raise CorpusError("SOURCE must be the folder of MELD, got -")
    parts = {split: (_find(source, split, f"{split}_sent_emo.csv"), _clips(source, split)) for split in _CLIP_FOLDERS}
    for split, (table, clips) in parts.items():
        named = set()
        for row in read_table(table, _COLUMNS, options, key="Dialogue_ID", is_key=str.isdecimal):
            if not isinstance(row, tuple):
                yield row
                continue
            named.add(_stem(row[1]))
            yield _item(split, *row, clips)
        yield from _unnamed(table, clips, named)


def _unnamed(table: Path, clips: _Clips, named: set[str | None]) -> Iterator[Rejection]:
    """Yield the clips that no row takes."""
    for stem, path in clips.audio.items():
        plain = stem.removeprefix(_SECOND_CUT)
        if plain not in named:
            yield Rejection(str(path), f"no row of {table.name} is about {plain}", "audio without row")
        elif plain != stem and plain in clips.audio:
            yield Rejection(str(path), f"the clip {plain} is there under its plain name, too", "second cut")


def _stem(cells: dict[str, str]) -> str | None:
    """Return the name of a row's clip, `dia0_utt0`, or None if it cannot have one."""
    numbers = (cells["Dialogue_ID"], cells["Utterance_ID"])
    if not all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
        return None
    return "dia{}_utt{}".format(*map(int, numbers))


def _find(source: Path, split: str, name: str) -> Path:
    """Return `name` in `source`, or in the folder that the split's own archive unpacks into."""
    for place in (source, source / split):
        fault = fault_of(place / name)
        if fault is None:
            return place / name
        if fault != ABSENT:
            raise CorpusError(f"{place / name} must be there to be read, but it {fault}; correct it")
    raise CorpusError(
        f"not a MELD folder: {name} is neither in {source} nor in {source / split}; give MELD.Raw with its archives "
        f"unpacked: {', '.join(f'{part}_sent_emo.csv' for part in SPLITS)}, {', '.join(_CLIP_FOLDERS.values())}"
    )


def _clips(source: Path, split: Split) -> _Clips:
    folder = _find(source, split, _CLIP_FOLDERS[split])
    # In reverse, so that the suffix named first overwrites the others.
    audio = {path.stem: path for suffix in reversed(_SUFFIXES) for path in audio_files(folder, (suffix,))}
    videos = frozenset(path.stem for path in audio_files(folder, (".mp4",)))
    if not audio:
        raise CorpusError(
            f"the sound of MELD must be extracted from its videos first, but {folder} has {len(videos)} .mp4 and no "
            f".wav or .flac files; run this in {folder.parent}: {_EXTRACT}"
        )
    return _Clips(folder, dict(sorted(audio.items())), videos)


def _item(split: Split, name: str, cells: dict[str, str], clips: _Clips) -> SourceUtterance | Rejection:
    stem = _stem(cells)
    if stem is None:
        return Rejection(
            name,
            f"Dialogue_ID and Utterance_ID must be numbers, got {cells['Dialogue_ID'][:40]!r} and "
            f"{cells['Utterance_ID'][:40]!r}",
            "bad number",
        )
    path = clips.audio.get(stem, clips.audio.get(f"{_SECOND_CUT}{stem}"))
    if path is None:
        return _missing(name, stem, clips)
    try:
        emotion = canonical_emotion(cells["Emotion"])
    except CorpusError as error:
        return Rejection(name, str(error), "unknown label")
    utterance = Utterance(
        key=make_key("meld", split, stem),
        corpus="meld",
        source=f"{clips.folder.name}/{path.name}",
        text=_repaired(cells["Utterance"]) or None,
        language="en",
        emotion=emotion,
        speaker=_repaired(cells["Speaker"]) or None,
        dialogue=f"{split}/{stem.partition('_')[0]}",
        turn=stem.partition("_")[2],
        split=split,
        extra={column.lower(): cells[column] for column in ("Sentiment", "Season", "Episode") if cells[column]},
    )
    return SourceUtterance(utterance, AudioFile(path))


def _missing(name: str, stem: str, clips: _Clips) -> Rejection:
    known = _KNOWN_TO_BE_MISSING.get(f"{clips.folder.name}/{stem}")
    if known is not None:
        return Rejection(name, f"{stem} has no sound: {known}", "row without audio")
    if stem in clips.videos:
        return Rejection(
            name,
            f"the sound of {stem}.mp4 is not extracted (ffmpeg -i {stem}.mp4 -vn -ac 1 -ar 16000 {stem}.wav)",
            "sound not extracted",
        )
    return Rejection(name, f"{stem} has no file in {clips.folder.name}", "row without audio")


def _repaired(text: str) -> str:
    """Return `text` with the characters that were lost between Windows' code page and UTF-8."""
    text = text.translate(_CONTROLS)
    try:
        # Some copies hold UTF-8 that was once read as code page 1252. Of undamaged text only ASCII survives this, and
        # stays as it is.
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text


READER = published_reader(
    name="meld",
    title="MELD, Multimodal EmotionLines Dataset",
    licence="GPL-3.0 for the annotations; the clips are of a television series and not the authors' own",
    citation="S. Poria, D. Hazarika, N. Majumder, G. Naik, E. Cambria, R. Mihalcea: MELD: A Multimodal Multi-Party "
    "Dataset for Emotion Recognition in Conversations. ACL 2019, doi:10.18653/v1/P19-1050",
    read=_read,
)
