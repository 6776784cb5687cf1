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

from shards.decoding import DECODER_ERRORS, SequentialFile, decode, decoder_reason
from shards.errors import AudioError
from shards.oggpages import begins_with_opus, lacks_end
from shards.parts import Part, load_file, load_part
from shards.schema import RATE_HZ

_FULL_SCALE = 32_768
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


def resample(samples: Float32[np.ndarray, " T"], rate_hz: int, target_hz: int) -> Float32[np.ndarray, " T2"]:
    """Return mono samples at `target_hz`, by soxr's high quality (20 bit) filter."""
    if rate_hz == target_hz:
        return samples
    resampled: np.ndarray = soxr.resample(samples, rate_hz, target_hz, quality="HQ")
    return resampled


def prepare(samples: Float32[np.ndarray, "T *channels"], rate_hz: int) -> Float32[np.ndarray, " T2"]:
    """Return decoded samples as shards store them: mono, at `RATE_HZ`."""
    return resample(to_mono(samples), rate_hz, RATE_HZ)


def pcm16(samples: Float32[np.ndarray, " T"]) -> Int16[np.ndarray, " T"]:
    """Return samples as 16-bit integers, clipped to [-1, 1 - 2^-15]."""
    scaled = samples * _FULL_SCALE
    np.rint(scaled, out=scaled)
    np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1, out=scaled)
    pcm: np.ndarray = scaled.astype(np.int16)
    return pcm


def pcm_sha256(pcm: Int16[np.ndarray, " T"]) -> bytes:
    """Return the SHA-256 of the little-endian samples: the same for every encoder."""
    return hashlib.sha256(np.ascontiguousarray(pcm, dtype="<i2").data).digest()


def encode_flac(samples: Float32[np.ndarray, " T"]) -> bytes:
    """Return 16-bit FLAC at `RATE_HZ`; equal samples give equal bytes for one version of libsndfile."""
    return encode_pcm(pcm16(samples))


def encode_pcm(pcm: Int16[np.ndarray, " T"]) -> bytes:
    """Return what `encode_flac` does, of samples that `pcm16` has made."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm, RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_stored(data: bytes, out: Float32[np.ndarray, " T"]) -> None:
    """Decode what a shard stores into `out`, which must be as long as the clip is at `RATE_HZ`.

    That is FLAC in this one form, or, in adopted shards, anything that `decode` reads. Straight into a batch's row: on
    clips of 5 s that takes a fifth less time than decoding into a new array.

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
        samples = prepare(*decode(data, "a shard's audio"))
        num_lost = len(samples) - len(out) if begins_with_opus(data) else 0
        samples = samples[: len(out)] if num_lost in _OPUS_LOST else samples
        num_samples = len(samples)
        if num_samples == len(out):
            out[:] = samples
    if num_samples != len(out):
        raise AudioError(f"a shard's audio must have the {len(out)} samples of its index, got {num_samples}")


def check_mixable(samples: Float32[np.ndarray, "T *channels"], name: str) -> None:
    """Refuse channels of which little is left when they are mixed: one is the other turned round.

    Raises:
        AudioError: if so.
    """
    if samples.ndim == 1:
        return
    num_channels = samples.shape[1]
    power = float(np.square(samples, dtype=np.float64).sum()) / num_channels**2
    kept = float(np.square(to_mono(samples), dtype=np.float64).sum())
    if kept < CANCELLED * power:
        raise AudioError(
            f"channels must not cancel each other when they are mixed, but those of {name} keep {kept / power:.2g} of "
            f"their power; take one of its {num_channels} with --channel or a column channel"
        )


def silent_channels(samples: Float32[np.ndarray, "T *channels"]) -> list[int]:
    """Return the channels, counted from 1, that are all but silent beside others that are not."""
    if samples.ndim == 1:
        return []
    # Channel by channel: for two, numpy takes 80 times as long over a short axis.
    peaks = [max(float(channel.max()), -float(channel.min())) for channel in samples.T]
    quiet = [number for number, peak in enumerate(peaks, start=1) if peak < QUIET_PEAK / _FULL_SCALE]
    return [] if len(quiet) == len(peaks) else quiet


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
            AudioError: if the file is missing or unusable, does not contain the part or the channel, or has channels
                that cancel each other and none is chosen.
        """
        is_whole = self.start_s is None and self.end_s is None
        part = Part(self.start_s, self.end_s)
        samples, rate_hz = load_file(self.path) if is_whole else load_part(self.path, part)
        if self.channel is not None:
            return _one_channel(samples, self.channel, str(self.path)), rate_hz
        check_mixable(samples, str(self.path))
        return samples, rate_hz
