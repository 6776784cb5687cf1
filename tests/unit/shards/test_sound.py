"""Sound that is heard block by block is that of the whole to the bit, and takes memory by what it is heard as."""

import io
import json
import subprocess
import sys
from pathlib import Path

import audiozoo
import numpy as np
import pytest
import soundfile as sf
from decoded import decode, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import audio, decoding, limits, parts, track
from shards.audio import AudioFile, Sound, is_clipped, pcm16, pcm_sha256, samples_sha256
from shards.errors import AudioError
from shards.parts import Part, load_file, load_part
from shards.stream import found_in
from shards.track import Track

KINDS = [kind for kind in audiozoo.sndfile_kinds() if audiozoo.is_written(kind)]
SOME_KINDS = [kind for number, kind in enumerate(KINDS) if number % 4 == 0]


def noise(num_samples: int, num_channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).uniform(-1.2, 1.2, (num_samples, num_channels)).astype(np.float32)
    return samples[:, 0] if num_channels == 1 else samples


def outcome(read, *arguments) -> tuple[str, bytes, int]:
    """Return what comes of reading, or why nothing does."""
    try:
        samples, rate_hz = read(*arguments)
    except AudioError as error:
        return str(error), b"", 0
    return "", samples.tobytes(), rate_hz


@given(
    st.sampled_from([1_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]),
    st.sampled_from([1, 2, 3, 9]),
    st.lists(st.integers(1, 3_000), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_sound_in_blocks_is_that_of_the_whole(rate_hz, num_channels, lengths):
    whole = noise(sum(lengths), num_channels)
    expected = prepare(whole, rate_hz)
    for as_pcm in (False, True):
        sound = Sound("clip", as_pcm=as_pcm)
        for end, length in zip(np.cumsum(lengths).tolist(), lengths, strict=True):
            sound.take(whole[end - length : end], rate_hz)
        np.testing.assert_array_equal(sound.end(), pcm16(expected) if as_pcm else expected)
        assert (sound.num_samples, sound.num_channels, sound.rate_hz) == (len(whole), num_channels, rate_hz)


@given(st.integers(0, 2_000), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_parts_of_a_clip_are_counted_and_hashed_as_the_whole(place, num_full):
    samples = noise(2_000) / 2
    samples[place : place + num_full] = 1.0
    pcm = pcm16(samples)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audio, "_PART_SAMPLES", 100)
        np.testing.assert_array_equal(pcm16(samples), pcm)
        assert samples_sha256(samples) == pcm_sha256(pcm)
        assert is_clipped(pcm) == (num_full == 3 and place + 3 <= 2_000)


@pytest.mark.parametrize("kind", SOME_KINDS, ids=lambda kind: kind.name)
def test_what_is_decoded_in_small_blocks_is_what_is_decoded_at_once(kind, monkeypatch):
    cases = [case for case in audiozoo.cases(kind) if case.variant in ("whole", "joined", "cut to half")]
    expected = [outcome(decode, case.data, "clip") for case in cases]
    monkeypatch.setattr(decoding, "BLOCK_VALUES", 1_000)
    assert [outcome(decode, case.data, "clip") for case in cases] == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.family in ("WAV", "FLAC", "AIFF", "W64", "CAF", "AU")])
def test_long_files_are_decoded_from_disk_as_from_memory(kind, monkeypatch, tmp_path):
    path = tmp_path / "clip"
    for case in audiozoo.cases(kind):
        path.write_bytes(case.data)
        monkeypatch.setattr(parts, "_LONG_BYTES", 1 << 30)
        expected = outcome(load_file, path)
        monkeypatch.setattr(parts, "_LONG_BYTES", 0)
        assert outcome(load_file, path) == expected, case.variant


@pytest.mark.parametrize("container", ["MP3", "OGG", "WAV"])
def test_parts_of_files_too_long_to_be_kept_are_the_same(container, monkeypatch, tmp_path):
    sf.write(tmp_path / "clip", noise(40_000, 2) / 2, 16_000, format=container)
    asked = [
        Part(0.5, 1.0),
        Part(0.0, None),
        Part(None, 0.3),
        Part(2.0, None),
        Part(2.4, 2.6),
        Part(3.0, 4.0),
        Part(1, 1),
    ]
    expected = [outcome(load_part, tmp_path / "clip", part) for part in asked]
    monkeypatch.setattr(parts, "_MOST_KEPT_VALUES", 1_000)
    monkeypatch.setattr(parts, "_KEPT", parts._Kept())
    monkeypatch.setattr(decoding, "BLOCK_VALUES", 5_000)
    assert [outcome(load_part, tmp_path / "clip", part) for part in asked] == expected
    assert sum(not reason for reason, _, _ in expected) == 4


@pytest.mark.parametrize("first", [None, 1, 3, 7])
def test_every_channel_of_a_track_is_there_whether_or_not_it_is_kept(first, monkeypatch, tmp_path):
    samples = noise(30_000, 3) / 2
    sf.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    for most in (1 << 26, 1_000):
        monkeypatch.setattr(track, "_MOST_KEPT_VALUES", most)
        heard = Track(tmp_path / "a.wav", first)
        for channel in (first, 1, None, 3, 2, None):
            if channel == 7:
                with pytest.raises(AudioError, match="channel must be 1 to the 3"):
                    heard.mono(channel)
                continue
            one = samples if channel is None else np.ascontiguousarray(samples[:, channel - 1])
            np.testing.assert_array_equal(heard.mono(channel), prepare(one, 44_100))


def test_a_pattern_is_found_across_pieces(monkeypatch):
    import re

    monkeypatch.setattr("shards.stream._PIECE_BYTES", 70)
    data = b"".join(bytes(number) + b"abc" for number in range(90)) + b"ab"
    expected = [match.start() for match in re.finditer(b"abc", data)]
    assert list(found_in(io.BytesIO(data), re.compile(b"abc"))) == expected
    assert list(found_in(io.BytesIO(data), re.compile(b"abc"), 1)) == [place for place in expected if place]
    assert list(found_in(io.BytesIO(b""), re.compile(b"abc"))) == []


def test_sound_that_is_heard_as_one_is_bounded_by_its_length(monkeypatch, tmp_path):
    sf.write(tmp_path / "a.wav", noise(40_000) / 2, 16_000)
    sf.write(tmp_path / "a.mp3", noise(40_000) / 2, 16_000)
    for heard in (Sound, Track):
        monkeypatch.setattr(heard, "most_s", 2.0)
    for name in ("a.wav", "a.mp3"):
        for hear in (Track, lambda path: AudioFile(path).hear(), lambda path: AudioFile(path, 0.0, 2.2).hear()):
            with pytest.raises(AudioError, match=r"heard as one must last at most 2 s, but .* is longer; cut it"):
                hear(tmp_path / name)
        assert len(AudioFile(tmp_path / name, 1.0, 2.2).hear().end()) == 19_200


HEARD = """
import json, resource, sys
from pathlib import Path
from shards.audio import AudioFile, encode_pcm
from shards.errors import AudioError
from shards.track import Track
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if sys.argv[2] == "pack":
        num_samples = len(encode_pcm(AudioFile(Path(sys.argv[1])).hear(as_pcm=True).end())) and 1
    else:
        num_samples = len(Track(Path(sys.argv[1])).mono())
except AudioError as error:
    num_samples = str(error)
print(json.dumps([num_samples, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


def header(rate_hz: int, channels: int, bits: int, num_bytes: int) -> bytes:
    width = channels * bits // 8
    fmt = b"".join(
        value.to_bytes(size, "little")
        for value, size in ((1, 2), (channels, 2), (rate_hz, 4), (rate_hz * width, 4), (width, 2), (bits, 2))
    )
    return (
        b"RIFF"
        + (num_bytes + 36).to_bytes(4, "little")
        + b"WAVEfmt \x10\0\0\0"
        + fmt
        + b"data"
        + num_bytes.to_bytes(4, "little")
    )


def heard_alone(path: Path, how: str) -> tuple[int | str, float]:
    """Return the samples of a file, or why there are none, and the MiB that hearing it took a process of its own."""
    done = subprocess.run([sys.executable, "-c", HEARD, str(path), how], capture_output=True, text=True, check=True)
    num_samples, mib = json.loads(done.stdout)
    return num_samples, mib


@pytest.mark.parametrize("how", ["pack", "track"])
@pytest.mark.parametrize(("rate_hz", "channels", "bits", "minutes"), [(44_100, 2, 16, 8), (1_000, 1, 8, 30)])
def test_memory_grows_with_the_length_at_16_khz_alone(tmp_path, how, rate_hz, channels, bits, minutes):
    num_bytes = minutes * 60 * rate_hz * channels * bits // 8
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(header(rate_hz, channels, bits, num_bytes))
        file.truncate(44 + num_bytes)
    num_samples, mib = heard_alone(tmp_path / "a.wav", how)
    assert num_samples == (1 if how == "pack" else minutes * 60 * 16_000)
    own_mib = minutes * 60 * 16_000 * (2 if how == "pack" else 4) / 2**20
    # Blocks, and what a track keeps of all channels.
    assert mib < own_mib + 60 + (200 if how == "track" else 0)


def test_hours_in_a_few_megabytes_are_refused_before_they_are_heard(tmp_path):
    num_bytes = 30_000_000
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(header(1_000, 1, 8, num_bytes))
        file.truncate(44 + num_bytes)
    for how in ("pack", "track"):
        reason, mib = heard_alone(tmp_path / "a.wav", how)
        assert f"must last at most {limits.MAX_CLIP_S} s" in str(reason)
        assert mib < 100
