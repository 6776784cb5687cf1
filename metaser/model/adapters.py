"""Small trainable parts inside a frozen encoder: LoRA on the attention's projections, bottlenecks after the layers.

Both start as the identity: a model with fresh adapters computes what it computed without them.

Legend: B utterances, L frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from metaser.model.encoders.base import Encoder, LayerMix

LORA_TARGETS = ("q_proj", "k_proj", "v_proj")


def add_lora(encoder: Encoder, rank: int, alpha: float) -> None:
    """Put a low-rank update beside every query, key and value projection (Hu et al. 2021), in place.

    Every parameter keeps its `requires_grad`; what is frozen is the caller's decision.
    """
    # Late, because it takes half a second, and all of transformers' models.
    from peft import LoraConfig, inject_adapter_in_model

    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    # peft declares alpha an int and divides it by the rank.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_TARGETS))  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)
    for parameter in trainable:
        parameter.requires_grad_(True)


def reset_lora(encoder: Encoder) -> None:
    """Make every low-rank update zero again: A random, B zero."""
    for module in encoder.modules():
        # peft's layers, told without peft.
        if hasattr(module, "reset_lora_parameters"):
            for name in cast(nn.ModuleDict, module.lora_A):
                module.reset_lora_parameters(name, init_lora_weights=True)  # type: ignore[operator]


def is_lora(parameter_name: str) -> bool:
    """Return whether the parameter of that name belongs to LoRA."""
    # Tasks and views have names of their own.
    return parameter_name.startswith("encoder.") and ".lora_" in parameter_name


class Bottleneck(nn.Module):
    """`h + up(gelu(down(LN(h))))` with `up` zero at the start (Houlsby et al. 2019)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        # The raw outputs of deep pre-norm layers grow with depth, hence a norm of its own.
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.activation = nn.GELU()
        self.up = nn.Linear(bottleneck, width)

    def forward(self, frames_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return the adapted frames."""
        adapted_BLD: Tensor = frames_BLD + self.up(self.activation(self.down(self.norm(frames_BLD))))
        return adapted_BLD


class Bottlenecks(nn.ModuleList):
    """One bottleneck per encoder layer."""

    def __init__(self, num_layers: int, width: int, bottleneck: int) -> None:
        super().__init__(Bottleneck(width, bottleneck) for _ in range(num_layers))
        self.reset_outputs()

    def reset_outputs(self) -> None:
        """Make every bottleneck the identity."""
        for name, parameter in self.named_parameters():
            if ".up." in name:
                nn.init.zeros_(parameter)

    def before(self, mix: LayerMix | None) -> LayerMix:
        """Return a mix that adapts every layer's output and hands it to `mix`."""

        def adapted(layer: int, earlier: Sequence[Tensor], output_BLD: Tensor) -> Tensor:
            output_BLD = self[layer - 1](output_BLD)
            return output_BLD if mix is None else mix(layer, earlier, output_BLD)

        return adapted
