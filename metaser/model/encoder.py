"""Speech encoders behind one interface: samples and lengths in, the frames of all layers and the frame mask out.

`HuggingFaceEncoder` runs the weights of wav2vec 2.0, HuBERT, WavLM and data2vec-audio, base or large, through a
loop of its own, because transformers' output depends on who shares the batch: here a padded batch equals the
single clips. `LogMelEncoder` is a small transformer that trains from scratch.

Legend: B utterances, T samples, L frames (20 ms), D hidden, F maskable features, N layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from transformers import Data2VecAudioModel, HubertModel, Wav2Vec2Model, WavLMModel
from transformers import initialization as init

from metaser.config.schema import EncoderConfig, LogMelEncoderConfig
from metaser.errors import ModelError
from metaser.model.attention import AttentionMask, attend, relative_position_bias
from metaser.model.checkpoints import open_checkpoint, read_weights
from metaser.model.logmel import HOP_SAMPLES, WINDOW_SAMPLES, PreNormLayer, Subsampling, log_mel

FAMILIES: dict[str, Any] = {
    "wav2vec2": Wav2Vec2Model,
    "hubert": HubertModel,
    "wavlm": WavLMModel,
    "data2vec-audio": Data2VecAudioModel,
}
"""transformers' models by the `model_type` in config.json."""

LayerMix = Callable[[int, Sequence[Tensor], Tensor], Tensor]
"""`mix(l, [g_0 .. g_{l-1}], Layer_l(g_{l-1}))` gives `g_l`, for l = 1 .. N."""

Count = TypeVar("Count", int, np.ndarray, Tensor)


class FrameMasks(NamedTuple):
    """SpecAugment's masks, True is hidden, and how far VTLP moves the mel filters."""

    time_BL: Bool[Tensor, "B L"]
    feature_BD: Bool[Tensor, "B F"]
    warp_B: Float[Tensor, "B"] | None = None
    """VTLP's factor for each clip, for an encoder with mel filters; None moves none."""

    def to(self, device: torch.device) -> FrameMasks:
        """Return the masks on `device`."""
        return FrameMasks(
            self.time_BL.to(device, non_blocking=True),
            self.feature_BD.to(device, non_blocking=True),
            None if self.warp_B is None else self.warp_B.to(device, non_blocking=True),
        )


class EncoderOutput(NamedTuple):
    """Frames of every layer."""

    layers: tuple[Float[Tensor, "B L D"], ...]
    """h0, the input of the first layer, after the positional convolution; h1 .. hN-1, the raw outputs of the
    layers; hN, after the final LayerNorm where the model has one. Padded frames hold arbitrary finite values."""
    frame_mask_BL: Bool[Tensor, "B L"]
    """True at real frames."""


class SpeechEncoder(nn.Module):
    """What every encoder offers.

    Attributes:
        num_layers: N.
        width: D.
        num_mask_features: F, the features that `FrameMasks.feature_BD` hides.
        gradient_checkpointing: Recompute the layers in the backward pass instead of keeping their activations.
    """

    def __init__(self, num_layers: int, width: int, num_mask_features: int, windows: Sequence[tuple[int, int]]) -> None:
        """Remember the sizes.

        Args:
            num_layers: N.
            width: D.
            num_mask_features: F.
            windows: (length, hop) of each step from samples to frames.
        """
        super().__init__()
        self.num_layers = num_layers
        self.width = width
        self.num_mask_features = num_mask_features
        self.gradient_checkpointing = False
        self._windows = tuple(windows)
        self._min_samples = 1
        for length, hop in reversed(self._windows):
            self._min_samples = (self._min_samples - 1) * hop + length

    def num_frames(self, num_samples: Count) -> Count:
        """Return the frames of clips of so many samples, without running the model; never less than one.

        Clips shorter than the first frame's window are padded to it with silence.
        """
        return self._num_outputs(num_samples, self._windows)

    @property
    def hop_samples(self) -> int:
        """Samples from the beginning of one frame to that of the next."""
        return math.prod(hop for _, hop in self._windows)

    def forward(
        self,
        wave_BT: Float[Tensor, "B T"],
        num_samples_B: Int[Tensor, "B"],
        *,
        masks: FrameMasks | None = None,
        mix: LayerMix | None = None,
    ) -> EncoderOutput:
        """Return the frames of all layers, L = `num_frames(T)`; padding never changes a clip's real frames.

        Args:
            wave_BT: Samples at 16 kHz, padded at the end (with anything).
            num_samples_B: True length of each clip.
            masks: What SpecAugment hides from the layers.
            mix: Applied after each layer (`dense` ARI, bottlenecks); the final LayerNorm sees its last output.
        """
        num_samples_B = num_samples_B.to(wave_BT.device)
        wave_BT = nn.functional.pad(wave_BT.float(), (0, max(0, self._min_samples - wave_BT.shape[1])))
        real_BL = _real(self.num_frames(num_samples_B), self.num_frames(wave_BT.shape[1]))
        layers = [self._embed(wave_BT, num_samples_B, real_BL, masks)]
        mask = self._attention_mask(real_BL)
        for number, layer in enumerate(self.transformer_layers, start=1):
            frames_BLD = self._checkpointed(layer, layers[-1], mask)
            layers.append(frames_BLD if mix is None else mix(number, tuple(layers), frames_BLD))
        layers[-1] = self._final_norm(layers[-1])
        return EncoderOutput(tuple(layers), real_BL)

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        raise NotImplementedError

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output, None where there is none."""
        raise NotImplementedError

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the configuration says never to train; a stage that thaws the encoder leaves these alone."""
        yield from ()

    def architecture(self) -> dict[str, Any]:
        """Return what `build_encoder` needs to rebuild the encoder without its weights; fit for JSON."""
        raise NotImplementedError

    def compile_layers(self) -> None:
        """Compile what all layers do, once for all numbers of utterances and frames."""
        self._run_layer = torch.compile(self._run_layer, dynamic=True)  # type: ignore[method-assign]

    def _embed(self, wave_BT: Tensor, num_samples_B: Tensor, real_BL: Tensor, masks: FrameMasks | None) -> Tensor:
        raise NotImplementedError

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        raise NotImplementedError

    def _final_norm(self, frames_BLD: Tensor) -> Tensor:
        norm = self.top_norm()
        if norm is None:
            return frames_BLD
        normed_BLD: Tensor = norm(frames_BLD)
        return normed_BLD

    def _attention_mask(self, real_BL: Tensor) -> AttentionMask:
        return AttentionMask(real_BL[:, None, None, :])

    def _checkpointed(self, layer: nn.Module, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self._run_layer(layer, frames_BLD, mask)
        recomputed: Tensor = checkpoint(self._run_layer, layer, frames_BLD, mask, use_reentrant=False)
        return recomputed

    def _num_outputs(self, num_samples: Count, windows: Sequence[tuple[int, int]]) -> Count:
        """Return how many outputs the windows have, one after the other, for so many samples."""
        # Written so that ints, numpy arrays and tensors all pass.
        count: Any = num_samples + (self._min_samples - num_samples) * (num_samples < self._min_samples)
        for length, hop in windows:
            count = (count - length) // hop + 1
        outputs: Count = count
        return outputs


class HuggingFaceEncoder(SpeechEncoder):
    """The modules of a transformers speech encoder under their own names, run without its batch effects.

    transformers' SpecAugment and LayerDrop never run. `masked_spec_embed`, what time masks put in place of hidden
    frames, is a buffer: it stays as the checkpoint has it. The adapter on top of some wav2vec 2.0 models is left out.
    """

    feature_extractor: Any
    feature_projection: Any
    encoder: Any
    masked_spec_embed: Tensor

    def __init__(self, config: Any, *, do_normalize: bool, freeze_feature_encoder: bool) -> None:
        """Build with random weights.

        Args:
            config: The transformers configuration.
            do_normalize: Bring each clip to zero mean and unit variance.
            freeze_feature_encoder: Keep the CNN as it is and run it without autograd.
        """
        super().__init__(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_mask_features=config.hidden_size,
            windows=list(zip(config.conv_kernel, config.conv_stride, strict=True)),
        )
        config.add_adapter = False
        model = FAMILIES[config.model_type](config)
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder
        self.register_buffer("masked_spec_embed", torch.zeros(config.hidden_size))
        self._config = config
        self._do_normalize = do_normalize
        self._freeze_feature_encoder = freeze_feature_encoder
        self._is_pre_norm = getattr(config, "do_stable_layer_norm", False)
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        layers: nn.ModuleList = self.encoder.layers
        return layers

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output; post-norm models have theirs before the first layer."""
        norm: nn.Module = self.encoder.layer_norm
        return norm if self._is_pre_norm else None

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the CNN's parameters if `freeze_feature_encoder`."""
        if self._freeze_feature_encoder:
            yield from self.feature_extractor.parameters()

    def architecture(self) -> dict[str, Any]:
        """Return what `build_encoder` needs."""
        return {
            "kind": "huggingface",
            "config": json.loads(self._config.to_json_string(use_diff=False)),
            "do_normalize": self._do_normalize,
            "freeze_feature_encoder": self._freeze_feature_encoder,
        }

    def _embed(self, wave_BT: Tensor, num_samples_B: Tensor, real_BL: Tensor, masks: FrameMasks | None) -> Tensor:
        real_BT = _real(num_samples_B, wave_BT.shape[1])
        if self._do_normalize:
            wave_BT = _normalised(wave_BT, real_BT)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_feature_encoder):
            features_BLD = self._convolve(wave_BT * real_BT, num_samples_B)
        projected = self.feature_projection(features_BLD)
        # WavLM, wav2vec 2.0 and data2vec also return the features before the projection.
        frames_BLD = projected[0] if isinstance(projected, tuple) else projected
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
        features_BDL = wave_BT[:, None, :]
        for index, layer in enumerate(self.feature_extractor.conv_layers):
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                num_frames_B = self._num_outputs(num_samples_B, self._windows[: index + 1])
                normalised_BDL = _group_norm(layer.layer_norm, layer.conv(features_BDL), num_frames_B)
                features_BDL = layer.activation(normalised_BDL)
            else:
                features_BDL = layer(features_BDL)
        return features_BDL.transpose(1, 2)

    def _position(self, frames_BLD: Tensor, real_BL1: Tensor) -> Tensor:
        """Return the convolutional positions; padded frames are zero before each convolution."""
        positions = self.encoder.pos_conv_embed
        if getattr(positions, "batch_norm", None) is not None:
            frames_BLD = _batch_norm(positions.batch_norm, frames_BLD) * real_BL1
        for layer in getattr(positions, "layers", [positions]):
            frames_BLD = layer.padding(layer.conv(frames_BLD.transpose(1, 2))).transpose(1, 2)
            if hasattr(layer, "layer_norm"):
                frames_BLD = layer.layer_norm(frames_BLD)
            frames_BLD = layer.activation(frames_BLD) * real_BL1
        return frames_BLD

    def _attention_mask(self, real_BL: Tensor) -> AttentionMask:
        mask = super()._attention_mask(real_BL)
        first = self.encoder.layers[0].attention
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
        if getattr(layer, "adapter_layer", None) is not None:
            frames_BLD = frames_BLD + layer.adapter_layer(frames_BLD)
        return frames_BLD


class LogMelEncoder(SpeechEncoder):
    """A small pre-norm transformer over log-mel frames; 49 frames a second, as the large encoders."""

    def __init__(self, config: LogMelEncoderConfig) -> None:
        super().__init__(
            num_layers=config.num_layers,
            width=config.width,
            num_mask_features=config.num_mels,
            # The second convolution of Subsampling gives ceil(M / 2) frames for M mel frames.
            windows=[(WINDOW_SAMPLES, HOP_SAMPLES), (1, 2)],
        )
        if config.width % config.num_heads:
            raise ModelError(
                f"model.encoder.width must be a multiple of model.encoder.num_heads, got {config.width} and "
                f"{config.num_heads}; change one of them"
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
        """Return what `build_encoder` needs."""
        return self._config.model_dump()

    def _embed(self, wave_BT: Tensor, num_samples_B: Tensor, real_BL: Tensor, masks: FrameMasks | None) -> Tensor:
        real_BT = _real(num_samples_B, wave_BT.shape[1])
        # Powers of a spectrum span more than bfloat16 resolves.
        with torch.autocast(wave_BT.device.type, enabled=False):
            mel_BMF = log_mel(
                wave_BT * real_BT, real_BT, self._config.num_mels, None if masks is None else masks.warp_B
            )
        real_BM = _real(self._num_outputs(num_samples_B, self._windows[:1]), mel_BMF.shape[1])
        seen_BMF = real_BM[:, :, None]
        if masks is not None:
            time_BM = masks.time_BL.repeat_interleave(2, dim=1)[:, : mel_BMF.shape[1]]
            seen_BMF = seen_BMF & ~time_BM[:, :, None] & ~masks.feature_BD[:, None, :]
        # Frames that masks hide entirely are constant: through each of two norms their gradients grow by 1 / sqrt(eps).
        with _without_float16(wave_BT.device):
            frames_BLD: Tensor = self.subsampling(mel_BMF * seen_BMF, real_BM, real_BL)
        return frames_BLD

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        output_BLD: Tensor = layer(frames_BLD, mask)
        return output_BLD


def _without_float16(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that leaves autocast as it is, unless that is to float16: its range is too small."""
    computes_in_float16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.half
    return torch.autocast(device.type, enabled=False) if computes_in_float16 else nullcontext()


# ---------------------------------------------------------------- building and loading


def build_encoder(architecture: dict[str, Any]) -> SpeechEncoder:
    """Return an encoder with random weights, from what `SpeechEncoder.architecture` gave; reads no files."""
    encoder: SpeechEncoder
    if architecture["kind"] == "logmel":
        encoder = LogMelEncoder(LogMelEncoderConfig(**architecture))
    else:
        config = architecture["config"]
        encoder = HuggingFaceEncoder(
            FAMILIES[config["model_type"]].config_class.from_dict(config),
            do_normalize=architecture["do_normalize"],
            freeze_feature_encoder=architecture["freeze_feature_encoder"],
        )
    encoder.apply(init_encoder_weights)
    return encoder


def load_encoder(config: EncoderConfig) -> SpeechEncoder:
    """Return the encoder that a configuration asks for: fresh for `logmel`, else with the checkpoint's weights.

    Whether clips are normalised is the checkpoint's `do_normalize`. Where no file tells they are, as in transformers;
    for models whose CNN has group norm this makes no difference beyond rounding.

    Raises:
        ModelError: The checkpoint does not exist, is damaged, lacks weights, or is of another kind of model.
    """
    if isinstance(config, LogMelEncoderConfig):
        return build_encoder(config.model_dump())
    checkpoint = open_checkpoint(config.name, config.revision, FAMILIES)
    settings = dict(checkpoint.config)
    if config.dropout is not None:
        for part in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
            settings[part] = config.dropout
    # On the meta device no time goes into random weights.
    with torch.device("meta"):
        encoder = build_encoder(
            {
                "kind": "huggingface",
                "config": settings,
                "do_normalize": checkpoint.do_normalize,
                "freeze_feature_encoder": config.freeze_feature_encoder,
            }
        )
    prefix = f"{FAMILIES[settings['model_type']].base_model_prefix}."
    encoder.load_state_dict(read_weights(checkpoint, encoder.state_dict(), prefix), assign=True)
    return encoder


@torch.no_grad()
def init_encoder_weights(module: nn.Module) -> None:
    """Initialise the parameters that `module` itself holds, for `nn.Module.apply` and `_init_weights`.

    What a checkpoint has already filled is left alone (transformers marks it).
    """
    held: Any = module
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(held.weight)
    elif isinstance(module, nn.Conv1d) and not parametrize.is_parametrized(module, "weight"):
        init.kaiming_normal_(held.weight)
    elif isinstance(module, nn.Embedding):
        init.normal_(held.weight, std=0.02)
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d) and module.weight is not None:
        init.ones_(held.weight)
    elif isinstance(module, parametrize.ParametrizationList):
        # Weight norm: original1 is the direction, original0 its length at each point of the kernel.
        init.kaiming_normal_(held.original1)
        init.copy_(held.original0, torch.norm_except_dim(held.original1, 2, 2))
    elif hasattr(module, "gru_rel_pos_const"):
        init.ones_(held.gru_rel_pos_const)
    elif isinstance(module, HuggingFaceEncoder):
        init.zeros_(held.masked_spec_embed)
    if isinstance(module, nn.BatchNorm1d):
        init.zeros_(held.running_mean)
        init.ones_(held.running_var)
        init.zeros_(held.num_batches_tracked)
    if isinstance(getattr(module, "bias", None), Tensor):
        init.zeros_(held.bias)


# ---------------------------------------------------------------- arithmetic over true samples and frames


def _real(num_B: Int[Tensor, "B"], length: int) -> Bool[Tensor, "B length"]:
    """Return True at the first `num_B` of `length` positions."""
    return torch.arange(length, device=num_B.device) < num_B[:, None]


def _normalised(wave_BT: Float[Tensor, "B T"], real_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each clip with zero mean and unit variance over its true samples, as transformers' extractor does."""
    num_B1 = real_BT.sum(1, keepdim=True)
    centred_BT = wave_BT - (wave_BT * real_BT).sum(1, keepdim=True) / num_B1
    variance_B1 = (centred_BT * real_BT).square().sum(1, keepdim=True) / num_B1
    return centred_BT * torch.rsqrt(variance_B1 + 1e-7)


def _group_norm(
    norm: nn.GroupNorm, features_BDL: Float[Tensor, "B D L"], num_frames_B: Int[Tensor, "B"]
) -> Float[Tensor, "B D L"]:
    """Return group norm with one channel a group, its statistics taken over each clip's true frames."""
    real_B1L = _real(num_frames_B, features_BDL.shape[2])[:, None, :]
    num_B11 = num_frames_B[:, None, None]
    # bfloat16 cannot sum thousands of frames.
    features_BDL = features_BDL.float()
    centred_BDL = features_BDL - (features_BDL * real_B1L).sum(2, keepdim=True) / num_B11
    variance_BD1 = (centred_BDL * real_B1L).square().sum(2, keepdim=True) / num_B11
    scale_BD1 = norm.weight[:, None] * torch.rsqrt(variance_BD1 + norm.eps)
    return centred_BDL * scale_BD1 + norm.bias[:, None]


def _batch_norm(norm: nn.BatchNorm1d, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Return batch norm with the checkpoint's statistics, in training too: a batch's own would see its padding."""
    return nn.functional.batch_norm(
        frames_BLD.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    ).transpose(1, 2)
