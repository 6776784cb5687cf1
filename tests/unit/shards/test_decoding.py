"""Every sample that is there, or a refusal that names the file: a header's length is never trusted over the data."""

from __future__ import annotations

import io
import os
import shutil
import struct
from pathlib import Path

import audiozoo
import numpy as np
import pytest
import soundfile as sf
from decoded import decode, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.audio import AudioFile, Sound, decode_stored
from shards.errors import AudioError
from shards.ffmpeg import foreign_format
from shards.mpeg import is_mpeg
from shards.parts import Part, load_file, load_part
from shards.tags import without_end_tags

SNDFILE_KINDS = list(audiozoo.sndfile_kinds())
NUM_SHARES = 4


def tone(num_samples: int, rate_hz: int = 16_000) -> np.ndarray:
    return audiozoo.wave(1, rate_hz, num_samples)


def encoded(samples: np.ndarray, container: str, subtype: str | None = None, rate_hz: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def length(data: bytes) -> int:
    return len(decode(data, "clip")[0])


# ---------------------------------------------------------------- the zoo


@pytest.mark.parametrize("container", sorted({kind.family for kind in SNDFILE_KINDS}))
def test_what_libsndfile_writes_is_right_or_refused(container) -> None:
    kinds = [kind for kind in SNDFILE_KINDS if kind.family == container and audiozoo.is_written(kind)]
    found = [case for kind in kinds for case in audiozoo.cases(kind)]
    sample = [case for number, case in enumerate(found) if number % NUM_SHARES == 0 or case.variant == "whole"]
    verdicts = [audiozoo.judge(case, with_ffmpeg=False) for case in sample]
    assert verdicts
    assert [str(verdict) for verdict in verdicts if verdict.outcome not in ("right", "refused")] == []


@pytest.mark.ffmpeg
def test_what_ffmpeg_writes_is_right_or_refused() -> None:
    assert shutil.which("ffmpeg"), "this test needs ffmpeg on the PATH"
    kinds = [kind for kind in audiozoo.ffmpeg_kinds() if audiozoo.is_written(kind)]
    found = [case for kind in kinds for case in audiozoo.cases(kind)]
    sample = [case for number, case in enumerate(found) if number % 7 == 0 or case.variant == "whole"]
    verdicts = [audiozoo.judge(case, with_ffmpeg=True) for case in sample]
    assert [str(verdict) for verdict in verdicts if verdict.outcome not in ("right", "refused")] == []


# ---------------------------------------------------------------- MPEG


def mp3(num_samples: int = 40_000, rate_hz: int = 16_000) -> bytes:
    return encoded(tone(num_samples, rate_hz), "MP3", rate_hz=rate_hz)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_mp3_without_a_length_is_decoded_to_its_last_frame(rate_hz) -> None:
    whole = mp3(3 * rate_hz, rate_hz)
    second = whole.index(whole[:2], 4)
    assert abs(length(whole[second:]) - 3 * rate_hz) <= 2 * 1152
    assert length(whole) == 3 * rate_hz


@pytest.mark.parametrize("stated", [0, 1, 30])
def test_mp3_that_states_too_few_frames_is_decoded_to_its_last(stated) -> None:
    whole = mp3()
    at = whole.index(b"Xing") + 8
    lying = whole[:at] + stated.to_bytes(4, "big") + whole[at + 4 :]
    np.testing.assert_array_equal(decode(lying, "clip")[0], decode(whole, "clip")[0])


def test_mp3_that_states_too_many_frames_is_refused() -> None:
    whole = mp3()
    at = whole.index(b"Xing") + 8
    with pytest.raises(AudioError, match=r"clip is truncated: its header promises 5000 MPEG frames and \d+ are there"):
        decode(whole[:at] + (5000).to_bytes(4, "big") + whole[at + 4 :], "clip")


def test_mp3_without_the_end_of_its_last_frame_is_refused() -> None:
    with pytest.raises(AudioError, match=r"its last MPEG frame has \d+ of \d+ bytes"):
        decode(mp3()[:-1], "clip")


def test_joined_mp3_is_decoded_one_after_another_without_the_encoders_silence() -> None:
    first, second = mp3(20_000), mp3(30_000)
    tags = audiozoo.ID3V1 + audiozoo.ID3V2
    expected = np.concatenate([decode(first, "a")[0], decode(second, "b")[0]])
    np.testing.assert_array_equal(decode(audiozoo.ID3V2 + first + tags + second, "clip")[0], expected)


def test_joined_mp3_of_two_rates_is_refused() -> None:
    with pytest.raises(AudioError, match="the MPEG frames of clip change theirs"):
        decode(mp3() + mp3(rate_hz=22_050), "clip")


def test_mp3_with_a_hole_is_refused() -> None:
    whole = mp3()
    middle = len(whole) // 2
    for hole in (bytes(500), b"x" * 500):
        with pytest.raises(AudioError, match="no MPEG frame"):
            decode(whole[:middle] + hole + whole[middle + 501 :], "clip")


def test_mp3_inside_wav_is_decoded() -> None:
    inside = mp3()
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 16_000, 4_000, 1, 0, 12, 1, 2, 144, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(inside)) + inside
    wav = b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks
    np.testing.assert_array_equal(decode(wav, "clip")[0], decode(inside, "clip")[0])
    with pytest.raises(AudioError, match="truncated"):
        decode(wav[:-100], "clip")


# ---------------------------------------------------------------- other containers


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_chained_ogg_is_decoded_one_after_another(codec) -> None:
    first, second = (encoded(tone(num, 48_000), "OGG", codec, 48_000) for num in (20_000, 30_000))
    assert length(first + second) == 50_000


def opus_stating(data: bytes, rate_hz: int) -> bytes:
    """Opus in OGG with another rate in its head."""
    at, end = data.index(b"OpusHead") + 12, data.index(b"OggS", 4)
    return audiozoo.with_page_checksum(data[:at] + struct.pack("<I", rate_hz) + data[at + 4 : end], 0) + data[end:]


def noise_as_opus(num_samples: int) -> bytes:
    noise = np.random.default_rng(0).normal(size=num_samples).astype(np.float32) * 0.1
    return encoded(noise, "OGG", "OPUS", 48_000)


@pytest.mark.parametrize("rate_hz", [0, 1, 8_000, 12_000, 16_000, 44_100, 192_000, 0xFFFFFFFF])
def test_opus_has_all_its_band_whatever_rate_its_head_states(rate_hz) -> None:
    whole = noise_as_opus(30_000)
    expected, _ = decode(whole, "clip")
    spectrum = np.square(np.abs(np.fft.rfft(expected)))
    assert spectrum[len(spectrum) // 6 :].sum() > 0.5 * spectrum.sum()
    samples, decoded_hz = decode(opus_stating(whole, rate_hz), "clip")
    assert decoded_hz == 48_000
    np.testing.assert_array_equal(samples, expected)


def test_chained_opus_of_several_stated_rates_is_decoded() -> None:
    first, second = noise_as_opus(20_000), noise_as_opus(30_000)
    samples, _ = decode(opus_stating(first, 8_000) + opus_stating(second, 0) + first, "clip")
    expected = [decode(data, "clip")[0] for data in (first, second, first)]
    np.testing.assert_array_equal(samples, np.concatenate(expected))


@pytest.mark.parametrize("rate_hz", [8_000, 12_000, 16_000, 24_000])
@pytest.mark.parametrize("num_samples", [9_600, 9_601, 9_602, 9_605])
def test_stored_opus_is_read_whole_also_by_an_index_from_when_it_was_decoded_at_a_lower_rate(
    rate_hz, num_samples
) -> None:
    data = opus_stating(noise_as_opus(num_samples), rate_hz)
    expected = prepare(*decode(data, "clip"))
    with sf.SoundFile(io.BytesIO(data)) as file:
        num_then = len(prepare(file.read(dtype="float32"), file.samplerate))
    for num in (len(expected), num_then):
        out = np.empty(num, np.float32)
        decode_stored(data, out)
        np.testing.assert_array_equal(out, expected[:num])
    with pytest.raises(AudioError, match="must have the"):
        decode_stored(data, np.empty(len(expected) - 3, np.float32))


def test_ogg_with_a_lost_or_damaged_page_is_refused() -> None:
    samples = np.random.default_rng(0).normal(size=160_000).astype(np.float32) * 0.1
    whole = encoded(samples, "OGG", "VORBIS")
    starts = [at for at in range(len(whole)) if whole.startswith(b"OggS", at)]
    assert len(starts) > 5
    with pytest.raises(AudioError, match=r"clip is damaged at byte \d+: OGG page 3 is missing"):
        decode(whole[: starts[3]] + whole[starts[4] :], "clip")
    flipped = bytearray(whole)
    flipped[starts[4] + 200] ^= 1
    with pytest.raises(AudioError, match="the OGG page's checksum differs"):
        decode(bytes(flipped), "clip")


def test_ogg_whose_time_runs_backwards_is_refused() -> None:
    _, lie = next(audiozoo.granule_lies(encoded(tone(80_000), "OGG", "VORBIS")))
    with pytest.raises(AudioError, match="time runs backwards"):
        decode(lie, "clip")


APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
TAGS = {
    "id3": audiozoo.ID3V1,
    "ape": APE,
    "ape with a head": APE[:20] + struct.pack("<I", 0xA0000000) + bytes(8) + APE,
    "ape and id3": APE + audiozoo.ID3V1,
    "lyrics": b"LYRICSBEGIN" + b"la la la" * 900 + b"LYRICS200",
    "zeros": bytes(4000),
}


@pytest.mark.parametrize("tag", TAGS)
def test_tags_behind_mp3_are_no_fault_and_no_sound(tag) -> None:
    assert length(mp3() + TAGS[tag] + mp3()) == length(mp3() + mp3())


@pytest.mark.parametrize("tag", [name for name in TAGS if name[:3] in ("id3", "ape")])
def test_tags_behind_flac_are_no_fault_and_no_sound(tag) -> None:
    flac = encoded(tone(3000), "FLAC")
    assert np.array_equal(decode(flac + TAGS[tag], "clip")[0], decode(flac, "clip")[0])
    assert without_end_tags(flac + TAGS[tag]) == flac


def test_more_zeros_than_padding_are_refused() -> None:
    with pytest.raises(AudioError, match="no MPEG frame"):
        decode(mp3() + bytes(5000) + mp3(), "clip")


def test_a_codec_that_is_counted_is_refused_where_more_follows() -> None:
    data = encoded(tone(8000), "AIFF", "GSM610")
    at = data.index(b"COMM") + 10
    with pytest.raises(AudioError, match="states 4000 samples"):
        decode(data[:at] + (4000).to_bytes(4, "big") + data[at + 4 :], "clip")


def test_the_open_end_of_flac_that_states_too_few_samples_is_its_last_one(tmp_path) -> None:
    flac = encoded(tone(8000), "FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(flac[:21] + bytes([flac[21] & 0xF0]) + (4000).to_bytes(4, "big") + flac[26:])
    assert len(AudioFile(path, start_s=0.125).load()[0]) == 6000


def test_joined_flac_is_decoded_one_after_another() -> None:
    first, second = encoded(tone(20_000), "FLAC"), encoded(tone(30_000), "FLAC")
    assert length(first + second + audiozoo.ID3V1) == 50_000


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF"])
def test_joined_plain_files_are_refused(container) -> None:
    with pytest.raises(AudioError, match="were files joined"):
        decode(encoded(tone(500), container) * 2, "clip")


@pytest.mark.parametrize("declared", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_wav_of_a_pipe_is_taken_whole(declared) -> None:
    whole = encoded(tone(7001), "WAV", "PCM_16")
    at = whole.index(b"data") + 4
    streamed = whole[:4] + struct.pack("<I", declared) + whole[8:at] + struct.pack("<I", declared) + whole[at + 4 :]
    np.testing.assert_array_equal(decode(streamed, "clip")[0], decode(whole, "clip")[0])


def test_wav_that_states_less_than_there_is_is_refused() -> None:
    whole = encoded(tone(7001), "WAV", "PCM_16")
    at = whole.index(b"data") + 4
    with pytest.raises(AudioError, match=r"clip goes on for 13002 bytes behind the 1000 bytes of samples"):
        decode(whole[:at] + struct.pack("<I", 1000) + whole[at + 4 :], "clip")


def test_an_odd_byte_tags_and_chunks_behind_the_samples_are_no_fault() -> None:
    whole = encoded(tone(7001), "WAV", "PCM_16")
    for behind in (b"\0", b"x", audiozoo.ID3V1, audiozoo.ID3V2, b"LIST\x04\0\0\0abcd", b"bext\x05\0\0\0abcde\0"):
        assert length(whole + behind) == 7001


@pytest.mark.parametrize("codec", ["GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_32", "IMA_ADPCM", "MS_ADPCM"])
def test_codecs_that_cannot_be_sought_are_decoded_and_cut_into_parts(tmp_path, codec) -> None:
    data = encoded(tone(20_000), "WAV", codec)
    samples, _ = decode(data, "clip")
    assert 0 <= len(samples) - 20_000 < 1100
    (tmp_path / "call.wav").write_bytes(data)
    part, _ = AudioFile(tmp_path / "call.wav", 0.5, 1.0).load()
    np.testing.assert_array_equal(part, samples[8_000:16_000])
    out = np.empty(len(samples), np.float32)
    decode_stored(data, out)
    np.testing.assert_array_equal(out, samples)


# ---------------------------------------------------------------- only AudioError


MADE = [kind.make() for kind in SNDFILE_KINDS if audiozoo.is_written(kind)]


@settings(max_examples=200)
@given(
    st.sampled_from(MADE),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.lists(st.tuples(st.integers(0, 80), st.binary(min_size=1, max_size=8)), max_size=3),
    st.floats(0, 1.2),
)
def test_only_audio_errors_leave_the_decoder(data, anywhere, in_head, share) -> None:
    changed = bytearray(data)
    for place, patch in anywhere:
        at = int(place * len(data))
        changed[at : at + len(patch)] = patch
    for at, patch in in_head:
        changed[at : at + len(patch)] = patch
    try:
        samples, rate_hz = decode(bytes(changed[: int(share * len(data))]), "clip")
    except AudioError as error:
        assert "clip" in str(error)
    else:
        assert len(samples) < 200_000
        assert rate_hz >= 1000
        assert np.isfinite(samples).all()


def test_samples_that_were_not_divided_by_full_scale_are_refused() -> None:
    with pytest.raises(AudioError, match=r"must lie in about \[-1, 1\], but clip reaches 9\.92e\+03"):
        decode(encoded(tone(500) * 32_768, "WAV", "FLOAT"), "clip")
    with pytest.raises(AudioError, match="reaches 3e\\+38"):
        decode(encoded(np.full((500, 2), 3e38, np.float32), "WAV", "FLOAT"), "clip")


@pytest.mark.parametrize("rate_hz", [1, 999])
def test_rates_of_no_sound_are_refused(rate_hz) -> None:
    with pytest.raises(
        AudioError, match=f"must have a rate of 1000 to 1000000 Hz, but the header of clip says {rate_hz}"
    ):
        decode(encoded(tone(500), "WAV", rate_hz=rate_hz), "clip")


def test_what_is_no_file_is_refused_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo.wav", tmp_path / "zero.wav", tmp_path):
        with pytest.raises(AudioError, match="must be a plain file"):
            AudioFile(path).load()
        with pytest.raises(AudioError, match="must be a plain file"):
            AudioFile(path, 0.0, 1.0).load()


# ---------------------------------------------------------------- parts


PLAIN = [
    ("WAV", "PCM_16"),
    ("WAV", "ULAW"),
    ("FLAC", "PCM_24"),
    ("AIFF", "PCM_24"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_32"),
    ("W64", "DOUBLE"),
    ("RF64", "FLOAT"),
    ("NIST", "PCM_16"),
]


@pytest.mark.parametrize(("container", "codec"), [*PLAIN, ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
@settings(max_examples=5)
@given(bounds=st.lists(st.floats(0, 2.99), min_size=2, max_size=2, unique=True))
def test_a_part_is_what_cutting_the_whole_gives(tmp_path_factory, container, codec, bounds) -> None:
    path = tmp_path_factory.mktemp("parts") / "a"
    path.write_bytes(encoded(audiozoo.wave(2, 16_000, 48_000), container, codec))
    whole, _ = AudioFile(path).load()
    start_s, end_s = min(bounds), max(bounds)
    expected = whole[round(start_s * 16_000) : round(end_s * 16_000)]
    if len(expected):
        np.testing.assert_array_equal(AudioFile(path, start_s, end_s).load()[0], expected)
        np.testing.assert_array_equal(AudioFile(path, start_s, end_s, 2).load()[0], expected[:, 1])
    np.testing.assert_array_equal(AudioFile(path, start_s).load()[0], whole[round(start_s * 16_000) :])


@pytest.mark.parametrize(("container", "codec"), [*PLAIN, ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_a_part_of_a_truncated_file_is_refused_wherever_it_lies(tmp_path, container, codec) -> None:
    samples = np.random.default_rng(0).normal(size=48_000).astype(np.float32) * 0.1
    data = encoded(samples, container, codec)
    (tmp_path / "a").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError, match=r"must be (readable and )?whole"):
        AudioFile(tmp_path / "a", 0.1, 0.5).load()


def check_parts(path: Path, data: bytes) -> bool:
    """Hold parts of a file against what cutting the whole gives; return whether it can be decoded."""
    path.write_bytes(data)
    try:
        whole, rate_hz = load_file(path)
    except AudioError:
        with pytest.raises(AudioError):
            load_part(path, Part(0.1, 0.2))
        return False
    duration_s = len(whole) / rate_hz
    for share in ((0.2, 0.4), (0.6, 0.9), (0.7, 1.0), (0.3, None), (None, 0.5), (None, None)):
        part = Part(*(None if end is None else end * duration_s for end in share))
        start, end = part.bounds(len(whole), rate_hz, path)
        samples, part_hz = load_part(path, part)
        assert part_hz == rate_hz
        np.testing.assert_array_equal(samples, whole[start:end])
    np.testing.assert_array_equal(load_part(path, Part(0.0, duration_s + 0.009))[0], whole)
    with pytest.raises(AudioError, match="segment must hold samples and lie inside"):
        load_part(path, Part(0.0, duration_s + 0.02))
    return True


@pytest.mark.parametrize("container", sorted({kind.family for kind in SNDFILE_KINDS}))
def test_parts_of_what_libsndfile_writes_are_what_cutting_the_whole_gives(tmp_path, container) -> None:
    kinds = [kind for kind in SNDFILE_KINDS if kind.family == container and audiozoo.is_written(kind)]
    found = [case for kind in kinds for case in audiozoo.cases(kind)]
    sample = [case for number, case in enumerate(found) if number % (2 * NUM_SHARES) == 1 or case.variant == "whole"]
    are_decoded = [check_parts(tmp_path / "a", case.data) for case in sample]
    assert any(are_decoded) or container in audiozoo.UNVERIFIABLE


@pytest.mark.ffmpeg
def test_parts_of_what_ffmpeg_writes_are_what_cutting_the_whole_gives(tmp_path) -> None:
    assert shutil.which("ffmpeg"), "this test needs ffmpeg on the PATH"
    kinds = [kind for kind in audiozoo.ffmpeg_kinds() if not kind.may_be_refused]
    sample = [kind for number, kind in enumerate(kinds) if number % 4 == 0 or kind.family in ("AVI", "CAF")]
    for number, kind in enumerate(sample):
        assert not audiozoo.is_written(kind) or check_parts(tmp_path / f"{number}.bin", kind.make()), kind.name


def test_parts_of_joined_flac_are_what_cutting_the_whole_gives(tmp_path) -> None:
    data = encoded(tone(8_000), "FLAC")
    assert check_parts(tmp_path / "a.flac", data + encoded(tone(9_000), "FLAC"))
    assert check_parts(tmp_path / "b.flac", audiozoo.ID3V2 + data)


def test_a_part_of_avi_needs_ffmpeg_as_its_whole_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.avi"
    path.write_bytes(b"RIFF\x10\0\0\0AVI LIST\x04\0\0\0abcd")
    for source in (AudioFile(path), AudioFile(path, 0.1, 0.2)):
        with pytest.raises(AudioError, match="is AVI, which needs ffmpeg"):
            source.load()


def test_a_part_of_a_long_plain_file_is_read_alone(tmp_path) -> None:
    path = tmp_path / "long.wav"
    num_bytes = 1 << 36
    with path.open("wb") as file:
        file.write(encoded(tone(16_000), "RF64", "PCM_16")[:200])
    head = path.read_bytes()
    at = head.index(b"ds64") + 8
    data_at = head.index(b"data") + 8
    head = head[:at] + struct.pack("<QQ", num_bytes + data_at - 8, num_bytes) + head[at + 16 : data_at]
    with path.open("wb") as file:
        file.write(head)
        file.truncate(data_at + num_bytes)
    part, _ = AudioFile(path, 1_000_000.0, 1_000_001.0).load()
    assert part.tolist() == [0.0] * 16_000


def test_a_file_that_cannot_be_sought_is_decoded_again_when_it_changed(tmp_path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(encoded(tone(20_000), "OGG", "VORBIS"))
    first, _ = AudioFile(path, 0.0, 1.0).load()
    path.write_bytes(encoded(tone(20_000) * 0.5, "OGG", "VORBIS"))
    os.utime(path, ns=(1, 1))
    second, _ = AudioFile(path, 0.0, 1.0).load()
    np.testing.assert_allclose(second, first * 0.5, atol=0.02)


# ---------------------------------------------------------------- channels


def test_one_channel_is_taken(tmp_path) -> None:
    both = audiozoo.wave(2)
    sf.write(tmp_path / "call.wav", both, 16_000, subtype="FLOAT")
    for channel in (1, 2):
        np.testing.assert_array_equal(AudioFile(tmp_path / "call.wav", channel=channel).load()[0], both[:, channel - 1])
    with pytest.raises(AudioError, match=r"channel must be 1 to the 2 of .*call\.wav, got 3"):
        AudioFile(tmp_path / "call.wav", channel=3).load()


def test_channels_that_cancel_each_other_are_refused_unless_one_is_taken(tmp_path) -> None:
    one = tone(8_000)
    sf.write(tmp_path / "turned.wav", np.stack([one, -0.9 * one], axis=1), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"turned\.wav keep 0\.0055 of their power; take one of its 2 with --channel"):
        AudioFile(tmp_path / "turned.wav").load()
    np.testing.assert_array_equal(AudioFile(tmp_path / "turned.wav", channel=1).load()[0], one)


def heard(samples: np.ndarray, rate_hz: int = 16_000) -> Sound:
    sound = Sound("clip")
    sound.take(samples, rate_hz)
    return sound


@pytest.mark.parametrize("num_channels", [2, 4, 16])
def test_independent_equal_or_silent_channels_do_not_cancel(num_channels) -> None:
    generator = np.random.default_rng(0)
    heard(generator.normal(size=(8_000, num_channels)).astype(np.float32)).check_mixable()
    heard(np.stack([tone(8_000)] * num_channels, axis=1)).check_mixable()
    heard(np.zeros((8_000, num_channels), np.float32)).check_mixable()
    one_live = np.zeros((8_000, num_channels), np.float32)
    one_live[:, 0] = tone(8_000)
    heard(one_live).check_mixable()
    assert heard(one_live).silent_channels == [*range(2, num_channels + 1)]
    assert heard(np.zeros((80, 2), np.float32)).silent_channels == []


def test_mixing_the_loudest_that_is_accepted_stays_finite() -> None:
    assert np.isfinite(prepare(np.full((44_100, 8), 64.0, np.float32), 44_100)).all()


# ---------------------------------------------------------------- ffmpeg


M4A = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + b"\0\0\0\x08mdat"


def test_without_ffmpeg_a_foreign_format_is_one_sentence_with_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "my call.m4a").write_bytes(M4A)
    with pytest.raises(AudioError, match=r"my call\.m4a is MPEG-4 .* ffmpeg -i 'my call\.m4a' 'my call\.wav'"):
        AudioFile(tmp_path / "my call.m4a").load()


@pytest.mark.parametrize(
    ("head", "demuxer"),
    [
        (M4A, "mov"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "matroska"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "asf"),
        (b"#!AMR\n\x3c", "amr"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc", "aac"),
        (b"\x0b\x77\x12\x34\x14\x40\x43", "ac3"),
        (b"RIFF\x10\0\0\0AVI LIST", "avi"),
        ((b"\x47" + bytes(187)) * 3, "mpegts"),
    ],
)
def test_foreign_formats_are_recognised_by_content(head, demuxer) -> None:
    form = foreign_format(head)
    assert form is not None
    assert form.demuxer == demuxer
    assert not is_mpeg(head)


@pytest.mark.parametrize(
    "text", [b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
)
def test_playlists_are_no_audio(text) -> None:
    assert foreign_format(text) is None
    with pytest.raises(AudioError, match="must be readable and whole, but decoding list failed"):
        decode(text, "list")


@pytest.mark.ffmpeg
@pytest.mark.parametrize(("muxer", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("asf", "wmav2"), ("mp4", "aac")])
def test_foreign_files_are_decoded_from_disk_whole_and_in_parts(tmp_path, muxer, codec) -> None:
    data = audiozoo.by_ffmpeg(f"-c:a {codec} -f {muxer}", 48_000, 2)
    path = tmp_path / "-odd name.m4a"
    path.write_bytes(data)
    samples, rate_hz = AudioFile(path).load()
    assert (samples.shape[1], rate_hz) == (2, 48_000)
    np.testing.assert_array_equal(decode(data, "clip")[0], samples)
    np.testing.assert_array_equal(AudioFile(path, 0.01, 0.1, 2).load()[0], samples[480:4800, 1])
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(AudioError, match="odd name"):
        AudioFile(path).load()


@pytest.mark.ffmpeg
def test_several_sound_tracks_are_refused(tmp_path) -> None:
    two = audiozoo.by_ffmpeg("-map 0:a -map 0:a -c:a aac -f ipod", 16_000, 1)
    with pytest.raises(AudioError, match="clip as MPEG-4"):
        decode(two, "clip")
