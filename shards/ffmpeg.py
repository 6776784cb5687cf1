"""What libsndfile cannot read (m4a, webm, wma, video), decoded by an `ffmpeg` where the machine has one.

The format is recognised here and given to ffmpeg, which therefore never takes a file for a playlist, and it may open no
file but this one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from shards.errors import AudioError, InputError
from shards.inputfile import open_regular
from shards.limits import check_num_samples, most_values
from shards.shown import shown
from shards.stream import Taker, found_in

HEAD_BYTES = 512
"""Enough of a file to recognise it."""
_TIMEOUT_S = 900
_MIN_TIMEOUT_S = 60
_BYTES_PER_S = 200_000
"""An ffmpeg that is slower than this on a file longer than that is stuck."""
_MAX_BOXES = 1_000_000
"""Of MPEG-4; streams that are cut into fragments have two or three a second."""
_VALUE_BYTES = 4
_PIECE_BYTES = 1 << 24
_SAID_BYTES = 1 << 16
"""Of what ffmpeg complains of, of which the first line is shown."""
_AU_HEADER = struct.Struct(">4s5I")
_TS_PACKET_BYTES = 188
_ROWS_OF_FRAMES = ("aac", "ac3", "eac3", "dts", "loas", "mpeg", "mpegts", "truehd", "wv")
"""Formats without a header for the whole file: joined files are one."""
_SAME_HEADER_BYTES = 16
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
"""Differs from run to run."""


@dataclass(frozen=True)
class Foreign:
    """A format that libsndfile does not read."""

    demuxer: str
    """What ffmpeg calls it."""
    title: str
    """What people call it."""


_MOV = Foreign("mov", "MPEG-4 (m4a, mp4, 3gp) or QuickTime")
_SIGNATURES = {
    (4, b"ftyp"): _MOV,
    (4, b"moov"): _MOV,
    (4, b"mdat"): _MOV,
    (4, b"wide"): _MOV,
    (0, b"\x1a\x45\xdf\xa3"): Foreign("matroska", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"): Foreign("asf", "Windows Media (wma)"),
    (0, b"#!AMR"): Foreign("amr", "AMR"),
    (8, b"AVI "): Foreign("avi", "AVI"),
    (8, b"QLCM"): Foreign("qcp", "QCP"),
    (0, b"FLV\x01"): Foreign("flv", "Flash video"),
    (0, b"wvpk"): Foreign("wv", "WavPack"),
    (0, b"TTA1"): Foreign("tta", "True Audio"),
    (0, b"MAC "): Foreign("ape", "Monkey's Audio"),
    (0, b"MPCK"): Foreign("mpc8", "Musepack"),
    (0, b"MP+"): Foreign("mpc", "Musepack"),
    (0, b"tBaK"): Foreign("tak", "TAK"),
    (0, b"DSD "): Foreign("dsf", "DSF"),
    (0, b"FRM8"): Foreign("iff", "DSDIFF"),
    (0, b".RMF"): Foreign("rm", "RealMedia"),
    (0, b"ajkg"): Foreign("shn", "Shorten"),
    (0, b"#!iLBC"): Foreign("ilbc", "iLBC"),
    (0, b"\x00\x00\x01\xba"): Foreign("mpeg", "MPEG video"),
    (0, b"\x7f\xfe\x80\x01"): Foreign("dts", "DTS"),
    (4, b"\xf8\x72\x6f\xba"): Foreign("truehd", "TrueHD"),
}
_REFUSED = {
    b"RIFF": Foreign("wav", "WAV with a codec that libsndfile lacks"),
    b"RF64": Foreign("wav", "WAV with a codec that libsndfile lacks"),
    b"riff": Foreign("w64", "W64 with a codec that libsndfile lacks"),
    b"FORM": Foreign("aiff", "AIFF with a codec that libsndfile lacks"),
    b"caff": Foreign("caf", "CAF with a codec that libsndfile lacks"),
    b".snd": Foreign("au", "AU with a codec that libsndfile lacks"),
    b"OggS": Foreign("ogg", "OGG with other streams than one of Vorbis, Opus or FLAC"),
    b"NIST_1A": Foreign("nistsphere", "NIST SPHERE with compressed samples"),
    b"Creative Voice File": Foreign("voc", "VOC in several blocks"),
}


def foreign_format(head: bytes) -> Foreign | None:
    """Return the format of a file that begins with `head`, None if libsndfile may read it."""
    for (offset, magic), form in _SIGNATURES.items():
        if head.startswith(magic, offset):
            return form
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return Foreign("aac", "AAC")
    if head[:1] == b"\x56" and len(head) > 1 and head[1] & 0xE0 == 0xE0:
        return Foreign("loas", "AAC")
    if head[:2] == b"\x0b\x77" and len(head) > 5:
        return Foreign("ac3", "AC-3") if head[5] >> 3 <= 10 else Foreign("eac3", "E-AC-3")
    packet_starts = head[::_TS_PACKET_BYTES]
    if len(packet_starts) > 2 and set(packet_starts) == {0x47}:
        return Foreign("mpegts", "MPEG transport stream")
    return None


def refused_format(head: bytes) -> Foreign | None:
    """Return what ffmpeg may make of a file that libsndfile knows but refuses."""
    return next((form for magic, form in _REFUSED.items() if head.startswith(magic)), None)


def decode_foreign(source: bytes | Path, form: Foreign, name: str, taker: Taker) -> None:
    """Give a file's samples to `taker`.

    Raises:
        AudioError: if there is no ffmpeg, or it finds any fault, takes too long or gives too much.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        base = Path(name).name
        raise AudioError(
            f"audio must be of a format that libsndfile reads, but {name} is {form.title}, which needs ffmpeg on the "
            f"PATH; install it, or convert: ffmpeg -i {shlex.quote(base)} {shlex.quote(Path(base).stem + '.wav')}"
        )
    if isinstance(source, Path):
        if form is _MOV:
            _check_boxes(source, name)
        elif form.demuxer not in _ROWS_OF_FRAMES:
            _check_single(source, form, name)
        _run(program, source, form, name, taker)
        return
    with ExitStack() as until_the_end:
        try:
            file = until_the_end.enter_context(tempfile.NamedTemporaryFile())
            file.write(source)
            file.flush()
        except OSError as error:
            # Not an AudioError, which would reject the clip.
            raise InputError(
                f"temporary files must be writable to decode {name}, but: {error.strerror}; make room in "
                f"{tempfile.tempdir or 'one of their folders'}, or set TMPDIR"
            ) from error
        decode_foreign(Path(file.name), form, name, taker)


def _check_single(path: Path, form: Foreign, name: str) -> None:
    """Refuse files joined one after another, of which ffmpeg decodes the first without a word.

    Raises:
        AudioError: if the beginning stands once more in the file.
    """
    with open_regular(path) as file:
        head = file.read(_SAME_HEADER_BYTES)
        # Not mapped: what was looked at of a long video would count as this process's memory.
        if len(head) == _SAME_HEADER_BYTES and next(found_in(file, re.compile(re.escape(head)), 1), None) is not None:
            raise AudioError(f"audio must be one file, but {name} joins several of {form.title}; split it")


def _check_boxes(path: Path, name: str) -> None:
    """Refuse MPEG-4 files that are cut or joined, of which ffmpeg decodes the first without a word.

    Raises:
        AudioError: if so.
    """
    position, number, num_movies, size = 0, 0, 0, path.stat().st_size
    with open_regular(path) as file:
        while position + 8 <= size:
            file.seek(position)
            head = file.read(16)
            number += 1
            if number > _MAX_BOXES:
                raise AudioError(f"audio must have at most {_MAX_BOXES} boxes, but {name} has more; convert it again")
            num_bytes = int.from_bytes(head[:4], "big")
            if num_bytes == 1:
                num_bytes = int.from_bytes(head[8:16], "big")
            if num_bytes < 8:
                break
            num_movies += head[4:8] == b"moov"
            position += num_bytes
    if position > size:
        raise AudioError(
            f"audio must be whole, but {name} is truncated: its boxes promise {position - size} bytes more than its "
            f"{size}; copy it again"
        )
    if num_movies > 1:
        raise AudioError(f"audio must be one file, but {name} joins {num_movies} MPEG-4 files; split it")


def _run(program: str, path: Path, form: Foreign, name: str, taker: Taker) -> None:
    num_bytes = path.stat().st_size
    timeout_s = min(_TIMEOUT_S, _MIN_TIMEOUT_S + num_bytes // _BYTES_PER_S)
    most_bytes = _VALUE_BYTES * most_values(num_bytes)
    reading = ["-protocol_whitelist", "file", "-err_detect", "explode", "-f", form.demuxer, "-i", f"file:{path}"]
    # AU has room for one stream only, so that a second one is an error, and states rate and channels.
    writing = ["-map", "0:a", "-c:a", "pcm_f32be", "-f", "au", "-fs", str(most_bytes), "pipe:1"]
    command = [program, "-nostdin", "-hide_banner", "-v", "error", "-xerror", *reading, *writing]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise AudioError(f"ffmpeg must start to decode {name}, but {program} does not ({error.strerror})") from error
    is_stuck, said = threading.Event(), bytearray()

    def end_it() -> None:
        is_stuck.set()
        process.kill()

    clock = threading.Timer(timeout_s, end_it)
    ear = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
    with process:
        clock.start()
        ear.start()
        try:
            num_written = sum(_written(cast(IO[bytes], process.stdout), num_bytes, name, taker))
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            clock.cancel()
            ear.join()
    if is_stuck.is_set():
        raise AudioError(
            f"ffmpeg must decode {name} within {timeout_s} s, but took longer; convert it to WAV or FLAC first"
        )
    complaint = said.decode("utf-8", "replace").replace(f"file:{path}", name).strip()
    if process.returncode or complaint:
        first = (
            shown(_ADDRESS.sub("", complaint[:2_000].splitlines()[0]), 200)
            if complaint
            else f"exit code {process.returncode}"
        )
        raise AudioError(
            f"audio must be readable and whole, but ffmpeg decoding {name} as {form.title} failed: {first}"
        )
    if num_written >= most_bytes:
        raise AudioError(
            f"audio of {num_bytes} bytes must take less than {most_bytes} decoded, but {name} takes more; cut it"
        )


def _listen(pipe: IO[bytes], said: bytearray) -> None:
    """Read all that comes, so that the writer never waits, and keep the beginning."""
    while piece := pipe.read(_SAID_BYTES):
        said += piece[: _SAID_BYTES - len(said)]


def _written(pipe: IO[bytes], num_bytes: int, name: str, taker: Taker) -> Iterator[int]:
    """Give on what a decoder writes; yield how many bytes that were."""
    head = pipe.read(_AU_HEADER.size)
    yield len(head)
    is_au = len(head) == _AU_HEADER.size and head.startswith(b".snd")
    num_channels, num_read, rate_hz = 1, 0, 0
    if is_au:
        _, start, _, _, rate_hz, num_channels = _AU_HEADER.unpack_from(head)
        yield len(pipe.read(max(0, start - len(head))))
    frame_bytes = _VALUE_BYTES * max(1, num_channels)
    while piece := pipe.read(max(1, _PIECE_BYTES // frame_bytes) * frame_bytes):
        yield len(piece)
        num_frames = len(piece) // frame_bytes
        if not is_au or not num_frames:
            continue
        num_read += num_frames
        check_num_samples(num_read, num_channels, rate_hz, num_bytes, name, taker.most_s)
        samples = np.frombuffer(piece, ">f4", num_frames * max(1, num_channels)).astype(np.float32)
        taker.take(samples if num_channels == 1 else samples.reshape(num_frames, -1), rate_hz)
