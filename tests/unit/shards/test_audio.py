"""Audio is decoded from any container, refused when not whole, and stored without loss."""

import hashlib
import io
import pickle
import struct

import numpy as np
import pytest
import soundfile as sf
from decoded import decode, prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shards.audio import AudioFile, Sound, decode_stored, encode_pcm, pcm16, pcm_sha256, to_mono
from shards.errors import AudioError
from shards.schema import RATE_HZ


def noise(num_samples: int = 16_000) -> np.ndarray:
    """Values that 16 bit can hold."""
    return (np.random.default_rng(0).normal(size=num_samples) * 3277).astype(np.int16).astype(np.float32) / 32_768


def encoded(samples: np.ndarray, container: str, subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "NIST", "AU"])
def test_decode_lossless_containers(container: str) -> None:
    samples, rate_hz = decode(encoded(noise(), container, "PCM_16"), "clip")
    assert rate_hz == RATE_HZ
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, noise())


@pytest.mark.parametrize(("container", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_decode_lossy_containers(container: str, subtype: str) -> None:
    times = np.arange(16_000) / RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    samples, _ = decode(encoded(tone, container, subtype), "clip")
    assert samples.shape == (16_000,)
    assert np.corrcoef(samples, tone)[0, 1] > 0.9


def test_decode_keeps_channels_and_rate() -> None:
    stereo = np.stack([noise(), -noise()], axis=1)
    samples, rate_hz = decode(encoded(stereo, "WAV", "FLOAT", 44_100), "clip")
    assert (samples.shape, rate_hz) == ((16_000, 2), 44_100)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "NIST", "AU"])
@pytest.mark.parametrize("share", [0.1, 0.5, None])
def test_decode_refuses_truncated_files(container: str, share: float | None) -> None:
    whole = encoded(noise(), container, "PCM_16")
    num_bytes = len(whole) - 1 if share is None else int(len(whole) * share)
    with pytest.raises(AudioError, match=r"must be (readable and )?whole.*clip-7"):
        decode(whole[:num_bytes], "clip-7")


def test_truncation_by_whole_samples_is_named_as_such() -> None:
    whole = encoded(noise(), "WAV", "PCM_16")
    with pytest.raises(AudioError, match=r"clip is truncated: its header promises 2000 bytes more than its 30044"):
        decode(whole[:-2000], "clip")


def test_decode_refuses_a_truncated_mp3() -> None:
    whole = encoded(noise(), "MP3", "MPEG_LAYER_III")
    with pytest.raises(AudioError, match="clip is truncated: its last MPEG frame has 36 of 108 bytes"):
        decode(whole[: len(whole) // 2], "clip")


def test_chunks_behind_the_samples_are_no_truncation() -> None:
    whole = encoded(noise(), "WAV", "PCM_16") + b"LIST" + struct.pack("<I", 4) + b"abcd"
    assert len(decode(whole, "clip")[0]) == 16_000


@pytest.mark.parametrize("declared", [0x7FFFF000, 0xFFFFFFFF])
def test_wav_written_into_a_pipe_is_accepted(declared: int) -> None:
    whole = bytearray(encoded(noise(), "WAV", "PCM_16"))
    position = whole.index(b"data") + 4
    whole[position : position + 4] = struct.pack("<I", declared)
    assert len(decode(bytes(whole), "clip")[0]) == 16_000


@pytest.mark.parametrize("stated", [0, 1, 15_999])
def test_flac_is_decoded_to_its_end_whatever_length_it_states(stated: int) -> None:
    samples, _ = decode(with_flac_length(encoded(noise(), "FLAC"), stated), "clip")
    np.testing.assert_array_equal(samples, noise())


def test_flac_that_states_more_than_there_is_is_refused() -> None:
    with pytest.raises(AudioError, match="clip is truncated: its header promises 16001 samples and 16000 are there"):
        decode(with_flac_length(encoded(noise(), "FLAC"), 16_001), "clip")


def with_flac_length(data: bytes, num_samples: int) -> bytes:
    """STREAMINFO's 36-bit sample count: the low half of byte 21 and bytes 22 to 25."""
    return data[:21] + bytes([data[21] & 0xF0]) + num_samples.to_bytes(4, "big") + data[26:]


@pytest.mark.parametrize("data", [b"", b"RIFF", b"this is no audio" * 9])
def test_decode_refuses_what_is_no_audio(data: bytes) -> None:
    with pytest.raises(AudioError, match="must be readable and whole, but decoding notes failed"):
        decode(data, "notes")


def test_decode_refuses_zero_length() -> None:
    with pytest.raises(AudioError, match="must hold samples, but clip has length zero"):
        decode(encoded(noise(0), "WAV", "PCM_16"), "clip")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_decode_refuses_non_finite_samples(value: float) -> None:
    samples = noise()
    samples[77] = value
    with pytest.raises(AudioError, match="must be finite, but clip holds NaN or infinite"):
        decode(encoded(samples, "WAV", "FLOAT"), "clip")


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"RIFF", b"FORM", b"NIST_1A\n   1024\n", b".snd", b"fLaC", b"OggS"]))
def test_decode_of_rubbish_fails_with_audio_error_only(rubbish: bytes, magic: bytes) -> None:
    with pytest.raises(AudioError):
        decode(magic + rubbish, "rubbish")


def test_to_mono_is_the_mean() -> None:
    stereo = np.array([[0.5, 0.0], [1.0, -1.0]], dtype=np.float32)
    np.testing.assert_array_equal(to_mono(stereo), np.array([0.25, 0.0], dtype=np.float32))
    assert to_mono(stereo).dtype == np.float32


@pytest.mark.parametrize("num_channels", range(1, 13))
def test_to_mono_is_the_mean_of_numpy_to_the_bit(num_channels: int) -> None:
    samples = np.random.default_rng(num_channels).normal(size=(10_001, num_channels)).astype(np.float32)
    np.testing.assert_array_equal(to_mono(samples), samples.mean(axis=1, dtype=np.float32))


def heard(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    sound = Sound("clip")
    sound.take(samples, rate_hz)
    return sound.end()


def test_resampling_keeps_duration_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100).astype(np.float32)
    resampled = heard(tone, 44_100)
    assert resampled.dtype == np.float32
    assert len(resampled) == RATE_HZ
    assert np.abs(np.fft.rfft(resampled)).argmax() == 1000


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    tone = np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100).astype(np.float32)
    assert np.abs(heard(tone, 44_100)[1000:-1000]).max() < 1e-3


def test_sound_mixes_down_and_resamples() -> None:
    stereo = np.stack([noise(22_050), noise(22_050)], axis=1)
    prepared = heard(stereo, 22_050)
    assert (prepared.shape, prepared.dtype) == ((RATE_HZ,), np.float32)


def test_sound_leaves_what_is_right() -> None:
    np.testing.assert_array_equal(heard(noise(), RATE_HZ), noise())


def test_pcm16_clips() -> None:
    pcm = pcm16(np.array([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=np.float32))
    assert pcm.dtype == np.int16
    assert pcm.tolist() == [-32_768, -32_768, 0, 32_767, 32_767]


@settings(max_examples=30, deadline=None)
@given(arrays(np.int16, st.integers(1, 5000)))
def test_flac_keeps_every_pcm_value(pcm: np.ndarray) -> None:
    samples = pcm.astype(np.float32) / 32_768
    stored = encode_pcm(pcm16(samples))
    assert stored == encode_pcm(pcm16(samples))
    decoded = np.empty(len(pcm), np.float32)
    decode_stored(stored, decoded)
    np.testing.assert_array_equal(decoded, samples)
    assert pcm_sha256(pcm16(decoded)) == hashlib.sha256(pcm.astype("<i2").tobytes()).digest()


def test_damaged_audio_in_a_shard_is_an_error() -> None:
    stored = encode_pcm(pcm16(noise()))
    with pytest.raises(AudioError, match=r"must be whole, but decoding failed|must have the 16000 samples"):
        decode_stored(stored[: len(stored) // 2], np.empty(16_000, np.float32))


@pytest.mark.parametrize("num_samples", [15_999, 16_001])
def test_stored_audio_must_have_the_length_of_its_index(num_samples) -> None:
    with pytest.raises(AudioError, match=f"must have the {num_samples} samples of its index, got 16000"):
        decode_stored(encode_pcm(pcm16(noise())), np.empty(num_samples, np.float32))


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(16_000, 2), (44_100, 1), (96_000, 2)])
def test_what_others_stored_is_decoded_as_packing_would_have_prepared_it(rate_hz, num_channels) -> None:
    samples = np.stack([noise(rate_hz)] * num_channels, axis=1).squeeze()
    data = encoded(samples, "WAV", "FLOAT", rate_hz)
    expected = prepare(samples, rate_hz)
    decoded = np.empty(len(expected), np.float32)
    decode_stored(data, decoded)
    np.testing.assert_array_equal(decoded, expected)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(noise(), "WAV", "PCM_16"))
    return path


def test_audio_file_loads_whole(clip) -> None:
    source = AudioFile(clip)
    assert pickle.loads(pickle.dumps(source)) == source
    samples, rate_hz = source.load()
    assert (samples.shape, rate_hz) == ((16_000,), RATE_HZ)


def test_audio_file_loads_a_segment(clip) -> None:
    whole, _ = AudioFile(clip).load()
    np.testing.assert_array_equal(AudioFile(clip, 0.25, 0.5).load()[0], whole[4000:8000])
    np.testing.assert_array_equal(AudioFile(clip, start_s=0.75).load()[0], whole[12_000:])
    np.testing.assert_array_equal(AudioFile(clip, end_s=1.009).load()[0], whole)


@pytest.mark.parametrize(("start_s", "end_s"), [(0.5, 0.5), (0.5, 0.2), (-0.1, 0.5), (0.5, 1.02), (3.0, None)])
def test_audio_file_refuses_impossible_segments(clip, start_s, end_s) -> None:
    with pytest.raises(AudioError, match=r"segment must hold samples.*clip\.wav lasts 1\.000 s and the segment goes"):
        AudioFile(clip, start_s, end_s).load()


def test_missing_file_is_an_audio_error(tmp_path) -> None:
    with pytest.raises(AudioError, match=r"must be readable, but .*gone\.wav is not \(No such file"):
        AudioFile(tmp_path / "gone.wav").load()


def test_audio_file_ignores_the_suffix(clip) -> None:
    odd = clip.with_suffix(".txt")
    clip.rename(odd)
    assert len(AudioFile(odd).load()[0]) == 16_000
