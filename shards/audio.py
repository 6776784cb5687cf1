"""Decoding whatever a corpus holds, and the one form that shards store: 16 kHz, mono, 16-bit FLAC.

Nothing is guessed: audio that is unreadable, cut short, empty or not finite is an error that names the file.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from jaxtyping import Float32, Int16

from shards.errors import AudioError
from shards.schema import RATE_HZ

_FULL_SCALE = 32_768
_STREAMED_BYTES = 0x7FFFF000
"""Programs that write WAV or AIFF into a pipe declare about this size or more, because they cannot know it."""
_UNKNOWN_FRAMES = 1 << 36
"""FLAC, the format with the widest counter, has 36 bits for it; libsndfile says more where there is no length."""
_GIT_LFS_POINTER = b"version https://git-lfs"
"""What a clone holds in place of audio (CREMA-D's, for one) where Git LFS is not installed."""
_END_TOLERANCE_S = 0.01
"""Tables often give segment ends rounded to 10 ms, which may lie just behind the last sample."""


def decode(data: bytes, name: str) -> tuple[Float32[np.ndarray, "T *channels"], int]:
    """Decode WAV, FLAC, MP3, OGG, AIFF, AU or NIST SPHERE, recognised by content.

    A file counts as truncated when it has fewer bytes or frames than its header promises. OGG, and files written into a
    pipe, promise nothing.

    Args:
        data: The whole file.
        name: What errors call it.

    Returns:
        Samples in [-1, 1], shape `(T,)` or `(T, channels)`, and their rate in Hz.

    Raises:
        AudioError: if the audio is unreadable, truncated, empty or has NaN or infinite samples.
    """
    if data.startswith(_GIT_LFS_POINTER):
        raise AudioError(
            f"audio must be there itself, but {name} is a pointer of Git LFS; run `git lfs pull` in its clone"
        )
    try:
        with sf.SoundFile(io.BytesIO(data)) as file:
            rate_hz, num_promised = int(file.samplerate), int(file.frames)
            if num_promised >= _UNKNOWN_FRAMES:
                raise AudioError(f"audio must state its length, but the header of {name} does not; encode it again")
            samples = file.read(dtype="float32")
    except (sf.LibsndfileError, MemoryError) as error:
        raise AudioError(f"audio must be readable and whole, but decoding {name} failed: {_reason(error)}") from error
    num_missing_bytes = _missing_bytes(data)
    if num_missing_bytes > 0:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its header promises {num_missing_bytes} bytes more than "
            f"its {len(data)}; copy it again"
        )
    if len(samples) < num_promised:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its header promises {num_promised} samples and "
            f"{len(samples)} are there; copy it again"
        )
    if len(samples) == 0:
        raise AudioError(f"audio must hold samples, but {name} has length zero; remove it")
    if not np.isfinite(samples).all():
        raise AudioError(f"audio must be finite, but {name} holds NaN or infinite samples; convert it again")
    return samples, rate_hz


def _missing_bytes(data: bytes) -> int:
    """Return how many bytes the header promises beyond the end of `data`; libsndfile shortens such files silently."""
    magic = data[:4]
    if magic in (b"RIFF", b"RIFX", b"FORM"):
        return _missing_chunk_bytes(data, "<" if magic == b"RIFF" else ">", b"SSND" if magic == b"FORM" else b"data")
    if magic == b"NIST":
        return _missing_sphere_bytes(data)
    if magic == b".snd":
        start, size = struct.unpack_from(">II", data, 4)
        return 0 if size >= _STREAMED_BYTES else int(start + size - len(data))
    return 0


def _missing_chunk_bytes(data: bytes, endian: str, wanted: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        chunk, size = struct.unpack_from(f"{endian}4sI", data, position)
        position += 8
        if chunk == wanted:
            return 0 if size >= _STREAMED_BYTES else int(position + size - len(data))
        position += size + size % 2
    return 0


def _missing_sphere_bytes(data: bytes) -> int:
    header_bytes = int(data[8:16])
    numbers = re.findall(r"^(\w+) -i (\d+)", data[:header_bytes].decode("latin-1"), flags=re.MULTILINE)
    field = {name: int(value) for name, value in numbers}
    num_bytes = field.get("sample_count", 0) * field.get("channel_count", 1) * field.get("sample_n_bytes", 1)
    return header_bytes + num_bytes - len(data)


def _reason(error: Exception) -> str:
    """Return what went wrong without the address of the buffer, which differs from run to run."""
    return str(error.error_string) if isinstance(error, sf.LibsndfileError) else "the header asks for too much memory"


def to_mono(samples: Float32[np.ndarray, "T *channels"]) -> Float32[np.ndarray, " T"]:
    """Return the mean of the channels."""
    return samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)


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
    pcm: np.ndarray = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    return pcm


def pcm_sha256(pcm: Int16[np.ndarray, " T"]) -> bytes:
    """Return the SHA-256 of the little-endian samples: the same for every encoder."""
    return hashlib.sha256(pcm.astype("<i2").tobytes()).digest()


def encode_flac(samples: Float32[np.ndarray, " T"]) -> bytes:
    """Return 16-bit FLAC at `RATE_HZ`; equal samples give equal bytes for one version of libsndfile."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm16(samples), RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_stored(data: bytes, out: Float32[np.ndarray, " T"]) -> None:
    """Decode what a shard stores into `out`, which must be as long as the clip is at `RATE_HZ`.

    That is FLAC in this one form, or, in adopted shards, anything that `decode` reads. Straight into a batch's row: on
    clips of 5 s that takes a fifth less time than decoding into a new array.

    Raises:
        AudioError: if the bytes are damaged, or hold another number of samples.
    """
    try:
        with sf.SoundFile(io.BytesIO(data)) as file:
            if (file.samplerate, file.channels, file.frames) == (RATE_HZ, 1, len(out)):
                num_samples = len(file.read(dtype="float32", out=out))
            else:
                samples = prepare(file.read(dtype="float32"), int(file.samplerate))
                num_samples = len(samples)
                if num_samples == len(out):
                    out[:] = samples
    except (sf.LibsndfileError, MemoryError, ValueError) as error:
        raise AudioError(f"a shard's audio must be whole, but decoding failed: {_reason(error)}; pack again") from error
    if num_samples != len(out):
        raise AudioError(f"a shard's audio must have the {len(out)} samples of its index, got {num_samples}")


def _one_channel(samples: Float32[np.ndarray, "T *channels"], channel: int, name: str) -> Float32[np.ndarray, " T"]:
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    if not 1 <= channel <= num_channels:
        raise AudioError(f"channel must be 1 to the {num_channels} of {name}, got {channel}; correct it")
    return samples if samples.ndim == 1 else samples[:, channel - 1]


@dataclass(frozen=True)
class AudioFile:
    """A file, the part of it between two times in seconds, or one channel of that."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    channel: int | None = None
    """One channel, counted from 1; None mixes them all."""

    def load(self) -> tuple[Float32[np.ndarray, "T *channels"], int]:
        """Return float32 samples in [-1, 1] and their rate in Hz.

        Raises:
            AudioError: if the file is missing or unusable, or does not contain the part.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise AudioError(
                f"audio file must be readable, but {self.path} is not ({error.strerror}); check the path"
            ) from error
        samples, rate_hz = decode(data, str(self.path))
        if self.channel is not None:
            samples = _one_channel(samples, self.channel, str(self.path))
        duration_s = len(samples) / rate_hz
        start_s = 0.0 if self.start_s is None else self.start_s
        end_s = duration_s if self.end_s is None else self.end_s
        part = samples[max(0, round(start_s * rate_hz)) : max(0, round(end_s * rate_hz))]
        if start_s < 0 or end_s > duration_s + _END_TOLERANCE_S or len(part) == 0:
            raise AudioError(
                f"a segment must hold samples and lie inside its file, but {self.path} lasts {duration_s:.3f} s "
                f"and the segment goes from {start_s} to {end_s} s; correct the times"
            )
        return part, rate_hz
