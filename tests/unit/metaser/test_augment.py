"""Augmentation: what is drawn, what it measures afterwards, and that nothing but the key, epoch and seed decides it."""

import math
from fractions import Fraction

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from metaser.config.augment import AugmentConfig
from metaser.config.encoders import LogMelEncoderConfig
from metaser.errors import TrainingError
from metaser.model.encoders.base import Inputs
from metaser.model.encoders.families import build_encoder
from metaser.model.encoders.logmel import log_mel
from metaser.train.augment import (
    AudioFolder,
    Augmenter,
    ClipChange,
    change_clip,
    check_stretched,
    limit_band,
    micro_batch_samples,
    reverberate,
    synthetic_response,
)
from shards.batch import Batch, as_batch
from shards.errors import AudioError
from shards.schema import RATE_HZ

NAMES = ("speed", "reverberation", "noise", "gain", "band_limit", "vtlp")
MOST = AugmentConfig.model_validate({name: {"probability": 0.7} for name in NAMES})
lengths = st.lists(st.integers(1, 6000), min_size=1, max_size=4)


def always(**parts):
    """The configuration that does `parts` to every clip."""
    return AugmentConfig.model_validate({name: {"probability": 1, **values} for name, values in parts.items()})


def tone(frequency_hz, num_samples=RATE_HZ, amplitude=0.5):
    wave = amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / RATE_HZ)
    return wave.astype(np.float32)


def speech(num_samples, seed=0):
    """A wavering tone in noise."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (tone(150 + 10 * seed, num_samples) * (1 + tone(3, num_samples)) + 0.02 * noise).astype(np.float32)


def batch_of(clips, valid=None):
    lengths = [len(clip) for clip in clips]
    wave_BT = np.zeros((len(clips), max(lengths)), np.float32)
    for row, clip in zip(wave_BT, clips, strict=True):
        row[: len(clip)] = clip
    return as_batch(np.arange(len(clips)), wave_BT, lengths, valid or [True] * len(clips))


def augmented(batch, keys, *, config=MOST, seed=0, epoch=0):
    augmenter = Augmenter(config, seed=seed)
    changes = augmenter.draw(batch, keys, epoch)
    return augmenter.apply(batch, changes), changes


def augmented_clip(clip, config, key="a"):
    batch, changes = augmented(batch_of([clip]), [key], config=config)
    return batch.wave_BT[0].double().numpy(), changes.clips[0]


def level_db(wave, frequency_hz):
    """The level of one frequency in the middle of `wave`."""
    middle = wave[len(wave) // 8 : -len(wave) // 8]
    phase = np.exp(-2j * np.pi * frequency_hz * np.arange(len(middle)) / RATE_HZ)
    return 20 * np.log10(abs(np.mean(middle * phase * np.hanning(len(middle)))))


def peak_hz(wave):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return spectrum.argmax() * RATE_HZ / len(wave)


def energy_db(wave):
    return 10 * np.log10(np.square(np.asarray(wave, dtype=np.float64)).sum())


# ---------------------------------------------------------------- what decides


@given(lengths, st.integers(0, 500), st.data())
def test_a_clip_comes_out_the_same_whatever_its_neighbours_and_its_padding(num_samples, num_padding, data):
    clips = [speech(length, seed) for seed, length in enumerate(num_samples)]
    keys = [f"c/{number}" for number in range(len(clips))]
    together = batch_of(clips)
    together.wave_BT = torch.nn.functional.pad(together.wave_BT, (0, num_padding))
    together, changes = augmented(together, keys)
    row = data.draw(st.integers(0, len(clips) - 1))
    alone, its_changes = augmented(batch_of([clips[row]]), [keys[row]])
    length = int(together.num_samples_B[row])
    assert length == int(alone.num_samples_B[0]) == alone.wave_BT.shape[1] == its_changes.clips[0].new_num_samples
    assert torch.equal(together.wave_BT[row, :length], alone.wave_BT[0])
    assert changes.warp_B[row] == its_changes.warp_B[0]
    assert (
        together.wave_BT.shape[1] == max(together.num_samples_B.tolist())
        or together.wave_BT.shape[1] == max(num_samples) + num_padding
    )
    for wave, end in zip(together.wave_BT, together.num_samples_B.tolist(), strict=True):
        assert not wave[end:].any()
        assert wave.isfinite().all()


@given(st.permutations(range(6)), st.integers(1, 5))
def test_any_cut_of_a_step_into_micro_batches_gives_the_same_clips(order, num_micro_batches):
    clips = [speech(800 + 300 * number, number) for number in range(6)]
    whole, _ = augmented(batch_of(clips), [str(number) for number in range(6)], epoch=3)
    for part in np.array_split(np.array(order), num_micro_batches):
        micro_batch, _ = augmented(
            batch_of([clips[number] for number in part]), [str(number) for number in part], epoch=3
        )
        for row, number in enumerate(part):
            length = int(micro_batch.num_samples_B[row])
            assert length == int(whole.num_samples_B[number])
            assert torch.equal(micro_batch.wave_BT[row, :length], whole.wave_BT[number, :length])


def test_key_seed_and_epoch_each_change_what_comes_out():
    batch = batch_of([speech(4000)])
    config = always(noise={}, gain={}, vtlp={})
    first, changes = augmented(batch, ["a"], config=config)
    again, same = augmented(batch, ["a"], config=config)
    assert torch.equal(first.wave_BT, again.wave_BT)
    assert torch.equal(changes.warp_B, same.warp_B)
    for key, seed, epoch in (("b", 0, 0), ("a", 1, 0), ("a", 0, 1)):
        other, others = augmented(batch, [key], config=config, seed=seed, epoch=epoch)
        assert not torch.equal(first.wave_BT, other.wave_BT)
        assert changes.clips[0].gain_db != others.clips[0].gain_db
        assert not torch.equal(changes.warp_B, others.warp_B)


def test_switching_one_augmentation_on_leaves_the_draws_of_the_others_alone():
    batch, keys = batch_of([speech(4000)] * 20), [str(number) for number in range(20)]
    _, few = augmented(batch, keys, config=always(gain={"probability": 0.5}, noise={}))
    _, more = augmented(
        batch, keys, config=always(gain={"probability": 0.5}, noise={}, reverberation={}, band_limit={})
    )
    assert [clip.gain_db for clip in few.clips] == [clip.gain_db for clip in more.clips]
    assert [clip.snr_db for clip in few.clips] == [clip.snr_db for clip in more.clips]


def test_nothing_is_done_by_default():
    batch = batch_of([speech(4000), speech(500)])
    after, changes = augmented(batch, ["a", "b"], config=AugmentConfig())
    assert after is batch
    assert changes.warp_B is None
    assert changes.num_samples_B.tolist() == [4000, 500]


def test_dummies_and_clips_that_could_not_be_decoded_stay_as_they_are():
    clips = [speech(900, 1), speech(700, 2)]
    before = batch_of(clips, valid=[False, True])
    after, changes = augmented(before, ["a", "b"], config=always(**{name: {} for name in NAMES}))
    assert torch.equal(after.wave_BT[0, :900], torch.from_numpy(clips[0]))
    assert int(after.num_samples_B[0]) == 900
    assert changes.warp_B[0] == 1.0
    assert not torch.equal(after.wave_BT[1, :600], before.wave_BT[1, :600])
    assert changes.warp_B[1] != 1.0


def test_each_change_meets_about_its_share_of_the_clips_independently():
    keys = [str(number) for number in range(5000)]
    config = always(gain={"probability": 0.3}, band_limit={"probability": 0.5, "kinds": ["8khz"]})
    changes = Augmenter(config, seed=0).draw(batch_of([np.zeros(1, np.float32)] * len(keys)), keys, 0)
    gained = np.array([clip.gain_db is not None for clip in changes.clips])
    limited = np.array([clip.band is not None for clip in changes.clips])
    assert gained.mean() == pytest.approx(0.3, abs=0.03)
    assert limited.mean() == pytest.approx(0.5, abs=0.03)
    assert (gained & limited).mean() == pytest.approx(0.15, abs=0.03)


def test_nothing_is_computed_on_another_device_than_the_audios():
    # Tensors of torch's meta device have shapes only, and refuse to meet others.
    batch = batch_of([speech(4000), speech(900)])
    for band in ("telephone", "8khz", "mu_law"):
        config = always(speed={"factors": [0.9]}, reverberation={}, noise={}, gain={}, band_limit={"kinds": [band]})
        augmenter = Augmenter(config, seed=0)
        after = augmenter.apply(batch.to(torch.device("meta")), augmenter.draw(batch, ["a", "b"], 0))
        assert after.wave_BT.device.type == after.num_samples_B.device.type == "meta"
        assert after.wave_BT.shape == (2, 4445)


# ---------------------------------------------------------------- what it measures


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.95, 1.1, 1.15, 2.0])
def test_speed_moves_the_pitch_and_the_length_by_its_factor(factor):
    wave, _ = augmented_clip(tone(440), always(speed={"factors": [factor]}))
    assert len(wave) == math.ceil(round(RATE_HZ / factor, 6))
    assert peak_hz(wave) == pytest.approx(440 * factor, rel=0.02)
    assert np.abs(wave).max() == pytest.approx(0.5, rel=0.05)


def test_every_speed_is_drawn_and_1_leaves_the_clip_as_it_is():
    config = always(speed={})
    drawn = {augmented_clip(tone(440, 900), config, key=str(number))[1].speed for number in range(40)}
    assert {None if speed is None else float(speed) for speed in drawn} == {0.9, None, 1.1}


@pytest.mark.parametrize("colour", ["white", "pink"])
def test_the_snr_is_the_one_drawn(colour):
    for key in "abc":
        clip = speech(20_000)
        wave, change = augmented_clip(clip, always(noise={"colours": [colour], "min_snr_db": -5}), key)
        assert -5 <= change.snr_db <= 20
        assert energy_db(clip) - energy_db(wave - clip) == pytest.approx(change.snr_db, abs=0.1)


@pytest.mark.parametrize(("colour", "slope_db_per_octave"), [("white", 3.0), ("pink", 0.0)])
def test_noise_has_its_colour(colour, slope_db_per_octave):
    clip = tone(1000, 10 * RATE_HZ)
    wave, _ = augmented_clip(clip, always(noise={"colours": [colour]}))
    power = np.abs(np.fft.rfft(wave - clip)) ** 2
    octaves = [10 * np.log10(power[10 * 2**n : 10 * 2 ** (n + 1)].sum()) for n in range(6, 12)]
    assert np.diff(octaves) == pytest.approx([slope_db_per_octave] * 5, abs=0.7)


def test_gain_is_exact():
    clip = speech(5000)
    for key in "abc":
        wave, change = augmented_clip(clip, always(gain={"min_db": -20, "max_db": 20}), key)
        np.testing.assert_allclose(wave, clip * 10 ** (change.gain_db / 20), rtol=1e-6)


@pytest.mark.parametrize(
    ("band", "inside_hz", "outside_hz"),
    [
        ("telephone", (350, 1000, 3300), (60, 200, 250, 3500, 5000, 7000)),
        ("8khz", (50, 350, 1000, 3900), (4100, 5000, 7000)),
        ("mu_law", (350, 1000, 3300), (60, 200, 250, 3500, 5000, 7000)),
    ],
)
def test_a_band_keeps_what_lies_inside_and_stops_what_lies_outside(band, inside_hz, outside_hz):
    for frequency_hz in (*inside_hz, *outside_hz):
        clip = tone(frequency_hz)
        wave, _ = augmented_clip(clip, always(band_limit={"kinds": [band]}))
        change_db = level_db(wave, frequency_hz) - level_db(clip, frequency_hz)
        assert abs(change_db) < 1 if frequency_hz in inside_hz else change_db < -30, frequency_hz


def test_a_band_does_not_delay_and_mu_law_adds_noise_and_clips():
    clip = torch.from_numpy(speech(8000))
    for band in ("telephone", "8khz", "mu_law"):
        limited = limit_band(clip, band)
        lags = np.correlate(limited.numpy(), clip[100:-100].numpy())
        assert lags.argmax() == 100
    middle = torch.from_numpy(tone(1000))
    error = (limit_band(middle, "mu_law") - middle)[1000:-1000]
    assert 30 < energy_db(middle[1000:-1000]) - energy_db(error) < 45
    assert limit_band(10 * middle, "mu_law").abs().max() < 1.5


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0])
def test_reverberation_decays_as_drawn_after_the_direct_sound(rt60_s):
    impulse = np.zeros(2 * RATE_HZ, np.float32)
    impulse[100] = 1
    ranges = {"min_rt60_s": rt60_s, "max_rt60_s": rt60_s, "min_drr_db": 3, "max_drr_db": 3}
    wave, _ = augmented_clip(impulse, always(reverberation=ranges))
    assert np.abs(wave).argmax() == 100
    assert np.abs(wave[:100]).max() < 1e-6
    direct, tail = wave[100], wave[101:]
    assert energy_db([direct]) - energy_db(tail) == pytest.approx(3, abs=0.01)
    left_db = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.square(tail).sum() + 1e-12)
    fit = (left_db < -5) & (left_db > -35)
    slope_db_per_s = np.polyfit(np.flatnonzero(fit) / RATE_HZ, left_db[fit], 1)[0]
    assert -60 / slope_db_per_s == pytest.approx(rt60_s, rel=0.1)


@given(st.integers(1, 9000), st.floats(0.05, 1.0), st.floats(-5, 20))
def test_reverberation_keeps_length_and_energy(num_samples, rt60_s, drr_db):
    clip = torch.from_numpy(speech(num_samples, 1))
    response = synthetic_response(np.random.default_rng(num_samples), rt60_s=rt60_s, drr_db=drr_db)
    wet = reverberate(clip, torch.from_numpy(response))
    assert len(wet) == num_samples
    assert float(wet.double().square().sum()) == pytest.approx(float(clip.double().square().sum()), rel=1e-4)


def test_silence_stays_finite():
    silence = np.zeros(3000, np.float32)
    parts = {"reverberation": {}, "noise": {}, "gain": {}, "band_limit": {"kinds": ["telephone"]}}
    wave, _ = augmented_clip(silence, always(**parts))
    assert not wave.any()
    quiet_noise = ClipChange(3000, noise=silence, snr_db=5.0)
    clip = torch.from_numpy(speech(3000))
    assert torch.equal(change_clip(clip, quiet_noise), clip)


# ---------------------------------------------------------------- folders


def write(path, wave, rate_hz=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)


def test_noise_from_a_folder_is_mixed_at_the_snr_drawn_and_repeated_where_it_is_short(tmp_path):
    write(tmp_path / "street/hum.wav", tone(1250, 640))
    write(tmp_path / "hall.flac", np.stack([tone(1600, 44_100)] * 2, axis=1), 44_100)
    (tmp_path / "README").write_text("about the noises")
    clip, pitches = speech(16_000), set()
    for number in range(12):
        wave, change = augmented_clip(clip, always(noise={"folder": str(tmp_path)}), str(number))
        assert energy_db(clip) - energy_db(wave - clip) == pytest.approx(change.snr_db, abs=0.1)
        pitches.add(round(peak_hz(wave - clip)))
    assert pitches == {1250, 1600 * 44_100 // 16_000}


def test_a_response_from_a_folder_begins_with_its_direct_sound(tmp_path):
    response = np.zeros(4000, np.float32)
    response[[500, 1300]] = (-0.8, 0.4)
    write(tmp_path / "room.wav", response)
    impulse = np.zeros(5000, np.float32)
    impulse[1000] = 1
    wave, _ = augmented_clip(impulse, always(reverberation={"folder": str(tmp_path)}))
    assert np.flatnonzero(np.abs(wave) > 1e-4).tolist() == [1000, 1800]
    assert wave[1800] / wave[1000] == pytest.approx(-0.5, rel=1e-4)
    assert np.square(wave).sum() == pytest.approx(1, rel=1e-4)


def test_a_folder_that_moves_gives_the_same_draws(tmp_path):
    for folder in ("z", "a"):
        for number in range(5):
            write(tmp_path / folder / f"{number}.wav", tone(500 + 100 * number, 3000))
    ours, theirs = (
        augmented_clip(speech(2000), always(noise={"folder": str(tmp_path / folder)}))[0] for folder in ("z", "a")
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["noise", "reverberation"])
def test_folders_that_cannot_be_used_are_refused_at_the_start(tmp_path, name):
    def refused(error, words):
        with pytest.raises(error) as caught:
            Augmenter(always(**{name: {"folder": str(tmp_path / "x")}}), seed=0)
        assert words in str(caught.value)

    refused(TrainingError, f"augment.{name}.folder must be a folder of audio files, but '{tmp_path}/x' does not exist")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/notes.txt").write_text("nothing")
    refused(TrainingError, f"augment.{name}.folder must hold audio files (.3gp, .aac, .ac3")
    write(tmp_path / "x/good.wav", tone(440, 100))
    write(tmp_path / "x/silent.wav", np.zeros(100, np.float32))
    refused(TrainingError, f"must hold sound, but {tmp_path}/x/silent.wav is silent from end to end")
    (tmp_path / "x/bad.wav").write_bytes(b"RIFF and no more")
    refused(AudioError, f"audio must be readable and whole, but decoding {tmp_path}/x/bad.wav failed")


def test_a_folder_whose_augmentation_is_off_is_not_looked_at(tmp_path):
    config = AugmentConfig.model_validate({"noise": {"folder": str(tmp_path / "nowhere")}})
    batch = batch_of([speech(100)])
    assert augmented(batch, ["a"], config=config)[0] is batch


def test_decoded_files_are_kept_up_to_a_bound(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.wav", tone(440, 1000))
    folder = AudioFolder(str(tmp_path), "folder", cache_bytes=8000)
    for number in range(3):
        (tmp_path / f"{number}.wav").unlink()
    assert len(folder) == 3
    assert len(folder.load(1)) == len(folder.load(2)) == 1000
    with pytest.raises(AudioError, match=r"audio file must be readable, but .*/0.wav is not"):
        folder.load(0)


# ---------------------------------------------------------------- vocal tract length


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2])
@pytest.mark.parametrize("frequency_hz", [500, 1500, 3000])
def test_a_frequency_is_found_in_the_filter_that_the_warp_moved_there(factor, frequency_hz):
    def loudest(hz, warp_B):
        wave_BT = torch.from_numpy(tone(hz, 8000))[None]
        return int(log_mel(wave_BT, torch.ones_like(wave_BT, dtype=torch.bool), 80, warp_B).mean(1).argmax())

    moved = loudest(frequency_hz, torch.tensor([factor]))
    assert abs(moved - loudest(frequency_hz / factor, None)) <= 1
    assert moved != loudest(frequency_hz, None)


@given(st.lists(st.floats(0.8, 1.2), min_size=1, max_size=4), st.data())
def test_a_warped_clip_in_a_padded_batch_gives_the_frames_of_the_single_clip(factors, data):
    torch.manual_seed(0)
    encoder = build_encoder(
        LogMelEncoderConfig(num_mels=24, width=16, num_layers=1, num_heads=2, feed_forward=32).model_dump()
    ).eval()
    batch = batch_of([speech(1200 + 500 * row, row) for row in range(len(factors))])
    row = data.draw(st.integers(0, len(factors) - 1))

    def frames(part: Batch, warps):
        with torch.no_grad():
            return encoder(Inputs(part.wave_BT, part.num_samples_B, warp_B=torch.tensor(warps))).layers[-1]

    together = frames(batch, factors)[row]
    alone = frames(batch_of([speech(1200 + 500 * row, row)]), [factors[row]])[0]
    torch.testing.assert_close(together[: len(alone)], alone, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- what fits a micro-batch


@given(st.integers(1, 60_000), st.integers(50, 120), st.integers(1, 5))
def test_what_fits_a_micro_batch_when_it_is_planned_fits_it_at_the_slowest_speed(num_samples, percent, num_clips):
    config, max_micro_batch_s = always(speed={"factors": [percent / 100, 1.0]}), 10.0
    assume(num_clips * num_samples <= micro_batch_samples(config, max_micro_batch_s))
    longest = max(ClipChange(num_samples, speed=speed).new_num_samples for speed in (None, Fraction(percent, 100)))
    # A clip's length is rounded up to a whole sample.
    assert num_clips * longest <= max_micro_batch_s * RATE_HZ + num_clips


def test_a_clip_that_does_not_fit_when_slowed_is_refused_at_the_start():
    config = always(speed={})
    check_stretched(config, np.array([9 * RATE_HZ]), 10)
    with pytest.raises(TrainingError) as caught:
        check_stretched(config, np.array([8000, 9 * RATE_HZ + 800]), 10)
    assert "(9.05 s / 0.9 = 10.06 s), got 10; raise it" in str(caught.value)
    check_stretched(AugmentConfig(), np.array([10 * RATE_HZ]), 10)


def test_recordings_may_have_every_suffix_of_sound(tmp_path):
    for number, suffix in enumerate(("m4a", "webm", "WMA", "opus", "mp4")):
        sf.write(tmp_path / f"{number}.wav", 0.1 * tone(200, 800), 16_000)
        (tmp_path / f"{number}.wav").rename(tmp_path / f"{number}.{suffix}")
    assert len(AudioFolder(str(tmp_path), "noise.folder")) == 5
