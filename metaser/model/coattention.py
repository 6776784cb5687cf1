"""Co-attention: the main task's stream and the metadata tasks' streams become one vector per utterance.

A reconstruction of arXiv 2412.20707, whose equations are not public; `frame_weights` follows Zou et al. 2022.

Legend: B utterances, L frames (M, too, where they attend to L), D width of a frame, H heads, W width inside
(V per head), E width of the vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from metaser.config.schema import CoattentionConfig
from metaser.errors import ConfigError
from metaser.model.pooling import AttentiveStatistics, build_pooling, masked_softmax


class CoattentionOutput(NamedTuple):
    """What the main task's head sees, and what a figure shows."""

    vector_BE: Float[Tensor, "B E"]
    maps: dict[str, Float[Tensor, "B ..."]]
    """Detached attention, if asked for: `cross` has `main->task` and `task->main` (B L M, mean over heads, rows of
    padded frames mean nothing), `frame_weights` has `main` (B L); the others have none."""


class NoCoattention(nn.Module):
    """The pooled frames of the main task alone."""

    def __init__(self, pooling: Literal["mean", "attentive_statistics"], width: int, main_task: str) -> None:
        super().__init__()
        self._main_task = main_task
        self.pooling = build_pooling(pooling, width)
        self.output_width = self.pooling.output_width

    def forward(
        self,
        frames: dict[str, Float[Tensor, "B L D"]],
        frame_mask_BL: Bool[Tensor, "B L"],
        *,
        return_maps: bool = False,
    ) -> CoattentionOutput:
        """Return the pooled frames of the main task."""
        return CoattentionOutput(self.pooling(frames[self._main_task], frame_mask_BL), {})


class Concatenation(nn.Module):
    """The pooled frames of all tasks side by side, the main task first."""

    def __init__(
        self,
        config: CoattentionConfig,
        pooling: Literal["mean", "attentive_statistics"],
        width: int,
        main_task: str,
        other_tasks: Sequence[str],
    ) -> None:
        super().__init__()
        self._tasks = (main_task, *other_tasks)
        self.projections = _projections(self._tasks, width, config.width)
        poolings = {name: build_pooling(pooling, config.width) for name in self._tasks}
        self.poolings = nn.ModuleDict(poolings)
        self.output_width = sum(pool.output_width for pool in poolings.values())

    def forward(
        self,
        frames: dict[str, Float[Tensor, "B L D"]],
        frame_mask_BL: Bool[Tensor, "B L"],
        *,
        return_maps: bool = False,
    ) -> CoattentionOutput:
        """Return the vectors of all tasks side by side."""
        vectors = [self.poolings[name](self.projections[name](frames[name]), frame_mask_BL) for name in self._tasks]
        return CoattentionOutput(torch.cat(vectors, dim=1), {})


class FrameWeights(nn.Module):
    """The other tasks' pooled vectors c weigh the main task's frames, `w_t = softmax_t((Wq c) . (Wk z_t) / sqrt W)`.

    The weighted sum and c are the result (after Zou, Si, Chen, Rajan, Chng 2022).
    """

    def __init__(
        self,
        config: CoattentionConfig,
        pooling: Literal["mean", "attentive_statistics"],
        width: int,
        main_task: str,
        other_tasks: Sequence[str],
    ) -> None:
        super().__init__()
        self._main_task = main_task
        self._other_tasks = tuple(other_tasks)
        self.projections = _projections((main_task, *other_tasks), width, config.width)
        poolings = {name: build_pooling(pooling, config.width) for name in other_tasks}
        self.poolings = nn.ModuleDict(poolings)
        other_width = sum(pool.output_width for pool in poolings.values())
        self.query = nn.Linear(other_width, config.width)
        # A bias would add the same to every frame's score, which the softmax ignores.
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.output_width = config.width + other_width

    def forward(
        self,
        frames: dict[str, Float[Tensor, "B L D"]],
        frame_mask_BL: Bool[Tensor, "B L"],
        *,
        return_maps: bool = False,
    ) -> CoattentionOutput:
        """Return the weighted sum of the main task's frames, then the other tasks' vectors."""
        main_BLW = self.projections[self._main_task](frames[self._main_task])
        others_BE = torch.cat(
            [self.poolings[name](self.projections[name](frames[name]), frame_mask_BL) for name in self._other_tasks],
            dim=1,
        )
        query_BW, keys_BLW = self.query(others_BE), self.key(main_BLW)
        scores_BL = torch.einsum("bw,blw->bl", query_BW, keys_BLW) / math.sqrt(query_BW.shape[1])
        weights_BL = masked_softmax(scores_BL, frame_mask_BL)
        sum_BW = (weights_BL[..., None] * main_BLW.masked_fill(~frame_mask_BL[..., None], 0.0)).sum(dim=1)
        maps = {self._main_task: weights_BL.detach()} if return_maps else {}
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

    def forward(
        self,
        frames_BLW: Float[Tensor, "B L W"],
        other_BMW: Float[Tensor, "B M W"],
        other_mask_BM: Bool[Tensor, "B M"],
    ) -> Float[Tensor, "B L W"]:
        """Return the frames, each with what it found in the other stream's true frames."""
        found_BHLV = scaled_dot_product_attention(
            self.heads(self.query(frames_BLW)),
            self.heads(self.key(other_BMW)),
            self.heads(self.value(other_BMW)),
            attn_mask=other_mask_BM[:, None, None, :],
        )
        found_BLW = found_BHLV.transpose(1, 2).flatten(2)
        attended_BLW: Tensor = self.norm(frames_BLW + self.dropout(self.out(found_BLW)))
        return attended_BLW

    def heads(self, values_BLW: Float[Tensor, "B L W"]) -> Float[Tensor, "B H L V"]:
        """Split the width among the heads, V values each."""
        return values_BLW.reshape(*values_BLW.shape[:2], self._num_heads, -1).transpose(1, 2)


class CrossPair(nn.Module):
    """The main task and one other task attend to each other; both results are pooled."""

    def __init__(self, config: CoattentionConfig) -> None:
        super().__init__()
        self.main = CrossAttention(config)
        self.other = CrossAttention(config)
        self.main_pooling = AttentiveStatistics(config.width)
        self.other_pooling = AttentiveStatistics(config.width)
        self.output_width = self.main_pooling.output_width + self.other_pooling.output_width

    def forward(
        self,
        main_BLW: Float[Tensor, "B L W"],
        other_BLW: Float[Tensor, "B L W"],
        frame_mask_BL: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B E"]:
        """Return the pooled main frames, then the pooled frames of the other task."""
        main_BE = self.main_pooling(self.main(main_BLW, other_BLW, frame_mask_BL), frame_mask_BL)
        other_BE = self.other_pooling(self.other(other_BLW, main_BLW, frame_mask_BL), frame_mask_BL)
        return torch.cat([main_BE, other_BE], dim=1)


class CrossCoattention(nn.Module):
    """Main and auxiliary frames attend to each other, per auxiliary task; all results stand side by side."""

    def __init__(self, config: CoattentionConfig, width: int, main_task: str, other_tasks: Sequence[str]) -> None:
        super().__init__()
        if config.width % config.num_heads:
            raise ConfigError(
                f"model.coattention.width must be a multiple of num_heads, got {config.width} and "
                f"{config.num_heads}; change one of them"
            )
        self._main_task = main_task
        self.projections = _projections((main_task, *other_tasks), width, config.width)
        pairs = {name: CrossPair(config) for name in other_tasks}
        self.pairs = nn.ModuleDict(pairs)
        self.output_width = sum(pair.output_width for pair in pairs.values())

    def forward(
        self,
        frames: dict[str, Float[Tensor, "B L D"]],
        frame_mask_BL: Bool[Tensor, "B L"],
        *,
        return_maps: bool = False,
    ) -> CoattentionOutput:
        """Return, per auxiliary task, the pooled main frames and the pooled frames of the task."""
        main, main_BLW = self._main_task, self.projections[self._main_task](frames[self._main_task])
        vectors: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for name, pair in self.pairs.items():
            other_BLW = self.projections[name](frames[name])
            vectors.append(pair(main_BLW, other_BLW, frame_mask_BL))
            if return_maps:
                maps[f"{main}->{name}"] = _attention_map(pair.main, main_BLW, other_BLW, frame_mask_BL)
                maps[f"{name}->{main}"] = _attention_map(pair.other, other_BLW, main_BLW, frame_mask_BL)
        return CoattentionOutput(torch.cat(vectors, dim=1), maps)


Coattention = NoCoattention | Concatenation | FrameWeights | CrossCoattention


def build_coattention(
    config: CoattentionConfig,
    pooling: Literal["mean", "attentive_statistics"],
    width: int,
    main_task: str,
    other_tasks: Sequence[str],
) -> Coattention:
    """Return co-attention of the configured form over frames of `width` values.

    Raises:
        ConfigError: The form needs another task beside the main one and there is none, or the heads do not divide
            the width.
    """
    if config.form == "none":
        return NoCoattention(pooling, width, main_task)
    if not other_tasks:
        raise ConfigError(
            f"model.coattention.form {config.form!r} needs a second task beside {main_task!r}; "
            "add one or set the form to 'none'"
        )
    if config.form == "concat":
        return Concatenation(config, pooling, width, main_task, other_tasks)
    if config.form == "frame_weights":
        return FrameWeights(config, pooling, width, main_task, other_tasks)
    return CrossCoattention(config, width, main_task, other_tasks)


@torch.no_grad()
def _attention_map(attention: Any, frames_BLW: Tensor, other_BMW: Tensor, other_mask_BM: Tensor) -> Tensor:
    """Return the weights of a `CrossAttention`, B L M, averaged over the heads; the fused kernel does not tell them."""
    query_BHLV, key_BHMV = attention.heads(attention.query(frames_BLW)), attention.heads(attention.key(other_BMW))
    scores_BHLM = query_BHLV @ key_BHMV.transpose(2, 3) / math.sqrt(query_BHLV.shape[3])
    scores_BHLM = scores_BHLM.float().masked_fill(~other_mask_BM[:, None, None, :], -torch.inf)
    weights_BLM: Tensor = scores_BHLM.softmax(dim=-1).mean(dim=1)
    return weights_BLM


def _projections(tasks: Sequence[str], width: int, inner_width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, inner_width) for name in tasks})
