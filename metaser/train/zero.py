"""ZeRO 1 to 3 by DeepSpeed, with full weights and optimizer states in and out by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from metaser.train.engine import Engine


class ZeroEngine(Engine):
    """One stage's model and optimizer, spread over the processes by DeepSpeed."""

    needs_warm_up = False

    def _wrap(self) -> torch.nn.Module:
        accelerator = self.processes.accelerator
        self._stage = int(self.processes.strategy.removeprefix("zero"))
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = self._max_grad_norm
        self._deepspeed, _ = accelerator.prepare(self.model, self.optimizer)
        self._zero: Any = self._deepspeed.optimizer
        # With fp16 it would scale the loss a second time, and steps every group with a scale of its own.
        self._zero.torch_autocast_gradscaler = None
        if self.processes.parallel.offload == "none":
            self._share_weights()
        self._gather_small()
        wrapped: torch.nn.Module = self._deepspeed
        return wrapped

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Mark the step's last micro-batch, after which gradients are complete."""
        self._deepspeed.set_gradient_accumulation_boundary(is_boundary=is_last)
        yield

    def _backward(self, loss: Tensor) -> None:
        if self.needs_loss_scale:
            self._zero.override_loss_scale(self.loss_scale)
        self._deepspeed.backward(loss)

    def _step(self) -> float:
        # DeepSpeed clips, and skips a norm that is not finite.
        self._deepspeed.step()
        self._gather_small()
        if self._zero.overflow:
            # ZeRO 3 leaves the last step's norm where it was.
            return math.inf
        self._update_average()
        return float(self._zero._global_grad_norm)

    def discard_gradients(self) -> None:
        """Not possible here.

        Raises:
            NotImplementedError: always; parts of the gradients already lie with other processes.
        """
        raise NotImplementedError("ZeRO cannot discard gradients")

    def gradients(self) -> dict[str, Tensor]:
        """Return the whole gradient by parameter name, between the last backward and `step`; all call this."""
        from deepspeed.utils import safe_get_full_grad

        return {
            name: safe_get_full_grad(parameter).detach().cpu() / self.loss_scale
            for name, parameter in self.trainable.items()
        }

    def model_state(self) -> dict[str, Tensor]:
        """Return the full float32 weights, on the main process only; every process must call this."""
        if self._stage < 3:
            return super().model_state()
        from deepspeed.runtime.zero import GatheredParameters

        full: dict[str, Tensor] = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            if not hasattr(value, "ds_id"):
                full[name] = value.detach().cpu().clone()
                continue
            # One at a time: the whole model need not fit a device.
            with GatheredParameters([value]):
                if self.processes.info.is_main:
                    full[name] = value.detach().cpu().clone()
        self._gather_small()
        return full if self.processes.info.is_main else {}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the whole state as `PARAMETER.STATE`, on the main process only; every process must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flat = self._flat_partitions()
        if not self.optimizer.state.get(flat[0]):
            return {}
        self._link_states()
        step = torch.as_tensor(self.optimizer.state[flat[0]]["step"]).detach().cpu().float()
        full: dict[str, Tensor] = {}
        for name, parameter in self.trainable.items():
            for key in ("exp_avg", "exp_avg_sq"):
                value = safe_get_full_optimizer_state(parameter, key)
                if self.processes.info.is_main:
                    full[f"{name}.{key}"] = value.detach().reshape(self.shapes[name]).cpu().clone()
            full[f"{name}.step"] = step.clone()
        return full if self.processes.info.is_main else {}

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what any engine's `optimizer_state` returned.

        Raises:
            TrainingError: if it does not belong to this stage's parameters.
        """
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        # ZeRO 3's own cutting of a whole tensor fails where its size is no multiple of the number of processes.
        write = safe_set_full_optimizer_state if self._stage < 3 else safe_set_local_optimizer_state
        self._refuse_foreign(tensors)
        if not tensors:
            return
        step = next(value for name, value in tensors.items() if name.endswith(".step"))
        for flat in self._flat_partitions():
            self.optimizer.state[flat] = {
                "step": step.to(flat.device, torch.float32).clone(),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self._link_states()
        for name, parameter in self.trainable.items():
            for key in ("exp_avg", "exp_avg_sq"):
                write(parameter, self._part(parameter, tensors[f"{name}.{key}"].to(self.processes.device)), key)

    def _flat_partitions(self) -> list[Tensor]:
        """Return this process's part of the float32 weights, flat, one tensor per group: what the optimizer sees."""
        partitions: list[Tensor] = (
            self._zero.single_partition_of_fp32_groups if self._stage < 3 else self._zero.fp32_partitioned_groups_flat
        )
        return partitions

    def _share_weights(self) -> None:
        """Let the optimizer update the weights themselves, not float32 copies of what is float32 already.

        DeepSpeed 0.19 means to do so for ZeRO 3, but compares a device with its name (stage3.py,
        `_create_fp32_partitions`), and never does.
        """
        if self._stage == 3:
            for flat, weights in zip(self._flat_partitions(), self._zero.fp16_partitioned_groups_flat, strict=True):
                flat.data = weights.data
            return
        for group, flat in enumerate(self._flat_partitions()):
            part = self._zero.parallel_partitioned_bit16_groups[group][self.processes.info.rank]
            flat.data = part.data
        self._zero._link_all_hp_params()

    def _link_states(self) -> None:
        """Let DeepSpeed find the states of all groups: with several, it looks after the first group's first step."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _gather_small(self) -> None:
        """Have the small parameters at hand, also where DeepSpeed would not think of it (start, skipped step)."""
        if self._stage == 3 and self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def _storage(self, parameter: Parameter) -> Tensor:
        if self._stage < 3:
            return parameter.data
        partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return partition.data

    def _weights_changed(self) -> None:
        if self._stage == 3 and self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].partition(self._zero.persistent_parameters)
            self._gather_small()

    def _whole(self, name: str, part: Tensor) -> Tensor:
        if self._stage < 3:
            return part.clone()
        from deepspeed import comm

        parts = torch.empty(part.numel() * self.processes.info.num_processes, dtype=part.dtype, device=part.device)
        comm.all_gather_into_tensor(parts, part.contiguous())
        shape = self.shapes[name]
        return parts[: shape.numel()].view(shape)

    def _part(self, parameter: Parameter, whole: Tensor) -> Tensor:
        if self._stage < 3:
            return whole
        storage = self._storage(parameter)
        start = storage.numel() * self.processes.info.rank
        padded = whole.flatten().new_zeros(storage.numel() * self.processes.info.num_processes)
        padded[: whole.numel()] = whole.flatten()
        return padded[start : start + storage.numel()]
