"""Audio takes work and memory by the size of its file, whatever its header or its codec says."""

import io
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
from decoded import decode, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import limits
from shards.audio import AudioFile
from shards.errors import AudioError
from shards.limits import FREE_VALUES, MAX_VALUES, most_values
from shards.parts import Part, load_file, load_part
from shards.track import Track

MAX_S = 5
NOISE = np.random.default_rng(0).integers(-3_000, 3_000, 8_000).astype("<i2")


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def wav(*, rate_hz: int = 16_000, channels: int = 1, tag: int = 1, samples: np.ndarray = NOISE, more: bytes = b""):
    width = samples.dtype.itemsize
    fmt = struct.pack(
        "<HHIIHH", tag, channels, rate_hz, rate_hz * channels * width & 0xFFFFFFFF, channels * width, 8 * width
    )
    body = b"WAVE" + chunk(b"fmt ", fmt) + more + chunk(b"data", samples.tobytes())
    return b"RIFF" + struct.pack("<I", len(body)) + body


def refusal(data: bytes) -> str:
    """Return why `data` is refused, which must be told at once and in one sentence."""
    started = time.monotonic()
    with pytest.raises(AudioError) as refused:
        decode(data, "clip")
    assert time.monotonic() - started < MAX_S
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    return str(refused.value)


def silence(num_samples: int, container: str, rate_hz: int = 16_000) -> bytes:
    """Return digital silence in as few bytes as the codec makes of it."""
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, "w", rate_hz, 1, format=container) as file:
        for _ in range(0, num_samples, 1 << 20):
            file.write(np.zeros(1 << 20, np.int16))
    return buffer.getvalue()


@pytest.fixture
def small_limits(monkeypatch):
    """A hundredth of what is allowed, so that what is beyond it is made quickly."""
    monkeypatch.setattr(limits, "FREE_VALUES", 1 << 20)
    monkeypatch.setattr(limits, "VALUES_PER_BYTE", 1)


@pytest.mark.parametrize("rate_hz", [0, 1, 10, 999, 1_000_001, 2**31, 2**32 - 1])
def test_rates_of_no_sound_are_refused_before_anything_is_resampled(rate_hz):
    assert f"must have a rate of 1000 to 1000000 Hz, but the header of clip says {rate_hz}" in refusal(
        wav(rate_hz=rate_hz)
    )


def test_more_channels_than_anything_records_are_refused():
    assert "at most 256 channels, but clip has 300" in refusal(wav(channels=300, samples=np.tile(NOISE, 3)))


@given(st.integers(0, 1 << 40))
def test_a_file_may_hold_what_its_size_makes_likely(num_bytes):
    most = most_values(num_bytes)
    assert min(FREE_VALUES, MAX_VALUES) <= most <= MAX_VALUES
    assert most >= min(MAX_VALUES, num_bytes), "8 bits a sample"


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3"])
def test_silence_that_becomes_far_more_than_its_file_is_refused(small_limits, container):
    rate_hz = 8_000 if container == "MP3" else 16_000
    data = silence(3 << 20, container, rate_hz)
    assert f"in a file of {len(data)} bytes" in refusal(data)
    lying = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 100]) + data[26:] if container == "FLAC" else data
    assert f"in a file of {len(data)} bytes" in refusal(lying)


def test_low_rates_count_by_what_they_become(small_limits):
    assert len(decode(wav(rate_hz=16_000, samples=np.tile(NOISE, 100)), "clip")[0]) == 800_000
    assert "must hold at most" in refusal(wav(rate_hz=1_000, samples=np.tile(NOISE, 100).astype("<i1")[:700_000]))


def test_files_joined_count_together(small_limits):
    once = silence(1 << 20, "FLAC")
    assert len(decode(once, "clip")[0]) == 1 << 20
    assert "must hold at most" in refusal(once * 2)


def test_a_part_of_silence_is_bounded_as_well(small_limits, tmp_path):
    (tmp_path / "a.flac").write_bytes(silence(8 << 20, "FLAC"))
    assert len(AudioFile(tmp_path / "a.flac", 1.0, 2.0).load()[0]) == 16_000
    with pytest.raises(AudioError, match="must hold at most"):
        AudioFile(tmp_path / "a.flac", 0.0, 300.0).load()


EMPTY = struct.pack("<4sI", b"LIST", 0)
W64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")


@pytest.mark.parametrize(
    "data",
    [
        wav(more=EMPTY * 200_000),
        wav() + EMPTY * 200_000,
        wav(more=chunk(b"fmt ", bytes(16)) * 100_000),
        b"FORM\x7f\xff\xff\xffAIFF" + struct.pack(">4sI", b"COMT", 0) * 200_000,
        b"caff\0\1\0\0" + struct.pack(">4sQ", b"free", 0) * 200_000,
        b"riff" + bytes(20) + b"wave" + W64 + (b"junk" + W64 + struct.pack("<Q", 24)) * 100_000,
        b"Creative Voice File\x1a\x1a\0\x0a\x01\x29\x11" + b"\x03\0\0\0" * 200_000,
    ],
    ids=["RIFF", "behind", "forms", "AIFF", "CAF", "W64", "VOC"],
)
def test_chunks_by_the_hundred_thousand_are_refused_at_once(data):
    assert "must have at most 10000 chunks, but clip has more" in refusal(data)


@pytest.mark.parametrize("container", ["FLAC", "OGG"])
def test_streams_joined_by_the_ten_thousand_are_refused_at_once(container):
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros(16), 16_000, format=container, subtype="OPUS" if container == "OGG" else None)
    assert "must join at most 10000 streams, but clip joins more" in refusal(buffer.getvalue() * 10_001)


def test_the_time_for_mpeg_frames_grows_with_their_number_alone():
    data = silence(1 << 20, "MP3", 8_000) * 20  # 36,000 frames
    started = time.monotonic()
    decode(data, "clip")
    assert time.monotonic() - started < MAX_S


@pytest.mark.parametrize(
    "header",
    [
        "sample_count -i 999999999999\nsample_n_bytes -i 2\nsample_rate -i 16000\n",
        "sample_n_bytes -i 999999999999\nchannel_count -i 999999999999\nsample_sig_bits -i 999999999999\n",
        "sample_rate -i 1\nchannel_count -i 1\nsample_n_bytes -i 2\nsample_byte_format -s2 01\nsample_count -i 8000\n",
        "sample_rate -i 2147483648\nchannel_count -i 1\nsample_n_bytes -i 2\nsample_count -i 8000\n",
        "sample_rate -i -16000\nchannel_count -i -1\nsample_n_bytes -i 2\nsample_count -i 4000\n",
        "channel_count -i 0\nsample_n_bytes -i 0\n",
        "sample_rate -i " + "9" * 900,
    ],
)
def test_headers_of_nist_that_claim_anything_are_refused(header):
    refusal(f"NIST_1A\n   1024\n{header}".encode().ljust(1_024)[:1_024] + NOISE.tobytes())


@given(st.sampled_from([b"RIFF", b"FORM", b"NIST", b".snd", b"fLaC", b"OggS", b"caff", b"riff", b"ID3\4"]), st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_a_header_give_finite_samples_or_one_sentence(magic, data):
    containers = {b"FORM": "AIFF", b"NIST": "NIST", b".snd": "AU", b"fLaC": "FLAC", b"OggS": "OGG"}
    containers |= {b"caff": "CAF", b"riff": "W64"}
    buffer = io.BytesIO()
    sf.write(buffer, NOISE[:2_000], 16_000, format=containers.get(magic, "WAV"))
    content = bytearray(buffer.getvalue() if magic != b"ID3\4" else b"ID3\4\0\0\x7f\x7f\x7f\x7f" + buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 120) - 4))
        new = data.draw(
            st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        )
        content[place : place + len(new)] = new
    started = time.monotonic()
    try:
        samples, rate_hz = decode(bytes(content), "clip")
        assert np.isfinite(prepare(samples, rate_hz)).all()
    except AudioError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - started < MAX_S


@pytest.mark.parametrize(
    ("name", "what"),
    [("pipe", "it is a named pipe"), ("endless", "it is a device"), ("folder", "it is a folder"), ("loop", "Too many")],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, name, what):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for load in (load_file, Track, lambda path: AudioFile(path, 0.0, 1.0).load()):
        with pytest.raises(AudioError, match=what):
            load(tmp_path / name)


def test_files_too_long_to_be_read_whole_are_refused_before_they_are(tmp_path):
    for name, head in (("a.ogg", b"OggS"), ("b.flac", b"fLaC"), ("c.mp3", b"ID3")):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(400 << 20)
        with pytest.raises(AudioError, match=r"must have at most 301989888 bytes, but .* has 419430400"):
            load_file(tmp_path / name)
    # Plain samples are sought, and what lies behind them is looked at, but not read whole.
    (tmp_path / "a.wav").write_bytes(wav())
    os.truncate(tmp_path / "a.wav", 3 << 30)
    for load in (load_file, lambda path: load_part(path, Part(0.0, 0.1))):
        with pytest.raises(AudioError, match=r"must be as long as its header says, but .* goes on for 32"):
            load(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.full((8_000, 2), 3e38, "<f4"), "reaches 3e+38"),
        (np.full((8_000, 1), 1e300, "<f8"), "holds NaN or infinite samples"),
        (np.full((8_000, 2), np.nan, "<f4"), "holds NaN or infinite samples"),
        (np.tile([[3e38, -3e38]], (8_000, 1)).astype("<f4"), "reaches 3e+38"),
    ],
)
def test_samples_that_overflow_are_refused_by_name(samples, words):
    data = wav(channels=samples.shape[1], tag=3, samples=samples)
    assert words in refusal(data)


@pytest.mark.parametrize(
    "samples",
    [
        np.full(8_000, 5e-324, "<f8"),
        np.random.default_rng(0).normal(size=8_000) * 1e-310,
        np.full(8_000, 0.9, "<f4"),
        np.where(np.arange(8_000) % 3 > 0, -(2**31), 2**31 - 1).astype("<i4"),
        np.random.default_rng(0).choice([-63.0, 63.0], 8_000).astype("<f4"),
    ],
    ids=["denormal", "tiny", "constant", "int32", "loud"],
)
def test_samples_at_the_ends_of_their_range_stay_finite(samples):
    for rate_hz in (1_000, 16_000, 44_100):
        decoded = decode(wav(rate_hz=rate_hz, tag=1 if samples.dtype.kind == "i" else 3, samples=samples), "clip")
        assert np.isfinite(prepare(*decoded)).all()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
from pathlib import Path
from shards.errors import AudioError
from shards.parts import load_file
for name in sys.argv[1:]:
    try:
        print(len(load_file(Path(name))[0]))
    except AudioError as error:
        print(str(error)[:60])
"""


def test_a_lack_of_memory_is_one_file_s_error(tmp_path):
    # Beside its bytes, 0.8 GB as floats.
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(wav()[:-16_004] + struct.pack("<I", 400_000_000))
        file.truncate(44 + 400_000_000)
    (tmp_path / "good.wav").write_bytes(wav())
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "long.wav"), str(tmp_path / "good.wav")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(("audio must fit the memory", "audio must be readable and whole")), first
    assert second == "8000"


# ---------------------------------------------------------------- ffmpeg


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """Return a function that puts a program called ffmpeg in place, which does what a shell line says."""

    def put(line: str) -> None:
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/arguments\n{line}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


MOVIE = struct.pack(">I4s", 16, b"ftyp") + bytes(8)


def test_ffmpeg_is_asked_for_no_more_than_a_file_may_hold_and_opens_no_network(tmp_path, fake_ffmpeg, small_limits):
    (tmp_path / "a.m4a").write_bytes(MOVIE)
    fake_ffmpeg("head -c 6000000 /dev/zero")
    with pytest.raises(AudioError, match=r"audio of 16 bytes must take less than 4194368 decoded"):
        load_file(tmp_path / "a.m4a")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("-fs") + 1] == str(4 * ((1 << 20) + 16))
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file"
    assert arguments[arguments.index("-f") + 1] == "mov", "never a playlist"


def test_an_ffmpeg_that_is_stuck_is_ended(tmp_path, fake_ffmpeg, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(MOVIE)
    monkeypatch.setattr("shards.ffmpeg._MIN_TIMEOUT_S", 1)
    fake_ffmpeg("exec sleep 60")
    started = time.monotonic()
    with pytest.raises(AudioError, match=r"must decode .* within 1 s, but took longer"):
        load_file(tmp_path / "a.m4a")
    assert time.monotonic() - started < 30


def test_what_ffmpeg_says_obeys_no_terminal(tmp_path, fake_ffmpeg):
    (tmp_path / "a.m4a").write_bytes(MOVIE)
    fake_ffmpeg("printf '\\033[31mred' >&2; exit 1")
    with pytest.raises(AudioError, match=r"failed: \\x1b\[31mred"):
        load_file(tmp_path / "a.m4a")


@pytest.mark.parametrize("list_of_files", ["#EXTM3U\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile /etc/passwd\n"])
def test_lists_of_files_are_no_audio_whatever_they_are_called(tmp_path, fake_ffmpeg, list_of_files):
    fake_ffmpeg("exit 0")
    for name in ("a.wav", "a.m4a", "a.mp3"):
        (tmp_path / name).write_text(list_of_files)
        with pytest.raises(AudioError, match="must be readable and whole, but decoding"):
            load_file(tmp_path / name)
    assert not (tmp_path / "arguments").exists()


def test_boxes_by_the_million_are_refused(tmp_path, fake_ffmpeg, monkeypatch):
    monkeypatch.setattr("shards.ffmpeg._MAX_BOXES", 1_000)
    fake_ffmpeg("exit 0")
    (tmp_path / "a.m4a").write_bytes(MOVIE + struct.pack(">I4s", 8, b"free") * 2_000)
    with pytest.raises(AudioError, match="must have at most 1000 boxes"):
        load_file(tmp_path / "a.m4a")


@pytest.mark.parametrize("stated", ["  -1024", "-999999", "      0", "9999999"])
@pytest.mark.parametrize("read", [load_file, lambda path: load_part(path, Part(0.1, 0.2))])
def test_a_header_that_begins_elsewhere_is_refused_without_another_word(tmp_path, capfd, stated, read):
    buffer = io.BytesIO()
    sf.write(buffer, NOISE, 16_000, format="NIST", subtype="PCM_16")
    path = tmp_path / "x.wav"
    path.write_bytes(buffer.getvalue().replace(b"   1024", stated.encode(), 1))
    with pytest.raises(AudioError):
        read(path)
    assert capfd.readouterr() == ("", "")
