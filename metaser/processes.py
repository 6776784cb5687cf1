"""Who trains together: the processes, what they tell each other, and how they meet, which accelerate knows."""

from __future__ import annotations

import logging
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
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from metaser.allocator import keep_freed_memory
from metaser.config.schema import ParallelConfig, Strategy
from metaser.deepspeed import choose_device, deepspeed_settings
from metaser.distributed import DistInfo, export_dist_info
from metaser.errors import RunError, TrainingError
from metaser.monitor import HEARTBEAT_S, Monitor
from shards.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

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
            keep_freed_memory()
        self.accelerator = self._build_accelerator(use_cuda=use_cuda)
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
        # A second process group, over gloo: flags and results are exchanged on the CPU, apart from the gradients.
        self._group: dist.ProcessGroup | None = None
        if info.num_processes > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._monitor: Monitor | None = None

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """Exchange heartbeats inside; a process that dies ends all others with its failure report.

        Raises:
            TrainingError: in place of what an operation with a dead process raises.
        """
        if self.info.num_processes == 1:
            yield
            return
        monitor = self._monitor = Monitor(self.info)
        try:
            yield
            self.barrier()
            monitor.stop()
        except RuntimeError as error:
            # A collective operation broke, probably: the monitor knows within seconds whether a process died.
            failure = monitor.failure(timeout_s=2 * HEARTBEAT_S)
            monitor.announce(f"{type(error).__name__}: {error}", failure=failure)
            if failure is None:
                raise
            raise TrainingError(str(failure)) from error
        except BaseException as error:
            monitor.announce(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._monitor = None

    def note(self, position: str) -> None:
        """Say where this process stands, for the others to report should it be killed."""
        if self._monitor is not None:
            self._monitor.note(position)

    def _build_accelerator(self, *, use_cuda: bool) -> Accelerator:
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
        choose_device(use_cuda=use_cuda)
        settings = deepspeed_settings(self.parallel, self.info.num_processes, use_cuda=use_cuda)
        export_dist_info(self.info)
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

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the element-wise sum of `values` (any device) over all processes, on the CPU in float64."""
        total = values.detach().to("cpu", torch.float64)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total

    def all_gather(self, value: object) -> list[Any]:
        """Return every process's `value`, in rank order, on every process."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.info.num_processes
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: object) -> Any:
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
                self.broadcast(str(error))
                raise
            self.broadcast(None)
            return result
        refusal: str | None = self.broadcast(None)
        if refusal is not None:
            raise RunError(refusal)
        return None

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Leave the others."""
        if dist.is_initialized():
            dist.destroy_process_group()
        # The next training in this Python process may choose another strategy.
        AcceleratorState._reset_state(reset_partial_state=True)
