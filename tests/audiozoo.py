"""A thousand audio files, whole, cut, with lying headers, joined and tagged, against what is known to be in them.

    python tests/audiozoo.py                 # all of them; needs ffmpeg
    python tests/audiozoo.py --without-ffmpeg

Every container, codec and sample format that libsndfile and ffmpeg write. A file must be decoded to every sample that
is there (within a frame of its codec), or be refused by name: the length is known by construction, and from ffmpeg
where it reads the file without complaint. Prints counts; exit code 1 if any file was wrong or crashed.
"""

from __future__ import annotations

import argparse
import collections
import io
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
from decoded import decode

from shards.errors import AudioError

NUM_SAMPLES = 7001
UNVERIFIABLE = ("MAT4", "MAT5", "MPC2K", "SDS", "XI")
WITHOUT_MAGIC = ("RAW", "SD2")


@dataclass(frozen=True)
class Kind:
    """A way to write a file."""

    name: str
    make: Callable[[], bytes] = field(compare=False)
    family: str
    """Whose header it has."""
    frame: int = 1
    """Samples of a codec's frame; also what an encoder may add."""
    tolerance: float | None = None
    """How far samples may be off; None where the codec loses something."""
    num_channels: int = 1
    rate_hz: int = 16_000
    num_samples: int | None = NUM_SAMPLES
    """None where only ffmpeg knows."""
    may_be_refused: bool = False
    needs_ffmpeg: bool = False
    """To be decoded."""


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it."""

    kind: Kind
    variant: str
    data: bytes = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.kind.name} {self.variant}"


@dataclass
class Verdict:
    """What came of it."""

    case: Case
    outcome: str
    """right, refused, wrong or crashed."""
    detail: str = ""


def wave(num_channels: int, rate_hz: int = 16_000, num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Two tones that swell, one channel later than the other; shape `(T,)` or `(T, channels)`."""
    times = np.arange(num_samples) / rate_hz
    one = 0.25 * np.sin(2 * np.pi * 330 * times) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * times))
    one += 0.1 * np.sin(2 * np.pi * 700 * times + 0.3)
    channels = [np.roll(one, 100 * channel) for channel in range(num_channels)]
    return np.stack(channels, axis=1).squeeze().astype(np.float32)


# ---------------------------------------------------------------- what libsndfile writes

_EXACT = 1 / 16_384
"""What is made from 16 bits, and loses nothing of them."""
_TOLERANCES = {
    "PCM_S8": 1 / 64,
    "PCM_U8": 1 / 64,
    "PCM_16": _EXACT,
    "PCM_24": 1e-6,
    "PCM_32": 1e-6,
    "FLOAT": 1e-6,
    "DOUBLE": 1e-6,
    "ULAW": 0.02,
    "ALAW": 0.02,
    "ALAC_16": _EXACT,
    "ALAC_20": 1e-5,
    "ALAC_24": 1e-6,
    "ALAC_32": 1e-6,
    "DWVW_16": _EXACT,
    "DWVW_24": 1e-6,
}
_FRAMES = {
    "IMA_ADPCM": 1017,
    "MS_ADPCM": 1012,
    "GSM610": 320,
    "G721_32": 120,
    "G723_24": 120,
    "G723_40": 120,
    "NMS_ADPCM_16": 160,
    "NMS_ADPCM_24": 160,
    "NMS_ADPCM_32": 160,
    "MPEG_LAYER_III": 1152,
    "VORBIS": 2048,
    "OPUS": 960,
}


def sndfile_kinds() -> Iterator[Kind]:
    """Yield one kind for each container, codec, byte order and number of channels that libsndfile writes."""
    for container in sf.available_formats():
        if container in WITHOUT_MAGIC:
            continue
        for codec in sf.available_subtypes(container):
            for endian in ("FILE", "BIG" if container in ("WAV", "AU", "CAF") else "LITTLE"):
                if endian != "FILE" and codec not in ("PCM_16", "PCM_24", "FLOAT"):
                    continue
                for num_channels in (1, 2):
                    if num_channels == 2 and codec not in ("PCM_16", "FLOAT", "IMA_ADPCM", "VORBIS", "MPEG_LAYER_III"):
                        continue
                    yield _sndfile_kind(container, codec, endian, num_channels)


def _sndfile_kind(container: str, codec: str, endian: str, num_channels: int) -> Kind:
    rate_hz = 44_100 if container == "XI" else 8_000 if container in ("WVE", "HTK") else 16_000
    # Opus is decoded at 48 kHz, whatever it was made from.
    growth = 48_000 // rate_hz if codec == "OPUS" else 1
    # PAF's 24 bit come in blocks of ten, and 8 bit in chunks of even length may count the byte of padding.
    frame = 10 if container == "PAF" else _FRAMES.get(codec, 1)
    return Kind(
        f"sndfile {container} {codec} {endian} x{num_channels}",
        cache(lambda: _by_sndfile(container, codec, endian, num_channels, rate_hz)),
        container,
        frame,
        _TOLERANCES.get(codec) if container != "XI" else None,
        num_channels,
        rate_hz,
        num_samples=NUM_SAMPLES * growth,
        may_be_refused=container in UNVERIFIABLE,
    )


def _by_sndfile(container: str, codec: str, endian: str, num_channels: int, rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, wave(num_channels, rate_hz), rate_hz, format=container, subtype=codec, endian=endian)
    return buffer.getvalue()


def is_written(kind: Kind) -> bool:
    """Return whether these versions write the kind."""
    try:
        kind.make()
    except (sf.SoundFileError, ValueError, AssertionError, subprocess.CalledProcessError):
        return False
    return True


# ---------------------------------------------------------------- what ffmpeg writes

# name, ffmpeg's arguments, family, rate, channels, lossless, frame, decoded by ffmpeg
_FFMPEG = [
    *(
        (f"wav {c}", f"-c:a {c} -f wav", "RIFF", 16_000, 1, t, f, False)
        for c, t, f in [
            ("pcm_u8", 1 / 64, 1),
            ("pcm_s16le", _EXACT, 1),
            ("pcm_s24le", _EXACT, 1),
            ("pcm_s32le", _EXACT, 1),
            ("pcm_f32le", _EXACT, 1),
            ("pcm_f64le", _EXACT, 1),
            ("pcm_alaw", 0.02, 1),
            ("pcm_mulaw", 0.02, 1),
            ("adpcm_ms", None, 1012),
            ("adpcm_ima_wav", None, 1017),
        ]
    ),
    *(
        (f"wav {c}", f"-c:a {c} -f wav", "RIFF", r, n, None, f, True)
        for c, r, n, f in [
            ("ac3", 48_000, 2, 1536),
            ("mp2", 16_000, 1, 1152),
            ("libmp3lame", 16_000, 1, 1152),
            ("aac", 16_000, 1, 1024),
            ("adpcm_yamaha", 16_000, 1, 1024),
            ("adpcm_swf", 22_050, 1, 4096),
            ("g722", 16_000, 1, 320),
            ("g726", 8_000, 1, 400),
            ("wmav2", 16_000, 1, 2048),
            ("libspeex", 16_000, 1, 640),
            ("g723_1", 8_000, 1, 240),
        ]
    ),
    ("wav gsm_ms", "-c:a libgsm_ms -f wav", "RIFF", 8_000, 1, None, 320, False),
    ("wav pipe", "-f wav pipe:", "RIFF", 16_000, 1, _EXACT, 1, False),
    ("wav pipe x2", "-f wav pipe:", "RIFF", 16_000, 2, _EXACT, 1, False),
    ("rf64", "-rf64 always -f wav", "RF64", 16_000, 2, _EXACT, 1, False),
    ("rf64 pipe", "-rf64 always -f wav pipe:", "RF64", 16_000, 2, _EXACT, 1, False),
    ("w64", "-f w64", "W64", 16_000, 1, _EXACT, 4, False),
    ("w64 pipe", "-f w64 pipe:", "W64", 16_000, 1, _EXACT, 4, False),
    *(
        (f"aiff {c}", f"-c:a {c} -f aiff", "AIFF", 16_000, 2, t, f, False)
        for c, t, f in [
            ("pcm_s16be", _EXACT, 1),
            ("pcm_s16le", _EXACT, 1),
            ("pcm_f32be", _EXACT, 1),
            ("pcm_mulaw", 0.02, 1),
        ]
    ),
    ("aiff ima", "-c:a adpcm_ima_qt -f aiff", "AIFF", 16_000, 1, None, 64, True),
    ("aiff pipe", "-f aiff pipe:", "AIFF", 16_000, 1, _EXACT, 1, False),
    ("au", "-f au", "AU", 16_000, 1, _EXACT, 1, False),
    ("au pipe", "-c:a pcm_mulaw -f au pipe:", "AU", 8_000, 1, 0.02, 1, False),
    ("caf pcm", "-f caf", "CAF", 16_000, 1, _EXACT, 1, False),
    ("caf alac", "-c:a alac -f caf", "CAF", 16_000, 1, _EXACT, 4096, False),
    ("caf ima", "-c:a adpcm_ima_qt -f caf", "CAF", 16_000, 1, None, 64, True),
    ("caf opus", "-c:a libopus -f caf", "CAF", 48_000, 1, None, 960, True),
    ("caf mp3", "-c:a libmp3lame -f caf", "CAF", 16_000, 1, None, 1152, True),
    ("caf pipe", "-f caf pipe:", "CAF", 16_000, 1, _EXACT, 1, False),
    *(
        (f"mp3 {label}", f"-c:a libmp3lame {options} -f mp3", "MP3", r, n, None, 1152, False)
        for label, options, r, n in [
            ("cbr", "-b:a 32k", 16_000, 1),
            ("vbr", "-q:a 5", 16_000, 1),
            ("abr", "-abr 1 -b:a 32k", 16_000, 1),
            ("cbr stereo", "-b:a 128k", 44_100, 2),
            ("vbr stereo", "-q:a 2", 44_100, 2),
            ("8k", "-b:a 8k", 8_000, 1),
            ("cbr no xing", "-b:a 32k -write_xing 0", 16_000, 1),
            ("vbr no xing", "-q:a 5 -write_xing 0", 16_000, 1),
            ("vbr no xing no id3", "-q:a 5 -write_xing 0 -id3v2_version 0", 44_100, 2),
            ("id3v1", "-q:a 5 -write_id3v1 1 -metadata title=x", 22_050, 1),
        ]
    ),
    ("mp3 pipe cbr", "-c:a libmp3lame -b:a 48k -f mp3 pipe:", "MP3", 16_000, 1, None, 1152, False),
    ("mp3 pipe vbr", "-c:a libmp3lame -q:a 7 -f mp3 pipe:", "MP3", 16_000, 1, None, 1152, False),
    ("mp3 shine", "-c:a libshine -b:a 64k -f mp3", "MP3", 44_100, 2, None, 1152, False),
    ("mp2 stereo", "-c:a mp2 -f mp2", "MP2", 44_100, 2, None, 1152, False),
    ("mp2 mono", "-c:a libtwolame -b:a 64k -f mp2", "MP2", 24_000, 1, None, 1152, False),
    ("ogg vorbis", "-c:a libvorbis -f ogg", "OGG", 16_000, 1, None, 2048, False),
    ("ogg vorbis stereo", "-c:a libvorbis -f ogg", "OGG", 44_100, 2, None, 2048, False),
    ("ogg vorbis pipe", "-c:a libvorbis -f ogg pipe:", "OGG", 16_000, 1, None, 2048, False),
    ("ogg opus", "-c:a libopus -f ogg", "OGG", 48_000, 1, None, 960, False),
    ("ogg opus 16k", "-c:a libopus -application voip -f opus", "OGG", 16_000, 1, None, 960, False),
    ("ogg flac", "-c:a flac -f ogg", "OGG", 16_000, 1, _EXACT, 1, False),
    ("ogg speex", "-c:a libspeex -f ogg", "OGG", 16_000, 1, None, 640, True),
    ("flac", "-c:a flac -f flac", "FLAC", 16_000, 1, _EXACT, 1, False),
    ("flac stereo", "-c:a flac -sample_fmt s32 -f flac", "FLAC", 44_100, 2, _EXACT, 1, False),
    ("flac pipe", "-c:a flac -f flac pipe:", "FLAC", 16_000, 1, _EXACT, 1, False),
    ("voc u8", "-c:a pcm_u8 -f voc", "VOC", 16_000, 1, 1 / 64, 1, True),
    ("voc s16", "-c:a pcm_s16le -f voc", "VOC", 16_000, 1, _EXACT, 1, True),
    ("ircam", "-c:a pcm_s16le -f ircam", "IRCAM", 16_000, 1, _EXACT, 1, False),
    *(
        (f"{mux} {label}", f"-c:a {options} -f {mux}", fam, r, n, t, f, True)
        for mux, label, options, fam, r, n, t, f in [
            ("ipod", "aac", "aac", "MOV", 16_000, 1, None, 1024),
            ("ipod", "alac", "alac", "MOV", 16_000, 1, _EXACT, 1),
            ("ipod", "aac stereo", "aac", "MOV", 44_100, 2, None, 1024),
            ("ipod", "faststart", "aac -movflags +faststart", "MOV", 44_100, 1, None, 1024),
            ("mp4", "aac", "aac", "MOV", 48_000, 2, None, 1024),
            ("mp4", "mp3", "libmp3lame", "MOV", 16_000, 1, None, 1152),
            ("mp4", "fragmented", "aac -movflags frag_keyframe+empty_moov", "MOV", 16_000, 1, None, 1024),
            ("mp4", "opus", "libopus", "MOV", 48_000, 1, None, 960),
            ("mp4", "flac", "flac", "MOV", 16_000, 1, _EXACT, 1),
            ("mov", "pcm", "pcm_s16le", "MOV", 16_000, 1, _EXACT, 1),
            ("mov", "aac", "aac", "MOV", 16_000, 1, None, 1024),
            ("mov", "ima", "adpcm_ima_qt", "MOV", 16_000, 1, None, 64),
            ("3gp", "aac", "aac", "MOV", 16_000, 1, None, 1024),
            ("matroska", "aac", "aac", "MKV", 16_000, 1, None, 1024),
            ("matroska", "vorbis", "libvorbis", "MKV", 16_000, 1, None, 2048),
            ("matroska", "flac", "flac", "MKV", 16_000, 1, _EXACT, 1),
            ("matroska", "pcm", "pcm_s16le", "MKV", 16_000, 1, _EXACT, 1),
            ("matroska", "mp3", "libmp3lame", "MKV", 16_000, 1, None, 1152),
            ("webm", "opus", "libopus", "MKV", 48_000, 1, None, 960),
            ("webm", "vorbis", "libvorbis", "MKV", 16_000, 1, None, 2048),
            ("webm", "pipe", "libopus -live 1", "MKV", 48_000, 1, None, 960),
            ("asf", "wmav1", "wmav1", "ASF", 16_000, 1, None, 2048),
            ("asf", "wmav2", "wmav2", "ASF", 44_100, 2, None, 2048),
            ("asf", "mp3", "libmp3lame", "ASF", 16_000, 1, None, 1152),
            ("adts", "aac", "aac", "AAC", 16_000, 1, None, 1024),
            ("adts", "aac stereo", "aac", "AAC", 44_100, 2, None, 1024),
            ("latm", "aac", "aac", "AAC", 16_000, 1, None, 1024),
            ("ac3", "ac3", "ac3", "AC3", 48_000, 2, None, 1536),
            ("eac3", "eac3", "eac3", "AC3", 48_000, 2, None, 1536),
            ("dts", "dca", "dca -strict -2", "DTS", 48_000, 2, None, 512),
            ("truehd", "truehd", "truehd -strict -2", "MLP", 48_000, 2, _EXACT, 40),
            ("tta", "tta", "tta", "TTA", 16_000, 1, _EXACT, 1),
            ("wv", "wavpack", "wavpack", "WV", 16_000, 1, _EXACT, 1),
            ("flv", "mp3", "libmp3lame", "FLV", 44_100, 1, None, 1152),
            ("flv", "aac", "aac", "FLV", 44_100, 1, None, 1024),
            ("avi", "mp3", "libmp3lame", "AVI", 16_000, 1, None, 1152),
            ("avi", "pcm", "pcm_s16le", "AVI", 16_000, 1, _EXACT, 1),
            ("mpegts", "aac", "aac", "TS", 16_000, 1, None, 1024),
            ("mpegts", "mp2", "mp2", "TS", 48_000, 2, None, 1152),
            ("mpeg", "mp2", "mp2", "PS", 48_000, 2, None, 1152),
            ("rm", "ac3", "ac3", "RM", 44_100, 2, None, 1536),
            ("sox", "s32", "pcm_s32le", "SOX", 16_000, 1, _EXACT, 1),
        ]
    ),
]
_UNKNOWN_TO_US = [
    ("nut", "-c:a pcm_s16le -f nut"),
    ("wtv", "-c:a mp2 -f wtv"),
    ("mxf", "-ar 48000 -c:a pcm_s16le -f mxf_opatom"),
]


def ffmpeg_kinds() -> Iterator[Kind]:
    """Yield the kinds that this machine's ffmpeg writes."""
    for name, options, family, rate_hz, num_channels, tolerance, frame, needs_ffmpeg in _FFMPEG:
        yield Kind(
            f"ffmpeg {name}",
            cache(lambda o=options, r=rate_hz, n=num_channels: by_ffmpeg(o, r, n)),
            family,
            frame,
            tolerance,
            num_channels,
            rate_hz,
            num_samples=NUM_SAMPLES if tolerance is not None else None,
            # In the first ffmpeg itself finds faults, of the second it decodes one packet, the third it pads: all
            # without a word.
            may_be_refused=name in ("wav aac", "wav libspeex", "sox s32"),
            needs_ffmpeg=needs_ffmpeg,
        )
    for name, options in _UNKNOWN_TO_US:
        yield Kind(
            f"ffmpeg {name}",
            cache(lambda o=options: by_ffmpeg(o, 48_000, 1)),
            "OTHER",
            4096,
            num_samples=None,
            rate_hz=48_000,
            may_be_refused=True,
            needs_ffmpeg=True,
        )


def by_ffmpeg(options: str, rate_hz: int, num_channels: int) -> bytes:
    """Return what ffmpeg makes of the wave with these options."""
    source = io.BytesIO()
    sf.write(source, wave(num_channels, rate_hz), rate_hz, format="WAV", subtype="PCM_16")
    is_piped = options.endswith("pipe:")
    with tempfile.TemporaryDirectory() as folder:
        target = "pipe:1" if is_piped else f"{folder}/file"
        command = ["ffmpeg", "-v", "quiet", "-f", "wav", "-i", "pipe:0", *options.removesuffix("pipe:").split(), target]
        done = subprocess.run(command, input=source.getvalue(), capture_output=True, check=True)
        return done.stdout if is_piped else Path(target).read_bytes()


# ---------------------------------------------------------------- lies


def _put(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


def _sizes(data: bytes, position: int, width: int, order: str) -> Iterator[tuple[str, bytes]]:
    size = int.from_bytes(data[position : position + width], order)
    most = (1 << 8 * width) - 1
    for label, value in [("0", 0), ("-1", most), ("half", size // 2), ("double", size * 2), ("one more", size + 1)]:
        yield f"says {label}", _put(data, position, min(value, most).to_bytes(width, order))


def _lies(kind: Kind, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the file with other lengths in its header."""
    order = "big" if data[:4] in (b"RIFX", b"FORM", b"caff", b".snd") else "little"
    if data[:4] in (b"RIFF", b"RIFX") and b"data" in data[:200]:
        yield from _sizes(data, data.index(b"data") + 4, 4, order)
        if b"fact" in data[:100]:
            yield from ((f"fact {label}", lie) for label, lie in _sizes(data, data.index(b"fact") + 8, 4, order))
    elif data[:4] == b"RF64":
        yield from _sizes(data, data.index(b"ds64") + 16, 8, order)
    elif data[:4] == b"riff":
        yield from _sizes(data, data.index(b"data\xf3\xac") + 16, 8, order)
    elif data[:4] == b"FORM":
        wanted = b"SSND" if b"SSND" in data else b"BODY"
        yield from _sizes(data, data.index(wanted) + 4, 4, order)
        if b"COMM" in data:
            yield from ((f"COMM {label}", lie) for label, lie in _sizes(data, data.index(b"COMM") + 10, 4, order))
    elif data[:4] == b"caff":
        yield from _sizes(data, data.index(b"data") + 4, 8, order)
    elif data[:4] in (b".snd", b"dns."):
        yield from _sizes(data, 8, 4, "big" if data[:1] == b"." else "little")
    elif data[:7] == b"NIST_1A":
        for value in (0, NUM_SAMPLES // 2, NUM_SAMPLES * 2, NUM_SAMPLES + 1):
            yield f"says {value}", re.sub(rb"sample_count -i \d+", b"sample_count -i %04d" % value, data)
    elif data[:4] == b"fLaC":
        for value in (0, NUM_SAMPLES // 2, NUM_SAMPLES * 2, NUM_SAMPLES + 1):
            yield f"says {value}", _put(data, 21, bytes([data[21] & 0xF0]) + value.to_bytes(4, "big"))
    elif kind.family in ("MP3", "MP2") or data[:2] == b"\xff\xfb":
        for magic in (b"Xing", b"Info"):
            if magic in data[:300]:
                yield from _sizes(data, data.index(magic) + 8, 4, "big")
    elif data[:4] == b"OggS":
        yield from granule_lies(data)
    elif kind.family == "MOV" and b"mdhd" in data:
        yield from ((f"mdhd {label}", lie) for label, lie in _sizes(data, data.index(b"mdhd") + 20, 4, "big"))
    elif kind.family == "MKV" and b"\x44\x89\x88" in data:
        for value in (0.0, 100.0, 1e6):
            yield f"says {value}", _put(data, data.index(b"\x44\x89\x88") + 3, struct.pack(">d", value))
    elif kind.family == "VOC":
        yield from _sizes(data, 27, 3, "little")


def granule_lies(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield an OGG file whose last page states other ends, with its checksum."""
    start = data.rindex(b"OggS")
    granule = int.from_bytes(data[start + 6 : start + 14], "little")
    for value in (0, granule * 2, granule + 5000):
        yield f"granule {value}", with_page_checksum(_put(data, start + 6, value.to_bytes(8, "little")), start)


def with_page_checksum(data: bytes, start: int) -> bytes:
    """Return an OGG file with the right checksum in the page that goes from `start` to its end."""
    blank = _put(data, start + 22, bytes(4))
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    mirrored = zlib.crc32(blank[start:].translate(reversed_bits), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return _put(blank, start + 22, int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little"))


ID3V2 = b"ID3\x04\x00\x00\x00\x00\x00\x10" + b"TIT2\x00\x00\x00\x06\x00\x00\x03title"
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")


def cases(kind: Kind) -> Iterator[Case]:
    """Yield the file in all variants."""
    data = kind.make()
    yield Case(kind, "whole", data)
    for label, num_bytes in [("half", len(data) // 2), ("9/10", len(data) * 9 // 10), ("one byte", len(data) - 1)]:
        yield Case(kind, f"cut by {label}" if label == "one byte" else f"cut to {label}", data[:num_bytes])
    yield Case(kind, "joined", data + data)
    yield Case(kind, "with a tag behind", data + ID3V1)
    if kind.family in ("MP3", "MP2", "FLAC", "AAC"):
        yield Case(kind, "with a tag before", ID3V2 + data)
        yield Case(kind, "joined with tags", ID3V2 + data + ID3V1 + ID3V2 + data + ID3V1)
    for label, lie in _lies(kind, data):
        yield Case(kind, label, lie)


# ---------------------------------------------------------------- what must come of it


def judge(case: Case, with_ffmpeg: bool) -> Verdict:
    """Decode the file and hold the result against what is known."""
    try:
        samples, _ = decode(case.data, "case.bin")
    except AudioError as error:
        return _judge_refusal(case, str(error))
    except Exception as error:
        return Verdict(case, "crashed", repr(error))
    return _judge_samples(case, samples, with_ffmpeg)


def _judge_refusal(case: Case, message: str) -> Verdict:
    is_needless = case.variant == "whole" and not case.kind.may_be_refused
    if "case.bin" not in message or is_needless:
        return Verdict(case, "wrong", f"refused: {message}")
    return Verdict(case, "refused", message)


def _judge_samples(case: Case, samples: np.ndarray, with_ffmpeg: bool) -> Verdict:
    kind = case.kind
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    if num_channels != kind.num_channels:
        return Verdict(case, "wrong", f"{num_channels} channels")
    num_parts = 2 if case.variant.startswith("joined") else 1
    known = kind.num_samples if kind.num_samples is not None else oracle_length(kind.make(), num_channels)
    needs_oracle = with_ffmpeg and case.variant.split()[0] in ("whole", "cut", "joined")
    heard = oracle_length(case.data, num_channels) if needs_oracle else None
    if case.variant.startswith("cut"):
        # A format that promises nothing: all that is left, which is what ffmpeg finds or more.
        is_right = (heard or 0) - kind.frame <= len(samples) <= (known or len(samples)) + kind.frame
        return Verdict(case, "right" if is_right else "wrong", f"{len(samples)} samples; ffmpeg: {heard}")
    if known is None:
        return Verdict(case, "wrong", "nobody knows its length")
    if abs(len(samples) - num_parts * known) > num_parts * kind.frame:
        return Verdict(case, "wrong", f"{len(samples)} of {num_parts * known} samples; ffmpeg: {heard}")
    if kind.tolerance is not None and not _agrees(samples, kind, num_parts):
        return Verdict(case, "wrong", "other samples")
    is_unlike = heard is not None and abs(len(samples) - heard) > num_parts * kind.frame
    return Verdict(case, "right", f"ffmpeg decodes {heard}, {num_parts * known} are there" if is_unlike else "")


def _agrees(samples: np.ndarray, kind: Kind, num_parts: int) -> bool:
    truth = np.concatenate([wave(kind.num_channels, kind.rate_hz)] * num_parts)
    num = min(len(truth), len(samples))
    return bool(np.abs(samples[:num] - truth[:num]).max() <= (kind.tolerance or 0))


@cache
def oracle_length(data: bytes, num_channels: int) -> int | None:
    """Return how many samples ffmpeg decodes by itself; None where it finds a fault or there is no ffmpeg."""
    if shutil.which("ffmpeg") is None:
        return None
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", file.name, "-map", "0:a:0", "-f", "f32le", "-"]
        done = subprocess.run(command, capture_output=True, check=False)
    return None if done.returncode or done.stderr else len(done.stdout) // 4 // num_channels


def all_kinds(with_ffmpeg: bool, only: str = "") -> Iterator[Kind]:
    """Yield the kinds whose names contain `only`."""
    for kind in [*sndfile_kinds(), *(ffmpeg_kinds() if with_ffmpeg else ())]:
        if only in kind.name and is_written(kind):
            yield kind


def main() -> int:
    """Judge all and print counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-ffmpeg", action="store_true")
    parser.add_argument("--only", default="", help="part of a kind's name")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    verdicts = []
    for kind in all_kinds(not options.without_ffmpeg, options.only):
        for case in cases(kind):
            verdicts.append(judge(case, not options.without_ffmpeg))
            if verdicts[-1].outcome in ("wrong", "crashed") or options.verbose:
                _show(verdicts[-1])
    outcomes = collections.Counter(verdict.outcome for verdict in verdicts)
    print(f"{len(verdicts)} files in {time.perf_counter() - started:.0f} s: {dict(outcomes)}")
    reasons = collections.Counter(_kind_of(verdict.detail) for verdict in verdicts if verdict.outcome == "refused")
    for reason, count in reasons.most_common():
        print(f"  refused {count:4d}: {reason}")
    unlike = [verdict for verdict in verdicts if verdict.outcome == "right" and verdict.detail.startswith("ffmpeg")]
    print(f"  right {len(unlike):4d}: as constructed, although ffmpeg decodes another number of samples")
    return int(bool(outcomes["wrong"] or outcomes["crashed"]))


def _show(verdict: Verdict) -> None:
    case = verdict.case
    print(f"{verdict.outcome}: {case.name} ({len(case.data)} bytes): {verdict.detail[:300]}", flush=True)


def _kind_of(message: str) -> str:
    """Return a refusal without what differs from file to file."""
    message = re.sub(r"b'[^']*'|b\"[^\"]*\"", "...", message.replace("case.bin", "X"))
    message = re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\] ", "", message)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", message)[:150]


if __name__ == "__main__":
    sys.exit(main())
