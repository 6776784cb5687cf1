"""Audio of a corpus as it is loaded, and the one form that shards store: 16 kHz, mono, 16-bit FLAC.

Nothing is guessed: audio that is unreadable, cut short, empty or not finite is an error that names the file.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from jaxtyping import Float32, Int16

from shards.decoding import DECODER_ERRORS, SequentialFile, appended, decode_to, decoder_reason
from shards.errors import AudioError
from shards.limits import MAX_CLIP_S, too_long
from shards.oggpages import begins_with_opus, lacks_end
from shards.parts import Part, hear_file, hear_part, load_file, load_part
from shards.schema import RATE_HZ

_FULL_SCALE = 32_768
_PART_SAMPLES = 1 << 18
"""Worked on at once, so that what each step takes does not grow with a recording."""
_FULL = 32_767
MIN_FLAT_SAMPLES = 3
QUIET_PEAK = 33
"""Of 32,768: -60 dB below full scale."""
_OPUS_LOST = (1, 2)
"""Samples fewer than there are that indices of Opus may state, from when it was decoded at a lower rate."""
_MAX_SUMMED_CHANNELS = 7
"""Summed one by one, which gives numpy's mean to the bit; for two that is 25 times as fast as along a short axis."""
CANCELLED = 0.1
"""Share of the channels' power that their mean keeps below which they cancel; it is 1 where they are unlike each
other, 2 where two are the same, and 1 + r where two equally loud ones have the correlation r."""


def to_mono(samples: Float32[np.ndarray, "T *channels"]) -> Float32[np.ndarray, " T"]:
    """Return the mean of the channels."""
    if samples.ndim == 1:
        return samples
    num_channels = samples.shape[1]
    if num_channels > _MAX_SUMMED_CHANNELS:
        mean: np.ndarray = samples.mean(axis=1, dtype=np.float32)
        return mean
    total: np.ndarray = samples[:, 0].astype(np.float32)
    for channel in range(1, num_channels):
        total += samples[:, channel]
    total /= np.float32(num_channels)
    return total


def pcm16(samples: Float32[np.ndarray, " T"]) -> Int16[np.ndarray, " T"]:
    """Return samples as 16-bit integers, clipped to [-1, 1 - 2^-15]."""
    pcm = np.empty(len(samples), np.int16)
    for start in range(0, len(samples), _PART_SAMPLES):
        scaled = samples[start : start + _PART_SAMPLES] * _FULL_SCALE
        np.rint(scaled, out=scaled)
        np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1, out=scaled)
        pcm[start : start + _PART_SAMPLES] = scaled
    return pcm


def pcm_sha256(pcm: Int16[np.ndarray, " T"]) -> bytes:
    """Return the SHA-256 of the little-endian samples: the same for every encoder."""
    return hashlib.sha256(np.ascontiguousarray(pcm, dtype="<i2").data).digest()


def samples_sha256(samples: Float32[np.ndarray, " T"]) -> bytes:
    """Return `pcm_sha256` of what `pcm16` makes of samples, which never stands in memory as a whole."""
    digest = hashlib.sha256()
    for start in range(0, len(samples), _PART_SAMPLES):
        digest.update(np.ascontiguousarray(pcm16(samples[start : start + _PART_SAMPLES]), dtype="<i2").data)
    return digest.digest()


def is_clipped(pcm: Int16[np.ndarray, " T"]) -> bool:
    """Return whether `MIN_FLAT_SAMPLES` in a row are at full scale."""
    if int(pcm.max()) < _FULL and int(pcm.min()) > -_FULL:
        return False
    # Parts overlap.
    for start in range(0, len(pcm), _PART_SAMPLES):
        part = pcm[start : start + _PART_SAMPLES + MIN_FLAT_SAMPLES - 1]
        is_full = (part >= _FULL) | (part <= -_FULL)
        if (np.convolve(is_full, np.ones(MIN_FLAT_SAMPLES, np.int8)) == MIN_FLAT_SAMPLES).any():
            return True
    return False


def encode_pcm(pcm: Int16[np.ndarray, " T"]) -> bytes:
    """Return 16-bit FLAC at `RATE_HZ`; equal samples give equal bytes for one version of libsndfile."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm, RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_stored(data: bytes, out: Float32[np.ndarray, " T"]) -> None:
    """Decode what a shard stores into `out`, which must be as long as the clip is at `RATE_HZ`.

    That is FLAC in this one form, or, in adopted shards, anything that `decode_to` reads. Straight into a batch's row:
    on clips of 5 s that takes a fifth less time than decoding into a new array.

    Raises:
        AudioError: if the bytes are damaged, or hold another number of samples.
    """
    try:
        with SequentialFile(data) as file:
            is_ready = (file.samplerate, file.channels, file.frames) == (RATE_HZ, 1, len(out))
            # libsndfile decodes it at the rate that its head states.
            is_ready = is_ready and file.subtype != "OPUS"
            num_samples = len(file.read(dtype="float32", out=out)) if is_ready else 0
    except DECODER_ERRORS as error:
        if data.startswith(b"fLaC"):
            raise AudioError(
                f"a shard's audio must be whole, but decoding failed: {decoder_reason(error)}; pack again"
            ) from error
        is_ready = False
    if not is_ready:
        sound = _Filling("a shard's audio", out)
        decode_to(data, "a shard's audio", sound)
        num_samples = sound.num_filled()
        if begins_with_opus(data) and num_samples - len(out) in _OPUS_LOST:
            num_samples = len(out)
    if num_samples != len(out):
        raise AudioError(f"a shard's audio must have the {len(out)} samples of its index, got {num_samples}")


class Sound:
    """What is heard of audio, made as shards store it block by block: 16 kHz, mono; and what its channels held."""

    most_s: float = MAX_CLIP_S

    def __init__(self, name: str, channel: int | None = None, *, as_pcm: bool = False) -> None:
        """Begin with nothing heard.

        Args:
            name: What errors call it.
            channel: One channel, counted from 1; None mixes them all.
            as_pcm: Whether samples of 16 bits are wanted, not floats.
        """
        self._name = name
        self._channel = channel
        self._as_pcm = as_pcm
        self.begin()

    def begin(self) -> None:
        """Forget what came."""
        self.rate_hz = self.num_samples = 0
        self.num_channels = 1
        """That were mixed."""
        self._samples: np.ndarray = np.empty(0, np.int16 if self._as_pcm else np.float32)
        self._resampler: soxr.ResampleStream | None = None
        self._highest: np.ndarray = np.zeros(0)
        self._power = self._kept = 0.0

    def take(self, samples: Float32[np.ndarray, "T *channels"], rate_hz: int) -> None:
        """Hear the next block.

        Raises:
            AudioError: if there is no such channel, or all that came is too long to be heard as one.
        """
        self.rate_hz, self.num_samples = rate_hz, self.num_samples + len(samples)
        if self.num_samples > self.most_s * rate_hz:
            raise too_long(self._name, self.most_s)
        # What each thing done to a block takes is bounded: at 1,000 Hz it becomes 16 times as long.
        for start in range(0, len(samples), _PART_SAMPLES):
            self._hear(samples[start : start + _PART_SAMPLES])

    def _hear(self, samples: np.ndarray) -> None:
        if self._channel is not None:
            samples = _one_channel(samples, self._channel, self._name)
        mono = to_mono(samples)
        if samples.ndim > 1:
            # Channel by channel: for two, numpy takes 80 times as long over a short axis.
            peaks = np.array([max(float(channel.max()), -float(channel.min())) for channel in samples.T])
            self._highest = np.maximum(self._highest, peaks) if len(self._highest) else peaks
            self._power += float(np.square(samples, dtype=np.float64).sum()) / samples.shape[1] ** 2
            self._kept += float(np.square(mono, dtype=np.float64).sum())
            self.num_channels = samples.shape[1]
        if self.rate_hz != RATE_HZ:
            if self._resampler is None:
                self._resampler = soxr.ResampleStream(self.rate_hz, RATE_HZ, 1, dtype="float32", quality="HQ")
            mono = self._resampler.resample_chunk(np.ascontiguousarray(mono, np.float32))
        self._append(mono)

    def _append(self, mono: np.ndarray) -> None:
        self._samples = appended(self._samples, pcm16(mono) if self._as_pcm else mono)

    def end(self) -> np.ndarray:
        """Return all samples at `RATE_HZ`, once."""
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        samples = self._samples
        self._samples, self._resampler = np.empty(0, samples.dtype), None
        return samples

    def check_mixable(self) -> None:
        """Refuse channels of which little is left when they are mixed: one is the other turned round.

        Raises:
            AudioError: if so.
        """
        if self._kept < CANCELLED * self._power:
            raise AudioError(
                f"channels must not cancel each other when they are mixed, but those of {self._name} keep "
                f"{self._kept / self._power:.2g} of their power; take one of its {self.num_channels} with --channel or "
                "a column channel"
            )

    @property
    def silent_channels(self) -> list[int]:
        """The channels, counted from 1, that are all but silent beside others that are not."""
        quiet = [number for number, peak in enumerate(self._highest, start=1) if peak < QUIET_PEAK / _FULL_SCALE]
        return [] if len(quiet) == len(self._highest) else quiet


class _Filling(Sound):
    """What is heard, written into an array that is there: as much as it has room for."""

    def __init__(self, name: str, out: Float32[np.ndarray, " T"]) -> None:
        self._out = out
        super().__init__(name)

    def begin(self) -> None:
        super().begin()
        self._num_heard = 0

    def _append(self, mono: np.ndarray) -> None:
        room = self._out[self._num_heard : self._num_heard + len(mono)]
        room[:] = mono[: len(room)]
        self._num_heard += len(mono)

    def num_filled(self) -> int:
        """Return how many samples there are, which may be more than there is room for."""
        self.end()
        return self._num_heard


def check_channel(channel: int, num_channels: int, name: Path | str) -> None:
    """Check that there is such a channel, counted from 1.

    Raises:
        AudioError: if not.
    """
    if not 1 <= channel <= num_channels:
        raise AudioError(f"channel must be 1 to the {num_channels} of {name}, got {channel}; correct it")


def _one_channel(samples: Float32[np.ndarray, "T *channels"], channel: int, name: str) -> Float32[np.ndarray, " T"]:
    check_channel(channel, 1 if samples.ndim == 1 else samples.shape[1], name)
    return samples if samples.ndim == 1 else np.ascontiguousarray(samples[:, channel - 1])


@dataclass(frozen=True)
class AudioFile:
    """A file, the part of it between two times in seconds, or one channel of that."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    channel: int | None = None
    """One channel, counted from 1; None mixes them all."""

    def lacks_end(self) -> bool:
        """Return whether the file may have been cut where nothing else tells, as in `oggpages.lacks_end`."""
        return lacks_end(self.path)

    def load(self) -> tuple[Float32[np.ndarray, "T *channels"], int]:
        """Return float32 samples in [-1, 1] and their rate in Hz.

        Raises:
            AudioError: as `hear` does.
        """
        samples, rate_hz = load_part(self.path, self._part) if self._part is not None else load_file(self.path)
        if self.channel is not None:
            return _one_channel(samples, self.channel, str(self.path)), rate_hz
        sound = Sound(str(self.path))
        sound.take(samples, rate_hz)
        sound.check_mixable()
        return samples, rate_hz

    def hear(self, *, as_pcm: bool = False) -> Sound:
        """Return what is heard of it.

        Raises:
            AudioError: if the file is missing or unusable, does not contain the part or the channel, or has channels
                that cancel each other and none is chosen.
        """
        sound = Sound(str(self.path), self.channel, as_pcm=as_pcm)
        if self._part is None:
            hear_file(self.path, sound)
        else:
            hear_part(self.path, self._part, sound)
        sound.check_mixable()
        return sound

    @property
    def _part(self) -> Part | None:
        return None if self.start_s is None and self.end_s is None else Part(self.start_s, self.end_s)
