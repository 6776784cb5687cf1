"""Decoding a whole file, recognised by content: every sample that is there, or an error that names the file."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import soundfile as sf

from shards import flac, mpeg, oggpages
from shards.containers import check_length, find_samples, with_length
from shards.errors import AudioError
from shards.ffmpeg import HEAD_BYTES, Foreign, decode_foreign, foreign_format, refused_format
from shards.layout import check_rate, check_spare_bits, with_mixed_bits
from shards.limits import check_num_joined, check_num_samples
from shards.stream import Stream, Taker
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
BLOCK_VALUES = 1 << 22
"""Samples of all channels that are decoded at once."""
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

    def __init__(self, data: bytes | BinaryIO) -> None:
        super().__init__(_Bytes(data) if isinstance(data, bytes) else data)

    def seekable(self) -> bool:
        """Return False, which keeps soundfile from seeking."""
        return False


class Whole:
    """Takes all blocks into one array."""

    most_s = math.inf

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what came."""
        self.samples: np.ndarray = np.empty(0, np.float32)
        self.rate_hz = 0

    def take(self, samples: np.ndarray, rate_hz: int) -> None:
        """Append a block."""
        self.samples, self.rate_hz = appended(self.samples, samples), rate_hz


def appended(samples: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return both as one array, the first of which is used up: joining them would take twice the memory."""
    if not len(samples):
        return more
    num = len(samples)
    samples = samples if samples.flags.owndata else samples.copy()
    samples.resize((num + len(more), *samples.shape[1:]), refcheck=False)
    samples[num:] = more
    return samples


class Checked:
    """Gives blocks on that are sound."""

    def __init__(self, taker: Taker, name: str) -> None:
        """Set up for a file that errors call `name`."""
        self._taker = taker
        self._name = name
        self._is_empty = True
        self.most_s = taker.most_s

    def begin(self) -> None:
        """Forget what came."""
        self._taker.begin()
        self._is_empty = True

    def take(self, samples: np.ndarray, rate_hz: int) -> None:
        """Give a block on.

        Raises:
            AudioError: if it is not finite or far too loud, or the rate is none of audio.
        """
        check_rate(rate_hz, self._name)
        peak = max(float(samples.max()), -float(samples.min()))
        if not np.isfinite(peak):
            raise AudioError(f"audio must be finite, but {self._name} holds NaN or infinite samples; convert it again")
        if peak > _LOUDEST:
            raise AudioError(
                f"audio must lie in about [-1, 1], but {self._name} reaches {peak:.3g}, which would be clipped to "
                "noise; divide its samples by their full scale"
            )
        self._taker.take(samples, rate_hz)
        self._is_empty = False

    def end(self) -> None:
        """Refuse a file that held nothing.

        Raises:
            AudioError: if so.
        """
        if self._is_empty:
            raise AudioError(f"audio must hold samples, but {self._name} has length zero; remove it")


def decode_to(data: bytes, name: str, taker: Taker) -> None:
    """Decode what libsndfile reads (WAV, FLAC, MP3, OGG, AIFF, AU, NIST SPHERE, ...), or an ffmpeg on the PATH.

    A header's length is never trusted over the data. A file counts as truncated when it has fewer bytes, frames or
    samples than its header promises; one that promises nothing, as where it was written into a pipe, is taken whole.
    Files joined one after another (MP3, OGG, FLAC) are decoded one after another.

    Args:
        data: The whole file.
        name: What errors call it.
        taker: Gets samples in about [-1, 1].

    Raises:
        AudioError: if the audio is unreadable, truncated, damaged, empty, far too loud or has NaN or infinite samples.
    """
    if data.startswith(_GIT_LFS_POINTER):
        raise AudioError(
            f"audio must be there itself, but {name} is a pointer of Git LFS; run `git lfs pull` in its clone"
        )
    data = data[skip_tags(data, 0) :] if data[:3] == b"ID3" else data
    head, num_bytes = data[:HEAD_BYTES], len(data)
    form, refused = foreign_format(head), refused_format(head)
    checked = Checked(taker, name)
    streams = form if form is not None else _streams(data, name)
    if isinstance(streams, Foreign):
        decode_foreign(data, streams, name, checked)
        checked.end()
        return
    if refused is None:
        # Of MPEG, whose streams hold its bytes once more, that is half of the memory.
        data = b""
    try:
        decode_streams(streams, num_bytes, name, checked)
    except DECODER_ERRORS as error:
        # libsndfile opens few OGG files with FLAC; the pages are whole here.
        is_for_ffmpeg = head.startswith(b"OggS") or getattr(error, "code", None) in _UNSUPPORTED
        if refused is None or not is_for_ffmpeg:
            raise AudioError(
                f"audio must be readable and whole, but decoding {name} failed: {decoder_reason(error)}"
            ) from error
        checked.begin()
        decode_foreign(data, refused, name, checked)
    checked.end()


def decoder_reason(error: Exception) -> str:
    """Return what went wrong without the address of the buffer, which differs from run to run."""
    if isinstance(error, sf.LibsndfileError):
        return _NO_RATE if "SF_INFO struct incomplete" in error.error_string else str(error.error_string)
    return "it needs more memory than there is" if isinstance(error, MemoryError) else str(error) or repr(error)


def decode_streams(streams: Sequence[Stream], num_bytes: int, name: str, taker: Taker) -> None:
    """Decode streams of libsndfile's, one after another.

    Args:
        streams: All that a file holds.
        num_bytes: Of the file.
        name: What errors call it.
        taker: Gets the samples.

    Raises:
        AudioError: if they are cut, hold more than so many bytes should, or are of several forms.
    """
    check_num_joined(len(streams), name)
    num_samples, form = 0, None
    for stream in streams:
        with SequentialFile(stream.data) as file:
            if form not in (None, (file.channels, file.samplerate)):
                raise AudioError(
                    f"audio must have one rate and number of channels, but {name} joins streams of several; split it"
                )
            form = (file.channels, file.samplerate)
            num_samples += _decode_stream(file, stream, num_bytes, num_samples, name, taker)


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


def _decode_stream(
    file: SequentialFile, stream: Stream, num_bytes: int, num_before: int, name: str, taker: Taker
) -> int:
    """Decode a stream, `num_before` samples of the same file having been decoded; return how many it has."""
    if file.format in _UNVERIFIABLE:
        raise AudioError(
            f"audio must be of a format whose length can be checked, but {name} is {file.format}, data of Matlab "
            "or a sampler; convert it to WAV or FLAC"
        )
    frames = int(file.frames) if file.frames < UNKNOWN_FRAMES else 0
    num_stated = frames if stream.num_stated is None else stream.num_stated
    rate_hz, num_read = int(file.samplerate), 0
    check_rate(rate_hz, name)
    check_num_samples(num_before + num_stated, file.channels, rate_hz, num_bytes, name, taker.most_s)
    for samples in _blocks(file, num_stated):
        own = samples if stream.num_samples is None else samples[: max(0, stream.num_samples - num_read)]
        num_read += len(samples)
        check_num_samples(num_before + num_read, file.channels, rate_hz, num_bytes, name, taker.most_s)
        if len(own):
            taker.take(own, rate_hz)
    if num_read < num_stated:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its header promises {num_stated} samples and "
            f"{num_read} are there; copy it again"
        )
    if stream.num_most is not None and num_read > stream.num_most:
        raise AudioError(
            f"audio must be as long as its header says, but {name} states {num_stated} samples and {num_read} are "
            "there; convert it again"
        )
    return num_read


def _blocks(file: SequentialFile, num_expected: int) -> Iterator[np.ndarray]:
    """Yield all samples; memory grows with those that come, not with what a header says."""
    block = max(1, BLOCK_VALUES // file.channels)
    num_wanted = min(num_expected + 1, block) if num_expected else block
    shape = () if file.channels == 1 else (file.channels,)
    while True:
        samples = file.read(dtype="float32", out=np.empty((num_wanted, *shape), np.float32))
        # The taker may make it longer.
        is_last = len(samples) < num_wanted
        yield samples
        if is_last:
            return
        num_wanted = block
