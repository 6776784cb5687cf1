"""A folder with an encoder, as people have it: its configuration, its preprocessing and its weights, or one sentence.

Nothing in it is trusted or executed: JSON is validated, pickles are read as tensors only, and what the files say is
held against each other before any memory goes into it.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metaser.errors import ModelError
from metaser.model.tensorfile import MAX_HEADER_BYTES
from shards.inputfile import MAX_SETTINGS_BYTES, open_regular, read_regular
from shards.jsontext import JsonTextError, RepeatedNameError, parse_json, unique
from shards.schema import RATE_HZ
from shards.shown import shown

_LOG = logging.getLogger(__name__)

_CONFIG, _PREPROCESSOR, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which they are looked for; `NAME.index.json` goes before NAME."""
_PATTERNS = {
    "model.safetensors": ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    "pytorch_model.bin": ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
}
_SMALL_BYTES = 1 << 30
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FETCH_AGAIN = "fetch the checkpoint again"
_CONVERT = (
    "convert it by transformers' convert_*_original_pytorch_checkpoint_to_pytorch.py, or take the model's folder from "
    "the hub"
)
_LAYER = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.")
"""At the beginning of a name of the encoder's."""
_FAIRSEQ = ".self_attn."
"""In the names of fairseq's wav2vec 2.0, which transformers calls `attention`."""
_MAX_NAMES = 3
"""Of those outside the encoder; a decoder has hundreds."""
_MAX_STATES = 10
"""Inside each other; one that holds itself would have no end."""
_STATE_KEYS = ("state_dict", "model_state_dict", "model")

_PICKLE_IN_ARCHIVE = "data.pkl"
_NUM_PICKLES = 5
"""With which a file begins that torch wrote before 1.6."""
_MAX_OPCODES = 1_000_000
"""Of a pickle, which take two seconds; a large encoder's have some ten thousand."""
_MAX_TUPLE_VALUES = 10_000
"""That a tuple and those in it hold; a shape, a place in a file and the like have a dozen. The hash of one walks over
all of them, as often as they are repeated."""
_UNREAD_GLOBALS = frozenset({"builtins bytearray", "__builtin__ bytearray"})
"""Which torch would call: with a number, it takes as much memory as that says."""

_UNHASHABLE = frozenset({"APPEND", "APPENDS", "BUILD", "DICT", "LIST", "SETITEM", "SETITEMS"})
"""Opcodes that make, or add to, what is no part of a hash."""

_UNREADABLE = (
    *(OSError, SafetensorError, pickle.UnpicklingError, struct.error, EOFError, ImportError, MemoryError),
    *(zipfile.BadZipFile, NotImplementedError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError),
)
"""What torch and safetensors raise over damaged files."""

Size = Annotated[int, Field(gt=0, le=2**16)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=40)]


class FromFile(BaseModel):
    """What counts of a JSON file that may be damaged or hostile."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class _Typed(FromFile):
    model_type: str | None = None


class _Preprocessing(FromFile):
    do_normalize: bool = True
    sampling_rate: Literal[16_000] | float = RATE_HZ


class _Processor(FromFile):
    feature_extractor: _Preprocessing | None = None
    audio_processor: _Preprocessing | None = None


class _Export(FromFile):
    """What counts of an export's config.json: transformers' own entries beside these change nothing in a model."""

    model_type: str
    encoder: dict[str, Any]
    views: Annotated[dict[str, dict[str, Any]], Field(max_length=16)] = {}
    model: dict[str, Any]
    tasks: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=100)]
    main_task: Annotated[str, Field(max_length=200)]
    sampling_rate: Literal[16_000] = 16_000
    window_s: float | None = None
    window_overlap_s: float | None = None
    checksums: str | None = None
    dtype: Literal["float32", "float64", "float16", "bfloat16"] | None = None

    @field_validator("model_type")
    @classmethod
    def _check_type(cls, model_type: str) -> str:
        if model_type != "metaser":
            raise ValueError("it must be metaser, and an encoder's checkpoint belongs in model.encoder")
        return model_type


class _Index(FromFile):
    weight_map: Annotated[dict[str, str], Field(min_length=1)]


_Parsed = TypeVar("_Parsed", bound=FromFile)


class Checkpoint(NamedTuple):
    """An encoder's folder, read but for its weights."""

    folder: Path
    config: dict[str, Any]
    """What stands in config.json about the encoder's form, with `model_type`."""
    do_normalize: bool
    """Whether clips are brought to zero mean and unit variance."""


def open_checkpoint(
    name: str,
    revision: str | None,
    families: Mapping[str, Any],
    *,
    setting: str = "model.encoder.name",
    files: Sequence[str] = (),
) -> Checkpoint:
    """Return the checkpoint in a folder, or on the hub.

    Args:
        name: The folder's, or the hub's of the model.
        revision: The hub's of the model.
        families: `PretrainedEncoder`s, or what else has their `form` and `form_in`, by the `model_type`.
        setting: As what the name was given, for messages.
        files: Further ones that are fetched from the hub.

    Raises:
        ModelError: if there is none, or its files are damaged or of another kind.
    """
    folder = _folder(name, revision, setting, files)
    config = _config(folder, name, families, setting)
    return Checkpoint(folder, config, _do_normalize(folder))


def exported_config(data: bytes, path: Path) -> dict[str, Any]:
    """Return what counts of an exported model's config.json, whose bytes are `data`, as `MetaSERConfig` takes it.

    Raises:
        ModelError: if it is damaged.
    """
    refuse_stand_in(data, path)
    try:
        parse_json(data)
    except JsonTextError as error:
        raise ModelError(f"{path} must be JSON, but is not: {shown(str(error), 120)}; {_FETCH_AGAIN}") from None
    export = _validated(data, path, _Export, "the configuration of an exported model of MetaSER's")
    return export.model_dump(exclude_unset=True, exclude={"model_type"})


def _folder(name: str, revision: str | None, setting: str, files: Sequence[str]) -> Path:
    """Return the folder with the checkpoint's files, fetched from the hub unless it is one already."""
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
        if is_folder:
            # Else `is_file` says False below of what may not be seen.
            next(folder.iterdir(), None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{setting} must be readable, but {name!r} is not: {_words(error)}") from error
    if is_file:
        raise ModelError(
            f"{setting} must be a folder with config.json and weights, or a model on the hub, got the file "
            f"{name!r}; where it is a checkpoint of fairseq, {_CONVERT}"
        )
    return folder if is_folder else _fetched(name, revision, setting, files)


def _fetched(name: str, revision: str | None, setting: str, files: Sequence[str]) -> Path:
    wanted = [_CONFIG, _PREPROCESSOR, _PROCESSOR, *files]
    try:
        for weights in _WEIGHTS:
            wanted += _PATTERNS[weights]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
            if _weights_in(folder):
                break
    except (OSError, HFValidationError) as error:
        raise ModelError(
            f"{setting} must be an encoder folder or a model on the hub, got {name!r}, which is no "
            f"folder here and could not be fetched ({type(error).__name__}); correct it"
        ) from error
    return folder


def _config(folder: Path, name: str, families: Mapping[str, Any], setting: str) -> dict[str, Any]:
    path = folder / _CONFIG
    if (given := _parsed(path, _Typed, "an encoder's configuration")) is None:
        raise ModelError(f"an encoder folder must hold config.json, got {name!r} without; point to a checkpoint")
    if given.model_type is None or given.model_type not in families:
        raise ModelError(
            f"{setting} must be a model of type {', '.join(families)}, got {name!r} of type "
            f"{given.model_type!r}; choose another checkpoint"
        )
    family = families[given.model_type]
    form = _parsed(path, family.form, "an encoder's configuration")
    return cast("dict[str, Any]", family.form_in(form, path))


def _do_normalize(folder: Path) -> bool:
    """Return the checkpoint's `do_normalize`, sought where transformers does; without any file it is True, as there."""
    path, settings = folder / _PROCESSOR, None
    if (processor := _parsed(path, _Processor, "a processor's configuration")) is not None:
        settings = processor.feature_extractor or processor.audio_processor
    if settings is None:
        path = folder / _PREPROCESSOR
        settings = _parsed(path, _Preprocessing, "a feature extractor's configuration")
    if settings is None:
        return True
    if settings.sampling_rate != RATE_HZ:
        raise ModelError(
            f"an encoder must be of audio at {RATE_HZ} Hz, but {path} says sampling_rate {settings.sampling_rate}; "
            "choose another checkpoint"
        )
    return settings.do_normalize


# ---------------------------------------------------------------- files


def _parsed(path: Path, kind: type[_Parsed], what: str) -> _Parsed | None:
    """Return what the JSON file at `path` holds, None if there is no such file."""
    try:
        data = read_regular(path, max_bytes=MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} must be readable, but is not: {_words(error)}") from error
    refuse_stand_in(data, path)
    return _validated(data, path, kind, what)


def _validated(data: bytes, path: Path, kind: type[_Parsed], what: str) -> _Parsed:
    try:
        parsed = kind.model_validate_json(data)
        # Of two values under one name, pydantic takes the last without a word.
        json.loads(data, object_pairs_hook=unique, parse_int=str)
        return parsed
    except RepeatedNameError as error:
        raise ModelError(f"{path} must hold {what}, but {error}; {_FETCH_AGAIN}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise ModelError(
            f"{path} must hold {what}, but does not: {shown(place, 100)}{shown(first['msg'], 200)}, got "
            f"{shown(repr(first['input']), 60)}; {_FETCH_AGAIN}"
        ) from None


def unbuildable(path: Path, rule: str, got: str) -> ModelError:
    """Return the error of a config.json of whose sizes no encoder can be built: what must hold, and what there is."""
    return ModelError(f"in {path}, {rule}, got {got}; point to a checkpoint whose config.json is its own")


def refuse_stand_in(start: bytes, path: Path) -> None:
    """Refuse what stands where a file of the checkpoint should be, told by its first bytes."""
    if start.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path} is not the file itself but a pointer of Git LFS to it; run `git lfs pull` in its repository, or "
            f"{_FETCH_AGAIN}"
        )
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(f"{path} is not the file itself but a web page; {_FETCH_AGAIN}")


def _words(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or shown(" ".join(str(error).split()), 200) or type(error).__name__


# ---------------------------------------------------------------- weights


class _Weights(NamedTuple):
    files: tuple[Path, ...]
    file_of: Mapping[str, str] | None
    """The file's name by tensor, where an index tells."""


def _weights_in(folder: Path) -> _Weights | None:
    """Return where the weights lie: in the parts that an index names, else in the one file of that name."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (found := _parsed(index, _Index, "an index of weights")) is not None:
            parts, present = sorted(set(found.weight_map.values())), {path.name for path in folder.iterdir()}
            for part in parts:
                if part not in present:
                    raise ModelError(
                        f"every part that {index} names must lie beside it, but {part!r} ({parts.index(part) + 1} of "
                        f"{len(parts)}) does not; {_FETCH_AGAIN}"
                    )
            return _Weights(tuple(folder / part for part in parts), found.weight_map)
        if (folder / name).exists():
            return _Weights((folder / name,), None)
    return None


def read_weights(
    checkpoint: Checkpoint, expected: Mapping[str, Tensor], usual_prefix: str, family: Any
) -> dict[str, Tensor]:
    """Return the tensors of an encoder in float32.

    Args:
        checkpoint: Where they lie.
        expected: The encoder's tensors, of which the shapes count.
        usual_prefix: What stands before their names in a larger model of transformers, with its dot.
        family: The encoder's `PretrainedEncoder`, or what else has its `anchor` and `zero_if_absent`.

    Raises:
        ModelError: if files are damaged, or tensors are missing, of other shapes or kinds, or not finite.
    """
    found = _weights_in(checkpoint.folder)
    if found is None:
        raise ModelError(
            f"an encoder folder must hold weights (model.safetensors or pytorch_model.bin), got "
            f"{str(checkpoint.folder)!r}, an encoder folder without weights; point to a complete checkpoint"
        )
    implied = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    present = sum(file.stat().st_size for file in found.files if file.exists())
    # Half precision takes half; a small one may be told below what it lacks.
    if implied > max(_SMALL_BYTES, 4 * present):
        raise ModelError(
            f"{checkpoint.folder / _CONFIG} must describe the weights beside it, but those that it describes take "
            f"{implied} bytes and those beside it {present}; point to a checkpoint whose files belong together"
        )
    weights: dict[str, Tensor] = {}
    unexpected: list[str] = []
    surplus: list[str] = []
    num_layers = 1 + max((layer for name in expected if (layer := _layer_in(name)) is not None), default=-1)
    prefix: str | None = None
    for file in found.files:
        with _reading(file), _tensors(file) as tensors:
            names = [name for name in tensors if found.file_of is None or found.file_of.get(name) == file.name]
            if prefix is None:
                # Only one of several parts has the weight that tells it.
                prefix = _prefix(
                    names if found.file_of is None else list(found.file_of), usual_prefix, family.anchor, file
                )
            for name in names:
                ours = _our_name(name, prefix)
                if ours not in expected:
                    layer = _layer_in(ours)
                    (unexpected if layer is None or layer < num_layers else surplus).append(name)
                    continue
                value = _checked(tensors[name], expected[ours], name, file)
                if not torch.equal(weights.setdefault(ours, value), value):
                    raise ModelError(
                        f"a checkpoint must hold each weight of the encoder once, but {file} holds two different ones "
                        f"for {ours}, the second as {name}; save the encoder that you want by save_pretrained"
                    )
    where = str(checkpoint.folder)
    if surplus:
        _LOG.warning(
            "%s: config.json says %d layers; %d tensors of further ones are left out, the first %s",
            where,
            num_layers,
            len(surplus),
            surplus[0],
        )
    if unexpected:
        first = ", ".join(sorted(unexpected)[:_MAX_NAMES]) + (", ..." if len(unexpected) > _MAX_NAMES else "")
        _LOG.info("%s: %d tensors outside the encoder are ignored: %s", where, len(unexpected), first)
    for name, consequence in family.zero_if_absent.items():
        if name not in weights:
            _LOG.warning("%s: the checkpoint lacks %s; %s", where, name, consequence)
            weights[name] = torch.zeros(expected[name].shape)
    if missing := [name for name in expected if name not in weights]:
        is_fairseqs = any(_FAIRSEQ in name for name in unexpected) and not any(_FAIRSEQ in name for name in expected)
        remedy = _CONVERT if is_fairseqs else "point to a complete checkpoint"
        raise ModelError(
            f"an encoder checkpoint must hold every weight of the encoder, got {where!r} without {missing[0]} "
            f"({len(missing)} of {len(expected)} are missing); {remedy}"
        )
    return weights


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Say in one sentence that `file` is damaged."""
    try:
        with open_regular(file) as opened:
            refuse_stand_in(opened.read(64), file)
        yield
    except _UNREADABLE as error:
        is_unsafe = isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error)
        reason, remedy = _words(error).removeprefix("Error while deserializing header: "), _FETCH_AGAIN
        if is_unsafe:
            name = str(error).partition("GLOBAL ")[2].split()[:1]
            reason, remedy = f"it holds Python objects ({' '.join(name)}), which are never executed", _CONVERT
        raise ModelError(f"{file} must hold weights, but cannot be read: {reason}; {remedy}") from error


@contextmanager
def _tensors(file: Path) -> Iterator[Mapping[str, Any]]:
    """Open a file of weights: its values by name, read when they are asked for where the format allows it."""
    if file.suffix == ".safetensors":
        _check_header(file)
        with safe_open(file, framework="pt") as opened:
            yield _Lazy(opened)
        return
    _refuse_compressed(file)
    _check_pickles(file)
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    # Trainers keep more than the model in a file.
    for _ in range(_MAX_STATES):
        if not isinstance(loaded, Mapping) or (key := next(filter(_holds_state(loaded), _STATE_KEYS), None)) is None:
            break
        _LOG.info("%s: the weights are those under %r", file, key)
        loaded = loaded[key]
    else:
        raise ModelError(f"{file} must hold tensors by name, but holds states in states without end; {_FETCH_AGAIN}")
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{file} must hold tensors by name, but holds a {type(loaded).__name__}; {_FETCH_AGAIN}")
    yield {str(name): value for name, value in loaded.items()}


def _check_header(file: Path) -> None:
    """Refuse headers of which the library would take minutes and gigabytes, or one of two tensors of a name.

    Raises:
        ValueError: saying which.
    """
    with open_regular(file) as opened:
        num_bytes = int.from_bytes(opened.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {num_bytes} bytes, and at most {MAX_HEADER_BYTES} are read")
        parse_json(opened.read(num_bytes))


def _refuse_compressed(file: Path) -> None:
    """Refuse an archive that unpacks to more than it holds: torch writes none, and reads any."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = file.stat().st_size
    if unpacked > size:
        raise ModelError(
            f"{file} must hold weights as torch writes them, but has {size} bytes that unpack to {unpacked}; "
            f"{_FETCH_AGAIN}"
        )


def _check_pickles(file: Path) -> None:
    """Refuse pickles of which a few bytes make gigabytes, or hours of work; what else is in them, torch refuses.

    Raises:
        ModelError: naming what is in them.
        ValueError: if they are none.
        LookupError: likewise.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(_PICKLE_IN_ARCHIVE):
                    _check_pickle(io.BytesIO(archive.read(name)), file)
        return
    with open_regular(file) as opened:
        for _ in range(_NUM_PICKLES):
            if opened.peek(1):
                _check_pickle(opened, file)


def _check_pickle(opened: io.BufferedIOBase, file: Path) -> None:
    """Count the values in each tuple by the opcodes' effects on the stack: nothing is made of them."""
    mark = 0
    stack: list[int] = []
    memo: dict[Any, int] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(opened)):  # type: ignore[arg-type]
        if number == _MAX_OPCODES:
            raise ModelError(
                f"{file} must hold tensors by name, but its pickle has more than {_MAX_OPCODES} opcodes; {_FETCH_AGAIN}"
            )
        if isinstance(argument, str) and opcode.name == "GLOBAL" and argument in _UNREAD_GLOBALS:
            raise ModelError(f"{file} must hold tensors by name, but holds {argument}, which is not read; {_CONVERT}")
        if opcode.name.endswith("GET"):
            stack.append(memo[argument])
            continue
        if "PUT" in opcode.name:
            memo[argument] = stack[-1]
            continue
        taken = []
        for wanted in reversed(opcode.stack_before):
            while wanted is pickletools.stackslice and stack[-1] != mark:
                taken.append(stack.pop())
            if wanted is not pickletools.stackslice:
                taken.append(stack.pop())
        num_values = 1 if opcode.name in _UNHASHABLE else 1 + sum(taken)
        if num_values > _MAX_TUPLE_VALUES:
            raise ModelError(
                f"{file} must hold tensors by name, but holds tuples in each other of more than {_MAX_TUPLE_VALUES} "
                f"values; {_FETCH_AGAIN}"
            )
        stack += [mark if made is pickletools.markobject else num_values for made in opcode.stack_after]
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = stack[-1] = taken[0]


def _holds_state(loaded: Mapping[Any, Any]) -> Callable[[str], bool]:
    return lambda key: isinstance(loaded.get(key), Mapping)


class _Lazy(Mapping[str, Any]):
    """The tensors of an open safetensors file."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._names = tuple(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _prefix(names: list[str], usual: str, anchor: str, file: Path) -> str:
    """Return what stands before the encoder's names in `file`."""
    prefixes = sorted({name.removesuffix(anchor) for name in names if name.endswith(anchor)})
    if usual in prefixes or not prefixes:
        return usual
    if len(prefixes) > 1:
        raise ModelError(
            f"{file} must hold one encoder, but holds {len(prefixes)}, under {', '.join(map(repr, prefixes))}; save "
            "the one that you want by save_pretrained"
        )
    if prefixes[0]:
        _LOG.info("%s: the encoder's tensors are those under %r", file, prefixes[0])
    return prefixes[0]


def _layer_in(name: str) -> int | None:
    """Return the number of the layer that a tensor of the encoder lies in."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def _our_name(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    if name.endswith((".weight_g", ".weight_v")):
        name = name.replace(".weight_g", ".parametrizations.weight.original0")
        name = name.replace(".weight_v", ".parametrizations.weight.original1")
    # As in checkpoints that were converted from TensorFlow, Google's BERT among them.
    if name.endswith((".LayerNorm.gamma", ".LayerNorm.beta")):
        name = name.replace(".LayerNorm.gamma", ".LayerNorm.weight").replace(".LayerNorm.beta", ".LayerNorm.bias")
    return name


def _checked(tensor: Any, expected: Tensor, name: str, file: Path) -> Tensor:
    """Return a copy of `tensor`, because the file is mapped into memory and may be replaced; floats as float32."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ModelError(f"{name} in {file} must be a plain tensor, but is a {type(tensor).__name__}; {_FETCH_AGAIN}")
    if tensor.is_floating_point() != expected.is_floating_point():
        raise ModelError(
            f"{name} in {file} must be of type {_kind(expected)}, got {_kind(tensor)}; point to a checkpoint that is "
            "not quantised"
        )
    if tensor.shape != expected.shape:
        raise ModelError(
            f"{name} must have the shape {tuple(expected.shape)} that config.json implies, got "
            f"{tuple(tensor.shape)} in {str(file)!r}; point to a checkpoint whose files belong together"
        )
    copied = tensor.detach().to(torch.float32 if tensor.is_floating_point() else expected.dtype, copy=True)
    _check_finite(copied, name, file)
    return copied


def _check_finite(tensor: Tensor, name: str, file: Path) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} in {file} must be finite, but holds NaN or infinity; {_FETCH_AGAIN}")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
