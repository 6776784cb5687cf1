"""The modules of wav2vec 2.0, HuBERT, WavLM and data2vec-audio, under transformers' names and in its order.

Sources: Baevski et al. 2020 (wav2vec 2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2022 (WavLM), Baevski et al. 2022
(data2vec), Pratap et al. 2023 (MMS). `metaser.model.encoders.wav2vec2` runs the modules.

Legend: B utterances, T samples or frames of the convolution below, L frames (20 ms), C channels, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from metaser.model.norm import LayerNorm

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


def is_activation(name: str) -> bool:
    """Return whether `activation` makes one of `name`."""
    return name in _ACTIVATIONS or name in _other_activations()


def activation(name: str) -> nn.Module:
    """Return the activation that transformers calls `name`."""
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]()
    made: nn.Module = _other_activations()[name]
    return made


def _other_activations() -> Any:
    # Late, because it loads transformers' modelling code, which takes seconds.
    from transformers.activations import ACT2FN

    return ACT2FN


class Convolution(nn.Module):
    """A convolution of the CNN, its norm if it has one, and an activation."""

    layer_norm: nn.LayerNorm | nn.GroupNorm | None

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        below = config.conv_dim[index - 1] if index else 1
        width, length, hop = config.conv_dim[index], config.conv_kernel[index], config.conv_stride[index]
        self.conv = ChannelsLastConvolution(below, width, length, hop, bias=config.conv_bias)
        if config.model_type == "data2vec-audio" or config.feat_extract_norm == "layer":
            self.layer_norm = LayerNorm(width)
        else:
            self.layer_norm = None if index else nn.GroupNorm(width, width)
        self.activation = activation(config.feat_extract_activation)

    def forward(self, features_BTC: Float[Tensor, "B T C"], num_frames_B: Int[Tensor, "B"]) -> Float[Tensor, "B L D"]:
        """Return the features; group norm takes its statistics over the true frames of each clip."""
        convolved_BLD = self.conv(features_BTC)
        normed_BLD = convolved_BLD
        if isinstance(self.layer_norm, nn.GroupNorm):
            normed_BLD = _group_norm(self.layer_norm, convolved_BLD, num_frames_B).to(convolved_BLD.dtype)
        elif self.layer_norm is not None:
            normed_BLD = self.layer_norm(convolved_BLD)
        activated_BLD: Tensor = self.activation(normed_BLD)
        return activated_BLD


class ChannelsLastConvolution(nn.Conv1d):
    """torch's, over features whose channels lie next to each other in memory.

    Layer norm then takes a fifth of the time that it takes over transposed ones, and convolutions in bfloat16 0.7 of
    it (an AVX-512 CPU).
    """

    def forward(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B L D"]:
        """Return the convolved features, as they lie in memory."""
        (length,), (hop,) = self.kernel_size, self.stride
        if self.in_channels == 1:
            # A convolution of one channel would lay its output out by time.
            windows_BLT = features_BTC[:, :, 0].unfold(1, length, hop)
            return nn.functional.linear(windows_BLT, self.weight[:, 0], self.bias)
        # Only convolutions over images know this layout.
        image_BC1T = features_BTC.transpose(1, 2)[:, :, None]
        convolved_BD1L = nn.functional.conv2d(image_BC1T, self.weight[:, :, None], self.bias, stride=(1, hop))
        return convolved_BD1L[:, :, 0].transpose(1, 2)


def _group_norm(
    norm: nn.GroupNorm, features_BLD: Float[Tensor, "B L D"], num_frames_B: Int[Tensor, "B"]
) -> Float[Tensor, "B L D"]:
    """Return group norm with one channel a group, its statistics taken over each clip's true frames."""
    real_BL1 = (torch.arange(features_BLD.shape[1], device=features_BLD.device) < num_frames_B[:, None])[:, :, None]
    num_B11 = num_frames_B[:, None, None]
    # bfloat16 cannot sum thousands of frames.
    features_BLD = features_BLD.float()
    centred_BLD = features_BLD - (features_BLD * real_BL1).sum(1, keepdim=True) / num_B11
    variance_B1D = (centred_BLD * real_BL1).square().sum(1, keepdim=True) / num_B11
    scale_B1D = norm.weight * torch.rsqrt(variance_B1D + norm.eps)
    return centred_BLD * scale_B1D + norm.bias


class FeatureExtractor(nn.Module):
    """The CNN from samples to features."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(Convolution(config, index) for index in range(len(config.conv_dim)))


class FeatureProjection(nn.Module):
    """A norm, which some HuBERT models lack, and a projection from features to frames."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        num_features = config.conv_dim[-1]
        has_norm = config.model_type != "hubert" or config.feat_proj_layer_norm
        self.layer_norm = nn.LayerNorm(num_features, eps=config.layer_norm_eps) if has_norm else None
        self.projection = nn.Linear(num_features, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features_BLC: Float[Tensor, "B L C"]) -> Float[Tensor, "B L D"]:
        """Return the frames."""
        normed_BLC = features_BLC if self.layer_norm is None else self.layer_norm(features_BLC)
        frames_BLD: Tensor = self.dropout(self.projection(normed_BLC))
        return frames_BLD


class PositionalConvolution(nn.Module):
    """A grouped convolution over frames, whose output tells them their position.

    data2vec-audio's has a norm without parameters behind it, the others' a norm of its weights or, in some HuBERT
    models, a batch norm before it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, is_stacked = config.hidden_size, config.model_type == "data2vec-audio"
        length = config.conv_pos_kernel_size if is_stacked else config.num_conv_pos_embeddings
        groups = config.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, length, padding=length // 2, groups=groups)
        has_batch_norm = config.model_type == "hubert" and config.conv_pos_batch_norm
        self.batch_norm = nn.BatchNorm1d(width) if has_batch_norm else None
        if not (is_stacked or has_batch_norm):
            _norm_weight(self.conv)
        self.layer_norm = nn.LayerNorm(width, elementwise_affine=False) if is_stacked else None
        self.activation = activation(config.feat_extract_activation)

    def forward(self, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return the positions, without the batch norm, whose padded frames the caller has to clear."""
        # A convolution of even length gives one frame too many.
        positions_BDL = self.conv(frames_BLD.transpose(1, 2))[:, :, : frames_BLD.shape[1]]
        positions_BLD = positions_BDL.transpose(1, 2)
        if self.layer_norm is not None:
            positions_BLD = self.layer_norm(positions_BLD)
        activated_BLD: Tensor = self.activation(positions_BLD)
        return activated_BLD


def _norm_weight(conv: nn.Conv1d) -> None:
    """Split the weight into a direction and its length at each point of the kernel (Salimans and Kingma 2016)."""
    weight = conv.weight
    if not weight.is_meta:
        weight_norm(conv, dim=2)
        return
    # To take norms on the meta device, torch would import all of dynamo.
    conv.weight = nn.Parameter(torch.ones(1, 1, 1, device="cpu"))
    weight_norm(conv, dim=2)
    parts: Any = conv.get_submodule("parametrizations.weight")
    parts.original0 = nn.Parameter(weight.new_empty(1, 1, weight.shape[2]))
    parts.original1 = weight


class StackedPositions(nn.Module):
    """data2vec-audio's positional convolutions, one after the other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PositionalConvolution(config) for _ in range(config.num_conv_pos_embeddings))


class Attention(nn.Module):
    """What `attend` takes: projections, and in WavLM the gate of the position bias."""

    def __init__(self, config: Any, *, is_first: bool) -> None:
        super().__init__()
        width, num_heads = config.hidden_size, config.num_attention_heads
        self.num_heads = num_heads
        self.dropout = config.attention_dropout
        # In transformers' order, on which the rounding of sums over all parameters depends.
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        if config.model_type == "wavlm":
            self.max_distance = config.max_bucket_distance
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))
            self.gru_rel_pos_linear = nn.Linear(width // num_heads, 8)
            if is_first:
                # Not `nn.Embedding(..)`, which draws: on the meta device, torch would import all of dynamo for it.
                embeddings = torch.empty(config.num_buckets, num_heads)
                self.rel_attn_embed = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
                    embeddings, freeze=False
                )


class FeedForward(nn.Module):
    """Two projections with an activation in between."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return what is added to the frames."""
        inner = self.intermediate_dropout(self.intermediate_act_fn(self.intermediate_dense(frames_BLD)))
        output_BLD: Tensor = self.output_dropout(self.output_dense(inner))
        return output_BLD


class LanguageAdapter(nn.Module):
    """MMS's bottleneck for one language, at the end of each layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear_1 = nn.Linear(config.hidden_size, config.adapter_attn_dim)
        self.linear_2 = nn.Linear(config.adapter_attn_dim, config.hidden_size)

    def forward(self, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return what is added to the frames."""
        output_BLD: Tensor = self.linear_2(self.linear_1(self.norm(frames_BLD)).relu())
        return output_BLD


class Layer(nn.Module):
    """A transformer layer."""

    def __init__(self, config: Any, *, is_first: bool) -> None:
        super().__init__()
        self.attention = Attention(config, is_first=is_first)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter_layer = LanguageAdapter(config) if _has_language_adapters(config) else None


class Transformer(nn.Module):
    """The positions, the norm before (post-norm) or after (pre-norm) the layers, and the layers."""

    pos_conv_embed: PositionalConvolution | StackedPositions

    def __init__(self, config: Any) -> None:
        super().__init__()
        is_stacked = config.model_type == "data2vec-audio"
        self.pos_conv_embed = StackedPositions(config) if is_stacked else PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config, is_first=index == 0) for index in range(config.num_hidden_layers))


def is_pre_norm(config: Any) -> bool:
    """Return whether layers norm what they take, not what they give; data2vec-audio's never do."""
    return config.model_type != "data2vec-audio" and bool(config.do_stable_layer_norm)


def _has_language_adapters(config: Any) -> bool:
    could_have = config.model_type in ("wav2vec2", "hubert") and is_pre_norm(config)
    # HuBERT's configuration does not know the word, but keeps what a file says.
    return could_have and getattr(config, "adapter_attn_dim", None) is not None
