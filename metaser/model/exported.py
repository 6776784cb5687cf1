"""The folder of a model that MetaSER has trained, found and checked before anything is made of it.

`config.json`, `model.safetensors` and the checksums of both. Each file is read once, and what was read is what is
checked and used; the tensors' names and shapes are held against config.json before any memory goes into either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from huggingface_hub import snapshot_download
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedConfig

from metaser.config.encoders import ENCODER_KINDS
from metaser.errors import ModelError
from metaser.model.checkpoints import exported_config, refuse_stand_in
from metaser.model.encoders.families import encoder_class
from metaser.model.tensorfile import TensorFile, TensorFileError, open_tensors
from metaser.sums import SUMS, SumsError, check_sum, read_sums
from shards.errors import InputError
from shards.inputfile import ABSENT, MAX_SETTINGS_BYTES, fault_of, is_there, open_regular, read_regular
from shards.shown import shown

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = COVERED = ("config.json", "model.safetensors")
"""The files of an exported model that are read back, whose checksums therefore lie beside them."""
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
"""Arguments of transformers that say where a model comes from."""


Config = TypeVar("Config", bound=PreTrainedConfig)


@dataclass(frozen=True)
class Export(Generic[Config]):
    """An exported model, read whole."""

    folder: Path
    config: Config
    tensors: dict[str, Tensor]
    sha256: str
    """Of the weights' file."""


def find_export(path: str | Path, *, setting: str) -> Path:
    """Return the exported model's folder at `path`, or the best model's of the run there.

    Args:
        path: what the user gave.
        setting: as what, for messages.

    Raises:
        ModelError: if there is none.
    """
    folder = Path(path)
    try:
        if (why := fault_of(folder, "folder")) is not None:
            raise ModelError(f"{setting} must be a run's folder or an exported model's, but {str(path)!r} {why}")
        if not is_there(folder / CONFIG) and is_there(folder / "best" / CONFIG):
            folder = folder / "best"
        for name in COVERED:
            if not is_there(folder / name):
                raise ModelError(
                    f"{setting} must be an exported model's folder, or that of a run whose last stage was evaluated, "
                    f"but {str(folder)!r} holds no {name}"
                )
    except OSError as error:
        raise ModelError(f"{setting} must be a readable folder, but {str(path)!r} is not: {error.strerror}") from error
    except ValueError as error:
        # A name with a zero byte.
        raise ModelError(f"{setting} must be a readable folder, but {str(path)!r} is not: {error}") from error
    return folder


def export_folder(name: str | Path, wanted: Sequence[str], options: Mapping[str, Any]) -> Path:
    """Return the folder `name`, or one with the files `wanted` of the hub's model of that name and their checksums.

    The `options` are those of `snapshot_download`.

    Raises:
        ModelError: if there is none.
    """
    why = fault_of(name, "folder")
    if why is None:
        return Path(name)
    if why != ABSENT:
        raise ModelError(f"an exported model must be a folder or a model on the hub, but {str(name)!r} {why}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=[*wanted, SUMS, "tokenizer_*.json"], **options))
    except (OSError, ValueError) as error:
        # HFValidationError, too, is a ValueError.
        raise ModelError(
            f"an exported model must be a folder or a model on the hub, got {str(name)!r}, which is no folder here and "
            f"could not be fetched ({type(error).__name__}); correct it"
        ) from error


def read_config(folder: Path, kind: type[Config]) -> Config:
    """Return the configuration of the exported model in `folder`, compared with its checksum as in `read_export`.

    Raises:
        ModelError: if it is missing, damaged or hostile.
    """
    with _reading(folder):
        return _read_config(folder, read_sums(folder, COVERED), kind)


def read_export(folder: Path, kind: type[Config], build: Callable[[Config], nn.Module]) -> Export[Config]:
    """Return the exported model in `folder`, every byte compared with the checksums beside it.

    A folder that an earlier version wrote has none, which is said; one whose config.json tells of them must have them.

    Args:
        folder: Where it lies.
        kind: What config.json makes.
        build: Returns the module of a configuration, whose tensors' names and shapes must be the weights'.

    Raises:
        ModelError: naming the file that is missing, damaged or hostile.
    """
    weights = folder / WEIGHTS
    with _reading(folder):
        with open_regular(weights) as file:
            refuse_stand_in(file.read(64), weights)
        sums = read_sums(folder, COVERED)
        config = _read_config(folder, sums, kind)
        with open_tensors(weights) as opened:
            _check_forms(opened, lambda: build(config), folder)
            tensors, digest = opened.read_hashed()
        if sums is not None:
            check_sum(weights, digest, sums)
    return Export(folder, config, tensors, digest)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except TensorFileError as error:
        raise ModelError(
            f"{folder / WEIGHTS} must hold an exported model's weights, but does not: {error}; export the model again"
        ) from error
    except SumsError as error:
        raise ModelError(f"{error}; export the model again") from error
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} must be readable, but is not: {error.strerror}; export the model again"
        ) from error


def _read_config(folder: Path, sums: Mapping[str, str] | None, kind: type[Config]) -> Config:
    path = folder / CONFIG
    data = read_regular(path, max_bytes=MAX_SETTINGS_BYTES)
    refuse_stand_in(data, path)
    if sums is not None:
        check_sum(path, sha256(data).hexdigest(), sums)
    values = exported_config(data, path)
    try:
        values["encoder"] = _read_encoder(values["encoder"], path)
        values["views"] = {name: _read_encoder(view, path) for name, view in values.get("views", {}).items()}
        config = kind(**values)
    except ValidationError as error:
        raise ModelError(f"{path} is damaged: {describe_problems(error, 'encoder')}; export the model again") from None
    except ModelError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if sums is None:
        _accept_without_sums(folder, values.get("checksums"))
    return config


def _read_encoder(values: dict[str, Any], path: Path) -> dict[str, Any]:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in ENCODER_KINDS:
        raise ModelError(
            f"an encoder must be of kind {', '.join(ENCODER_KINDS)}, got {shown(repr(kind), 60)}; export the model "
            "again"
        )
    return encoder_class(kind).read_architecture(values, path)


def _accept_without_sums(folder: Path, told: str | None) -> None:
    if told is not None:
        raise ModelError(
            f"{str(folder)!r} must hold the {SUMS} that its config.json tells of, but does not; export the model again"
        )
    log.warning(
        "%s holds no %s, because an earlier version of MetaSER exported it: whether its files are as they were written "
        "cannot be checked",
        folder,
        SUMS,
    )


def _check_forms(file: TensorFile, build: Callable[[], nn.Module], folder: Path) -> None:
    """Hold the names, shapes and types in the weights' header against what config.json builds."""
    # The meta device gives tensors shapes and no memory.
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    except (RuntimeError, ValueError, OverflowError, InputError) as error:
        # Torch's words for sizes that it cannot take.
        raise ModelError(
            f"{folder / CONFIG} must describe a model that can be built, but does not: {shown(str(error), 200)}; "
            "export the model again"
        ) from error
    if missing := [name for name in expected if name not in file.forms]:
        raise ModelError(
            f"{folder / WEIGHTS} must hold every weight, got {str(folder)!r} without {missing[0]} ({len(missing)} are "
            "missing); export it again"
        )
    if foreign := [name for name in file.forms if name not in expected]:
        raise ModelError(
            f"{folder / WEIGHTS} must hold the weights of its config.json alone, but holds {shown(foreign[0], 80)} "
            f"({len(foreign)} are foreign); export it again"
        )
    for name, tensor in expected.items():
        form = file.forms[name]
        if form.shape != tuple(tensor.shape) or form.dtype.is_floating_point != tensor.is_floating_point():
            raise ModelError(
                f"{name} in {folder / WEIGHTS} must be of shape {tuple(tensor.shape)} and type {_word(tensor.dtype)}, "
                f"as config.json says, got {form.shape} and {_word(form.dtype)}; export it again"
            )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_MOST_PROBLEMS = 10


def describe_problems(error: ValidationError, whole: str) -> str:
    """Return what is wrong with a configuration, the first problems in full; `whole` is the word for all of it."""
    problems = [
        f"{shown('.'.join(map(str, problem['loc'])), 100) or whole}: {shown(problem['msg'], 300)}, got "
        f"{shown(repr(problem['input']), 100)}"
        for problem in error.errors(include_url=False)[:_MOST_PROBLEMS]
    ]
    num_left = error.error_count() - len(problems)
    return "; ".join([*problems, *([f"and {num_left} more"] if num_left else [])])
