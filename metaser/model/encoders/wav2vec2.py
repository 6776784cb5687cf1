"""wav2vec 2.0, HuBERT, WavLM and data2vec-audio, base or large, with transformers' weights.

Modules and loop are our own: transformers' output depends on who shares the batch, and its modelling code takes seconds
to load.

Legend: B utterances, T samples, L frames (20 ms), D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.data2vec.configuration_data2vec_audio import Data2VecAudioConfig
from transformers.models.hubert.configuration_hubert import HubertConfig
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wavlm.configuration_wavlm import WavLMConfig

from metaser.model.attention import AttentionMask, attend, relative_position_bias
from metaser.model.checkpoints import Fraction, FromFile, Name, Size, Sizes
from metaser.model.encoders.base import Inputs, real_mask
from metaser.model.encoders.pretrained import Original, PretrainedEncoder, Refusal
from metaser.model.encoders.wav2vec2_modules import (
    FeatureExtractor,
    FeatureProjection,
    StackedPositions,
    Transformer,
    is_activation,
    is_pre_norm,
)
from shards.schema import RATE_HZ

_MAX_WINDOW_SAMPLES = 10 * RATE_HZ
"""Of a frame; those of these encoders are 400 samples long."""


class _Form(FromFile):
    """What an encoder's form depends on. What a file leaves out has the default of its family, not that below."""

    model_type: str | None = None
    hidden_size: Size = 1
    num_hidden_layers: Annotated[int, Field(gt=0, le=256)] = 1
    num_attention_heads: Size = 1
    intermediate_size: Annotated[int, Field(gt=0, le=2**20)] = 1
    hidden_act: Name = ""
    hidden_dropout: Fraction = 0
    activation_dropout: Fraction = 0
    attention_dropout: Fraction = 0
    feat_proj_dropout: Fraction = 0
    feat_proj_layer_norm: bool = True
    layer_norm_eps: Annotated[float, Field(ge=1e-12, le=1)] = 1
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Name = ""
    conv_dim: Sizes = ()
    conv_stride: Sizes = ()
    conv_kernel: Sizes = ()
    conv_bias: bool = False
    conv_pos_batch_norm: bool = False
    conv_pos_kernel_size: Size = 1
    num_conv_pos_embeddings: Annotated[int, Field(gt=0, le=1024)] = 1
    num_conv_pos_embedding_groups: Size = 1
    do_stable_layer_norm: bool = False
    num_buckets: Annotated[int, Field(ge=4, le=2**16)] = 4
    max_bucket_distance: Annotated[int, Field(gt=0, le=2**24)] = 1
    adapter_attn_dim: Size | None = None


class Wav2Vec2Encoder(PretrainedEncoder):
    """The modules of a transformers speech encoder under their own names, run without its batch effects.

    transformers' SpecAugment and LayerDrop never run. `masked_spec_embed`, what time masks put in place of hidden
    frames, is a buffer: it stays as the checkpoint has it. The adapter on top of some wav2vec 2.0 models is left out.
    """

    originals: ClassVar[Mapping[str, Original]] = {
        "wav2vec2": Original(Wav2Vec2Config, "wav2vec2"),
        "hubert": Original(HubertConfig, "hubert"),
        "wavlm": Original(WavLMConfig, "wavlm"),
        "data2vec-audio": Original(Data2VecAudioConfig, "data2vec_audio"),
    }
    form: ClassVar[type[FromFile]] = _Form
    form_names: ClassVar[tuple[str, ...]] = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
        *("do_stable_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm"),
        *("num_buckets", "max_bucket_distance", "layer_norm_eps"),
    )
    dropouts: ClassVar[tuple[str, ...]] = (
        *("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"),
    )
    anchor: ClassVar[str] = "feature_projection.projection.weight"
    masks_features: ClassVar[bool] = False
    zero_if_absent: ClassVar[Mapping[str, str]] = {"masked_spec_embed": "time masks hide frames by zeros"}

    masked_spec_embed: Tensor

    def __init__(self, config: Any, *, do_normalize: bool, freeze_feature_encoder: bool) -> None:
        """Build with random weights; see `PretrainedEncoder`."""
        super().__init__(
            config,
            do_normalize=do_normalize,
            freeze_feature_encoder=freeze_feature_encoder,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_mask_features=config.hidden_size,
            windows=list(zip(config.conv_kernel, config.conv_stride, strict=True)),
        )
        config.add_adapter = False
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Transformer(config)
        self.register_buffer("masked_spec_embed", torch.zeros(config.hidden_size))
        self._is_pre_norm = is_pre_norm(config)
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    @classmethod
    def check_form(cls, config: Mapping[str, Any], refuse: Refusal) -> None:
        """Refuse sizes of which no encoder can be built."""
        hidden = config["hidden_size"]
        for divisor in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if hidden % config[divisor]:
                raise refuse(f"hidden_size must be a multiple of {divisor}", f"{hidden} and {config[divisor]}")
        lengths = [len(config[part]) for part in ("conv_dim", "conv_stride", "conv_kernel")]
        if len(set(lengths)) > 1:
            raise refuse("conv_dim, conv_stride and conv_kernel must be equally long", f"{lengths}")
        # Before the first frame there must be so many samples, and from each to the next.
        hop, window = 1, 1
        for stride, kernel in zip(config["conv_stride"], config["conv_kernel"], strict=True):
            window += (kernel - 1) * hop
            hop *= stride
        if max(hop, window) > _MAX_WINDOW_SAMPLES:
            rule = f"conv_stride and conv_kernel must make windows and steps of at most {_MAX_WINDOW_SAMPLES} samples"
            raise refuse(rule, f"{window} and {hop}")
        for part in ("hidden_act", "feat_extract_activation"):
            if not is_activation(config[part]):
                raise refuse(f"{part} must be an activation of transformers such as gelu", repr(config[part]))
        if "num_buckets" in config and config["max_bucket_distance"] <= config["num_buckets"] // 4:
            numbers = f"{config['max_bucket_distance']} and {config['num_buckets']}"
            raise refuse("max_bucket_distance must be greater than a quarter of num_buckets", numbers)

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        return self.encoder.layers

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output; post-norm models have theirs before the first layer."""
        return self.encoder.layer_norm if self._is_pre_norm else None

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the CNN's parameters if `freeze_feature_encoder`."""
        if self._freeze_feature_encoder:
            yield from self.feature_extractor.parameters()

    def reset_parameters(self) -> None:
        """Hide frames by zeros."""
        init.zeros_(self.masked_spec_embed)

    def _feature_modules(self) -> tuple[nn.Module, ...]:
        return (self.feature_extractor,)

    def _features(self, inputs: Inputs, real_BL: Tensor) -> Tensor:
        wave_BT, num_samples_B = inputs.wave_BT, inputs.num_samples_B
        real_BT = real_mask(num_samples_B, wave_BT.shape[1])
        if self._do_normalize:
            wave_BT = _normalised(wave_BT, real_BT)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_feature_encoder):
            return self._convolve(wave_BT * real_BT, num_samples_B)

    def _embed(self, features_BLD: Tensor, inputs: Inputs, real_BL: Tensor) -> Tensor:
        masks = inputs.masks
        frames_BLD = self.feature_projection(features_BLD)
        if masks is not None:
            hidden_D = self.masked_spec_embed.to(frames_BLD.dtype)
            frames_BLD = torch.where(masks.time_BL[:, :, None], hidden_D, frames_BLD)
            frames_BLD = frames_BLD.masked_fill(masks.feature_BD[:, None, :], 0.0)
        real_BL1 = real_BL[:, :, None]
        frames_BLD = frames_BLD * real_BL1
        frames_BLD = frames_BLD + self._position(frames_BLD, real_BL1)
        if not self._is_pre_norm:
            frames_BLD = self.encoder.layer_norm(frames_BLD)
        dropped_BLD: Tensor = self.encoder.dropout(frames_BLD)
        return dropped_BLD

    def _convolve(self, wave_BT: Tensor, num_samples_B: Tensor) -> Tensor:
        """Return the CNN's features; a frame sees true samples only, so only group norm needs care."""
        # On a CPU a clip's features stay in its caches where nothing of them is kept for the backward pass. Several
        # processes call each layer alike often, whatever clips they have: ZeRO 3 gathers its weights at each call.
        is_by_clip = wave_BT.device.type == "cpu" and not torch.is_grad_enabled() and not _is_one_of_several()
        num_together = 1 if is_by_clip else len(wave_BT)
        parts = [slice(first, first + num_together) for first in range(0, len(wave_BT), num_together)]
        return torch.cat([self._convolve_part(wave_BT[part], num_samples_B[part]) for part in parts])

    def _convolve_part(self, wave_BT: Tensor, num_samples_B: Tensor) -> Tensor:
        features_BLD = wave_BT[:, :, None]
        for index, layer in enumerate(self.feature_extractor.conv_layers):
            features_BLD = layer(features_BLD, self._num_outputs(num_samples_B, self._windows[: index + 1]))
        return features_BLD

    def _position(self, frames_BLD: Tensor, real_BL1: Tensor) -> Tensor:
        """Return the convolutional positions; padded frames are zero before each convolution."""
        positions = self.encoder.pos_conv_embed
        if isinstance(positions, StackedPositions):
            for layer in positions.layers:
                frames_BLD = layer(frames_BLD) * real_BL1
            return frames_BLD
        if positions.batch_norm is not None:
            frames_BLD = _batch_norm(positions.batch_norm, frames_BLD) * real_BL1
        positions_BLD: Tensor = positions(frames_BLD) * real_BL1
        return positions_BLD

    def _attention_mask(self, real_BL: Tensor) -> AttentionMask:
        mask = super()._attention_mask(real_BL)
        first: Any = self.encoder.layers[0].attention
        if not hasattr(first, "rel_attn_embed"):
            return mask
        return mask._replace(bias_HLL=relative_position_bias(first, real_BL.shape[1]))

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        if not self._is_pre_norm:
            attended_BLD = layer.dropout(attend(layer.attention, frames_BLD, mask))
            frames_BLD = layer.layer_norm(frames_BLD + attended_BLD)
            normed_BLD: Tensor = layer.final_layer_norm(frames_BLD + layer.feed_forward(frames_BLD))
            return normed_BLD
        frames_BLD = frames_BLD + layer.dropout(attend(layer.attention, layer.layer_norm(frames_BLD), mask))
        frames_BLD = frames_BLD + layer.feed_forward(layer.final_layer_norm(frames_BLD))
        # MMS models carry an adapter for one language here.
        if layer.adapter_layer is not None:
            frames_BLD = frames_BLD + layer.adapter_layer(frames_BLD)
        return frames_BLD


def _is_one_of_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _normalised(wave_BT: Float[Tensor, "B T"], real_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each clip with zero mean and unit variance over its true samples, as transformers' extractor does."""
    num_B1 = real_BT.sum(1, keepdim=True)
    centred_BT = wave_BT - (wave_BT * real_BT).sum(1, keepdim=True) / num_B1
    variance_B1 = (centred_BT * real_BT).square().sum(1, keepdim=True) / num_B1
    return centred_BT * torch.rsqrt(variance_B1 + 1e-7)


def _batch_norm(norm: nn.BatchNorm1d, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Return batch norm with the checkpoint's statistics, in training too: a batch's own would see its padding."""
    return nn.functional.batch_norm(
        frames_BLD.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    ).transpose(1, 2)
