"""Parts of long recordings: sought where the format is exact about it, else cut from the file decoded once."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile as sf

from shards.containers import check_length, find_samples
from shards.decoding import DECODER_ERRORS, UNKNOWN_FRAMES, check_samples, decode
from shards.errors import AudioError
from shards.ffmpeg import HEAD_BYTES, decode_foreign, foreign_format
from shards.inputfile import NOT_REGULAR, open_regular
from shards.limits import check_file_size, check_num_samples

_PLAIN_CODECS = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Each sample stands for itself, in a place of its own."""
_END_TOLERANCE_S = 0.01
"""Tables often give segment ends rounded to 10 ms, which may lie just behind the last sample."""
_MOST_KEPT_BYTES = 1 << 30
"""Three hours at 24 kHz; what is longer is decoded again for each of its parts."""


@dataclass(frozen=True)
class Part:
    """From one time of a file to another, None being its ends."""

    start_s: float | None
    end_s: float | None

    def goes_beyond(self, num_samples: int, rate_hz: int) -> bool:
        """Return whether the part begins or ends behind so many samples."""
        times_s = [time_s for time_s in (self.start_s, self.end_s) if time_s is not None]
        return any(time_s * rate_hz > num_samples for time_s in times_s)

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
        AudioError: if it is no plain file, cannot be read or is unusable.
    """
    try:
        with _opened(path) as file:
            form = foreign_format(file.read(HEAD_BYTES))
            if form is None:
                size = os.fstat(file.fileno()).st_size
                check_file_size(size, str(path))
                file.seek(0)
                return decode(file.read(size), str(path))
        # By its path, because such a file may be a long video.
        samples, rate_hz = decode_foreign(path.absolute(), form, str(path))
        check_samples(samples, rate_hz, str(path))
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise AudioError(f"audio must fit the memory, but {path} needs more than there is; cut it") from error
    return samples, rate_hz


def load_part(path: Path, part: Part) -> tuple[np.ndarray, int]:
    """Return the samples of a part of a file, and their rate.

    Raises:
        AudioError: as `load_file` does, or if the file does not contain the part.
    """
    try:
        with _opened(path) as file:
            sought = _sought(cast(BinaryIO, file.raw), path, part)
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise AudioError(f"audio must fit the memory, but a segment of {path} needs more; cut it") from error
    if sought is not None:
        check_samples(*sought, str(path))
        return sought
    samples, rate_hz = _KEPT.load(path)
    start, end = part.bounds(len(samples), rate_hz, path)
    return samples[start:end].copy(), rate_hz


def _opened(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except ValueError as error:
        raise AudioError(f"audio file must have a name that a path can have, but {path} has not: {error}") from error


def _unreadable(path: Path, error: OSError) -> AudioError:
    if error.errno in NOT_REGULAR:
        return AudioError(f"audio must be a plain file, but {path} is not: {error.strerror}; check the path")
    return AudioError(f"audio file must be readable, but {path} is not ({error.strerror}); check the path")


def _sought(file: BinaryIO, path: Path, part: Part) -> tuple[np.ndarray, int] | None:
    """Return the part without reading the rest, None where that would not be exact."""
    size = end_byte = os.fstat(file.fileno()).st_size
    head = file.read(HEAD_BYTES)
    is_flac = head.startswith(b"fLaC")
    if foreign_format(head) is not None:
        return None
    if not is_flac:
        found = find_samples(file, size, str(path))
        if found is None or found.stated_bytes is None or not found.for_sndfile:
            return None
        if found.layout is not None and found.layout.num_spare:
            return None
        end_byte = check_length(file, size, found, str(path))
    file.seek(0)
    try:
        with sf.SoundFile(_Beginning(file, end_byte)) as sound:
            # What a FLAC file has beyond its stated end is not looked for, so that its end must be given.
            is_exact = part.end_s is not None if is_flac else sound.subtype in _PLAIN_CODECS
            if not is_exact or not 0 < sound.frames < UNKNOWN_FRAMES:
                return None
            if is_flac:
                _check_end(sound, path)
            if is_flac and part.goes_beyond(sound.frames, sound.samplerate):
                return None
            start, end = part.bounds(sound.frames, sound.samplerate, path)
            check_num_samples(end - start, sound.channels, sound.samplerate, size, str(path))
            sound.seek(start)
            samples = sound.read(end - start, dtype="float32")
            rate_hz = int(sound.samplerate)
    except DECODER_ERRORS:
        # An ffmpeg may know its codec; if not, decoding all of it says what is wrong.
        return None
    if len(samples) < end - start:
        raise AudioError(f"audio must be whole, but {path} ends inside the segment; copy it again")
    return samples, rate_hz


class _Beginning(io.RawIOBase):
    """A file without the tags behind it, which libsndfile takes for samples in some containers."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file = file
        self._num_bytes = num_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._num_bytes}[whence]
        # Before the first byte, where a damaged header may send libsndfile, an exception would be printed and lost.
        return self._file.seek(max(0, origin + offset))

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), max(0, self._num_bytes - self._file.tell())))
        buffer[: len(data)] = data
        return len(data)


def _check_end(sound: sf.SoundFile, path: Path) -> None:
    sound.seek(sound.frames - 1)
    if len(sound.read(1)) != 1:
        raise AudioError(
            f"audio must be whole, but {path} is truncated: its header promises {sound.frames} samples; copy it again"
        )


class _Kept:
    """The file decoded last, because the utterances of one recording are packed one after another."""

    def __init__(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._decoded: tuple[np.ndarray, int] = (np.zeros(0, np.float32), 0)

    def load(self, path: Path) -> tuple[np.ndarray, int]:
        """Return the file's samples, which must not be changed, and their rate."""
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key != self._key:
            self._key, self._decoded = None, (np.zeros(0, np.float32), 0)
            decoded = load_file(path)
            if decoded[0].nbytes > _MOST_KEPT_BYTES:
                return decoded
            self._key, self._decoded = key, decoded
        return self._decoded


_KEPT = _Kept()
