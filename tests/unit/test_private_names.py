"""Names of other packages that nobody promises and we lean on: an upgrade that drops one fails here, with the name."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedModel

REPOSITORY = Path(__file__).parents[2]

IMPORTABLE = {
    "torch": (
        "torch.distributed.distributed_c10d._get_default_store",
        "torch._inductor.config.cpp_cache_precompile_headers",
        "torch._inductor.cpp_builder.get_cpp_compiler",
        "torch._inductor.exc.InvalidCxxCompiler",
        "torch._logging.set_logs",
    ),
    "accelerate": ("accelerate.state.AcceleratorState._reset_state",),
    "transformers": (
        "transformers.initialization.guard_torch_init_functions",
        "transformers.initialization.no_init_weights",
        "transformers.integrations.deepspeed.unset_hf_deepspeed_config",
    ),
    "submitit": (
        "submitit.SlurmExecutor._make_submission_file_text",
        "submitit.SlurmExecutor._submitit_command_str",
        "submitit.SlurmExecutor.affinity",
    ),
    "fsspec": (
        "fsspec.asyn.AsyncFileSystem._cat_file",
        "fsspec.asyn.AsyncFileSystem._info",
    ),
    "s3fs": ("s3fs.S3FileSystem.retries",),
}


@pytest.mark.parametrize("name", [name for names in IMPORTABLE.values() for name in names])
def test_a_name_is_still_there(name: str) -> None:
    module, found = name, None
    while found is None:
        module = module.rpartition(".")[0]
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
    for part in name.removeprefix(f"{module}.").split("."):
        assert hasattr(found, part), f"{name}: {part} is gone"
        found = getattr(found, part)


DEEPSPEED = {
    "runtime/zero/stage_1_and_2.py": (
        *("_global_grad_norm", "overflow", "single_partition_of_fp32_groups", "parallel_partitioned_bit16_groups"),
        *("_link_all_hp_params", "_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state"),
        *("torch_autocast_gradscaler", "override_loss_scale"),
    ),
    "runtime/zero/stage3.py": (
        *("_global_grad_norm", "overflow", "fp32_partitioned_groups_flat", "fp16_partitioned_groups_flat"),
        *("persistent_parameters", "torch_autocast_gradscaler", "override_loss_scale"),
    ),
    "runtime/zero/partition_parameters.py": ("ds_tensor", "ds_id", "all_gather", "partition"),
    "runtime/engine.py": ("set_gradient_accumulation_boundary",),
    "utils/__init__.py": (
        *("safe_get_full_grad", "safe_get_full_optimizer_state", "safe_set_full_optimizer_state"),
        *("safe_set_local_optimizer_state",),
    ),
    "ops/__init__.py": ("__compatible_ops__",),
    "accelerator/cpu_accelerator.py": ("CPU_Accelerator",),
}
"""By file, because importing DeepSpeed takes seconds."""


def names_in(path: Path) -> set[str]:
    """Return the attributes, names, functions and words that a module mentions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # What a module's own `__getattr__` compares with.
            found.add(node.value)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("file", sorted(DEEPSPEED))
def test_deepspeed_still_mentions(file: str) -> None:
    spec = find_spec("deepspeed")
    if spec is None or spec.origin is None:
        pytest.skip("DeepSpeed is not installed")
    assert sorted(set(DEEPSPEED[file]) - names_in(Path(spec.origin).parent / file)) == []


def test_accelerates_reset_takes_what_we_say() -> None:
    state = importlib.import_module("accelerate.state").AcceleratorState
    assert "reset_partial_state" in inspect.signature(state._reset_state).parameters
    assert "deepspeed_config" in names_in(
        Path(inspect.getfile(importlib.import_module("accelerate.utils.dataclasses")))
    )


def test_transformers_still_marks_what_it_has_initialised() -> None:
    source = inspect.getsource(importlib.import_module("transformers.modeling_utils"))
    assert "_is_hf_initialized" in source
    assert hasattr(PreTrainedModel, "_init_weights") and hasattr(PreTrainedModel, "initialize_weights")


PRIVATE = re.compile(r"\b(?:torch|dist|accelerate|transformers|submitit|fsspec|s3fs|deepspeed)(?:\.\w+)*\.(_[a-z]\w+)")
ON_OBJECTS = re.compile(r"(?:self\._zero|AcceleratorState|executor|parameter)\.(_[a-z]\w+)")


def test_every_private_name_in_use_is_listed_here() -> None:
    listed = {part for names in IMPORTABLE.values() for name in names for part in name.split(".")}
    listed |= {name for names in DEEPSPEED.values() for name in names}
    used = {
        (str(path.relative_to(REPOSITORY)), name)
        for folder in ("shards", "metaser", "launch")
        for path in (REPOSITORY / folder).rglob("*.py")
        for pattern in (PRIVATE, ON_OBJECTS)
        for name in pattern.findall(path.read_text())
    }
    assert len(used) >= 8
    assert sorted((path, name) for path, name in used if name not in listed) == []
