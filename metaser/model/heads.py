"""What turns a task's frames, or the main task's vector, into logits.

Legend: B utterances, L frames, D width of a frame, E width of a vector, C outputs of the task.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from metaser.model.pooling import build_pooling
from metaser.model.streams import Stream


class FrameHead(nn.Module):
    """A linear layer on every frame."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_outputs)

    def forward(self, stream: Stream) -> Float[Tensor, "B L C"]:
        """Return logits per frame; those of padded frames mean nothing."""
        logits_BLC: Tensor = self.linear(stream.frames_BLD)
        return logits_BLC


class UtteranceHead(nn.Module):
    """Pooling, dropout and a linear layer: class logits, or the numbers of a regression."""

    def __init__(
        self,
        width: int,
        num_outputs: int,
        *,
        pooling: Literal["mean", "attentive_statistics"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.pooling = build_pooling(pooling, width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(self.pooling.output_width, num_outputs)

    def forward(self, stream: Stream) -> Float[Tensor, "B C"]:
        """Return one row of outputs per utterance."""
        outputs_BC: Tensor = self.linear(self.dropout(self.pooling(stream)))
        return outputs_BC


class MainHead(nn.Module):
    """The main task's MLP on the co-attention's vector."""

    def __init__(self, width: int, num_outputs: int, *, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden_width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_width, num_outputs)

    def forward(self, vector_BE: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        """Return one row of outputs per utterance."""
        outputs_BC: Tensor = self.linear(self.dropout(self.activation(self.hidden(vector_BE))))
        return outputs_BC
