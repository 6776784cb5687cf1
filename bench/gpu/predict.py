"""A roofline of a training step, counted from the real modules without a GPU.

The model runs forward and backward on tensors without values (`FakeTensorMode`), in eager mode with the types that
autocast gives on CUDA. Each operation takes the longer of two times: its operations (torch's formulas) at the card's
speed, or the bytes of its inputs and outputs at the card's bandwidth. Launches, host synchronisations, the latency of
CTC's recursion and kernels slower than the card's best are not in it, so that it is a bound rather than an expectation;
only what a cache still holds comes faster.

Legend: B utterances, H heads, L frames, M frames that are attended to, V values of a head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import SPECS, STAGES, fake_targets

from gpu.timeline import ARI, CNN, COATTENTION, HEADS, LAYERS, POSITIONS, marked
from gpu.work import ENCODERS, Bench, Targeted, cut_step, model_config, schedule_of
from metaser.config.schema import StageConfig
from metaser.model.network import MetaSERNetwork
from metaser.train.flops import flop_counter
from metaser.train.objective import micro_batch_loss
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from shards.batch import as_batch
from shards.plan import Schedule
from shards.schema import RATE_HZ

LINEAR, ATTENTION, NORMS = "layers: linear", "layers: attention", "layers: norms, residuals, activations"
ORDER = (CNN, POSITIONS, LINEAR, ATTENTION, NORMS, ARI, COATTENTION, HEADS, "optimizer")
STEP_SHARES = (1 / 6, 1 / 2, 5 / 6)
"""Which steps of an epoch are counted, in the order of their audio: each stands for a third of them."""
NUM_WASTES = 10
_FORMULAS = flop_counter().flop_registry
_IGNORED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "lift_fresh", "detach"}
_VIEWS = {"_unsafe_view", "_reshape_alias"}


def predict(bench: Bench) -> None:
    """Write the prediction of every encoder's last stage, and of the first stage of the first encoder."""
    for name in ENCODERS:
        bench.attempt(f"prediction of {name}", 0, lambda name=name: _predict_stage(bench, name, STAGES[1]))
    bench.attempt("prediction of the first stage", 0, lambda: _predict_stage(bench, ENCODERS[0], STAGES[0]))


@dataclass
class Work:
    """What some operations cost."""

    flops: float = 0.0
    moved: float = 0.0
    """Bytes read and written."""
    seconds: float = 0.0
    product_s: float = 0.0
    """What the matrix products alone would take at the card's speed."""
    launches: int = 0

    def __iadd__(self, other: Work) -> Work:
        self.flops += other.flops
        self.moved += other.moved
        self.seconds += other.seconds
        self.product_s += other.product_s
        self.launches += other.launches
        return self


@dataclass(eq=False)
class Roofline(TorchDispatchMode):
    """Counts the work of all operations inside by (part, operation)."""

    flops_per_s: float
    bytes_per_s: float
    part: str = ""
    work: dict[tuple[str, str], Work] = field(default_factory=lambda: defaultdict(Work))

    def __post_init__(self) -> None:
        super().__init__()

    def mark(self, part: str) -> None:
        """Let what follows belong to `part`."""
        self.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on shapes and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__.split(".")[0]
        if name in _IGNORED or name in _VIEWS or _is_view(func):
            return result
        read, written = tensors_of((args, kwargs)), written_by(func, args, result)
        formula = _FORMULAS.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        self.add(name, read, written, flops)
        return result

    def add(self, name: str, read: list[Tensor], written: list[Tensor], flops: float) -> None:
        """Count an operation.

        Raises:
            TypeError: It is a matrix product of another type than bf16, the only one whose speed is given.
        """
        moved = sum(map(size_of, read)) + sum(map(size_of, written))
        if not moved:
            return
        if flops and any(tensor.dtype == torch.float32 for tensor in read):
            raise TypeError(f"{self.part!r} has a matrix product in float32 ({name}), whose speed is not given")
        product_s = flops / self.flops_per_s
        part = layer_part(name, [*read, *written]) if self.part == LAYERS else self.part
        self.work[part, name] += Work(flops, moved, max(product_s, moved / self.bytes_per_s), product_s, 1)


def layer_part(name: str, tensors: list[Tensor]) -> str:
    """Return which part of the layers an operation belongs to.

    What has heads as an axis is attention; products of matrices, casts and gradients of weights are linear.
    """
    if name in ("mm", "addmm"):
        return LINEAR
    most = max(tensor.ndim for tensor in tensors)
    if most >= 4 or name.startswith("attention"):
        return ATTENTION
    is_weights = most <= 2 and name in ("_to_copy", "copy_", "sum", "add", "add_")
    return LINEAR if is_weights else NORMS


def tensors_of(values: Any) -> list[Tensor]:
    """Return all tensors in nested values."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def written_by(func: Any, args: Any, result: Any) -> list[Tensor]:
    """Return the tensors that an operation changes, or else those that it makes."""
    changed = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tensors_of(changed or result)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def size_of(tensor: Tensor) -> int:
    """Return the bytes behind a tensor; what is expanded lies in memory once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


# ---------------------------------------------------------------- what CUDA would run


class CudaOperations(TorchFunctionMode):
    """Replaces what a CPU runs otherwise than CUDA does: fused attention and dropout, CTC, norms in float32."""

    def __init__(self, roofline: Roofline) -> None:
        super().__init__()
        self._roofline = roofline

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` or what stands for it."""
        kwargs = kwargs or {}
        replacement = self._replacements().get(func)
        return func(*args, **kwargs) if replacement is None else replacement(*args, **kwargs)

    def _replacements(self) -> dict[Any, Callable[..., Any]]:
        return {
            nn.functional.scaled_dot_product_attention: self._attention,
            nn.functional.dropout: _dropout,
            nn.functional.ctc_loss: self._ctc,
            nn.functional.layer_norm: _layer_norm,
        }

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        # Autocast casts before it on CUDA.
        query, key, value = (part.to(torch.bfloat16) for part in (query, key, value))
        output: Tensor = _Attention.apply(query, key, value, attn_mask, self._roofline)
        return output

    def _ctc(self, log_probs: Tensor, targets: Tensor, *_: Any, **__: Any) -> Tensor:
        losses: Tensor = _Ctc.apply(log_probs, targets, self._roofline)
        return losses


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return values
    dropped: Tensor = torch.native_dropout(values, p, True)[0]
    return dropped


def _layer_norm(values: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    # On autocast's float32 list on CUDA, not on a CPU.
    seen = values.float() if torch.is_autocast_enabled("cpu") else values
    normed: Tensor = torch.native_layer_norm(seen, shape, weight, bias, eps)[0]
    return normed


class _Attention(torch.autograd.Function):
    """One kernel each way, which keeps the softmax's sums alone; the backward kernel repeats the first product."""

    @staticmethod
    def forward(
        ctx: Any, query_BHLV: Tensor, key_BHMV: Tensor, value_BHMV: Tensor, mask: Tensor | None, roofline: Roofline
    ) -> Tensor:
        ctx.save_for_backward(query_BHLV, key_BHMV, value_BHMV, *([] if mask is None else [mask]))
        ctx.roofline = roofline
        # As the projections lie: heads side by side, so that no copy precedes the next product.
        output = torch.empty_like(query_BHLV.transpose(1, 2)).transpose(1, 2)
        sums = query_BHLV.new_empty(query_BHLV.shape[:3], dtype=torch.float32)
        masks = [] if mask is None else [mask]
        read = [query_BHLV, key_BHMV, value_BHMV, *masks]
        roofline.add("attention", read, [output, sums], 2 * _product_flops(query_BHLV, key_BHMV))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query_BHLV, key_BHMV, value_BHMV, *masks = ctx.saved_tensors
        made = [torch.empty_like(part) for part in (query_BHLV, key_BHMV, value_BHMV)]
        biased = [torch.empty_like(mask) for mask in masks if mask.requires_grad]
        read = [query_BHLV, key_BHMV, value_BHMV, *masks, gradient, gradient]
        flops = 5 * _product_flops(query_BHLV, key_BHMV)
        ctx.roofline.add("attention_backward", read, [*made, *biased], flops)
        return *made, (biased[0] if biased else None), None


def _product_flops(query_BHLV: Tensor, key_BHMV: Tensor) -> int:
    return 2 * query_BHLV.numel() * key_BHMV.shape[2]


class _Ctc(torch.autograd.Function):
    """Reads the logarithms, writes each frame's forward variables: twice the target's length, and one, of them."""

    @staticmethod
    def forward(ctx: Any, log_probs_LBC: Tensor, targets_BU: Tensor, roofline: Roofline) -> Tensor:
        num_frames, count, _ = log_probs_LBC.shape
        variables = log_probs_LBC.new_empty(count, num_frames, 2 * targets_BU.shape[1] + 1)
        ctx.save_for_backward(log_probs_LBC, variables)
        ctx.roofline = roofline
        roofline.add("ctc_loss", [log_probs_LBC, targets_BU], [variables], 0)
        return log_probs_LBC.new_empty(count)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        log_probs_LBC, variables = ctx.saved_tensors
        made = torch.empty_like(log_probs_LBC)
        # The backward variables are written, then read with the forward ones.
        read = [log_probs_LBC, variables, variables]
        ctx.roofline.add("ctc_loss_backward", read, [variables, made], 0)
        return made, None, None


# ---------------------------------------------------------------- steps


def _predict_stage(bench: Bench, name: str, stage: StageConfig) -> None:
    arguments, shape = bench.arguments, bench.shape
    roofline = Roofline(arguments.tflops * 1e12, arguments.bandwidth * 1e12)
    schedule = schedule_of(shape)
    with torch.device("meta"):
        model = MetaSERNetwork(model_config(name, shape))
    audio_s = 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.train()
        trainable = select_parameters(model, stage)
        freeze_all_but(model, trainable)
        optimizer = build_optimizer(model, trainable, stage)
        # The first step makes AdamW's states.
        for parameter in trainable.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with marked(model, roofline.mark):
            for number in typical_steps(schedule):
                cut = cut_step(schedule, number, shape.micro_batches_s[0])
                micro_batches = list(map(_silent, cut))
                with roofline:
                    _run_step(model, stage, micro_batches, roofline)
                    roofline.mark("optimizer")
                    nn.utils.clip_grad_norm_(trainable.values(), 1.0)
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                audio_s += sum(int(lengths.sum()) for lengths in cut) / RATE_HZ
    _write(bench, {"encoder": name, "stage": stage.name}, roofline, audio_s)


def typical_steps(schedule: Schedule) -> list[int]:
    """Return steps of the first epoch, each typical of a third of its steps by their audio."""
    audio = [int(schedule.num_samples[schedule.items(step)].sum()) for step in range(schedule.steps_per_epoch)]
    order = np.argsort(audio, kind="stable")
    return [int(order[int(share * len(order))]) for share in STEP_SHARES]


def _silent(num_samples: np.ndarray) -> Targeted:
    """Return clips of these lengths with random targets, without values where fake tensors are made."""
    wave_BT = np.zeros((len(num_samples), num_samples.max()), np.float32)
    batch = as_batch(np.arange(len(num_samples)), wave_BT, num_samples.tolist(), [True] * len(num_samples))
    return batch, fake_targets(batch)


def _run_step(model: Any, stage: StageConfig, micro_batches: list[Targeted], roofline: Roofline) -> None:
    num_clips = float(sum(len(batch.num_samples_B) for batch, _ in micro_batches))
    denominators = dict.fromkeys(stage.weighted_tasks, num_clips)
    for batch, targets in micro_batches:
        with CudaOperations(roofline):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(batch.wave_BT, batch.num_samples_B, tasks=stage.weighted_tasks)
            loss, _ = micro_batch_loss(
                SPECS, stage.weights, output.logits, output.num_frames_B, targets, batch.valid_B, denominators
            )
            loss.backward()


def _write(bench: Bench, what: dict[str, str], roofline: Roofline, audio_s: float) -> None:
    total = Work()
    parts: dict[str, Work] = defaultdict(Work)
    for (part, _), work in roofline.work.items():
        parts[part] += work
        total += work
    wasted = {part: work.seconds - work.product_s for part, work in parts.items()}
    for part in sorted(parts, key=ORDER.index):
        work = parts[part]
        bench.row(
            *("prediction",),
            **what,
            of=part,
            gflop_per_audio_s=work.flops / audio_s / 1e9,
            gb_per_audio_s=work.moved / audio_s / 1e9,
            operations_per_audio_s=work.launches / audio_s,
            us_per_audio_s=1e6 * work.seconds / audio_s,
            wasted_us_per_audio_s=1e6 * wasted[part] / audio_s,
            share=work.seconds / total.seconds,
            measured=None,
        )
    bench.row(
        *("sums",),
        **what,
        tflops=roofline.flops_per_s / 1e12,
        tb_per_s=roofline.bytes_per_s / 1e12,
        audio_s_per_s=audio_s / total.seconds,
        products_alone_audio_s_per_s=audio_s / total.product_s,
        operations_per_audio_s=total.launches / audio_s,
        dearest_wastes="; ".join(sorted(wasted, key=lambda part: -wasted[part])[:3]),
    )
    dearest = sorted(roofline.work.items(), key=lambda item: item[1].product_s - item[1].seconds)[:NUM_WASTES]
    for (part, operation), work in dearest:
        beyond = work.seconds - work.product_s
        share = beyond / total.seconds
        bench.row("wastes", **what, of=part, operation=operation, us_per_audio_s=1e6 * beyond / audio_s, share=share)
