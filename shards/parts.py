"""Files and parts of them, heard block by block.

Long files of plain samples and of FLAC are never read whole; their parts are sought. Of others, which are decoded to
their end, the last one is kept where it is short enough.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile as sf

from shards import flac
from shards.containers import check_length, find_samples
from shards.decoding import DECODER_ERRORS, UNKNOWN_FRAMES, Checked, Whole, decode_streams, decode_to
from shards.errors import AudioError
from shards.ffmpeg import HEAD_BYTES, decode_foreign, foreign_format
from shards.inputfile import NOT_REGULAR, open_regular
from shards.limits import check_file_size, check_num_samples
from shards.stream import Stream, Taker, found_in
from shards.tags import without_end_tags

_PLAIN_CODECS = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Each sample stands for itself, in a place of its own."""
_END_TOLERANCE_S = 0.01
"""Tables often give segment ends rounded to 10 ms, which may lie just behind the last sample."""
_MOST_KEPT_VALUES = 3 << 26
"""Samples, 0.8 GB: two hours at 24 kHz; what is longer is decoded again for each of its parts."""
_LONG_BYTES = 64 << 20
"""From here on plain samples and FLAC are not read whole."""
_BLOCK_FRAMES = 1 << 20
_TAGS_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """From one time of a file to another, None being its ends."""

    start_s: float | None
    end_s: float | None

    def goes_beyond(self, num_samples: int, rate_hz: int) -> bool:
        """Return whether the part begins or ends behind so many samples."""
        times_s = [time_s for time_s in (self.start_s, self.end_s) if time_s is not None]
        return any(time_s * rate_hz > num_samples for time_s in times_s)

    def asked(self, rate_hz: int) -> tuple[int, int | None]:
        """Return the first sample and the one behind the last, if any is, in a file that is long enough."""
        start_s = 0.0 if self.start_s is None else self.start_s
        return max(0, round(start_s * rate_hz)), None if self.end_s is None else max(0, round(self.end_s * rate_hz))

    def bounds(self, num_samples: int, rate_hz: int, path: Path) -> tuple[int, int]:
        """Return the first sample and the one behind the last.

        Raises:
            AudioError: if the part is empty or not inside the file.
        """
        duration_s = num_samples / rate_hz
        start_s = 0.0 if self.start_s is None else self.start_s
        end_s = duration_s if self.end_s is None else self.end_s
        start, end = max(0, round(start_s * rate_hz)), min(num_samples, max(0, round(end_s * rate_hz)))
        if start_s < 0 or end_s > duration_s + _END_TOLERANCE_S or end <= start:
            raise AudioError(
                f"a segment must hold samples and lie inside its file, but {path} lasts {duration_s:.3f} s "
                f"and the segment goes from {start_s} to {end_s} s; correct the times"
            )
        return start, end


def load_file(path: Path) -> tuple[np.ndarray, int]:
    """Return a whole file's samples and rate.

    Raises:
        AudioError: as `hear_file` does.
    """
    whole = Whole()
    hear_file(path, whole)
    return whole.samples, whole.rate_hz


def load_part(path: Path, part: Part) -> tuple[np.ndarray, int]:
    """Return the samples of a part of a file, and their rate.

    Raises:
        AudioError: as `hear_part` does.
    """
    whole = Whole()
    hear_part(path, part, whole)
    return whole.samples, whole.rate_hz


def hear_file(path: Path, taker: Taker) -> None:
    """Give a whole file's samples to `taker`.

    Raises:
        AudioError: if it is no plain file, cannot be read or is unusable.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            form = foreign_format(file.read(HEAD_BYTES))
            if form is None:
                if size < _LONG_BYTES or not _is_heard_long(file, size, path, taker):
                    check_file_size(size, str(path))
                    file.seek(0)
                    decode_to(file.read(size), str(path), taker)
                return
        # By its path, because such a file may be a long video.
        checked = Checked(taker, str(path))
        decode_foreign(path.absolute(), form, str(path), checked)
        checked.end()
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise AudioError(f"audio must fit the memory, but {path} needs more than there is; cut it") from error


def hear_part(path: Path, part: Part, taker: Taker) -> None:
    """Give the samples of a part of a file to `taker`.

    Raises:
        AudioError: as `hear_file` does, or if the file does not contain the part.
    """
    try:
        with _opened(path) as file:
            if _is_sought(cast(BinaryIO, file.raw), path, part, taker):
                return
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise AudioError(f"audio must fit the memory, but a segment of {path} needs more; cut it") from error
    taker.begin()
    _KEPT.hear(path, part, taker)


def _is_heard_long(file: BinaryIO, size: int, path: Path, taker: Taker) -> bool:
    """Decode a long file from where it lies; return False where it must be read whole."""
    streams = _flac_streams(file, size) if _at_start(file).startswith(b"fLaC") else _plain_streams(file, size, path)
    checked = Checked(taker, str(path))
    try:
        if streams:
            decode_streams(streams, size, str(path), checked)
    except MemoryError:
        raise
    except DECODER_ERRORS:
        # An ffmpeg may know its codec; if not, decoding all of it says what is wrong.
        taker.begin()
        return False
    if streams:
        checked.end()
    return bool(streams)


def _at_start(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD_BYTES)


def _flac_streams(file: BinaryIO, size: int) -> list[Stream]:
    """Return what `flac.streams` does, of a file; nothing where longer tags than usual lie behind the samples."""
    file.seek(max(0, size - _TAGS_BYTES))
    tail = file.read()
    kept = without_end_tags(tail)
    if not kept:
        return []
    end = size - len(tail) + len(kept)
    starts = [start for start in found_in(file, flac.BEGINNING) if start < end] or [0]
    streams = []
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        file.seek(start)
        stated, head = flac.uncounted(file.read(flac.HEAD_BYTES))
        streams.append(Stream(cast(BinaryIO, _Span(file, stop, start, head)), stated))
    return streams


def _plain_streams(file: BinaryIO, size: int, path: Path) -> list[Stream]:
    """Return the stream of a file whose samples stand for themselves; nothing of others."""
    found = find_samples(file, size, str(path))
    if found is None or found.stated_bytes is None or not found.for_sndfile:
        return []
    if found.layout is None or found.layout.num_spare or found.count_field is not None:
        return []
    return [Stream(cast(BinaryIO, _Span(file, check_length(file, size, found, str(path)))))]


def _opened(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except ValueError as error:
        raise AudioError(f"audio file must have a name that a path can have, but {path} has not: {error}") from error


def _unreadable(path: Path, error: OSError) -> AudioError:
    if error.errno in NOT_REGULAR:
        return AudioError(f"audio must be a plain file, but {path} is not: {error.strerror}; check the path")
    return AudioError(f"audio file must be readable, but {path} is not ({error.strerror}); check the path")


def _is_sought(file: BinaryIO, path: Path, part: Part, taker: Taker) -> bool:
    """Hear the part without reading the rest; return False where that would not be exact."""
    size = end_byte = os.fstat(file.fileno()).st_size
    head = file.read(HEAD_BYTES)
    is_flac = head.startswith(b"fLaC")
    if foreign_format(head) is not None:
        return False
    if not is_flac:
        found = find_samples(file, size, str(path))
        if found is None or found.stated_bytes is None or not found.for_sndfile:
            return False
        if found.layout is not None and found.layout.num_spare:
            return False
        end_byte = check_length(file, size, found, str(path))
    file.seek(0)
    checked = Checked(taker, str(path))
    try:
        with sf.SoundFile(_Span(file, end_byte)) as sound:
            # What a FLAC file has beyond its stated end is not looked for, so that its end must be given.
            is_exact = part.end_s is not None if is_flac else sound.subtype in _PLAIN_CODECS
            if not is_exact or not 0 < sound.frames < UNKNOWN_FRAMES:
                return False
            if is_flac:
                _check_end(sound, path)
            if is_flac and part.goes_beyond(sound.frames, sound.samplerate):
                return False
            start, end = part.bounds(sound.frames, sound.samplerate, path)
            check_num_samples(end - start, sound.channels, sound.samplerate, size, str(path), taker.most_s)
            sound.seek(start)
            for position in range(start, end, _BLOCK_FRAMES):
                samples = sound.read(min(_BLOCK_FRAMES, end - position), dtype="float32")
                if len(samples) < min(_BLOCK_FRAMES, end - position):
                    raise AudioError(f"audio must be whole, but {path} ends inside the segment; copy it again")
                checked.take(samples, int(sound.samplerate))
    except DECODER_ERRORS:
        # An ffmpeg may know its codec; if not, decoding all of it says what is wrong.
        return False
    return True


class _Span(io.RawIOBase):
    """A part of a file, by which libsndfile neither takes tags for samples nor sees what it would believe."""

    def __init__(self, file: BinaryIO, end: int, start: int = 0, head: bytes = b"") -> None:
        """Take the bytes from `start` to `end`, the first ones replaced by `head`."""
        self._file = file
        self._start = start
        self._num_bytes = end - start
        self._head = head
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        # Before the first byte, where a damaged header may send libsndfile, an exception would be printed and lost.
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._position)
        data = self._file.read(min(len(buffer), max(0, self._num_bytes - self._position)))
        if self._position < len(self._head):
            head = self._head[self._position : self._position + len(data)]
            data = head + data[len(head) :]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _check_end(sound: sf.SoundFile, path: Path) -> None:
    sound.seek(sound.frames - 1)
    if len(sound.read(1)) != 1:
        raise AudioError(
            f"audio must be whole, but {path} is truncated: its header promises {sound.frames} samples; copy it again"
        )


class _Slice:
    """Gives the part of a file on while all of it is decoded."""

    most_s = math.inf

    def __init__(self, part: Part, path: Path, taker: Taker) -> None:
        self._part = part
        self._path = path
        self._taker = taker
        self.begin()

    def begin(self) -> None:
        self._taker.begin()
        self._num_samples = self._rate_hz = 0

    def take(self, samples: np.ndarray, rate_hz: int) -> None:
        first, last = self._part.asked(rate_hz)
        start = max(0, first - self._num_samples)
        own = samples[start:] if last is None else samples[start : max(0, last - self._num_samples)]
        self._num_samples, self._rate_hz = self._num_samples + len(samples), rate_hz
        if len(own):
            self._taker.take(own, rate_hz)

    def end(self) -> None:
        """Check that the file contained the part.

        Raises:
            AudioError: if not.
        """
        self._part.bounds(self._num_samples, self._rate_hz, self._path)


class _KeptWhole(Whole):
    """Takes a file as long as it is not too long."""

    is_too_long = False

    def take(self, samples: np.ndarray, rate_hz: int) -> None:
        """Append a block, or drop all."""
        self.is_too_long = self.is_too_long or self.samples.size + samples.size > _MOST_KEPT_VALUES
        if self.is_too_long:
            self.samples = np.empty(0, np.float32)
        else:
            super().take(samples, rate_hz)


class _Kept:
    """The file decoded last, because the utterances of one recording are packed one after another."""

    def __init__(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._decoded = _KeptWhole()

    def hear(self, path: Path, part: Part, taker: Taker) -> None:
        """Give a part of a file to `taker`, decoding the file if it is not the last one."""
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key != self._key:
            self._key, self._decoded = None, _KeptWhole()
            hear_file(path, self._decoded)
            self._key = key
        if self._decoded.is_too_long:
            slicer = _Slice(part, path, taker)
            hear_file(path, slicer)
            slicer.end()
            return
        samples, rate_hz = self._decoded.samples, self._decoded.rate_hz
        first, last = part.bounds(len(samples), rate_hz, path)
        for start in range(first, last, _BLOCK_FRAMES):
            taker.take(samples[start : min(last, start + _BLOCK_FRAMES)].copy(), rate_hz)


_KEPT = _Kept()
