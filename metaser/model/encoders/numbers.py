"""The kind `numbers`: a small network over numbers of the metadata, which answers with one frame.

Legend: B utterances, V numbers, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init

from metaser.config.encoders import NumbersEncoderConfig
from metaser.fields import numbers_in
from metaser.model.encoders.base import Encoder, EncoderOutput, Inputs, LayerMix, Lookup, init_encoder_weights

if TYPE_CHECKING:
    from shards.index import Index

_MOST_DEVIATIONS = 10.0
"""A number further than this from the mean counts as this far: a slip in a table is a thousand deviations away."""


class NumbersEncoder(Encoder):
    """Two linear layers over standardised numbers and, for each, whether it is there.

    Attributes:
        mean_V: Of each number over the training utterances.
        deviation_V: Its standard deviation there; 1 where all are alike.
    """

    mean_V: Tensor
    deviation_V: Tensor

    def __init__(self, config: NumbersEncoderConfig) -> None:
        """Build with random weights; `fit` gives mean and deviation."""
        super().__init__(num_layers=0, hidden_size=config.width)
        self.given_fields = config.fields
        self._config = config
        num_fields = len(config.fields)
        self.register_buffer("mean_V", torch.zeros(num_fields))
        self.register_buffer("deviation_V", torch.ones(num_fields))
        self.inner = nn.Linear(2 * num_fields, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.outer = nn.Linear(config.width, config.width)

    @classmethod
    def from_config(cls, config: NumbersEncoderConfig, *, setting: str = "model.encoder") -> NumbersEncoder:
        """Return a fresh encoder."""
        encoder = cls(config)
        encoder.apply(init_encoder_weights)
        return encoder

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> NumbersEncoder:
        """Return an encoder with random weights, from what `architecture` gave."""
        return cls(NumbersEncoderConfig(**architecture))

    @classmethod
    def read_architecture(cls, values: Any, path: Path) -> dict[str, Any]:
        """Return an exported model's `architecture`; see `Encoder.read_architecture`."""
        return NumbersEncoderConfig.model_validate(values).model_dump(mode="json")

    @classmethod
    def form_of(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides the weights' form and meaning: the order of the fields, too."""
        return {"fields": list(architecture["fields"]), "width": architecture["width"]}

    def architecture(self) -> dict[str, Any]:
        """Return what `from_architecture` needs."""
        return self._config.model_dump(mode="json")

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """No layer."""
        return nn.ModuleList()

    def top_norm(self) -> nn.Module | None:
        """Return None."""
        return None

    def reset_parameters(self) -> None:
        """Set mean and deviation to those of nothing known."""
        init.zeros_(self.mean_V)
        init.ones_(self.deviation_V)

    def fit(self, training: Index) -> None:
        """Take mean and deviation of the numbers that the training utterances have."""
        numbers_UV = self._numbers_in(training)
        is_there_UV = np.isfinite(numbers_UV)
        num_V = np.maximum(is_there_UV.sum(axis=0), 1)
        mean_V = np.where(is_there_UV, numbers_UV, 0).sum(axis=0) / num_V
        variance_V = np.where(is_there_UV, (numbers_UV - mean_V) ** 2, 0).sum(axis=0) / num_V
        deviation_V = np.sqrt(variance_V)
        # What rounding leaves of numbers that are all alike is no deviation.
        is_constant_V = deviation_V <= 1e-6 * np.abs(mean_V)
        with torch.no_grad():
            self.mean_V.copy_(torch.from_numpy(mean_V))
            self.deviation_V.copy_(torch.from_numpy(np.where(is_constant_V, 1, deviation_V)))

    def lookup(self, index: Index) -> Lookup:
        """Return what finds the utterances' numbers."""
        numbers_UV = torch.from_numpy(self._numbers_in(index).astype(np.float32))
        return lambda items: numbers_UV[torch.from_numpy(items)]

    def forward(self, inputs: Inputs, *, mix: LayerMix | None = None) -> EncoderOutput:
        """Return the one frame, in one layer; see `Encoder.forward`."""
        numbers_BV = inputs.vectors.get(self.view)
        num_utterances, device = len(inputs.num_samples_B), inputs.wave_BT.device
        if numbers_BV is None:
            numbers_BV = torch.full((num_utterances, len(self.mean_V)), torch.nan, device=device)
        standard_BV = ((numbers_BV - self.mean_V) / self.deviation_V).clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        is_there_BV = ~numbers_BV.isnan()
        seen_BI = torch.cat([standard_BV.masked_fill(~is_there_BV, 0), is_there_BV.float()], dim=1)
        inner_BD = self.dropout(nn.functional.gelu(self.norm(self.inner(seen_BI))))
        frames_BLD: Tensor = self.outer(inner_BD)[:, None, :]
        return EncoderOutput((frames_BLD,), torch.ones(num_utterances, 1, dtype=torch.bool, device=device))

    def _numbers_in(self, index: Index) -> np.ndarray:
        return numbers_in(index, self.given_fields, setting=f"model.views.{self.view}")
