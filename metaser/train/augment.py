"""Changes to training audio, drawn on the CPU from (seed, epoch, key) and computed where the audio lies.

Each clip is changed alone and on its true samples, so that it comes out the same, to the last bit on one machine,
whatever its neighbours, its padding, the cut into micro-batches, the number of processes or an interruption.

Legend: B utterances, T samples, N samples of an impulse response.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional
import torchaudio.transforms
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.functional import pad

from metaser.config.augment import AugmentConfig, Band
from metaser.config.schema import ExperimentConfig
from metaser.errors import TrainingError
from shards.audio import AudioFile
from shards.batch import Batch
from shards.inputfile import fault_of
from shards.plan import stable_seed
from shards.schema import RATE_HZ
from shards.suffixes import AUDIO_SUFFIXES

_CACHE_BYTES = 256 * 2**20
"""70 minutes of decoded noise."""
_NOISE_S = 60.0
"""Of each built-in noise; a clip hears a part that begins at a drawn place."""
_FFT_BLOCK = 8192
"""Convolutions are padded to multiples of it: the FFT is slow at sizes with large prime factors."""
_FILTER_TAPS = 511
_KAISER_BETA = 5.65
"""About 60 dB in the stop band, which with so many taps begins 57 Hz from the edge of the band."""


@dataclass(frozen=True, eq=False)
class ClipChange:
    """What is drawn for one clip, in the order of its application; None leaves that part as it is."""

    num_samples: int
    """Length of the clip before the change."""
    speed: Fraction | None = None
    response: Float32[np.ndarray, " N"] | None = None
    """Begins with the direct sound."""
    noise: Float32[np.ndarray, " T"] | None = None
    snr_db: float = 0.0
    gain_db: float | None = None
    band: Band | None = None

    @property
    def new_num_samples(self) -> int:
        """Length after the change: T / speed, rounded up."""
        return self.num_samples if self.speed is None else math.ceil(self.num_samples / self.speed)

    @property
    def is_empty(self) -> bool:
        """Whether the clip stays as it is."""
        parts = (self.speed, self.response, self.noise, self.gain_db, self.band)
        return all(part is None for part in parts)


@dataclass(frozen=True, eq=False)
class MicroBatchChanges:
    """What is drawn for the clips of one micro-batch."""

    clips: tuple[ClipChange, ...]
    num_samples_B: Int[Tensor, "B"]
    """Lengths after the change, on the CPU."""
    warp_B: Float[Tensor, "B"] | None
    """VTLP's factors, on the CPU; None where the stage has no VTLP."""


class AudioFolder:
    """Audio files below a folder in the order of their names, decoded when asked for, the last used ones kept."""

    def __init__(self, folder: str, what: str, *, cache_bytes: int = _CACHE_BYTES) -> None:
        """Decode every file once; `what` names the setting in errors, `cache_bytes` bounds what is kept decoded.

        Raises:
            TrainingError: if there is no such folder, or no audio in it, or a silent file.
            AudioError: if a file cannot be decoded.
        """
        root = Path(folder)
        if (why := fault_of(root, "folder")) is not None:
            raise TrainingError(f"{what} must be a folder of audio files, but {folder!r} {why}; correct it")
        found = [path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()]
        self._paths = sorted(found, key=lambda path: path.relative_to(root).as_posix())
        if not self._paths:
            raise TrainingError(
                f"{what} must hold audio files ({', '.join(sorted(AUDIO_SUFFIXES))}), got {folder!r} with none; "
                "correct it"
            )
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        for number, path in enumerate(self._paths):
            if not self.load(number).any():
                raise TrainingError(f"{what} must hold sound, but {path} is silent from end to end; remove it")

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, number: int) -> Float32[np.ndarray, " T"]:
        """Return file `number` as mono samples at 16 kHz.

        Raises:
            AudioError: if it cannot be decoded.
        """
        if number not in self._kept:
            self._kept[number] = AudioFile(self._paths[number]).hear().end()
            while len(self._kept) > 1 and sum(samples.nbytes for samples in self._kept.values()) > self._cache_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


class Augmenter:
    """Draws and applies one stage's changes."""

    def __init__(self, config: AugmentConfig, *, seed: int, folders: dict[str, AudioFolder] | None = None) -> None:
        """Open and check the folders that `config` names; `folders` shares what another stage has opened already.

        Raises:
            TrainingError: if a folder cannot be used.
            AudioError: if a file in it cannot be decoded.
        """
        self._config = config
        self._seed = seed
        self._folders = {} if folders is None else folders
        for name, part in (("noise", config.noise), ("reverberation", config.reverberation)):
            if part.probability > 0 and part.folder is not None and part.folder not in self._folders:
                self._folders[part.folder] = AudioFolder(part.folder, f"augment.{name}.folder")

    def draw(self, batch: Batch, keys: Sequence[str], epoch: int) -> MicroBatchChanges:
        """Return what to do to `batch`, which lies on the CPU; nothing to clips that are not valid."""
        clips, warps = [], []
        for key, num_samples, valid in zip(keys, batch.num_samples_B.tolist(), batch.valid_B.tolist(), strict=True):
            clips.append(self._draw_clip(key, epoch, num_samples) if valid else ClipChange(num_samples))
            warps.append(self._draw_warp(key, epoch) if valid else 1.0)
        num_samples_B = torch.tensor([clip.new_num_samples for clip in clips])
        return MicroBatchChanges(
            tuple(clips), num_samples_B, torch.tensor(warps) if self._config.vtlp.probability > 0 else None
        )

    @torch.no_grad()
    def apply(self, batch: Batch, changes: MicroBatchChanges) -> Batch:
        """Return the changed batch, on the device of `batch`; padding is zero."""
        if all(clip.is_empty for clip in changes.clips):
            return batch
        lengths = [clip.new_num_samples for clip in changes.clips]
        wave_BT = batch.wave_BT.new_zeros(len(lengths), max(lengths))
        for row, clip in enumerate(changes.clips):
            # A copy, so that where a row begins in memory cannot choose another kernel.
            wave_BT[row, : lengths[row]] = change_clip(batch.wave_BT[row, : clip.num_samples].clone(), clip)
        num_samples_B = changes.num_samples_B.to(wave_BT.device, non_blocking=True)
        return Batch(batch.items_B, wave_BT, num_samples_B, batch.valid_B, batch.problems)

    def _draw_clip(self, key: str, epoch: int, num_samples: int) -> ClipChange:
        config = self._config
        change = ClipChange(num_samples)
        if generator := self._chance("speed", config.speed.probability, key, epoch):
            factor = Fraction(round(100 * config.speed.factors[generator.integers(len(config.speed.factors))]), 100)
            change = replace(change, speed=None if factor == 1 else factor)
        if generator := self._chance("reverberation", config.reverberation.probability, key, epoch):
            change = replace(change, response=self._draw_response(generator))
        if generator := self._chance("noise", config.noise.probability, key, epoch):
            snr_db = generator.uniform(config.noise.min_snr_db, config.noise.max_snr_db)
            noise_T = self._draw_noise(generator, change.new_num_samples)
            change = replace(change, noise=noise_T, snr_db=snr_db)
        if generator := self._chance("gain", config.gain.probability, key, epoch):
            change = replace(change, gain_db=generator.uniform(config.gain.min_db, config.gain.max_db))
        if generator := self._chance("band_limit", config.band_limit.probability, key, epoch):
            change = replace(change, band=config.band_limit.kinds[generator.integers(len(config.band_limit.kinds))])
        return change

    def _draw_warp(self, key: str, epoch: int) -> float:
        config = self._config.vtlp
        generator = self._chance("vtlp", config.probability, key, epoch)
        return 1.0 if generator is None else generator.uniform(config.min_factor, config.max_factor)

    def _chance(self, name: str, probability: float, key: str, epoch: int) -> np.random.Generator | None:
        """Return the generator for what else to draw, or None if this clip is spared this time.

        Every augmentation has its own, so that switching one on leaves the others' draws alone.
        """
        if probability == 0:
            return None
        generator = np.random.Generator(np.random.PCG64(stable_seed("augment", name, self._seed, epoch, key)))
        return generator if generator.random() < probability else None

    def _draw_response(self, generator: np.random.Generator) -> np.ndarray:
        config = self._config.reverberation
        if config.folder is None:
            return synthetic_response(
                generator,
                rt60_s=generator.uniform(config.min_rt60_s, config.max_rt60_s),
                drr_db=generator.uniform(config.min_drr_db, config.max_drr_db),
            )
        folder = self._folders[config.folder]
        response_N = folder.load(int(generator.integers(len(folder))))
        return response_N[np.abs(response_N).argmax() :]

    def _draw_noise(self, generator: np.random.Generator, num_samples: int) -> np.ndarray:
        config = self._config.noise
        if config.folder is None:
            source_T = _built_in_noise(config.colours[generator.integers(len(config.colours))], self._seed)
        else:
            folder = self._folders[config.folder]
            source_T = folder.load(int(generator.integers(len(folder))))
        start = int(generator.integers(len(source_T)))
        return source_T.take(np.arange(start, start + num_samples), mode="wrap")


def build_augmenters(config: ExperimentConfig) -> list[Augmenter]:
    """Return the augmenter of each stage; stages that use the same folder share it.

    Raises:
        TrainingError: if a folder cannot be used.
        AudioError: if a file in one cannot be decoded.
    """
    folders: dict[str, AudioFolder] = {}
    return [Augmenter(stage.augment, seed=config.seed, folders=folders) for stage in config.stages]


def micro_batch_samples(augment: AugmentConfig, max_micro_batch_s: float) -> int:
    """Return how many padded samples a micro-batch may hold before augmentation to fit `max_micro_batch_s` after it."""
    return round(max_micro_batch_s * RATE_HZ / augment.speed.longest_stretch)


def check_stretched(augment: AugmentConfig, num_samples: np.ndarray, max_micro_batch_s: float) -> None:
    """Check once, before the first step, that even the longest clip fits a micro-batch at the slowest speed.

    Raises:
        TrainingError: if it does not.
    """
    longest = int(num_samples.max())
    if longest > micro_batch_samples(augment, max_micro_batch_s):
        longest_s, slowest = longest / RATE_HZ, min(augment.speed.factors)
        raise TrainingError(
            f"data.max_micro_batch_s must hold the longest clip at the slowest speed of augment.speed.factors "
            f"({longest_s:.2f} s / {slowest:g} = {longest_s / slowest:.2f} s), got {max_micro_batch_s:g}; raise it, "
            "filter by duration_s or leave the factor out"
        )


# ---------------------------------------------------------------- one clip


def change_clip(wave_T: Float[Tensor, "T"], clip: ClipChange) -> Float[Tensor, "T2"]:
    """Return the samples of one clip, without padding, changed as drawn; T2 is `clip.new_num_samples`."""
    device = wave_T.device
    if clip.speed is not None:
        # A player that is faster by a factor sees samples of a rate that is higher by it.
        played_T = _resampler(clip.speed.numerator, clip.speed.denominator, device)(wave_T)
        wave_T = pad(played_T, (0, clip.new_num_samples - len(played_T)))
    if clip.response is not None:
        wave_T = reverberate(wave_T, torch.from_numpy(clip.response).to(device, non_blocking=True))
    if clip.noise is not None:
        wave_T = add_noise(wave_T, torch.from_numpy(clip.noise).to(device, non_blocking=True), clip.snr_db)
    if clip.gain_db is not None:
        wave_T = torchaudio.functional.gain(wave_T, clip.gain_db)
    if clip.band is not None:
        wave_T = limit_band(wave_T, clip.band)
    return wave_T


def reverberate(wave_T: Float[Tensor, "T"], response_N: Float[Tensor, "N"]) -> Float[Tensor, "T"]:
    """Return the clip in the room of an impulse response that begins with the direct sound: neither later nor longer.

    What would sound after the clip's end is cut off; the energy is that of the clip before.
    """
    wet_T = _convolve(wave_T, response_N)[: len(wave_T)]
    return wet_T * _ratio(_energy(wave_T), _energy(wet_T)).sqrt().float()


def add_noise(wave_T: Float[Tensor, "T"], noise_T: Float[Tensor, "T"], snr_db: float) -> Float[Tensor, "T"]:
    """Return the clip with noise whose energy is lower by `snr_db`; where the noise is silent, nothing is added."""
    scale = (_ratio(_energy(wave_T), _energy(noise_T)) * 10 ** (-snr_db / 10)).sqrt()
    return wave_T + scale.float() * noise_T


def limit_band(wave_T: Float[Tensor, "T"], band: Band) -> Float[Tensor, "T"]:
    """Return what a channel of that kind leaves of the clip, without delay."""
    if band == "8khz":
        return _filtered(wave_T, 0.0, 4000.0)
    limited_T = _filtered(wave_T, 300.0, 3400.0)
    if band == "telephone":
        return limited_T
    # Nothing lies above 4 kHz any more, so every second sample says it all.
    coded_T = torchaudio.functional.mu_law_encoding(limited_T[::2].clamp(-1.0, 1.0), 256)
    sparse_T = torch.zeros_like(limited_T)
    sparse_T[::2] = 2 * torchaudio.functional.mu_law_decoding(coded_T, 256)
    return _filtered(sparse_T, 0.0, 4000.0)


def synthetic_response(generator: np.random.Generator, *, rt60_s: float, drr_db: float) -> Float32[np.ndarray, " N"]:
    """Return a room's impulse response as direct sound and, from the next sample on, decaying noise (Polack's model).

    Args:
        generator: Draws the noise.
        rt60_s: Seconds in which the noise falls by 60 dB; there it ends.
        drr_db: Energy of the direct sound over that of the noise.
    """
    time_s = np.arange(1, math.ceil(rt60_s * RATE_HZ) + 1) / RATE_HZ
    tail = generator.standard_normal(len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    tail *= 10 ** (-drr_db / 20) / np.sqrt(np.square(tail).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)


def _energy(wave_T: Tensor) -> Tensor:
    return wave_T.double().square().sum()


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Return the quotient, 0 where `under` is 0; waits for no device."""
    return torch.where(under > 0, over / under, torch.zeros_like(under))


def _convolve(wave_T: Tensor, filter_N: Tensor) -> Tensor:
    """Return the full convolution, and some zeros or rounding noise after it."""
    num_outputs = len(wave_T) + len(filter_N) - 1
    padded_T = pad(wave_T, (0, -num_outputs % _FFT_BLOCK))
    convolved: Tensor = torchaudio.functional.fftconvolve(padded_T, filter_N)
    return convolved


def _filtered(wave_T: Tensor, lowest_hz: float, highest_hz: float) -> Tensor:
    filter_N = torch.as_tensor(_band_filter(lowest_hz, highest_hz), device=wave_T.device)
    return _convolve(wave_T, filter_N)[_FILTER_TAPS // 2 :][: len(wave_T)]


@functools.lru_cache(maxsize=64)
def _resampler(source_hz: int, target_hz: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a resampler whose filter is made once; only the ratio of the rates matters."""
    return torchaudio.transforms.Resample(source_hz, target_hz).to(device)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4)
def _band_filter(lowest_hz: float, highest_hz: float) -> np.ndarray:
    """Return a symmetric band-pass filter: the difference of two low-pass filters, under a Kaiser window."""
    position = np.arange(_FILTER_TAPS) - _FILTER_TAPS // 2
    low, high = (2 * hz / RATE_HZ * np.sinc(2 * hz / RATE_HZ * position) for hz in (lowest_hz, highest_hz))
    taps: np.ndarray = ((high - low) * np.kaiser(_FILTER_TAPS, _KAISER_BETA)).astype(np.float32)
    return taps


@functools.lru_cache(maxsize=4)
def _built_in_noise(colour: str, seed: int) -> np.ndarray:
    """Return noise of unit power, white or (power falling with 1 / frequency) pink; its end fits its beginning."""
    generator = np.random.Generator(np.random.PCG64(stable_seed("noise", colour, seed)))
    noise = generator.standard_normal(round(_NOISE_S * RATE_HZ))
    if colour == "pink":
        spectrum = np.fft.rfft(noise)
        spectrum[0] = 0.0
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        noise = np.fft.irfft(spectrum, n=len(noise))
    unit: np.ndarray = (noise / np.sqrt(np.square(noise).mean())).astype(np.float32)
    return unit
