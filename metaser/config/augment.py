"""What a stage does to its training audio: how often, how much.

Every change is off until its `probability`, the share of clips that it changes, is above 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shards.config import PathText
from shards.record import Section


def _check_range(name: str, low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"min_{name} must be at most max_{name}, got {low:g} and {high:g}")


Probability = Field(default=0.0, ge=0, le=1)
_Decibels = Annotated[float, Field(ge=-200, le=200)]
"""Beyond that one of two sounds has no bit left in float32."""
_Rt60 = Annotated[float, Field(gt=0, le=60)]
"""In seconds; cathedrals have ten."""


class SpeedConfig(Section):
    """Play faster or slower, pitch and formants included (Ko et al. 2015)."""

    probability: float = Probability
    factors: tuple[float, ...] = Field(default=(0.9, 1.0, 1.1), min_length=1)
    """One is drawn, each as likely; 1.1 shortens a clip to 1/1.1 and raises its pitch by 10 %. From 0.5 to 2, in
    hundredths, which keeps the resampling filter short. `data.max_micro_batch_s` holds for the lengths after it."""

    @field_validator("factors")
    @classmethod
    def _in_hundredths(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        for factor in factors:
            if not (0.5 <= factor <= 2 and abs(100 * factor - round(100 * factor)) < 1e-6):
                raise ValueError(f"factors must lie between 0.5 and 2 and be multiples of 0.01, got {factor}")
        return factors

    @property
    def longest_stretch(self) -> float:
        """How many times longer than before a clip may get, at least 1."""
        return max(1.0, 1 / min(self.factors)) if self.probability > 0 else 1.0


class ReverberationConfig(Section):
    """Put the speaker into a room: convolution with a room impulse response."""

    probability: float = Probability
    folder: PathText | None = None
    """Audio files of measured or simulated responses, searched with its subfolders. None draws synthetic ones: the
    direct sound, then noise that decays exponentially."""
    min_rt60_s: _Rt60 = 0.2
    max_rt60_s: _Rt60 = 0.8
    """Synthetic only: the time in which the reverberation falls by 60 dB, drawn evenly."""
    min_drr_db: _Decibels = 0.0
    max_drr_db: _Decibels = 15.0
    """Synthetic only: energy of the direct sound over that of the reverberation, drawn evenly in dB."""

    @model_validator(mode="after")
    def _check(self) -> ReverberationConfig:
        _check_range("rt60_s", self.min_rt60_s, self.max_rt60_s)
        _check_range("drr_db", self.min_drr_db, self.max_drr_db)
        return self


class NoiseConfig(Section):
    """Add noise at a signal-to-noise ratio."""

    probability: float = Probability
    folder: PathText | None = None
    """Audio files of noise, searched with its subfolders: a file is drawn, and a place in it; what is shorter than the
    clip is repeated. None uses built-in noise."""
    colours: tuple[Literal["white", "pink"], ...] = Field(default=("white", "pink"), min_length=1)
    """Built-in only: one is drawn; white has equal power per Hz, pink equal power per octave."""
    min_snr_db: _Decibels = 5.0
    max_snr_db: _Decibels = 20.0
    """Energy of the whole clip, pauses included, over that of the noise, drawn evenly in dB."""

    @model_validator(mode="after")
    def _check(self) -> NoiseConfig:
        _check_range("snr_db", self.min_snr_db, self.max_snr_db)
        return self


class GainConfig(Section):
    """Record louder or softer.

    Encoders that scale each clip (`logmel`, checkpoints with `do_normalize`) hear no difference, except
    through `mu_law`.
    """

    probability: float = Probability
    min_db: _Decibels = -6.0
    max_db: _Decibels = 6.0
    """Drawn evenly in dB. Samples may leave [-1, 1]; nothing clips them but `mu_law`."""

    @model_validator(mode="after")
    def _check(self) -> GainConfig:
        _check_range("db", self.min_db, self.max_db)
        return self


Band = Literal["telephone", "8khz", "mu_law"]


class BandLimitConfig(Section):
    """Send through a channel that keeps part of the band."""

    probability: float = Probability
    kinds: tuple[Band, ...] = Field(default=("telephone", "8khz", "mu_law"), min_length=1)
    """One is drawn. `telephone`: 300 to 3,400 Hz; `8khz`: below 4 kHz, what sampling at 8 kHz leaves; `mu_law`: the
    telephone band sampled at 8 kHz in 8-bit mu-law, which clips at full scale."""


class VtlpConfig(Section):
    """Vocal tract length perturbation (Jaitly and Hinton 2013), for the `logmel` encoder only.

    The mel filters move as if the vocal tract were longer or shorter.
    """

    probability: float = Probability
    min_factor: float = Field(default=0.9, ge=0.5, le=2)
    max_factor: float = Field(default=1.1, ge=0.5, le=2)
    """By how much the filters' frequencies are multiplied up to about 4.8 kHz, drawn evenly."""

    @model_validator(mode="after")
    def _check(self) -> VtlpConfig:
        _check_range("factor", self.min_factor, self.max_factor)
        return self


class AugmentConfig(Section):
    """Changes to training audio, applied in this order. Dev, test and prediction never see them."""

    speed: SpeedConfig = SpeedConfig()
    reverberation: ReverberationConfig = ReverberationConfig()
    noise: NoiseConfig = NoiseConfig()
    gain: GainConfig = GainConfig()
    band_limit: BandLimitConfig = BandLimitConfig()
    vtlp: VtlpConfig = VtlpConfig()
