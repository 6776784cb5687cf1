"""Acoustic functionals of a clip: statistics of pitch, loudness, spectrum and rhythm, one vector an utterance.

A set of our own after the choice of Eyben et al. 2016 (GeMAPS): what the voice does, not which words it says. It needs
no training and is what a linear model makes of an utterance without any neural network.

Legend: T samples, L frames (25 ms every 10 ms), S spectral bins.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from shards.schema import RATE_HZ

_FRAME, _HOP, _FFT = 400, 160, 512
_PITCH_FRAME, _PITCH_FFT = 640, 2048
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 450.0
_VOICED_FROM = 0.5
"""Normalised autocorrelation at the pitch period."""
_NEARLY = 0.9
_NUM_MELS, _NUM_CEPSTRA = 26, 12
_FLOOR = 1e-8
_TRACKS = (
    "loudness_db",
    "pitch_semitones",
    "voicing",
    "centroid_khz",
    "slope_db_per_khz",
    "flux_db",
    *(f"mfcc{number}" for number in range(1, _NUM_CEPSTRA + 1)),
)
_OF_TRACK = ("mean", "std", "delta_std")
_FURTHER = (
    "pitch_p20",
    "pitch_p80",
    "loudness_p20",
    "loudness_p80",
    "voiced_share",
    "voiced_run_s",
    "loud_peaks_per_s",
    "duration_s",
)
NAMES = (*(f"{track}_{statistic}" for track in _TRACKS for statistic in _OF_TRACK), *_FURTHER)
"""Of the numbers that `functionals` returns, in their order."""


def functionals(wave_T: Float[np.ndarray, "T"]) -> Float[np.ndarray, "62"]:
    """Return the functionals of samples at 16 kHz, by `NAMES`; all are finite, and none depends on the level.

    Pitch is in semitones over 55 Hz and over voiced frames alone; without any, its functionals are zero. Loudness is in
    decibels against the clip's mean power.
    """
    wave_T = np.asarray(wave_T, np.float64)
    wave_T = wave_T / np.sqrt(max(float((wave_T**2).mean()), _FLOOR))
    wave_T = np.pad(wave_T, (0, max(0, _PITCH_FRAME - len(wave_T))))
    spectrum_LS = np.abs(np.fft.rfft(_frames(wave_T, _FRAME) * np.hanning(_FRAME), _FFT)) ** 2 + _FLOOR
    pitch_L, voicing_L = _pitch(wave_T)
    num_frames = min(len(spectrum_LS), len(pitch_L))
    spectrum_LS, pitch_L, voicing_L = spectrum_LS[:num_frames], pitch_L[:num_frames], voicing_L[:num_frames]
    khz_S = np.linspace(0, RATE_HZ / 2000, spectrum_LS.shape[1])
    db_LS = 10 * np.log10(spectrum_LS)
    loudness_L = 10 * np.log10(spectrum_LS.mean(axis=1))
    mel_db = 10 * np.log10(spectrum_LS @ _mel_filters() + _FLOOR)
    centred_S = khz_S - khz_S.mean()
    is_voiced_L = voicing_L > _VOICED_FROM
    tracks = [
        loudness_L,
        pitch_L,
        voicing_L,
        spectrum_LS @ khz_S / spectrum_LS.sum(axis=1),
        db_LS @ centred_S / (centred_S**2).sum(),
        np.concatenate([[0.0], np.abs(np.diff(mel_db, axis=0)).mean(axis=1)]),
        *(mel_db @ _cosines()).T,
    ]
    found: list[float] = []
    for name, track_L in zip(_TRACKS, tracks, strict=True):
        heard_L = track_L[is_voiced_L] if name == "pitch_semitones" else track_L
        deltas = np.diff(heard_L)
        found += [_mean(heard_L), _std(heard_L), _std(deltas)]
    voiced_pitch = pitch_L[is_voiced_L]
    found += [*_percentiles(voiced_pitch), *_percentiles(loudness_L), float(is_voiced_L.mean())]
    seconds = len(wave_T) / RATE_HZ
    found += [_mean_run(is_voiced_L) * _HOP / RATE_HZ, _num_peaks(loudness_L) / seconds, seconds]
    return np.asarray(found)


def _frames(wave_T: np.ndarray, length: int) -> np.ndarray:
    frames: np.ndarray = np.lib.stride_tricks.sliding_window_view(wave_T, length)[::_HOP]
    return frames


def _pitch(wave_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pitch in semitones over 55 Hz, and the autocorrelation at its period, normalised (0 to 1), by frame."""
    frames_LT = _frames(wave_T, _PITCH_FRAME)
    frames_LT = (frames_LT - frames_LT.mean(axis=1, keepdims=True)) * np.hanning(_PITCH_FRAME)
    power = np.abs(np.fft.rfft(frames_LT, _PITCH_FFT)) ** 2
    correlation = np.fft.irfft(power)[:, :_PITCH_FRAME]
    # The window's own autocorrelation falls with the lag, which would prefer high pitches.
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(_PITCH_FRAME), _PITCH_FFT)) ** 2)[:_PITCH_FRAME]
    lags = np.arange(int(RATE_HZ / _HIGHEST_HZ), int(RATE_HZ / _LOWEST_HZ) + 1)
    normalised = correlation[:, lags] / window[lags] * window[0] / (correlation[:, :1] + _FLOOR)
    # Multiples of the period fit as well: the first peak that is nearly the highest is the period.
    is_peak = np.ones_like(normalised, bool)
    is_peak[:, 1:] &= normalised[:, 1:] >= normalised[:, :-1]
    is_peak[:, :-1] &= normalised[:, :-1] >= normalised[:, 1:]
    best = (is_peak & (normalised >= _NEARLY * normalised.max(axis=1, keepdims=True))).argmax(axis=1)
    voicing_L = np.clip(normalised[np.arange(len(best)), best], 0, 1)
    return 12 * np.log2(RATE_HZ / lags[best] / 55.0), voicing_L


@functools.lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    """Return triangular filters on the HTK mel scale, spectral bins by mel bins."""
    top = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _NUM_MELS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE_HZ / 2, _FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: np.ndarray = np.clip(np.minimum(rising, falling), 0, None)
    return filters


@functools.lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """Return the cosine transform from mel bins to cepstra 1 to 12, without the mean."""
    angles = np.pi / _NUM_MELS * (np.arange(_NUM_MELS)[:, None] + 0.5) * np.arange(1, _NUM_CEPSTRA + 1)
    cosines: np.ndarray = np.cos(angles) * np.sqrt(2 / _NUM_MELS)
    return cosines


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: np.ndarray) -> float:
    return float(values.std()) if len(values) else 0.0


def _percentiles(values: np.ndarray) -> list[float]:
    return np.percentile(values, (20, 80)).tolist() if len(values) else [0.0, 0.0]


def _mean_run(flags: np.ndarray) -> float:
    """Return the mean length of runs of True; 0 if there is none."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(int))
    num_runs = int((edges == 1).sum())
    return float(flags.sum()) / num_runs if num_runs else 0.0


def _num_peaks(loudness_L: np.ndarray) -> int:
    """Return how often smoothed loudness peaks above its mean: about once a syllable."""
    smooth = np.convolve(loudness_L, np.ones(9) / 9, mode="same")
    inner = smooth[1:-1]
    return int(((inner > smooth[:-2]) & (inner >= smooth[2:]) & (inner > smooth.mean())).sum())
