"""The kind `logmel`: a small encoder that trains from scratch, of log-mel frames, their subsampling and its layers.

Legend: B utterances, T samples, M mel frames (10 ms), S spectral bins, F mel bins, L frames (20 ms), D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metaser.config.encoders import LogMelEncoderConfig
from metaser.model.attention import AttentionMask, SelfAttention
from metaser.model.encoders.base import Inputs, SpeechEncoder, init_encoder_weights, real_mask
from shards.schema import RATE_HZ

WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
_FFT_SAMPLES = 512
_LOWEST_HZ = 20.0
_POSITION_KERNEL = 31
_WARPED_BELOW_HZ = 4800.0

# The floor lies 47 dB under the mean energy of a clip. Centre and spread are the mean and the deviation of the log
# energies of EmoDB's clips at unit power, so that frames come out centred and of about unit spread.
_FLOOR = 1e-2
_CENTRE = 0.5
_SPREAD = 3.7


def log_mel(
    wave_BT: Float[Tensor, "B T"],
    real_BT: Bool[Tensor, "B T"],
    num_mels: int,
    warp_B: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B M F"]:
    """Return log-mel frames (25 ms window, 10 ms hop) that do not depend on the recording level.

    Each clip is scaled to unit power over its true samples. Spectral tilt, contour and relative loudness remain,
    which carry emotion and gender; means per bin are therefore not removed.

    Args:
        wave_BT: Samples at 16 kHz, zero where padded, T at least one window.
        real_BT: True at real samples.
        num_mels: F.
        warp_B: VTLP's factor for each clip; None moves no filter.
    """
    power_B1 = wave_BT.square().sum(1, keepdim=True) / real_BT.sum(1, keepdim=True)
    frames_BMT = (wave_BT * torch.rsqrt(power_B1 + 1e-10)).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
    window_T = torch.as_tensor(_window(), device=wave_BT.device)
    spectrum_BMS = torch.fft.rfft(frames_BMT * window_T, n=_FFT_SAMPLES).abs().square()
    if warp_B is None:
        energy_BMF = spectrum_BMS @ torch.as_tensor(_mel_filters(num_mels)).to(spectrum_BMS)
    else:
        energy_BMF = spectrum_BMS @ warped_mel_filters(num_mels, warp_B)
    return (torch.log(energy_BMF + _FLOOR) - _CENTRE) / _SPREAD


class Subsampling(nn.Module):
    """Two convolutions that turn mel frames into frames of twice the length, and convolutional positions."""

    def __init__(self, num_mels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(num_mels, width, 3, padding=1), nn.Conv1d(width, width, 3, stride=2, padding=1)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.position = nn.Conv1d(width, width, _POSITION_KERNEL, padding=_POSITION_KERNEL // 2, groups=width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, mel_BMF: Float[Tensor, "B M F"], real_BM: Bool[Tensor, "B M"], real_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """Return the input of the first layer; padded frames are zero before each convolution."""
        frames_BLD = mel_BMF
        for convolution, norm, real in zip(self.convolutions, self.norms, (real_BM, real_BL), strict=True):
            frames_BLD = convolution(frames_BLD.transpose(1, 2)).transpose(1, 2)
            frames_BLD = nn.functional.gelu(norm(frames_BLD)) * real[:, :, None]
        position_BLD = self.position(frames_BLD.transpose(1, 2)).transpose(1, 2)
        dropped_BLD: Tensor = self.dropout(frames_BLD + nn.functional.gelu(position_BLD))
        return dropped_BLD


class PreNormLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames_BLD: Float[Tensor, "B L D"], mask: AttentionMask) -> Float[Tensor, "B L D"]:
        """Return the layer's raw output."""
        frames_BLD = frames_BLD + self.dropout(self.attention(self.attention_norm(frames_BLD), mask))
        inner = self.dropout(nn.functional.gelu(self.up(self.feed_forward_norm(frames_BLD))))
        output_BLD: Tensor = frames_BLD + self.dropout(self.down(inner))
        return output_BLD


# Kept as numpy arrays: from_pretrained builds models on the meta device, where buffers would lose their values.


@functools.lru_cache(maxsize=1)
def _window() -> np.ndarray:
    """Return a Hann window."""
    return np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)


@functools.lru_cache(maxsize=4)
def _mel_edges_hz(num_mels: int) -> np.ndarray:
    """Return F + 2 frequencies at equal distances on the HTK mel scale: where the triangles begin, peak and end."""
    lowest, highest = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, RATE_HZ / 2))
    edges_hz: np.ndarray = 700.0 * (10.0 ** (np.linspace(lowest, highest, num_mels + 2) / 2595.0) - 1.0)
    return edges_hz


@functools.lru_cache(maxsize=4)
def _mel_filters(num_mels: int) -> np.ndarray:
    """Return triangular filters, frequencies by mel bins."""
    return _triangles(torch.from_numpy(_mel_edges_hz(num_mels))).numpy()


def warped_mel_filters(num_mels: int, warp_B: Float[Tensor, "B"]) -> Float[Tensor, "B S F"]:
    """Return each clip's filters with their frequencies mapped by VTLP (Jaitly and Hinton 2013, equation 1).

    With factor a, a frequency f becomes a f up to F min(a, 1) / a, where F = 4.8 kHz lies above the formants that
    matter; from there a straight line leads to half the sampling rate, which stays where it is.
    """
    edges_E = torch.as_tensor(_mel_edges_hz(num_mels), device=warp_B.device)
    factor_B1 = warp_B.double()[:, None]
    half_hz = RATE_HZ / 2
    image_B1 = _WARPED_BELOW_HZ * factor_B1.clamp(max=1.0)
    knee_B1 = image_B1 / factor_B1
    slope_B1 = (half_hz - image_B1) / (half_hz - knee_B1)
    warped_BE = torch.where(edges_E <= knee_B1, edges_E * factor_B1, half_hz - slope_B1 * (half_hz - edges_E))
    return _triangles(warped_BE)


def _triangles(edges_hz: Float[Tensor, "*B E"]) -> Float[Tensor, "*B S F"]:
    """Return filters that rise from each edge to the next and fall to the one after it; S frequencies of the FFT."""
    bins_S1 = torch.linspace(0.0, RATE_HZ / 2, _FFT_SAMPLES // 2 + 1, dtype=edges_hz.dtype, device=edges_hz.device)[
        :, None
    ]
    low, peak, high = (edges_hz[..., None, start : edges_hz.shape[-1] - 2 + start] for start in range(3))
    rising = (bins_S1 - low) / (peak - low)
    falling = (high - bins_S1) / (high - peak)
    return torch.minimum(rising, falling).clamp(min=0.0).float()


class LogMelEncoder(SpeechEncoder):
    """A small pre-norm transformer over log-mel frames; 49 frames a second, as the large encoders."""

    def __init__(self, config: LogMelEncoderConfig) -> None:
        super().__init__(
            num_layers=config.num_layers,
            hidden_size=config.width,
            num_mask_features=config.num_mels,
            # The second convolution of Subsampling gives ceil(M / 2) frames for M mel frames.
            windows=[(WINDOW_SAMPLES, HOP_SAMPLES), (1, 2)],
        )
        self._config = config
        self.subsampling = Subsampling(config.num_mels, config.width, config.dropout)
        self.layers = nn.ModuleList(
            PreNormLayer(config.width, config.num_heads, config.feed_forward, config.dropout)
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.width)

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        return self.layers

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output."""
        return self.final_norm

    def architecture(self) -> dict[str, Any]:
        """Return what `from_architecture` needs."""
        return self._config.model_dump()

    @classmethod
    def from_config(cls, config: LogMelEncoderConfig, *, setting: str = "model.encoder") -> LogMelEncoder:
        """Return a fresh encoder."""
        encoder = cls(config)
        encoder.apply(init_encoder_weights)
        return encoder

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> LogMelEncoder:
        """Return an encoder with random weights."""
        return cls(LogMelEncoderConfig(**architecture))

    @classmethod
    def read_architecture(cls, values: Any, path: Path) -> dict[str, Any]:
        """Return an exported model's `architecture`; see `Encoder.read_architecture`."""
        return LogMelEncoderConfig.model_validate(values).model_dump()

    @classmethod
    def form_of(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of `architecture` decides the weights' form: all but the dropout."""
        return {name: value for name, value in architecture.items() if name not in ("kind", "dropout")}

    def _features(self, inputs: Inputs, real_BL: Tensor) -> Tensor:
        wave_BT, num_samples_B, masks = inputs.wave_BT, inputs.num_samples_B, inputs.masks
        real_BT = real_mask(num_samples_B, wave_BT.shape[1])
        # Powers of a spectrum span more than bfloat16 resolves.
        with torch.autocast(wave_BT.device.type, enabled=False):
            mel_BMF = log_mel(wave_BT * real_BT, real_BT, self._config.num_mels, inputs.warp_B)
        real_BM = real_mask(self._num_outputs(num_samples_B, self._windows[:1]), mel_BMF.shape[1])
        seen_BMF = real_BM[:, :, None]
        if masks is not None:
            time_BM = masks.time_BL.repeat_interleave(2, dim=1)[:, : mel_BMF.shape[1]]
            seen_BMF = seen_BMF & ~time_BM[:, :, None] & ~masks.feature_BD[:, None, :]
        return mel_BMF * seen_BMF

    def _embed(self, features_BLD: Tensor, inputs: Inputs, real_BL: Tensor) -> Tensor:
        mel_BMF = features_BLD
        real_BM = real_mask(self._num_outputs(inputs.num_samples_B, self._windows[:1]), mel_BMF.shape[1])
        # Frames that masks hide entirely are constant: through each of two norms their gradients grow by 1 / sqrt(eps).
        with _without_float16(mel_BMF.device):
            frames_BLD: Tensor = self.subsampling(mel_BMF, real_BM, real_BL)
        return frames_BLD

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        output_BLD: Tensor = layer(frames_BLD, mask)
        return output_BLD


def _without_float16(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that leaves autocast as it is, unless that is to float16: its range is too small."""
    computes_in_float16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.half
    return torch.autocast(device.type, enabled=False) if computes_in_float16 else nullcontext()
