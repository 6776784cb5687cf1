"""Headers that contradict themselves are refused, unless the samples show what is meant."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile as sf
from decoded import decode
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards.audio import AudioFile
from shards.errors import AudioError

NOISE = np.random.default_rng(0).normal(size=2_400) * 0.1
WAVE_PLACES = {"WAV": 8, "WAVEX": 8, "RF64": 8, "RIFX": 8, "W64": 24}
"""Where fields begin behind the name of the `fmt ` chunk."""


def encoded(container: str, codec: str = "PCM_16", endian: str = "FILE", samples: np.ndarray = NOISE) -> bytes:
    buffer = io.BytesIO()
    container, endian = ("WAV", "BIG") if container == "RIFX" else (container, endian)
    sf.write(buffer, samples, 16_000, format=container, subtype=codec, endian=endian)
    return buffer.getvalue()


def wave_stating(data: bytes, container: str, **fields: int) -> bytes:
    """A file whose `fmt ` chunk says something else."""
    start = data.index(b"fmt ") + WAVE_PLACES[container]
    order = ">" if container == "RIFX" else "<"
    for name, value in fields.items():
        form, place = {
            "channels": ("H", 2),
            "rate": ("I", 4),
            "align": ("H", 12),
            "bits": ("H", 14),
            "used": ("H", 18),
        }[name]
        field = struct.pack(order + form, value)
        data = data[: start + place] + field + data[start + place + len(field) :]
    return data


def with_samples(data: bytes, samples: bytes) -> bytes:
    """A file of one chunk of samples with others of as many bytes."""
    return data[: len(data) - len(samples)] + samples


def four_bytes(values: np.ndarray, order: str = "<") -> bytes:
    return values.astype(f"{order}i4").tobytes()


@pytest.mark.parametrize("container", WAVE_PLACES)
@pytest.mark.parametrize("codec", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"])
@settings(max_examples=40)
@given(
    num_channels=st.integers(0, 4),
    bits=st.sampled_from([0, 1, 8, 12, 16, 20, 24, 32, 64]),
    frame_bytes=st.integers(0, 12),
)
def test_wave_whose_bits_channels_and_bytes_disagree_is_refused(
    container, codec, num_channels, bits, frame_bytes
) -> None:
    assume(frame_bytes != num_channels * (1 if codec == "ULAW" else (bits + 7) // 8) or frame_bytes == 0)
    data = wave_stating(encoded(container, codec), container, channels=num_channels, bits=bits, align=frame_bytes)
    with pytest.raises(AudioError, match=r"clip"):
        decode(data, "clip")


@pytest.mark.parametrize("codec", ["ULAW", "ALAW"])
@pytest.mark.parametrize("bits", [0, 13, 16])
def test_g711_has_8_bits_whatever_it_says(codec, bits) -> None:
    data = encoded("WAV", codec)
    np.testing.assert_array_equal(decode(wave_stating(data, "WAV", bits=bits), "clip")[0], decode(data, "clip")[0])


@pytest.mark.parametrize("container", WAVE_PLACES)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_24_bits_at_the_high_end_of_4_bytes_are_read(tmp_path, container, num_channels) -> None:
    pcm = np.rint(NOISE * 2**23).astype(np.int32)
    samples = (pcm / 2**23).astype(np.float32).reshape(-1, num_channels).squeeze()
    data = encoded(container, "PCM_32", samples=samples)
    used = {"used": 24} if container in ("WAVEX", "RF64") else {}
    stated = wave_stating(data, container, bits=24, **used)
    np.testing.assert_array_equal(decode(stated, "clip")[0], samples)
    (tmp_path / "a.wav").write_bytes(stated)
    np.testing.assert_array_equal(AudioFile(tmp_path / "a.wav", 0.01, 0.02, 1).load()[0].size, 160)
    low = with_samples(stated, four_bytes(pcm, ">" if container == "RIFX" else "<"))
    for sound in (decode, lambda data, _: _part(tmp_path, data)):
        with pytest.raises(AudioError, match=r"24 bits.* not at the high end of theirs"):
            sound(low, "clip")


def _part(tmp_path, data: bytes) -> np.ndarray:
    (tmp_path / "part.wav").write_bytes(data)
    return AudioFile(tmp_path / "part.wav", 0.01, 0.02).load()[0]


@pytest.mark.parametrize("extend", [True, False])
def test_used_bits_at_the_low_end_are_refused_and_at_the_high_end_read(extend) -> None:
    pcm = np.rint(NOISE * 2**23).astype(np.int32)
    whole = encoded("WAVEX", "PCM_32")
    right = wave_stating(with_samples(whole, four_bytes(pcm << 8)), "WAVEX", used=24)
    np.testing.assert_array_equal(decode(right, "clip")[0], (pcm / 2**23).astype(np.float32))
    low = wave_stating(with_samples(whole, four_bytes(pcm if extend else pcm & 0xFFFFFF)), "WAVEX", used=24)
    with pytest.raises(AudioError, match="not at the high end of theirs"):
        decode(low, "clip")


def test_spare_bits_in_use_beside_loud_samples_are_no_fault() -> None:
    whole = encoded("WAVEX", "PCM_32")
    np.testing.assert_array_equal(decode(wave_stating(whole, "WAVEX", used=24), "a")[0], decode(whole, "b")[0])


@pytest.mark.parametrize(("container", "codec"), [("WAV", "PCM_16"), ("RIFX", "PCM_16"), ("AIFF", "PCM_16")])
def test_12_bits_at_the_low_end_of_2_bytes_are_refused_and_at_the_high_end_read(container, codec) -> None:
    order = "<" if container == "WAV" else ">"
    whole = encoded(container, codec)
    at = whole.index(b"COMM") + 14 if container == "AIFF" else whole.index(b"fmt ") + 22
    whole = whole[:at] + struct.pack(order + "H", 12) + whole[at + 2 :]
    pcm = np.rint(NOISE * 2**11).astype(np.int16)
    high = with_samples(whole, (pcm << 4).astype(f"{order}i2").tobytes())
    np.testing.assert_array_equal(decode(high, "clip")[0], (pcm / 2**11).astype(np.float32))
    with pytest.raises(AudioError, match="12 bits"):
        decode(with_samples(whole, pcm.astype(f"{order}i2").tobytes()), "clip")


def test_used_bits_beyond_all_are_refused() -> None:
    with pytest.raises(AudioError, match="24 of the bits are used"):
        decode(wave_stating(encoded("WAVEX"), "WAVEX", used=24), "clip")


# ---------------------------------------------------------------- AIFF and CAF


AIFF_CODECS = [("PCM_16", "FILE"), ("PCM_16", "LITTLE"), ("PCM_24", "LITTLE"), ("PCM_U8", "FILE"), ("PCM_32", "FILE")]


@pytest.mark.parametrize(("codec", "endian"), AIFF_CODECS)
@pytest.mark.parametrize("bits", [0, 8, 16, 24, 32])
def test_aiff_whose_bits_disagree_with_its_samples_is_refused(codec, endian, bits) -> None:
    data = encoded("AIFF", codec, endian)
    at = data.index(b"COMM") + 14
    if bits == int.from_bytes(data[at : at + 2], "big"):
        assert len(decode(data, "clip")[0]) == len(NOISE)
        return
    with pytest.raises(AudioError, match=f"that of clip states samples of {bits} bits"):
        decode(data[:at] + struct.pack(">H", bits) + data[at + 2 :], "clip")


@pytest.mark.parametrize("codec", ["FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_aiff_whose_codec_has_bits_of_its_own_is_read(codec) -> None:
    data = encoded("AIFF", codec)
    at = data.index(b"COMM") + 14
    for bits in (0, 8, 16, 24):
        assert len(decode(data[:at] + struct.pack(">H", bits) + data[at + 2 :], "clip")[0]) == len(NOISE)


@pytest.mark.parametrize("num_channels", [0, 2, 3, 4])
def test_aiff_of_other_channels_than_its_samples_have_is_refused(num_channels) -> None:
    data = encoded("AIFF")
    at = data.index(b"COMM") + 8
    with pytest.raises(AudioError, match="clip"):
        decode(data[:at] + struct.pack(">H", num_channels) + data[at + 2 :], "clip")


def caf_stating(data: bytes, frame_bytes: int, num_channels: int, bits: int) -> bytes:
    at = data.index(b"desc") + 12
    return data[: at + 16] + struct.pack(">IIII", frame_bytes, 1, num_channels, bits) + data[at + 32 :]


@pytest.mark.parametrize("codec", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"])
@settings(max_examples=40)
@given(num_channels=st.integers(0, 4), bits=st.sampled_from([0, 8, 12, 16, 24, 32, 64]), frame_bytes=st.integers(0, 12))
def test_caf_whose_bits_channels_and_bytes_disagree_is_refused(codec, num_channels, bits, frame_bytes) -> None:
    assume(frame_bytes != num_channels * (1 if codec == "ULAW" else (bits + 7) // 8) or frame_bytes == 0)
    with pytest.raises(AudioError, match="clip"):
        decode(caf_stating(encoded("CAF", codec), frame_bytes, num_channels, bits), "clip")


@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
def test_24_bits_at_the_high_end_of_4_bytes_of_caf_are_read(endian) -> None:
    samples = (np.rint(NOISE * 2**23) / 2**23).astype(np.float32)
    data = encoded("CAF", "PCM_32", endian, samples)
    np.testing.assert_array_equal(decode(caf_stating(data, 4, 1, 24), "clip")[0], samples)


# ---------------------------------------------------------------- others


@pytest.mark.parametrize(("codec", "bits"), [("PCM_16", 8), ("PCM_16", 24), ("ULAW", 16), ("ALAW", 0)])
def test_voc_whose_bits_are_not_those_of_its_codec_is_refused(codec, bits) -> None:
    data = encoded("VOC", codec)
    assert abs(len(decode(data, "clip")[0]) - len(NOISE)) <= 1
    with pytest.raises(AudioError, match=f"that of clip states samples of {bits} bits"):
        decode(data[:34] + bytes([bits]) + data[35:], "clip")


def test_sphere_whose_samples_have_more_bits_than_bytes_is_refused() -> None:
    data = encoded("NIST")
    with pytest.raises(AudioError, match="24 of the bits are used"):
        decode(data.replace(b"sample_sig_bits -i 16", b"sample_sig_bits -i 24"), "clip")
    fewer = data.replace(b"sample_sig_bits -i 16", b"sample_sig_bits -i 12")
    np.testing.assert_array_equal(decode(fewer, "clip")[0], decode(data, "clip")[0])


def test_speex_in_wav_is_refused() -> None:
    data = encoded("WAV", "ULAW")
    at = data.index(b"fmt ") + 8
    with pytest.raises(AudioError, match="clip is Speex in WAV"):
        decode(data[:at] + struct.pack("<H", 0xA109) + data[at + 2 :], "clip")


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("container", WAVE_PLACES)
@pytest.mark.parametrize("rate_hz", [0, 999, 1 << 31, 0xFFFFFFFF])
def test_the_rate_of_a_wave_that_is_none_is_said(tmp_path, container, rate_hz) -> None:
    data = wave_stating(encoded(container), container, rate=rate_hz)
    with pytest.raises(AudioError, match=f"rate of 1000 to 1000000 Hz, but the header of clip says {rate_hz};"):
        decode(data, "clip")
    with pytest.raises(AudioError, match=f"part.wav says {rate_hz};"):
        _part(tmp_path, data)


RATES = {
    "AU": (16, 4),
    "CAF": (20, 8),
    "AIFF": (28, 10),
    "NIST": (None, 0),
    "FLAC": (18, 2),
    "AVR": (22, 4),
    "PAF": (12, 4),
    "IRCAM": (4, 4),
}


@pytest.mark.parametrize("container", RATES)
def test_a_rate_of_0_is_said(container) -> None:
    data = encoded(container)
    place, width = RATES[container]
    if container == "NIST":
        zero = data.replace(b"sample_rate -i 16000", b"sample_rate -i 00000")
    elif container == "FLAC":
        zero = data[:18] + bytes([0, 0, data[20] & 15]) + data[21:]
    else:
        zero = data[:place] + bytes(width) + data[place + width :]
    with pytest.raises(AudioError, match=r"clip says 0;|decoding clip failed: its header says a rate of 0 Hz"):
        decode(zero, "clip")
