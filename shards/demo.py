"""The embedded corpus: 600 short emotional utterances that eSpeak NG speaks, so that everything can be tried offline.

An emotion is a setting of pitch, pitch range, rate, loudness and pauses, jittered around means that overlap.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16

from shards.errors import AudioError, CorpusError
from shards.labels import FOUR_EMOTIONS
from shards.schema import SourceUtterance, Split, Utterance, make_key

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


@dataclass(frozen=True)
class Prosody:
    """What eSpeak NG can vary in a voice, on its own scales, and what is done to its output."""

    pitch: float
    """0 to 99; 50 is the voice's own."""
    pitch_range: float
    """0 (monotone) to 99; 50 is the voice's own."""
    rate_wpm: float
    volume: float
    """0 to 100, in proportion to the amplitude."""
    word_gap: float
    """Extra pause between words in steps of 10 ms."""
    effort: float
    """-0.6 to 0.6: tilts the spectrum, as loud voices are bright and soft ones dull."""
    gain_db: float


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


def shape(pcm: Int16[np.ndarray, " T"], prosody: Prosody) -> Float32[np.ndarray, " T"]:
    """Return eSpeak NG's output with the prosody's spectral tilt and gain, within [-1, 1]."""
    samples = pcm.astype(np.float32) / 32_768
    previous = np.concatenate([samples[:1], samples[:-1]])
    tilted = (samples - np.float32(prosody.effort) * previous) / np.float32(1 + abs(prosody.effort))
    return tilted * np.float32(10 ** (prosody.gain_db / 20))


@dataclass(frozen=True)
class DemoSpeech:
    """One utterance to be spoken; every `load` gives the same samples, in any order and process."""

    voice: str
    text: str
    prosody: Prosody
    noise_seed: int
    """31 bits for eSpeak NG's own noise."""

    def load(self) -> tuple[Float32[np.ndarray, " T"], int]:
        """Return float32 samples in [-1, 1], shape `(T,)`, and their rate in Hz.

        Raises:
            CorpusError: if espeakng-loader is not installed.
            AudioError: if eSpeak NG does not speak.
        """
        _, rate_hz = _espeak()
        return shape(self._speak_in_child(), self.prosody), rate_hz

    def _speak_in_child(self) -> np.ndarray:
        """Synthesise in a forked child: eSpeak NG's output depends on all that its process has spoken before."""
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(read_end)
                with os.fdopen(write_end, "wb") as pipe:
                    pipe.write(self._speak())
                status = 0
            finally:
                # Not sys.exit: the parent's buffers and exit handlers are not the child's to run.
                os._exit(status)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            spoken = pipe.read()
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if exit_code != 0 or not spoken:
            raise AudioError(
                f"eSpeak NG must speak {self.text!r} as {self.voice!r}, but its process ended with code "
                f"{exit_code} after {len(spoken)} bytes; reinstall espeakng-loader"
            )
        return np.frombuffer(spoken, dtype=np.int16)

    def _speak(self) -> bytes:
        """Return 16-bit samples, none if any call of the library failed."""
        library, _ = _espeak()
        blocks: list[bytes] = []

        def collect(samples: int | None, num_samples: int, _events: int | None) -> int:
            if samples is not None:
                blocks.append(ctypes.string_at(samples, 2 * num_samples))
            return 0

        callback = _SYNTH_CALLBACK(collect)
        library.espeak_SetSynthCallback(callback)
        statuses = [library.espeak_SetVoiceByName(f"en-us+{self.voice}".encode())]
        for parameter, value in (
            (_RATE, self.prosody.rate_wpm),
            (_VOLUME, self.prosody.volume),
            (_PITCH, self.prosody.pitch),
            (_RANGE, self.prosody.pitch_range),
            (_WORD_GAP, self.prosody.word_gap),
        ):
            statuses.append(library.espeak_SetParameter(parameter, round(value), 0))
        statuses.append(library.espeak_ng_SetRandSeed(ctypes.c_long(self.noise_seed)))
        text = self.text.encode()
        size = ctypes.c_size_t(len(text) + 1)
        statuses.append(library.espeak_Synth(text, size, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None))
        return b"" if any(statuses) else b"".join(blocks)


# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@functools.cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """Return the initialised library, which never speaks in this process, and its sample rate in Hz."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise CorpusError(
            "the embedded corpus needs eSpeak NG, but the package espeakng-loader is not installed; "
            'run pip install "metaser[demo]"'
        ) from error
    data_path = espeakng_loader.get_data_path()
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    # eSpeak NG takes no path of more than 160 bytes, so it gets the folder by descriptor, open as long as the process.
    folder = os.open(data_path, os.O_RDONLY | os.O_DIRECTORY)
    rate_hz = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, f"/proc/self/fd/{folder}".encode(), _DONT_EXIT)
    if rate_hz <= 0:
        raise CorpusError(
            f"eSpeak NG must find its voices, but initialising it with {data_path} returned {rate_hz}; reinstall "
            "espeakng-loader"
        )
    return library, rate_hz


def _hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def utterances(seed: int) -> Iterator[SourceUtterance]:
    """Yield the corpus in order of voices; an utterance depends on `seed` and its own key only.

    Raises:
        CorpusError: if eSpeak NG is not installed.
    """
    _espeak()
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
