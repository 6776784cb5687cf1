"""eSpeak NG's voice: a text spoken with a prosody, the same samples every time."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16

from shards.errors import AudioError, CorpusError


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
        _, rate_hz = espeak()
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
        library, _ = espeak()
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
def espeak() -> tuple[ctypes.CDLL, int]:
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
