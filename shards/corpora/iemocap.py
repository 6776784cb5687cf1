"""IEMOCAP: five sessions of two actors each, improvised and scripted dialogues, every turn judged by several people."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.audio import AudioFile
from shards.corpora.base import Found, published_reader
from shards.corpora.files import TextFiles, audio_files, has_file
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.labels import canonical_emotion
from shards.numbers import finite_number
from shards.schema import Rejection, SourceUtterance, Utterance, make_key

_NUM_SESSIONS = 5
_EMOTIONS: dict[str, str | None] = {
    "ang": "anger",
    "dis": "disgust",
    "exc": "excitement",
    "fea": "fear",
    "fru": "frustration",
    "hap": "happiness",
    "neu": "neutral",
    "oth": "other",
    "sad": "sadness",
    "sur": "surprise",
    # The annotators did not agree.
    "xxx": None,
}
_STYLES = {"impro": "improvised", "script": "scripted"}
_DIALOGUE = re.compile(r"Ses0(?P<session>[1-5])[FM]_(?P<style>impro|script)[0-9a-z_]{1,20}")
_TURN = re.compile(r"(?P<gender>[FM])[0-9A-Z]{1,8}")
_HEAD = re.compile(
    r"\[(?P<start>[^]]{1,60}?) - (?P<end>[^]]++)\]\s++(?P<turn>\S++)\s++(?P<label>\S++)\s++"
    r"\[(?P<valence>[^],]++),(?P<arousal>[^],]++),(?P<dominance>[^],]++)\]"
)
# C-E1 is an outside annotator; C-F1 and C-M1 are the actors about themselves, whom the consensus leaves out.
_VOTE = re.compile(r"C-E[0-9]+:(?P<words>[^(]*)")
_TRANSCRIPT = re.compile(r"(?P<turn>\S+) \[[^]]*\]:?(?P<text>.*)")
_NUMBERS = ("start", "end", "valence", "arousal", "dominance")


@dataclass(frozen=True)
class _Dialogue:
    """One dialogue's name and what lies about it in the session's folder."""

    name: str
    session: str
    style: str
    wavs: dict[str, Path]
    """By turn."""
    texts: dict[str, str]
    """By turn."""


def _read(source: Path | None, options: ReadOptions) -> Iterator[Found]:
    root = _root(source)
    files = TextFiles(options)
    for number in range(1, _NUM_SESSIONS + 1):
        session = root / f"Session{number}"
        if _evaluations(session):
            yield from _read_session(session, files)
        else:
            yield Rejection(
                str(session),
                f"each of {_NUM_SESSIONS} sessions must have labels, but dialog/EmoEvaluation of {session.name} holds "
                "no .txt file",
                "missing session",
            )
    yield from files.notes()


def _root(source: Path | None) -> Path:
    if source is not None:
        for root in (source, source / "IEMOCAP_full_release"):
            if any(_evaluations(root / f"Session{number}") for number in range(1, _NUM_SESSIONS + 1)):
                return root
    raise CorpusError(
        f"not an IEMOCAP folder: no {source}/SessionN/dialog/EmoEvaluation holds .txt files; give the folder that has "
        "Session1 to Session5 (IEMOCAP_full_release)"
    )


def _evaluations(session: Path) -> list[Path]:
    """Return the label files of a session; the folders beside them hold each annotator's forms."""
    return audio_files(session / "dialog" / "EmoEvaluation", (".txt",))


def _read_session(session: Path, files: TextFiles) -> Iterator[SourceUtterance | Rejection]:
    wavs: dict[str, dict[str, Path]] = {}
    for folder in sorted((session / "sentences" / "wav").glob("Ses*")):
        wavs[folder.name] = {path.stem: path for path in audio_files(folder)}
    named: set[str] = set()
    for table in _evaluations(session):
        match = _DIALOGUE.fullmatch(table.stem)
        if match is None:
            yield Rejection(
                str(table), f"a name must be a dialogue like Ses01F_impro01, got {table.stem!r}", "unknown file name"
            )
            continue
        if session.name != f"Session{match['session']}":
            yield Rejection(
                str(table), f"a dialogue of {table.stem[:5]} must not lie in {session.name}", "wrong folder"
            )
            continue
        texts = _texts(session / "dialog" / "transcriptions" / f"{table.stem}.txt", files)
        dialogue = _Dialogue(table.stem, session.name, _STYLES[match["style"]], wavs.get(table.stem, {}), texts)
        for head, votes in _blocks(files.read(table)):
            named.update(head.split())
            yield _item(dialogue, table, head, votes)
    for by_turn in wavs.values():
        for path in by_turn.values():
            if path.stem not in named:
                yield Rejection(
                    str(path), f"no usable line of dialog/EmoEvaluation is about {path.stem}", "audio without row"
                )


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each turn's first line, `[start - end] turn label [v, a, d]`, and the lines below it."""
    head, below = None, []
    for line in [*text.split("\n"), "["]:
        if not line.startswith("["):
            below.append(line)
            continue
        if head is not None:
            yield head, below
        head, below = line.strip(), []


def _item(dialogue: _Dialogue, table: Path, head: str, below: Sequence[str]) -> SourceUtterance | Rejection:
    match = _HEAD.fullmatch(head)
    if match is None:
        return Rejection(
            str(table),
            f"a line must be [start - end], turn, label and [valence, arousal, dominance], got {head[:120]!r}",
            "bad row",
        )
    turn, label = match["turn"], match["label"]
    prefix, _, speaker_and_number = turn.rpartition("_")
    part = _TURN.fullmatch(speaker_and_number)
    if part is None or prefix != dialogue.name:
        return Rejection(
            str(table), f"a turn must be named like {dialogue.name}_F000, got {turn[:120]!r}", "unknown file name"
        )
    if label not in _EMOTIONS:
        return Rejection(
            str(table), f"label {label[:40]!r} of {turn} is none of {', '.join(_EMOTIONS)}", "unknown label"
        )
    try:
        number = {name: finite_number(match[name]) for name in _NUMBERS}
    except ValueError as error:
        return Rejection(str(table), f"the times and ratings of {turn} must be numbers, but {error}", "bad number")
    if turn not in dialogue.wavs:
        return Rejection(
            str(table), f"{turn} has no file sentences/wav/{dialogue.name}/{turn}.wav", "row without audio"
        )
    path = dialogue.wavs[turn]
    utterance = Utterance(
        key=make_key("iemocap", turn),
        corpus="iemocap",
        source=f"{dialogue.session}/sentences/wav/{dialogue.name}/{path.name}",
        text=dialogue.texts.get(turn),
        language="en",
        emotion=_EMOTIONS[label],
        emotion_votes=_votes(below),
        valence=number["valence"],
        arousal=number["arousal"],
        dominance=number["dominance"],
        # A dialogue's name tells whose motion was captured; who speaks stands at the end of the turn's.
        gender="female" if part["gender"] == "F" else "male",
        speaker=f"{dialogue.name[:5]}{part['gender']}",
        style=dialogue.style,
        session=dialogue.session,
        dialogue=dialogue.name,
        turn=part[0],
        extra={"start_s": number["start"], "end_s": number["end"]},
    )
    return SourceUtterance(utterance, AudioFile(path))


def _votes(lines: Sequence[str]) -> dict[str, float] | None:
    """Return how many outside annotators chose each emotion; one who chose several gives each an equal share."""
    votes: dict[str, float] = defaultdict(float)
    for line in lines:
        match = _VOTE.match(line.strip())
        words = [word.strip() for word in match["words"].split(";") if word.strip()] if match else []
        for word in words:
            votes[_voted_emotion(word)] += 1 / len(words)
    return dict(votes) or None


def _voted_emotion(word: str) -> str:
    try:
        return canonical_emotion(word.removesuffix(" state"))
    except CorpusError:
        # Annotators could write a word of their own.
        return "other"


def _texts(path: Path, files: TextFiles) -> dict[str, str]:
    """Return the words of each turn; they stand as `Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.` or alike."""
    if not has_file(path):
        return {}
    matches = (_TRANSCRIPT.fullmatch(line.strip()) for line in files.read(path).split("\n"))
    return {match["turn"]: match["text"].strip() for match in matches if match and match["text"].strip()}


READER = published_reader(
    name="iemocap",
    title="IEMOCAP, Interactive Emotional Dyadic Motion Capture Database",
    licence="by agreement with the University of Southern California, for research",
    citation="C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, J. N. Chang, S. Lee, S. S. Narayanan: "
    "IEMOCAP: Interactive emotional dyadic motion capture database. Language Resources and Evaluation 42, 2008, "
    "doi:10.1007/s10579-008-9076-6",
    read=_read,
    obeys=frozenset({"encoding"}),
)
