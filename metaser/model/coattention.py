"""Co-attention: the main task's stream and those of the other tasks and views become one vector per utterance.

A reconstruction of arXiv 2412.20707, whose equations are not public; `frame_weights` follows Zou et al. 2022. Streams
differ in width and rate: each is projected to one width and keeps its own mask.

Legend: B utterances, L frames (M, too, where they attend to L), D width of a frame, H heads, W width inside
(V per head), E width of the vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from metaser.config.schema import CoattentionConfig
from metaser.errors import ConfigError
from metaser.model.pooling import AttentiveStatistics, build_pooling, masked_softmax
from metaser.model.streams import Stream


class CoattentionOutput(NamedTuple):
    """What the main task's head sees, and what a figure shows."""

    vector_BE: Float[Tensor, "B E"]
    maps: dict[str, Float[Tensor, "B ..."]]
    """Detached attention, if asked for: `cross` has `main->NAME` and `NAME->main` (B L M, mean over heads, rows of
    padded frames mean nothing), `frame_weights` has `main` (B L); the others have none."""


class Plan(NamedTuple):
    """What co-attention is built from."""

    config: CoattentionConfig
    pooling: Literal["mean", "attentive_statistics"]
    widths: Mapping[str, int]
    """Of the frames of each stream that is joined, by its name, the main task's first."""

    @property
    def main(self) -> str:
        """The main task's name."""
        return next(iter(self.widths))

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the other streams."""
        return tuple(self.widths)[1:]


class Coattention(nn.Module):
    """What every form offers.

    Attributes:
        output_width: E.
    """

    output_width: int

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._main, self._others = plan.main, plan.others

    def forward(self, streams: Mapping[str, Stream], *, return_maps: bool = False) -> CoattentionOutput:
        """Return one vector per utterance, of the streams by their names."""
        raise NotImplementedError


class NoCoattention(Coattention):
    """The pooled frames of the main task alone."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.pooling = build_pooling(plan.pooling, plan.widths[plan.main])
        self.output_width = self.pooling.output_width

    def forward(self, streams: Mapping[str, Stream], *, return_maps: bool = False) -> CoattentionOutput:
        """Return the pooled frames of the main task."""
        return CoattentionOutput(self.pooling(streams[self._main]), {})


class _Projected(Coattention):
    """Brings every stream to one width."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        inside = plan.config.width
        self.projections = nn.ModuleDict({name: nn.Linear(width, inside) for name, width in plan.widths.items()})

    def project(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        """Return the joined streams with W values a frame."""
        return {
            name: streams[name]._replace(frames_BLD=projection(streams[name].frames_BLD))
            for name, projection in self.projections.items()
        }


class Concatenation(_Projected):
    """The pooled frames of all streams side by side, the main task's first."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        poolings = {name: build_pooling(plan.pooling, plan.config.width) for name in plan.widths}
        self.poolings = nn.ModuleDict(poolings)
        self.output_width = sum(pool.output_width for pool in poolings.values())

    def forward(self, streams: Mapping[str, Stream], *, return_maps: bool = False) -> CoattentionOutput:
        """Return the vectors of all streams side by side."""
        projected = self.project(streams)
        vectors = [pooling(projected[name]) for name, pooling in self.poolings.items()]
        return CoattentionOutput(torch.cat(vectors, dim=1), {})


class FrameWeights(_Projected):
    """The other streams' pooled vectors c weigh the main task's frames, `w_t = softmax_t((Wq c) . (Wk z_t) / sqrt W)`.

    The weighted sum and c are the result (after Zou, Si, Chen, Rajan, Chng 2022).
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        inside = plan.config.width
        poolings = {name: build_pooling(plan.pooling, inside) for name in plan.others}
        self.poolings = nn.ModuleDict(poolings)
        other_width = sum(pool.output_width for pool in poolings.values())
        self.query = nn.Linear(other_width, inside)
        # A bias would add the same to every frame's score, which the softmax ignores.
        self.key = nn.Linear(inside, inside, bias=False)
        self.output_width = inside + other_width

    def forward(self, streams: Mapping[str, Stream], *, return_maps: bool = False) -> CoattentionOutput:
        """Return the weighted sum of the main task's frames, then the other streams' vectors."""
        projected = self.project(streams)
        main = projected[self._main]
        others_BE = torch.cat([pooling(projected[name]) for name, pooling in self.poolings.items()], dim=1)
        query_BW, keys_BLW = self.query(others_BE), self.key(main.frames_BLD)
        scores_BL = torch.einsum("bw,blw->bl", query_BW, keys_BLW) / math.sqrt(query_BW.shape[1])
        weights_BL = masked_softmax(scores_BL, main)
        frames_BLW = main.frames_BLD.masked_fill(~main.mask_BL[..., None], 0.0)
        sum_BW = (weights_BL[..., None] * frames_BLW).sum(dim=1)
        maps = {self._main: weights_BL.detach()} if return_maps else {}
        return CoattentionOutput(torch.cat([sum_BW, others_BE], dim=1), maps)


class CrossAttention(nn.Module):
    """One stream attends to another: multi-head attention, residual, LayerNorm (Vaswani et al. 2017)."""

    def __init__(self, config: CoattentionConfig) -> None:
        super().__init__()
        self._num_heads = config.num_heads
        self.query = nn.Linear(config.width, config.width)
        # A bias of the keys would add the same to all scores of a query, which the softmax ignores.
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, frames_BLW: Float[Tensor, "B L W"], other: Stream) -> Float[Tensor, "B L W"]:
        """Return the frames, each with what it found in the other stream's true frames."""
        query_BHLV = self.heads(self.query(frames_BLW))
        # The kernel wants a bias of the query's type, which autocast may have made bfloat16.
        seen_BM = other.mask_BL if other.weight_BL is None else other.log_weights().to(query_BHLV.dtype)
        found_BHLV = scaled_dot_product_attention(
            query_BHLV,
            self.heads(self.key(other.frames_BLD)),
            self.heads(self.value(other.frames_BLD)),
            attn_mask=seen_BM[:, None, None, :],
        )
        found_BLW = found_BHLV.transpose(1, 2).flatten(2)
        attended_BLW: Tensor = self.norm(frames_BLW + self.dropout(self.out(found_BLW)))
        return attended_BLW

    def heads(self, values_BLW: Float[Tensor, "B L W"]) -> Float[Tensor, "B H L V"]:
        """Split the width among the heads, V values each."""
        return values_BLW.reshape(*values_BLW.shape[:2], self._num_heads, -1).transpose(1, 2)


class CrossPair(nn.Module):
    """The main task's stream and one other attend to each other; both results are pooled."""

    def __init__(self, config: CoattentionConfig) -> None:
        super().__init__()
        self.main = CrossAttention(config)
        self.other = CrossAttention(config)
        self.main_pooling = AttentiveStatistics(config.width)
        self.other_pooling = AttentiveStatistics(config.width)
        self.output_width = self.main_pooling.output_width + self.other_pooling.output_width

    def forward(self, main: Stream, other: Stream) -> Float[Tensor, "B E"]:
        """Return the pooled main frames, then the pooled frames of the other stream."""
        main_BE = self.main_pooling(main._replace(frames_BLD=self.main(main.frames_BLD, other)))
        other_BE = self.other_pooling(other._replace(frames_BLD=self.other(other.frames_BLD, main)))
        return torch.cat([main_BE, other_BE], dim=1)


class CrossCoattention(_Projected):
    """The main stream and each other one attend to each other; all results stand side by side."""

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        if config.width % config.num_heads:
            raise ConfigError(
                f"model.coattention.width must be a multiple of num_heads, got {config.width} and "
                f"{config.num_heads}; change one of them"
            )
        super().__init__(plan)
        pairs = {name: CrossPair(config) for name in plan.others}
        self.pairs = nn.ModuleDict(pairs)
        self.output_width = sum(pair.output_width for pair in pairs.values())

    def forward(self, streams: Mapping[str, Stream], *, return_maps: bool = False) -> CoattentionOutput:
        """Return, per other stream, the pooled main frames and its own pooled frames."""
        projected = self.project(streams)
        main = projected[self._main]
        vectors: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for name, pair in self.pairs.items():
            other = projected[name]
            vectors.append(pair(main, other))
            if return_maps:
                maps[f"{self._main}->{name}"] = _attention_map(pair.main, main.frames_BLD, other)
                maps[f"{name}->{self._main}"] = _attention_map(pair.other, other.frames_BLD, main)
        return CoattentionOutput(torch.cat(vectors, dim=1), maps)


FORMS: dict[str, type[Coattention]] = {
    "none": NoCoattention,
    "concat": Concatenation,
    "cross": CrossCoattention,
    "frame_weights": FrameWeights,
}
"""By the word that `model.coattention.form` holds."""


def build_coattention(plan: Plan) -> Coattention:
    """Return co-attention of the configured form.

    Raises:
        ConfigError: The form needs another stream beside the main task's and there is none, or the heads do not divide
            the width.
    """
    if plan.config.form != "none" and not plan.others:
        raise ConfigError(
            f"model.coattention.form {plan.config.form!r} needs a second task or view beside {plan.main!r}; "
            "add one or set the form to 'none'"
        )
    return FORMS[plan.config.form](plan)


@torch.no_grad()
def _attention_map(attention: Any, frames_BLW: Tensor, other: Stream) -> Tensor:
    """Return the weights of a `CrossAttention`, B L M, averaged over the heads; the fused kernel does not tell them."""
    query_BHLV = attention.heads(attention.query(frames_BLW))
    key_BHMV = attention.heads(attention.key(other.frames_BLD))
    scores_BHLM = query_BHLV @ key_BHMV.transpose(2, 3) / math.sqrt(query_BHLV.shape[3])
    scores_BHLM = scores_BHLM.float() + other.log_weights()[:, None, None, :]
    weights_BLM: Tensor = scores_BHLM.softmax(dim=-1).mean(dim=1)
    return weights_BLM
