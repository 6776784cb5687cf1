"""Decoding a whole file, recognised by content: every sample that is there, or an error that names the file."""

from __future__ import annotations

import io
import os

import numpy as np
import soundfile as sf
from jaxtyping import Float32

from shards import flac, mpeg, oggpages
from shards.containers import check_length, find_samples, with_length
from shards.errors import AudioError
from shards.ffmpeg import HEAD_BYTES, Foreign, decode_foreign, foreign_format, refused_format
from shards.layout import check_rate, check_spare_bits, with_mixed_bits
from shards.limits import check_num_joined, check_num_samples, most_values
from shards.stream import Stream
from shards.tags import skip_tags, without_end_tags

UNKNOWN_FRAMES = 1 << 36
"""FLAC, the format with the widest counter, has 36 bits for it; libsndfile says more where there is no length."""
_GIT_LFS_POINTER = b"version https://git-lfs"
"""What a clone holds in place of audio (CREMA-D's, for one) where Git LFS is not installed."""
_UNVERIFIABLE = {"MAT4", "MAT5", "MPC2K", "SDS", "XI"}
"""Data of Matlab and of samplers: their length cannot be told from that of the file."""
_COUNTED_FRAME = 160
"""Samples of a frame of GSM 6.10; more than the bits that fill a byte can make in DWVW."""
_NO_RATE = "its header says a rate of 0 Hz, or less"
"""What libsndfile means by an incomplete struct."""
_BLOCK_VALUES = 1 << 24
_LOUDEST = 64.0
"""Times full scale. Samples of 16 or 24 bit that somebody stored as floats without dividing them are far louder."""
_UNSUPPORTED = (4, 18)
"""libsndfile's numbers for a codec that it lacks in a container that it knows."""
DECODER_ERRORS = (sf.SoundFileError, RuntimeError, ValueError, TypeError, AssertionError, OverflowError, MemoryError)
"""All that soundfile raises for the sake of a file's content."""


class _Bytes(io.BytesIO):
    """Bytes of which none lies before the first: what is raised in a callback is printed and lost.

    A damaged header may send libsndfile there.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(max(0, offset) if whence == os.SEEK_SET else offset, whence)


class SequentialFile(sf.SoundFile):
    """Read from its beginning to its end: soundfile seeks after each read, which many codecs cannot, or not exactly."""

    def __init__(self, data: bytes) -> None:
        super().__init__(_Bytes(data))

    def seekable(self) -> bool:
        """Return False, which keeps soundfile from seeking."""
        return False


def decode(data: bytes, name: str) -> tuple[Float32[np.ndarray, "T *channels"], int]:
    """Decode what libsndfile reads (WAV, FLAC, MP3, OGG, AIFF, AU, NIST SPHERE, ...), or an ffmpeg on the PATH.

    A header's length is never trusted over the data. A file counts as truncated when it has fewer bytes, frames or
    samples than its header promises; one that promises nothing, as where it was written into a pipe, is taken whole.
    Files joined one after another (MP3, OGG, FLAC) are decoded one after another.

    Args:
        data: The whole file.
        name: What errors call it.

    Returns:
        Samples in about [-1, 1], shape `(T,)` or `(T, channels)`, and their rate in Hz.

    Raises:
        AudioError: if the audio is unreadable, truncated, damaged, empty, far too loud or has NaN or infinite samples.
    """
    if data.startswith(_GIT_LFS_POINTER):
        raise AudioError(
            f"audio must be there itself, but {name} is a pointer of Git LFS; run `git lfs pull` in its clone"
        )
    body = data[skip_tags(data, 0) :] if data[:3] == b"ID3" else data
    form = foreign_format(body[:HEAD_BYTES])
    samples, rate_hz = decode_foreign(body, form, name) if form is not None else _decode_known(body, name)
    check_samples(samples, rate_hz, name)
    return samples, rate_hz


def check_samples(samples: Float32[np.ndarray, "T *channels"], rate_hz: int, name: str) -> None:
    """Refuse what is no sound.

    Raises:
        AudioError: if there are no samples, or they are not finite or far too loud, or the rate is none of audio.
    """
    check_rate(rate_hz, name)
    if len(samples) == 0:
        raise AudioError(f"audio must hold samples, but {name} has length zero; remove it")
    peak = max(float(samples.max()), -float(samples.min()))
    if not np.isfinite(peak):
        raise AudioError(f"audio must be finite, but {name} holds NaN or infinite samples; convert it again")
    if peak > _LOUDEST:
        raise AudioError(
            f"audio must lie in about [-1, 1], but {name} reaches {peak:.3g}, which would be clipped to noise; divide "
            "its samples by their full scale"
        )


def decoder_reason(error: Exception) -> str:
    """Return what went wrong without the address of the buffer, which differs from run to run."""
    if isinstance(error, sf.LibsndfileError):
        return _NO_RATE if "SF_INFO struct incomplete" in error.error_string else str(error.error_string)
    return "it needs more memory than there is" if isinstance(error, MemoryError) else str(error) or repr(error)


def _decode_known(data: bytes, name: str) -> tuple[np.ndarray, int]:
    streams = _streams(data, name)
    if isinstance(streams, Foreign):
        return decode_foreign(data, streams, name)
    check_num_joined(len(streams), name)
    try:
        decoded: list[tuple[np.ndarray, int]] = []
        num_samples = 0
        for stream in streams:
            decoded.append(_decode_stream(stream, len(data), num_samples, name))
            num_samples += len(decoded[-1][0])
    except DECODER_ERRORS as error:
        refused = refused_format(data[:HEAD_BYTES])
        # libsndfile opens few OGG files with FLAC; the pages are whole here.
        is_for_ffmpeg = data.startswith(b"OggS") or getattr(error, "code", None) in _UNSUPPORTED
        if refused is not None and is_for_ffmpeg:
            return decode_foreign(data, refused, name)
        raise AudioError(
            f"audio must be readable and whole, but decoding {name} failed: {decoder_reason(error)}"
        ) from error
    if len({(samples.shape[1:], rate_hz) for samples, rate_hz in decoded}) > 1:
        raise AudioError(
            f"audio must have one rate and number of channels, but {name} joins streams of several; split it"
        )
    return decoded[0] if len(decoded) == 1 else (np.concatenate([part for part, _ in decoded]), decoded[0][1])


def _streams(data: bytes, name: str) -> list[Stream] | Foreign:
    """Return what libsndfile decodes to its end, or the format for ffmpeg."""
    if mpeg.is_mpeg(data):
        return mpeg.streams(data, name)
    if data.startswith(b"fLaC"):
        return flac.streams(without_end_tags(data))
    refused = refused_format(data[:HEAD_BYTES])
    if data.startswith(b"OggS"):
        ogg = oggpages.read_pages(data, name)
        is_known = ogg.codecs <= {"Vorbis", "Opus", "FLAC"} and not ogg.has_several_at_once
        return [Stream(part) for part in ogg.parts] if is_known or refused is None else refused
    file = io.BytesIO(data)
    found = find_samples(file, len(data), name)
    if found is None:
        return refused if refused is not None and data.startswith(b"NIST_1A") else [Stream(data)]
    end = check_length(file, len(data), found, name)
    if found.is_foreign and refused is not None:
        return refused
    if found.is_mpeg:
        mpeg_end = len(data) if found.stated_bytes is None else found.start + found.stated_bytes
        return mpeg.streams(data[found.start : mpeg_end], name)
    whole = with_length(without_end_tags(data) if found.stated_bytes is None else data[:end], found)
    if found.layout is not None and found.layout.num_spare:
        samples_end = len(whole) if found.stated_bytes is None else found.start + found.stated_bytes
        check_spare_bits(whole[found.start : samples_end], found.layout, name)
        whole = with_mixed_bits(whole, found.layout)
    if found.block_samples is not None:
        num_bytes = len(whole) - found.start if found.stated_bytes is None else found.stated_bytes
        num_samples = num_bytes // max(1, found.frame_bytes) * found.block_samples
        return [Stream(whole, num_samples, num_samples)]
    return [Stream(whole) if found.count_field is None else _counted(whole, found.count_field)]


def _counted(data: bytes, position: int) -> Stream:
    """Return a stream that libsndfile decodes to its end although its header states a number of samples."""
    stated = int.from_bytes(data[position : position + 4], "big")
    uncounted = data[:position] + b"\x7f\xff\xff\xff" + data[position + 4 :]
    return Stream(uncounted, stated, stated, stated + _COUNTED_FRAME)


def _decode_stream(stream: Stream, num_bytes: int, num_before: int, name: str) -> tuple[np.ndarray, int]:
    """Return a stream's samples and rate, `num_before` samples of the same file having been decoded."""
    with SequentialFile(stream.data) as file:
        if file.format in _UNVERIFIABLE:
            raise AudioError(
                f"audio must be of a format whose length can be checked, but {name} is {file.format}, data of Matlab "
                "or a sampler; convert it to WAV or FLAC"
            )
        frames = int(file.frames) if file.frames < UNKNOWN_FRAMES else 0
        num_stated = frames if stream.num_stated is None else stream.num_stated
        rate_hz = int(file.samplerate)
        most = most_values(num_bytes) // file.channels - num_before
        check_num_samples(num_before + num_stated, file.channels, rate_hz, num_bytes, name)
        samples = _read_to_end(file, num_stated, most)
        check_num_samples(num_before + len(samples), file.channels, rate_hz, num_bytes, name)
    if len(samples) < num_stated:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its header promises {num_stated} samples and "
            f"{len(samples)} are there; copy it again"
        )
    if stream.num_most is not None and len(samples) > stream.num_most:
        raise AudioError(
            f"audio must be as long as its header says, but {name} states {num_stated} samples and {len(samples)} are "
            "there; convert it again"
        )
    return samples[: stream.num_samples], rate_hz


def _read_to_end(file: SequentialFile, num_expected: int, most: int) -> np.ndarray:
    """Return all samples, or some more than `most`; memory grows with those that come, not with what a header says."""
    block = max(1, _BLOCK_VALUES // file.channels)
    num_wanted = min(num_expected + 1, block) if num_expected else block
    shape = () if file.channels == 1 else (file.channels,)
    samples, num_read = np.empty((num_wanted, *shape), np.float32), 0
    while True:
        num_read += len(file.read(dtype="float32", out=samples[num_read:]))
        if num_read < len(samples) or num_read > most:
            return samples[:num_read]
        # In place: joining parts would take twice the memory.
        samples.resize((len(samples) + block, *shape), refcheck=False)
