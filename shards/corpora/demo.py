"""The embedded corpus: 600 short emotional utterances that eSpeak NG speaks, so that everything can be tried offline.

It is made from a seed. An emotion is a setting of pitch, pitch range, rate, loudness and pauses, jittered around means
that overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.corpora.base import CorpusReader
from shards.corpora.espeak import DemoSpeech, Prosody, espeak
from shards.errors import CorpusError
from shards.labels import FOUR_EMOTIONS
from shards.schema import Rejection, SourceUtterance, Split, Utterance, make_key

NUM_UTTERANCES_PER_VOICE = 50


@dataclass(frozen=True)
class Voice:
    """One speaker: a variant of eSpeak NG's American English with its own pitch."""

    name: str
    """The variant, also the speaker's id; its first letter is the gender's."""
    age: float
    pitch: float
    """Added to an emotion's pitch, on eSpeak NG's scale."""
    split: Split

    @property
    def gender(self) -> str:
        """`female` or `male`."""
        return "male" if self.name.startswith("m") else "female"


VOICES = (
    Voice("f1", 24, 2, "train"),
    Voice("f2", 33, -2, "test"),
    Voice("f3", 41, -3, "train"),
    Voice("f4", 29, 3, "train"),
    Voice("f5", 52, -4, "train"),
    Voice("steph", 38, 2, "train"),
    Voice("m1", 37, -1, "train"),
    Voice("m2", 26, 1, "train"),
    Voice("m3", 45, -2, "dev"),
    Voice("m4", 31, 2, "train"),
    Voice("m5", 49, 0, "test"),
    Voice("m7", 58, 1, "train"),
)


_MEAN = {
    "anger": Prosody(55, 52, 204, 96, 0.2, 0.5, -5),
    "happiness": Prosody(76, 88, 186, 80, 0.4, 0.2, -5),
    "neutral": Prosody(46, 42, 174, 66, 0.3, -0.05, -5),
    "sadness": Prosody(33, 16, 145, 48, 1.6, -0.5, -5),
}
_DEVIATION = Prosody(6, 10, 10, 10, 0.7, 0.12, 2)
"""Standard deviations, the same for every emotion."""
_LOWEST = Prosody(0, 0, 138, 30, 0, -0.7, -12)
_HIGHEST = Prosody(99, 99, 215, 100, 2, 0.7, 0)


def draw_prosody(emotion: str, voice: Voice, rng: np.random.Generator) -> Prosody:
    """Return the prosody of one utterance: the emotion's mean, the voice's pitch and a normal jitter, within bounds."""
    values = {}
    for name, mean in vars(_MEAN[emotion]).items():
        centre = mean + (voice.pitch if name == "pitch" else 0.0)
        value = centre + getattr(_DEVIATION, name) * float(rng.standard_normal())
        values[name] = min(max(value, getattr(_LOWEST, name)), getattr(_HIGHEST, name))
    return Prosody(**values)


SCRIPTED_SENTENCES = (
    "the red door is open again",
    "my brother took the last train",
    "we will meet at the old bridge",
    "the letter came this morning",
    "she left her bag on the table",
    "they sold the house by the river",
    "the green lamp is in the garden",
    "i found your key in the car",
    "he will be home again in an hour",
    "our teacher lost the blue book",
    "the boat is ready for the night",
    "you can put the cup in the box",
    "my friend will call you on monday",
    "the window was closed all day",
    "we have seven tickets for the train",
    "the new road goes to the sea",
)
_OPENERS = ("well", "okay", "maybe", "oh", "yes", "no", "look", "listen", "so", "right", "sure", "fine")
_SUBJECTS = ("i", "you", "we", "they", "she", "he", "my friend", "your sister", "our teacher", "the kids")
_VERBS = ("found", "lost", "saw", "took", "wanted", "opened", "closed", "moved", "sold", "painted", "cleaned", "broke")
_QUALITIES = ("red", "blue", "green", "old", "new", "small", "big", "empty", "heavy", "broken", "white", "last")
_THINGS = (
    "door", "window", "boat", "book", "letter", "garden", "table", "car", "lamp", "cup", "key", "house", "river",
    "bridge", "train", "ticket", "box", "bag", "road", "mountain", "clock", "bottle", "paper", "chair",
)  # fmt: skip
_ENDINGS = ("again", "today", "yesterday", "this morning", "last night", "at home", "in town", "by the sea")


def draw_text(style: str, rng: np.random.Generator) -> str:
    """Return a fixed sentence (`scripted`) or, `improvised`, a loose phrase or a list of six things."""
    if style == "scripted":
        return _pick(SCRIPTED_SENTENCES, rng)
    if rng.random() < 0.5:
        return " ".join(_pick(_THINGS, rng) for _ in range(6))
    start = [_pick(_OPENERS, rng), _pick(_SUBJECTS, rng), _pick(_VERBS, rng), "the"]
    if rng.random() < 0.5:
        return " ".join([*start, _pick(_QUALITIES, rng), _pick(_THINGS, rng)])
    return " ".join([*start, _pick(_THINGS, rng), _pick(_ENDINGS, rng)])


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def utterances(seed: int) -> Iterator[SourceUtterance]:
    """Yield the corpus in order of voices; an utterance depends on `seed` and its own key only.

    Raises:
        CorpusError: if eSpeak NG is not installed.
    """
    espeak()
    for voice in VOICES:
        for number in range(NUM_UTTERANCES_PER_VOICE):
            yield _utterance(seed, voice, number)


def _utterance(seed: int, voice: Voice, number: int) -> SourceUtterance:
    # 50 utterances do not divide by four emotions: voices begin with different ones, so that all occur equally often.
    emotion = FOUR_EMOTIONS[(number + 2 * VOICES.index(voice)) % len(FOUR_EMOTIONS)]
    style = ("scripted", "improvised")[number // len(FOUR_EMOTIONS) % 2]
    key = make_key("demo", f"{voice.name}-{number:02d}")
    hashed = _hash(seed, key)
    rng = np.random.default_rng(hashed)
    text = draw_text(style, rng)
    speech = DemoSpeech(voice.name, text, draw_prosody(emotion, voice, rng), noise_seed=hashed & 0x7FFFFFFF)
    utterance = Utterance(
        key=key,
        corpus="demo",
        source=f"{voice.name}-{number:02d}",
        text=text,
        language="en",
        emotion=emotion,
        gender=voice.gender,
        speaker=voice.name,
        age=voice.age,
        style=style,
        split=voice.split,
    )
    return SourceUtterance(utterance, speech)


def _read(source: Path | None, seed: int) -> Iterator[SourceUtterance | Rejection]:
    if source not in (None, Path("-")):
        raise CorpusError(f"the embedded corpus is made, not read: SOURCE must be -, got {source}")
    yield from utterances(seed)


READER = CorpusReader(
    name="demo",
    title="Embedded synthetic corpus, spoken by eSpeak NG",
    licence="Apache-2.0",
    citation="eSpeak NG, https://github.com/espeak-ng/espeak-ng",
    read=_read,
)
