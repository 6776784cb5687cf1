"""A model and an optimizer over one or several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from metaser.errors import TrainingError
from metaser.model.encoders.base import Inputs
from metaser.model.metaser import MetaSERModel, MetaSEROutput
from metaser.processes import Processes, autocast
from metaser.train.timing import StepClock
from shards.shown import shown

_OPTIMIZER_STATES = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    def forward(self, inputs: Inputs, tasks: tuple[str, ...] | None = None) -> MetaSEROutput:
        """Run the model on what lies on the device; bf16 and fp16 are autocast over float32 parameters."""
        with self.clock.part("forward"), autocast(self.processes.device, self._precision):
            output: MetaSEROutput = self._wrapped(*inputs, tasks=tasks)
        return output

    @property
    def needs_loss_scale(self) -> bool:
        """Whether small gradients would vanish without one."""
        return self._precision == "fp16"

    @property
    def num_trainable(self) -> int:
        """Weights that train; a name that ZeRO 3 holds a part of counts whole."""
        return sum(math.prod(self.shapes[name]) for name in self.trainable)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Keep gradients local to the process until the step's last micro-batch."""
        if is_last or self.processes.info.num_processes == 1:
            yield
        else:
            with self.processes.accelerator.no_sync(self._wrapped):
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this micro-batch's share of the step's loss."""
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
