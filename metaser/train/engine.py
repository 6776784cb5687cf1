"""The one module that knows accelerate: a model and an optimizer over one or several processes."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor
from torch.nn import Parameter
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from metaser.config.schema import ParallelConfig, Strategy
from metaser.distributed import DistInfo, export_place
from metaser.errors import RunError, TrainingError
from metaser.model.encoder import FrameMasks
from metaser.model.metaser import MetaSERModel, MetaSEROutput
from metaser.train.timing import StepClock
from metaser.train.watch import BEAT_S, Watch
from shards.batch import Batch
from shards.errors import InputError
from shards.shown import shown

log = logging.getLogger(__name__)

T = TypeVar("T")


_OPTIMIZER_STATES = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a model with float32 weights computes in `precision`."""
    return torch.autocast(device.type, dtype=_AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


def choose_strategy(parallel: ParallelConfig, num_processes: int) -> Strategy:
    """Return the strategy that `auto` stands for on so many processes, or the one that is named.

    Raises:
        TrainingError: if a single process was asked for and several were started.
    """
    if parallel.strategy == "auto":
        return "single" if num_processes == 1 else "ddp"
    if parallel.strategy == "single" and num_processes > 1:
        raise TrainingError(
            f"parallel.strategy 'single' needs one process, but {num_processes} were started; start "
            "`metaser train`, or choose 'auto', 'ddp' or 'zero1' to 'zero3'"
        )
    return parallel.strategy


def _prepare_compiler() -> None:
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise TrainingError(
            f"parallel.compile_layers true needs a C++ compiler on a CPU, but there is none: {error}; install g++ or "
            "set it to false"
        ) from error
    # torch hashes the headers that it compiles beforehand with this program, and fails where there is none.
    if shutil.which("openssl") is None:
        config.cpp_cache_precompile_headers = False


class Processes:
    """The processes that train together, and what they tell each other. One per process, for all stages."""

    def __init__(self, parallel: ParallelConfig, info: DistInfo) -> None:
        """Join the other processes.

        Raises:
            TrainingError: if the device asked for is not there, DeepSpeed is asked for and is not there, or accelerate
                sees another number of processes.
        """
        use_cuda = torch.cuda.is_available() if parallel.device == "auto" else parallel.device == "cuda"
        if use_cuda and not torch.cuda.is_available():
            raise TrainingError(
                "parallel.device is 'cuda', but this machine has no usable GPU; set it to 'cpu' or 'auto'"
            )
        self.info = info
        self.parallel = parallel
        self.strategy = choose_strategy(parallel, info.num_processes)
        if parallel.compile_layers and not use_cuda:
            _prepare_compiler()
        # accelerate fills what is left out from these; the experiment alone decides.
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        if not use_cuda:
            # accelerate imports DeepSpeed where it is installed, which then says on stdout that it found no GPU.
            os.environ["DS_ACCELERATOR"] = "cpu"
        self.accelerator = self._join(use_cuda=use_cuda)
        if self.accelerator.num_processes != info.num_processes:
            raise TrainingError(
                f"the launcher started {info.num_processes} processes, but accelerate joined "
                f"{self.accelerator.num_processes}; start with `accelerate launch --multi_gpu` or torchrun"
            )
        self.device: torch.device = self.accelerator.device
        if use_cuda and parallel.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            log.warning(
                "%s computes bf16 slowly, because it has no units for it; set parallel.precision to fp16",
                torch.cuda.get_device_name(self.device),
            )
        # Flags and results travel beside the gradients, on the CPU.
        self._group: dist.ProcessGroup | None = None
        if info.num_processes > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._watch: Watch | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch each other inside; a process that dies ends all, with its name and its last words.

        Raises:
            TrainingError: in place of what an operation with a dead process raises.
        """
        if self.info.num_processes == 1:
            yield
            return
        watch = self._watch = Watch(self.info)
        try:
            yield
            self.wait()
            watch.stop()
        except RuntimeError as error:
            # A collective operation broke, probably: the watch knows within seconds whether someone died.
            death = watch.death(timeout_s=2 * BEAT_S)
            watch.announce(f"{type(error).__name__}: {error}", death=death)
            if death is None:
                raise
            raise TrainingError(str(death)) from error
        except BaseException as error:
            watch.announce(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._watch = None

    def note(self, position: str) -> None:
        """Say where this process stands, for the others to report should it be killed."""
        if self._watch is not None:
            self._watch.note(position)

    def _join(self, *, use_cuda: bool) -> Accelerator:
        backend = "nccl" if use_cuda else "gloo"
        accumulation = GradientAccumulationPlugin(num_steps=1, adjust_scheduler=False)
        if not self.strategy.startswith("zero"):
            handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
            if self.info.num_processes > 1:
                handlers.append(InitProcessGroupKwargs(backend=backend))
            return Accelerator(
                cpu=not use_cuda,
                mixed_precision="no",
                gradient_accumulation_plugin=accumulation,
                kwargs_handlers=handlers,
            )
        from metaser.train.zero import choose_device, deepspeed_settings

        choose_device(use_cuda=use_cuda)
        settings = deepspeed_settings(self.parallel, self.info.num_processes, use_cuda=use_cuda)
        export_place(self.info)
        if self.info.num_processes == 1 and not dist.is_initialized():
            # Nobody else to meet: no address is needed.
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        # `cpu=True` would replace DeepSpeed by DDP, silently.
        accelerator = Accelerator(
            mixed_precision="no",
            gradient_accumulation_plugin=accumulation,
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
        )
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise TrainingError(
                f"parallel.strategy {self.strategy!r} needs DeepSpeed, but accelerate chose "
                f"{accelerator.distributed_type}; start with `accelerate launch` or torchrun"
            )
        # Otherwise transformers would spread every model that it loads from here on, `best/` included.
        unset_hf_deepspeed_config()
        return accelerator

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum of `values` (any device) over all processes, on the CPU in float64."""
        total = values.detach().to("cpu", torch.float64)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total

    def gather(self, value: object) -> list[Any]:
        """Return every process's `value`, in rank order, on every process."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.info.num_processes
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_main(self, value: object) -> Any:
        """Return the main process's `value` on every process."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run `action` in the main process while the others wait; return its result there, None elsewhere.

        Raises:
            RunError: on every process, if the main process's action raised an error of the caller's.
        """
        if self.info.is_main:
            try:
                result = action()
            except InputError as error:
                self.from_main(str(error))
                raise
            self.from_main(None)
            return result
        refusal: str | None = self.from_main(None)
        if refusal is not None:
            raise RunError(refusal)
        return None

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Leave the others."""
        if dist.is_initialized():
            dist.destroy_process_group()
        # The next training in this Python process may choose another strategy.
        AcceleratorState._reset_state(reset_partial_state=True)


class Engine:
    """One stage's model and optimizer. A stage gets a fresh one: what trains is fixed when it is built."""

    needs_warm_up = True
    """With several processes DDP rebuilds its buckets after its first iteration, which changes the order of sums."""

    def __init__(
        self,
        processes: Processes,
        model: MetaSERModel,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        max_grad_norm: float,
        ema_decay: float | None = None,
    ) -> None:
        self.processes = processes
        self.model = model
        self.optimizer = optimizer
        self.trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.shapes = {name: value.shape for name, value in model.named_parameters()}
        self._max_grad_norm = max_grad_norm
        self._precision = precision
        self.loss_scale = 1.0
        """What the next step's loss is multiplied by, and its gradients divided by before they are clipped."""
        self._ema_decay = ema_decay
        self.clock = StepClock(processes.device)
        self._wrapped = self._wrap()
        self._average: dict[str, Tensor] = {}
        self._num_averaged = 0
        if ema_decay is not None:
            self._average = {name: self._storage(value).clone() for name, value in self.trainable.items()}

    def _wrap(self) -> torch.nn.Module:
        wrapped: torch.nn.Module = self.processes.accelerator.prepare_model(self.model)
        return wrapped

    def forward(self, batch: Batch, masks: FrameMasks | None, tasks: tuple[str, ...] | None = None) -> MetaSEROutput:
        """Run the model on a batch that lies on the device; bf16 and fp16 are autocast over float32 parameters."""
        with self.clock.part("forward"), autocast(self.processes.device, self._precision):
            output: MetaSEROutput = self._wrapped(batch.wave_BT, batch.num_samples_B, masks=masks, tasks=tasks)
        return output

    @property
    def needs_loss_scale(self) -> bool:
        """Whether small gradients would vanish without one."""
        return self._precision == "fp16"

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Keep gradients local to the process until the step's last slot."""
        if is_last or self.processes.info.num_processes == 1:
            yield
        else:
            with self.processes.accelerator.no_sync(self._wrapped):
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this slot's share of the step's loss."""
        # Processes are averaged over, hence the factor. An infinite loss may have finite gradients: NaN instead reaches
        # all processes, which then skip the step alike.
        num_processes = loss.new_tensor(float(self.processes.info.num_processes))
        factor = torch.where(loss.detach().isfinite(), num_processes, torch.nan)
        with self.clock.part("backward"):
            self._backward(loss * factor)

    def step(self) -> float:
        """Clip, update and clear the gradients; return their norm. A norm that is not finite leaves the weights alone.

        The norm is taken after the gradients are summed, so every process decides alike.
        """
        with self.clock.part("optimizer"):
            return self._step()

    def _backward(self, loss: Tensor) -> None:
        self.processes.accelerator.backward(loss * self.loss_scale)

    def _step(self) -> float:
        self._unscale()
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable.values(), self._max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
            self._update_average()
        self.discard_gradients()
        return norm

    def _unscale(self) -> None:
        if self.loss_scale == 1.0:
            return
        for parameter in self.trainable.values():
            if parameter.grad is not None:
                parameter.grad.div_(self.loss_scale)

    def discard_gradients(self) -> None:
        """Clear the gradients without an update."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> dict[str, Tensor]:
        """Return the whole gradient by parameter name, between the last backward and `step`; all call this."""
        return {
            name: cast(Tensor, value.grad).detach().cpu() / self.loss_scale for name, value in self.trainable.items()
        }

    def model_state(self) -> dict[str, Tensor]:
        """Return the full float32 weights, on the main process only; every process must call this."""
        if not self.processes.info.is_main:
            return {}
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the whole state as `PARAMETER.STATE`, on the main process only; every process must call this."""
        if not self.processes.info.is_main:
            return {}
        names = {id(parameter): name for name, parameter in self.trainable.items()}
        return {
            f"{names[id(parameter)]}.{key}": torch.as_tensor(value).detach().cpu().clone()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what any engine's `optimizer_state` returned.

        Raises:
            TrainingError: if it does not belong to this stage's parameters.
        """
        self._refuse_foreign(tensors)
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            self.optimizer.state[self.trainable[name]][key] = tensor.to(self.trainable[name].device).clone()

    def _refuse_foreign(self, tensors: dict[str, Tensor]) -> None:
        shapes = {
            f"{name}.{key}": () if key == "step" else tuple(self.shapes[name])
            for name in self.trainable
            for key in _OPTIMIZER_STATES
        }
        foreign = sorted(
            name
            for name in (shapes.keys() | tensors.keys() if tensors else ())
            if name not in shapes or name not in tensors or tuple(tensors[name].shape) != shapes[name]
        )
        if foreign:
            raise TrainingError(
                "the checkpoint must hold optimizer state for exactly the parameters that this stage trains, but "
                f"{len(foreign)} differ (first: {shown(foreign[0], 80)!r}); choose another output_dir"
            )

    # ------------------------------------------------------------ moving average of the weights

    @property
    def has_average(self) -> bool:
        """Whether a moving average is kept."""
        return self._ema_decay is not None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while; without an average, its own. Every process calls it."""
        if not self.has_average:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def average_state(self) -> dict[str, Tensor]:
        """Return the averaged trainable weights, on the main process only; every process must call this."""
        full = {name: self._whole(name, part).cpu() for name, part in self._average.items()}
        return full if self.processes.info.is_main else {}

    def load_average_state(self, tensors: dict[str, Tensor], *, num_updates: int) -> None:
        """Restore what any engine's `average_state` returned after so many updates; what it lacks stays as it is.

        Raises:
            TrainingError: if it does not belong to this stage's parameters.
        """
        self._num_averaged = num_updates
        foreign = sorted(name for name, tensor in tensors.items() if tensor.shape != self.shapes.get(name))
        if foreign:
            raise TrainingError(
                "the checkpoint must hold averages of the parameters that this stage trains, but "
                f"{len(foreign)} differ (first: {shown(foreign[0], 80)}); choose another output_dir"
            )
        for name in self._average.keys() & tensors.keys():
            whole = tensors[name].to(self.processes.device)
            self._average[name].copy_(self._part(self.trainable[name], whole))

    def _update_average(self) -> None:
        if self._ema_decay is None:
            return
        decay = ema_decay_of(self._ema_decay, self._num_averaged)
        for name, parameter in self.trainable.items():
            self._average[name].lerp_(self._storage(parameter), 1 - decay)
        self._num_averaged += 1

    def _swap(self) -> None:
        for name, parameter in self.trainable.items():
            weights, average = self._storage(parameter), self._average[name]
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)
        self._weights_changed()

    def _storage(self, parameter: Parameter) -> Tensor:
        """Return what this process holds of a parameter."""
        return parameter.data

    def _weights_changed(self) -> None:
        """Called after `_storage` was written to."""

    def _whole(self, name: str, part: Tensor) -> Tensor:
        """Return a whole tensor from every process's part of it."""
        return part.clone()

    def _part(self, parameter: Parameter, whole: Tensor) -> Tensor:
        """Return this process's part of a whole tensor."""
        return whole

    def close(self) -> None:
        """Let go of the model; the engine cannot be used any more."""
        self.processes.accelerator.free_memory()


def ema_decay_of(decay: float, num_updates: int) -> float:
    """Return how much of the average the next update keeps after `num_updates`.

    It rises to `decay`, because the average starts at weights that training has not touched.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


def build_engine(
    processes: Processes,
    model: MetaSERModel,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    ema_decay: float | None = None,
) -> Engine:
    """Return the engine that the processes' strategy asks for; `model` lies on the device, with its weights loaded."""
    parallel = processes.parallel
    model.encoder.gradient_checkpointing = parallel.activation_checkpointing
    if parallel.compile_layers:
        # Every recompilation with its reason, on stderr: one for training, evaluation and a single utterance is normal.
        torch._logging.set_logs(recompiles=True)  # type: ignore[attr-defined]
        model.encoder.compile_layers()
    kind = Engine
    if processes.strategy.startswith("zero"):
        from metaser.train.zero import ZeroEngine

        kind = ZeroEngine
    return kind(
        processes, model, optimizer, precision=parallel.precision, max_grad_norm=max_grad_norm, ema_decay=ema_decay
    )
