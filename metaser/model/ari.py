"""Augmented Residual Integration: how the features of all encoder layers reach every task.

The layers' frames are h0 .. hN (hN final-normed); every task k gets frames z_k. Coefficients are scalars that start at
zero, so that the model starts exactly as the plain encoder (except the weighted sums, SUPERB's baseline and ours). A
reconstruction of arXiv 2412.20707, whose equations are not public.

Legend: B utterances, L frames, D hidden, N layers, K tasks, S summed layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metaser.config.ari import ARI_FORMS
from metaser.errors import ConfigError
from metaser.model.encoders.base import LayerMix
from metaser.model.norm import LayerNorm
from metaser.model.pooling import masked_mean
from metaser.model.streams import Stream
from metaser.registry import imported

_SCALARS = "scalars"
"""How the name of every parameter of coefficients ends; the optimiser gives these their own rate."""


class DenseResiduals(nn.Module):
    """`g_l = Layer_l(g_{l-1}) + sum_{j<l} c_{l,j} LN_j(g_j)`: residuals between the encoder's own layers."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.dense_scalars = nn.Parameter(torch.zeros(num_layers, num_layers))

    def layer_mix(self) -> LayerMix:
        """Return a mix for one pass through the encoder.

        It keeps `LN_j(g_j)` for the layers above, so that a pass costs N layer norms instead of N (N + 1) / 2.
        """
        normed: list[Tensor] = []

        def mix(layer: int, earlier: Sequence[Tensor], output_BLD: Tensor) -> Tensor:
            normed.append(self.norms[layer - 1](earlier[layer - 1]))
            for coefficient, source_BLD in zip(self.dense_scalars[layer - 1, :layer], normed, strict=True):
                output_BLD = output_BLD + coefficient * source_BLD
            return output_BLD

        return mix

    def coefficients(self) -> Float[Tensor, "N N"]:
        """Return c: row l - 1 holds layer l's coefficients for g_0 .. g_{l-1}, then zeros."""
        return self.dense_scalars.detach().tril()


class Integration(nn.Module):
    """What every form does after the encoder's layers.

    Parameters whose names end in `scalars` are coefficients: they start at zero, train at `learning_rate.ari` and are
    not decayed. Their first axis, and that of `gate_vectors`, is the task where `num_tasks` is its length.
    """

    min_layers: ClassVar[int] = 1
    """The fewest layers of an encoder whose features it integrates."""

    def __init__(self, num_layers: int, num_tasks: int, width: int) -> None:
        """Remember N, K and D."""
        super().__init__()
        self.num_layers, self.num_tasks, self.width = num_layers, num_tasks, width

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return every task's frames z_k of the layers h0 .. hN."""
        raise NotImplementedError

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return what each of h0 .. hN contributes to each task, detached; S = N + 1."""
        raise NotImplementedError


class LastLayer(Integration):
    """`z_k = hN` for every task."""

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return the last layer once per task."""
        return layers[-1].expand(self.num_tasks, *layers[-1].shape)

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return 1 for the last layer, 0 for the others; S = N + 1."""
        return _with_last_layer(torch.zeros(self.num_tasks, self.num_layers - 1))


class WeightedSum(Integration):
    """`z_k = sum_l softmax(a)_l h_l` over h0 .. hN, the same for every task (SUPERB, Yang et al. 2021)."""

    def __init__(self, num_layers: int, num_tasks: int, width: int) -> None:
        super().__init__(num_layers, num_tasks, width)
        self.mix_scalars = nn.Parameter(torch.zeros(num_layers + 1))

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return the weighted sum once per task."""
        frames_BLD = torch.einsum("s,sbld->bld", self.mix_scalars.softmax(dim=0), torch.stack(layers))
        return frames_BLD.expand(self.num_tasks, *frames_BLD.shape)

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return the weights of h0 .. hN; S = N + 1."""
        return self.mix_scalars.detach().softmax(dim=0).expand(self.num_tasks, -1)


class NormedWeightedSum(Integration):
    """`z_k = (N + 1) sum_l softmax(a_k)_l LN_l(h_l)` over h0 .. hN: a weighted sum of layers of one scale.

    Without norms the layer with the largest features is most of the sum, whatever its weight.
    """

    def __init__(self, num_layers: int, num_tasks: int, width: int) -> None:
        super().__init__(num_layers, num_tasks, width)
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(num_layers + 1))
        self.mix_scalars = nn.Parameter(torch.zeros(num_tasks, num_layers + 1))

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return every task's frames."""
        normed_SBLD = torch.stack([norm(frames_BLD) for norm, frames_BLD in zip(self.norms, layers, strict=True)])
        return torch.einsum("ks,sbld->kbld", len(layers) * self.mix_scalars.softmax(dim=1), normed_SBLD)

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return the weights of h0 .. hN; S = N + 1."""
        return self.mix_scalars.detach().softmax(dim=1)


class TaskResiduals(Integration):
    """`z_k = hN + sum_{1<=l<N} a_{k,l} LN_l(h_l)`: every task chooses its own mixture of the lower layers."""

    min_layers: ClassVar[int] = 2

    def __init__(self, num_layers: int, num_tasks: int, width: int) -> None:
        super().__init__(num_layers, num_tasks, width)
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(num_layers - 1))
        self.task_scalars = nn.Parameter(torch.zeros(num_tasks, num_layers - 1))

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return every task's frames."""
        normed_SBLD = _normed(self.norms, layers)
        return layers[-1] + torch.einsum("ks,sbld->kbld", self.task_scalars, normed_SBLD)

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return the coefficients of h0 .. hN; S = N + 1."""
        return _with_last_layer(self.task_scalars.detach())


class GatedResiduals(Integration):
    """`z_k = hN + sum_{1<=l<N} tanh(u_k . mean_t LN_l(h_l) + b_{k,l}) LN_l(h_l)`: the utterance chooses as well."""

    min_layers: ClassVar[int] = 2

    def __init__(self, num_layers: int, num_tasks: int, width: int) -> None:
        super().__init__(num_layers, num_tasks, width)
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(num_layers - 1))
        # One u per task is a vector over the width, not a scalar: at the scalars' rate its sum would saturate tanh.
        self.gate_vectors = nn.Parameter(torch.zeros(num_tasks, width))
        self.gate_scalars = nn.Parameter(torch.zeros(num_tasks, num_layers - 1))

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K B L D"]:
        """Return every task's frames."""
        normed_SBLD = _normed(self.norms, layers)
        means_SBD = torch.stack([masked_mean(Stream(frames_BLD, frame_mask_BL)) for frames_BLD in normed_SBLD])
        scores_KSB = torch.einsum("kd,sbd->ksb", self.gate_vectors, means_SBD) + self.gate_scalars[..., None]
        return layers[-1] + torch.einsum("ksb,sbld->kbld", torch.tanh(scores_KSB), normed_SBLD)

    def coefficients(self) -> Float[Tensor, "K S"]:
        """Return the part of the gates that does not depend on the utterance, tanh(b); S = N + 1."""
        return _with_last_layer(torch.tanh(self.gate_scalars.detach()))


class Ari(nn.Module):
    """One form of ARI: what happens between the encoder's layers (`dense`) and after them (`integration`)."""

    def __init__(self, task_names: Sequence[str], integration: Integration, dense: DenseResiduals | None) -> None:
        super().__init__()
        self.task_names = tuple(task_names)
        self.integration = integration
        self.dense = dense

    def layer_mix(self) -> LayerMix | None:
        """Return what the encoder applies after each layer, fresh for one pass; None leaves it plain."""
        return None if self.dense is None else self.dense.layer_mix()

    def forward(
        self, layers: tuple[Float[Tensor, "B L D"], ...], frame_mask_BL: Bool[Tensor, "B L"]
    ) -> dict[str, Float[Tensor, "B L D"]]:
        """Return each task's frames z_k.

        Args:
            layers: The encoder's h0 .. hN, hN after the final LayerNorm where there is one.
            frame_mask_BL: True for the frames of the utterance, False for padding.
        """
        return dict(zip(self.task_names, self.integration(layers, frame_mask_BL), strict=True))

    def coefficients(self) -> dict[str, Float[Tensor, "rows columns"]]:
        """Return the learned coefficients for a heat map, detached.

        Returns:
            `task`: tasks x layers h0 .. hN, what each layer contributes to each task. `dense`, where the form has it:
            N x N, row l - 1 what g_0 .. g_{l-1} contribute to layer l.
        """
        maps = {"task": self.integration.coefficients()}
        if self.dense is not None:
            maps["dense"] = self.dense.coefficients()
        return maps

    def reset_coefficients(self) -> None:
        """Set every coefficient, and the gates' vectors, to where they start: zero."""
        for name, parameter in self.named_parameters():
            if name.endswith((_SCALARS, "gate_vectors")):
                nn.init.zeros_(parameter)

    def scalar_parameters(self) -> dict[str, nn.Parameter]:
        """Return the coefficients by name: they want a large rate and no weight decay."""
        return {name: value for name, value in self.named_parameters() if name.endswith(_SCALARS)}


def build_ari(form: str, num_layers: int, width: int, task_names: Sequence[str]) -> Ari:
    """Return ARI of that form for an encoder of `num_layers` layers.

    Raises:
        ConfigError: The form integrates the layers between the first and the last, and there are none.
    """
    chosen = ARI_FORMS[form]
    integration: type[Integration] = imported(chosen.integration)
    if num_layers < integration.min_layers:
        raise ConfigError(
            f"model.ari.form {form!r} needs an encoder of at least {integration.min_layers} layers, got {num_layers}; "
            "choose 'none', 'weighted_sum' or 'dense'"
        )
    dense = DenseResiduals(num_layers, width) if chosen.is_dense else None
    return Ari(task_names, integration(num_layers, len(task_names), width), dense)


def _normed(norms: nn.ModuleList, layers: tuple[Tensor, ...]) -> Tensor:
    """Return LN_l(h_l) for 1 <= l < N, stacked: S B L D."""
    return torch.stack([norm(frames_BLD) for norm, frames_BLD in zip(norms, layers[1:-1], strict=True)])


def _with_last_layer(inner_KS: Tensor) -> Tensor:
    """Frame the coefficients of h1 .. hN-1 by 0 for h0 and 1 for hN."""
    ends_K1 = inner_KS.new_ones(inner_KS.shape[0], 1)
    return torch.cat([torch.zeros_like(ends_K1), inner_KS, ends_K1], dim=1)
