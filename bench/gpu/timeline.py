"""Which part of a step is under way, forward and backward, without a change of the model.

Hooks put identities between the parts. The engine of autograd runs nodes in the reverse order of their creation, so
that in the backward pass an identity runs exactly between the parts that it parts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metaser.model.coattention import CoattentionOutput
from metaser.model.streams import Stream

Mark = Callable[[str], None]
"""Is told the name of the part that begins."""

CNN, POSITIONS, LAYERS, ARI = "CNN", "positional convolution", "layers", "ARI"
COATTENTION, HEADS = "co-attention", "heads and losses"
PARTS = ("data", CNN, POSITIONS, LAYERS, ARI, COATTENTION, HEADS, "optimizer")


class Timeline:
    """Adds up the time of parts, on a GPU by events, so that nothing waits for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """Note that `part` begins now; an empty name ends the last one."""
        if not self._uses_events:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))

    def restart(self) -> None:
        """Forget what was marked."""
        self._marks.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part. On a GPU, waits for it."""
        if self._uses_events:
            torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for (part, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            spent[part] += begun.elapsed_time(ended) / 1000 if self._uses_events else ended - begun
        return {part: seconds for part, seconds in spent.items() if part}


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, mark: Mark, before: str) -> Tensor:
        ctx.mark, ctx.before = mark, before
        return frames.view_as(frames)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.mark(ctx.before)
        return gradient, None, None


@contextmanager
def marked(model: Any, mark: Mark) -> Iterator[None]:
    """Tell `mark` which part of the model begins, forward and backward, inside.

    `positional convolution` has the projection from features to frames as well; `CNN` begins with the model.
    """

    def boundary(frames: Tensor, before: str, after: str) -> Tensor:
        bounded: Tensor = _Boundary.apply(frames, mark, before)
        mark(after)
        return bounded

    def begin(part: str) -> Callable[..., None]:
        return lambda *_: mark(part)

    def into_ari(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        layers, *others = args
        return tuple(boundary(frames, LAYERS, ARI) for frames in layers), *others

    def out_of_ari(_: Any, args: Any, frames: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: boundary(frames_BLD, ARI, HEADS) for name, frames_BLD in frames.items()}

    def into_coattention(_: Any, args: tuple[Any, ...]) -> tuple[dict[str, Stream]]:
        (streams,) = args
        return (
            {
                name: stream._replace(frames_BLD=boundary(stream.frames_BLD, HEADS, COATTENTION))
                for name, stream in streams.items()
            },
        )

    def out_of_coattention(_: Any, args: Any, output: CoattentionOutput) -> CoattentionOutput:
        return output._replace(vector_BE=boundary(output.vector_BE, COATTENTION, HEADS))

    encoder = model.encoder
    run_layers = encoder._run_layers

    def run_marked_layers(frames: Sequence[Tensor], *others: Any) -> Any:
        return run_layers([boundary(frames_BLD, POSITIONS, LAYERS) for frames_BLD in frames], *others)

    encoder._run_layers = run_marked_layers
    handles = [
        model.register_forward_pre_hook(begin(CNN)),
        encoder.feature_projection.register_forward_pre_hook(begin(POSITIONS)),
        model.ari.register_forward_pre_hook(into_ari),
        model.ari.register_forward_hook(out_of_ari),
        model.coattention.register_forward_pre_hook(into_coattention),
        model.coattention.register_forward_hook(out_of_coattention),
    ]
    try:
        yield
    finally:
        del encoder._run_layers
        for handle in handles:
            handle.remove()
