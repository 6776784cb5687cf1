"""Whisper's encoder (Radford et al. 2022), with transformers' weights; the decoder is left out.

It hears at most 30 s. transformers pads every clip to that length with silence, which its layers hear; here a clip ends
where it ends: its own mel frames, as many positions, and no padding in any layer. Its mel frames are nevertheless
those that transformers' feature extractor gives for the clip with silence behind it: silence is never the loudest
mel bin of 30 s, below which all is raised to 8 decades.

Legend: B utterances, T samples, M mel frames (10 ms), S spectral bins, F mel bins, L frames (20 ms), D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, relu, silu
from transformers import initialization as init
from transformers.models.whisper.configuration_whisper import WhisperConfig

from metaser.errors import ModelError
from metaser.model.attention import AttentionMask, SelfAttention
from metaser.model.checkpoints import Fraction, FromFile, Name, Size
from metaser.model.encoders.base import Inputs, SelfFilled, real_mask
from metaser.model.encoders.pretrained import Original, PretrainedEncoder, Refusal
from shards.schema import RATE_HZ

WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
_FRAME_SAMPLES = 2 * HOP_SAMPLES
_BEFORE_SAMPLES = WINDOW_SAMPLES // 2
_AFTER_SAMPLES = WINDOW_SAMPLES // 2 - HOP_SAMPLES
"""What the last mel frame hears beyond a clip of whole hops."""
_SMALLEST_ENERGY = 1e-10
_DECADES = 8.0
_LONGEST_PERIOD = 10_000.0
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": relu, "silu": silu}
"""All of Whisper's use gelu. transformers' own table loads its modelling code."""


class _Form(FromFile):
    """What the encoder's form depends on. What a file leaves out has transformers' default, not that below."""

    model_type: str | None = None
    d_model: Size = 1
    encoder_layers: Annotated[int, Field(gt=0, le=256)] = 1
    encoder_attention_heads: Size = 1
    encoder_ffn_dim: Annotated[int, Field(gt=0, le=2**20)] = 1
    num_mel_bins: Annotated[int, Field(gt=0, le=1024)] = 1
    max_source_positions: Annotated[int, Field(gt=0, le=2**15)] = 1
    activation_function: Name = ""
    dropout: Fraction = 0
    attention_dropout: Fraction = 0
    activation_dropout: Fraction = 0


class _Positions(SelfFilled):
    """One vector for each frame, which is never trained."""

    weight: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        # Filled by a checkpoint, or below.
        self.register_buffer("weight", torch.empty(num_positions, width))

    def reset_parameters(self) -> None:
        """Make the positions sinusoids."""
        if not self.weight.is_meta:
            init.copy_(self.weight, sinusoids(*self.weight.shape))


class _Layer(nn.Module):
    """A pre-norm transformer layer whose keys have no bias, its parts named as transformers names them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = SelfAttention(width, config.encoder_attention_heads, config.attention_dropout)
        self.self_attn.k_proj = nn.Linear(width, width, bias=False)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation = _ACTIVATIONS[config.activation_function]
        self.inner_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames_BLD: Float[Tensor, "B L D"], mask: AttentionMask) -> Float[Tensor, "B L D"]:
        """Return the layer's raw output."""
        frames_BLD = frames_BLD + self.dropout(self.self_attn(self.self_attn_layer_norm(frames_BLD), mask))
        inner = self.inner_dropout(self.activation(self.fc1(self.final_layer_norm(frames_BLD))))
        output_BLD: Tensor = frames_BLD + self.dropout(self.fc2(inner))
        return output_BLD


class WhisperEncoder(PretrainedEncoder):
    """The modules of Whisper's encoder under transformers' names, run on the true frames of each clip.

    SpecAugment hides mel bins, and frames before their positions are added: a hidden frame knows its place alone.
    LayerDrop never runs. The level of a clip counts, as in Whisper: a checkpoint's `do_normalize` changes nothing.
    """

    originals: ClassVar[Mapping[str, Original]] = {"whisper": Original(WhisperConfig, "model")}
    form: ClassVar[type[FromFile]] = _Form
    form_names: ClassVar[tuple[str, ...]] = (
        *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins"),
        *("max_source_positions", "activation_function"),
    )
    dropouts: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout", "activation_dropout")
    anchor: ClassVar[str] = "conv1.weight"

    def __init__(self, config: Any, *, do_normalize: bool, freeze_feature_encoder: bool) -> None:
        """Build with random weights; see `PretrainedEncoder`."""
        super().__init__(
            config,
            do_normalize=False,
            freeze_feature_encoder=freeze_feature_encoder,
            num_layers=config.encoder_layers,
            hidden_size=config.d_model,
            num_mask_features=config.num_mel_bins,
            # The second convolution gives ceil(M / 2) frames for M mel frames.
            windows=[(HOP_SAMPLES, HOP_SAMPLES), (1, 2)],
        )
        self.longest_samples = config.max_source_positions * _FRAME_SAMPLES
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.embed_positions = _Positions(config.max_source_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    @classmethod
    def check_form(cls, config: Mapping[str, Any], refuse: Refusal) -> None:
        """Refuse sizes of which no encoder can be built."""
        width, num_heads = config["d_model"], config["encoder_attention_heads"]
        if width % num_heads:
            raise refuse("d_model must be a multiple of encoder_attention_heads", f"{width} and {num_heads}")
        if width % 2 or width < 4:
            raise refuse("d_model must be even and at least 4", str(width))
        if config["activation_function"] not in _ACTIVATIONS:
            names = ", ".join(_ACTIVATIONS)
            raise refuse(f"activation_function must be one of {names}", repr(config["activation_function"]))

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        return self.layers

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output."""
        return self.layer_norm

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the convolutions' parameters if `freeze_feature_encoder`."""
        if self._freeze_feature_encoder:
            yield from self.conv1.parameters()
            yield from self.conv2.parameters()

    def _feature_modules(self) -> tuple[nn.Module, ...]:
        return (self.conv1, self.conv2)

    def _features(self, inputs: Inputs, real_BL: Tensor) -> Tensor:
        num_positions = len(self.embed_positions.weight)
        if real_BL.shape[1] > num_positions:
            raise ModelError(
                f"this encoder hears at most {num_positions * _FRAME_SAMPLES / RATE_HZ:g} s at once, got "
                f"{inputs.wave_BT.shape[1] / RATE_HZ:g} s; cut the clips into windows"
            )
        wave_BT, num_samples_B, masks = inputs.wave_BT, inputs.num_samples_B, inputs.masks
        real_BT = real_mask(num_samples_B, wave_BT.shape[1])
        num_mels_B = self._num_outputs(num_samples_B, self._windows[:1])
        # Powers of a spectrum span more than bfloat16 resolves.
        with torch.autocast(wave_BT.device.type, enabled=False):
            mel_BMF = whisper_log_mel(
                self._closed(wave_BT * real_BT, num_samples_B),
                real_mask(num_mels_B, self._num_outputs(wave_BT.shape[1], self._windows[:1])),
                self.num_mask_features,
            )
        if masks is not None:
            mel_BMF = mel_BMF.masked_fill(masks.feature_BD[:, None, :], 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_feature_encoder):
            frames_BDM = gelu(self.conv1(mel_BMF.transpose(1, 2)))
            frames_BDM = frames_BDM * real_mask(num_mels_B, frames_BDM.shape[2])[:, None, :]
            return gelu(self.conv2(frames_BDM)).transpose(1, 2)

    def _embed(self, features_BLD: Tensor, inputs: Inputs, real_BL: Tensor) -> Tensor:
        frames_BLD, positions_LD = features_BLD, self.embed_positions.weight
        if inputs.masks is not None:
            frames_BLD = frames_BLD.masked_fill(inputs.masks.time_BL[:, :, None], 0.0)
        frames_BLD = (frames_BLD + positions_LD[: frames_BLD.shape[1]]) * real_BL[:, :, None]
        dropped_BLD: Tensor = self.dropout(frames_BLD)
        return dropped_BLD

    def _closed(self, wave_BT: Tensor, num_samples_B: Tensor) -> Tensor:
        """Return the clips with what the first and the last mel frame hear beyond them, as Whisper reflects 30 s.

        A shorter clip ends in silence.
        """
        long_BT = pad(wave_BT, (0, _BEFORE_SAMPLES + _AFTER_SAMPLES))
        before_BT = long_BT[:, 1 : _BEFORE_SAMPLES + 1].flip(1)
        after_BT = wave_BT.new_zeros(len(wave_BT), _AFTER_SAMPLES)
        if wave_BT.shape[1] == self.longest_samples:
            is_full_B1 = (num_samples_B == self.longest_samples)[:, None]
            after_BT = wave_BT[:, -_AFTER_SAMPLES - 1 : -1].flip(1) * is_full_B1
        return torch.cat([before_BT, wave_BT, after_BT], dim=1)

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        output_BLD: Tensor = layer(frames_BLD, mask)
        return output_BLD


def whisper_log_mel(
    wave_BT: Float[Tensor, "B T"], real_BM: Bool[Tensor, "B M"], num_mels: int
) -> Float[Tensor, "B M F"]:
    """Return the log-mel frames of transformers' `WhisperFeatureExtractor`, zero where padded.

    Args:
        wave_BT: Samples at 16 kHz, zero where padded, with half a window before the first frame's centre.
        real_BM: True at real frames.
        num_mels: F.
    """
    frames_BMT = wave_BT.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)[:, : real_BM.shape[1]]
    window_T = torch.hann_window(WINDOW_SAMPLES, device=wave_BT.device)
    spectrum_BMS = torch.fft.rfft(frames_BMT * window_T).abs().square()
    energy_BMF = spectrum_BMS @ torch.as_tensor(_slaney_filters(num_mels)).to(spectrum_BMS)
    log_BMF = energy_BMF.clamp(min=_SMALLEST_ENERGY).log10()
    real_BM1 = real_BM[:, :, None]
    loudest_B11 = log_BMF.masked_fill(~real_BM1, -torch.inf).amax((1, 2), keepdim=True)
    return (torch.maximum(log_BMF, loudest_B11 - _DECADES) + 4.0) / 4.0 * real_BM1


def sinusoids(num_positions: int, width: int) -> Float[Tensor, "L D"]:
    """Return Whisper's positions: sines of falling frequencies, then their cosines."""
    num_waves = width // 2
    step = np.log(_LONGEST_PERIOD) / (num_waves - 1)
    angle_LW = torch.arange(num_positions)[:, None] * torch.exp(-step * torch.arange(num_waves))
    return torch.cat([angle_LW.sin(), angle_LW.cos()], dim=1)


# A numpy array: from_pretrained builds models on the meta device, where buffers would lose their values.


@functools.lru_cache(maxsize=4)
def _slaney_filters(num_mels: int) -> np.ndarray:
    """Return triangular filters of equal area, frequencies by mel bins, on the scale of Slaney's auditory toolbox.

    It is linear below 1 kHz (15 mels), and has 27 mels for each factor of 6.4 above.
    """
    top_mel = 15.0 + 27.0 * np.log(RATE_HZ / 2 / 1000.0) / np.log(6.4)
    mels_E = np.linspace(0.0, top_mel, num_mels + 2)
    edges_E = np.where(mels_E < 15.0, mels_E * 200.0 / 3, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mels_E - 15.0)))
    bins_S1 = np.linspace(0.0, RATE_HZ / 2, WINDOW_SAMPLES // 2 + 1)[:, None]
    low_F, peak_F, high_F = edges_E[:-2], edges_E[1:-1], edges_E[2:]
    triangles_SF = np.minimum((bins_S1 - low_F) / (peak_F - low_F), (high_F - bins_S1) / (high_F - peak_F))
    filters_SF: np.ndarray = (triangles_SF.clip(min=0.0) * 2.0 / (high_F - low_F)).astype(np.float32)
    return filters_SF
