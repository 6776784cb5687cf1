"""What DeepSpeed is told: ZeRO 1 to 3 without anything left to its defaults that decides what is computed."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from typing import Any

from metaser.config.schema import ParallelConfig
from metaser.errors import ConfigError, TrainingError

BUCKET_ELEMENTS = 5_000_000
"""Elements that travel together: 20 MB of float32, as much as DDP's buckets; DeepSpeed's own default takes 2 GB."""
LIVE_ELEMENTS = 15_000_000
"""Weights that ZeRO 3 holds gathered at a time: a layer of a large encoder (12.6 M) and what is fetched ahead of it.
DeepSpeed's default, 1e9, is more than such encoders have, so that everything would stay gathered."""
SMALL_ELEMENTS = 100_000
"""ZeRO 3 keeps parameters up to this size whole, because some are read outside of their own module's forward: WavLM's
gates, ARI's coefficients between the layers, the weights of group norm."""
_OWN = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def deepspeed_settings(parallel: ParallelConfig, num_processes: int, *, use_cuda: bool) -> dict[str, Any]:
    """Return DeepSpeed's whole configuration; nothing is left to its defaults that decides what is computed.

    `gradient_clipping` is each stage's `max_grad_norm`, set when the stage's engine is built.

    Raises:
        ConfigError: if `parallel.extra` touches what MetaSER must decide itself.
    """
    zero: dict[str, Any] = {
        "stage": int(parallel.strategy.removeprefix("zero")),
        "contiguous_gradients": True,
        "overlap_comm": use_cuda,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_partitions": True,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "round_robin_gradients": False,
        "ignore_unused_parameters": False,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": SMALL_ELEMENTS,
        "stage3_max_live_parameters": LIVE_ELEMENTS,
        "stage3_max_reuse_distance": BUCKET_ELEMENTS,
        # The optimizer's step copies a sub-group's gradients at a time.
        "sub_group_size": BUCKET_ELEMENTS,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if parallel.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": use_cuda}
        if parallel.strategy == "zero3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": use_cuda}
    settings: dict[str, Any] = {
        # Micro-batches differ in size, and the engine itself says which is a step's last.
        "train_batch_size": num_processes,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        # torch's AdamW everywhere, offloaded or not: the same arithmetic as without DeepSpeed, and nothing to compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        # Never fp16.enabled or bf16.enabled: they cast every weight, and on CUDA disable autocast.
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {
            "enabled": parallel.precision != "float32",
            "dtype": "float16" if parallel.precision == "fp16" else "bfloat16",
            # Weights and gradients travel in float32.
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": zero,
    }
    owned = [name for name in (*_OWN, "fp16", "bf16", "optimizer", "scheduler") if name in parallel.extra]
    section = parallel.extra.get("zero_optimization")
    if isinstance(section, dict) and "stage" in section:
        owned.append("zero_optimization.stage")
    if owned:
        raise ConfigError(
            f"parallel.extra must leave {owned} alone, because MetaSER decides them; use parallel.strategy, "
            "parallel.precision, data.batch_utterances, data.max_micro_batch_s and stages.N.max_grad_norm"
        )
    merged = _merged(settings, parallel.extra)
    if parallel.extra:
        _check_settings(merged, parallel.extra)
    return merged


def _check_settings(settings: dict[str, Any], extra: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    # The processes have not met yet, so their number cannot be compared with the batch size.
    comparable = {name: value for name, value in settings.items() if name != "train_batch_size"}
    try:
        DeepSpeedConfig(comparable)
    except (DeepSpeedConfigError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"parallel.extra must be settings that DeepSpeed takes, got {extra}: {' '.join(str(error).split())}"
        ) from error


def _merged(settings: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(settings)
    for name, value in extra.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if is_section else value
    return merged


def choose_device(*, use_cuda: bool) -> None:
    """Tell DeepSpeed which device it runs on, and its logger to keep off stdout.

    Raises:
        TrainingError: if DeepSpeed is not installed.
    """
    try:
        from deepspeed.accelerator import set_accelerator
    except ImportError as error:
        raise TrainingError(
            "parallel.strategy 'zero1' to 'zero3' needs DeepSpeed, which cannot be imported "
            f"({error}); install it with `pip install 'metaser[deepspeed]'` or choose 'ddp'"
        ) from error
    if not use_cuda:
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())
        from deepspeed import ops

        # Its all-reduce in shared memory needs a compiler, and waits for ever when a process has died; gloo does not.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
