"""The one module that knows accelerate: a model and an optimizer over one or several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor

from metaser.config.schema import ParallelConfig
from metaser.distributed import DistInfo
from metaser.errors import TrainingError
from metaser.model.encoder import FrameMasks
from metaser.model.metaser import MetaSERModel, MetaSEROutput
from shards.batch import Batch


class Processes:
    """The processes that train together, and what they tell each other. One per process, for all stages."""

    def __init__(self, parallel: ParallelConfig, info: DistInfo) -> None:
        """Join the other processes.

        Raises:
            TrainingError: if the device asked for is not there, or accelerate sees another number of processes.
        """
        use_cuda = torch.cuda.is_available() if parallel.device == "auto" else parallel.device == "cuda"
        if use_cuda and not torch.cuda.is_available():
            raise TrainingError(
                "parallel.device is 'cuda', but this machine has no usable GPU; set it to 'cpu' or 'auto'"
            )
        backend = [InitProcessGroupKwargs(backend="nccl" if use_cuda else "gloo")] if info.num_processes > 1 else []
        # Everything is passed explicitly: accelerate fills what is left out from ACCELERATE_* variables.
        self.accelerator = Accelerator(
            cpu=not use_cuda,
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, adjust_scheduler=False),
            kwargs_handlers=backend,
        )
        if self.accelerator.num_processes != info.num_processes:
            raise TrainingError(
                f"the launcher started {info.num_processes} processes, but accelerate joined "
                f"{self.accelerator.num_processes}; start with `accelerate launch --multi_gpu` or torchrun"
            )
        self.info = info
        self.device: torch.device = self.accelerator.device
        # Flags and results travel beside the gradients, on the CPU.
        self._group: dist.ProcessGroup | None = None
        if info.num_processes > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

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

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Leave the others."""
        if self._group is not None:
            dist.destroy_process_group()


class Engine:
    """One stage's model and optimizer. A stage gets a fresh one: what trains is fixed when it is built."""

    def __init__(
        self,
        processes: Processes,
        model: MetaSERModel,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        max_grad_norm: float,
    ) -> None:
        self.processes = processes
        self.model = model
        self.optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._autocast = precision == "bf16"
        self._wrapped: torch.nn.Module = processes.accelerator.prepare_model(self.model)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward(self, batch: Batch, masks: FrameMasks | None, tasks: tuple[str, ...] | None = None) -> MetaSEROutput:
        """Run the model on a batch that lies on the device; bf16 is autocast over float32 parameters."""
        with torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            output: MetaSEROutput = self._wrapped(batch.wave_BT, batch.num_samples_B, masks=masks, tasks=tasks)
        return output

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Keep gradients local to the process until the step's last slot."""
        if is_last or self.processes.info.num_processes == 1:
            yield
        else:
            with self.processes.accelerator.no_sync(self._wrapped):
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this slot's share of the step's loss; DDP averages, hence the factor."""
        self.processes.accelerator.backward(loss * self.processes.info.num_processes)

    def step(self) -> float:
        """Clip, update and clear the gradients; return their norm. A norm that is not finite leaves the weights alone.

        The norm is taken after the gradients are summed, so every process decides alike.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._trainable, self._max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        """Clear the gradients without an update."""
        self.optimizer.zero_grad(set_to_none=True)

    def model_state(self) -> dict[str, Tensor]:
        """Return the full float32 weights on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `PARAMETER.STATE` -> tensor, independent of how the work is spread."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[id(parameter)]}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned.

        Raises:
            TrainingError: if a trainable parameter has no state although others do.
        """
        parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise TrainingError(f"the checkpoint has optimizer state for {name!r}, which this stage does not train")
            # AdamW keeps its step count on the CPU (unless fused) and moves it itself.
            target = tensor if key == "step" else tensor.to(parameters[name].device)
            self.optimizer.state[parameters[name]][key] = target.clone()
