"""The safetensors format, read strictly: header first, then every byte once, so that what was hashed is what is used.

A file is 8 bytes with the header's length (little-endian), the header (JSON: dtype, shape and place by name), and the
tensors one after another. The safetensors library maps a file into memory, where it can still change after a check.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shards.inputfile import MAX_SETTINGS_BYTES, open_regular
from shards.jsontext import JsonTextError, parse_json
from shards.shown import shown

MAX_HEADER_BYTES = MAX_SETTINGS_BYTES
"""The header of a WavLM large with its heads has 0.1 MB."""
_MAX_DIMENSIONS = 8
_TOO_LARGE = 2**48
"""For a length: no file has so many bytes."""
_METADATA = "__metadata__"
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32},
}
"""What our models and optimizers hold."""


class TensorFileError(ValueError):
    """A file is no safetensors file, or does not hold what it must; the message says what is wrong with it."""


class TensorForm(NamedTuple):
    """What the header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """In bytes from the end of the header."""
    end: int


@dataclass
class TensorFile:
    """An open safetensors file whose header has been checked against its length."""

    forms: Mapping[str, TensorForm]
    _file: BufferedReader
    _head: bytes
    _num_bytes: int
    """Of the tensors."""

    def read_hashed(self) -> tuple[dict[str, Tensor], str]:
        """Return the tensors by name, and the sha256 of the whole file.

        Raises:
            OSError: if the file cannot be read.
            TensorFileError: if it has become shorter, does not fit the memory, or a number in it is not finite.
        """
        data = self._data()
        tensors = self._cut(data)
        with ThreadPoolExecutor(1) as pool:
            # Hashing (1.8 GB/s on the CPU measured) lets other threads run meanwhile.
            digest = pool.submit(_sha256, self._head, data.numpy().data)
            _refuse_not_finite(tensors)
            return tensors, digest.result()

    @property
    def stamp(self) -> Stamp:
        """What changes when the file does."""
        return stamp_of(self._file)

    def _data(self) -> Tensor:
        if self._num_bytes > _memory_bytes():
            raise TensorFileError(f"its tensors have {self._num_bytes} bytes, but the memory {_memory_bytes()}")
        data = torch.empty(self._num_bytes, dtype=torch.uint8)
        self._file.seek(len(self._head))
        if self._file.readinto(data.numpy().data) != self._num_bytes:
            raise TensorFileError(f"it must hold {self._num_bytes} bytes after its header, but has become shorter")
        return data

    def _cut(self, data: Tensor) -> dict[str, Tensor]:
        return {name: _part(data, form) for name, form in self.forms.items()}


class Stamp(NamedTuple):
    """What changes when a file does, without reading it."""

    inode: int
    num_bytes: int
    modified_ns: int


def stamp_of(file: BufferedReader) -> Stamp:
    """Return the stamp of an open file."""
    status = os.fstat(file.fileno())
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open the safetensors file at `path` and read its header only.

    Raises:
        OSError: if it cannot be read, or is no regular file.
        TensorFileError: if it is none.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        num_header = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= num_header <= size - 8:
            raise TensorFileError(f"it has {size} bytes, which begin with {prefix!r} and no length of a header in them")
        if num_header > MAX_HEADER_BYTES:
            raise TensorFileError(f"its header has {num_header} bytes, but at most {MAX_HEADER_BYTES} are read")
        header = file.read(num_header)
        num_bytes = size - 8 - num_header
        yield TensorFile(_forms(header, num_bytes), file, prefix + header, num_bytes)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sha256(head: bytes, rest: memoryview) -> str:
    digest = hashlib.sha256(head)
    digest.update(rest)
    return digest.hexdigest()


def _part(data: Tensor, form: TensorForm) -> Tensor:
    part = data[form.start : form.end]
    # Other writers than the library may align nothing.
    part = part.clone() if form.start % form.dtype.itemsize else part
    return part.view(form.dtype).reshape(form.shape)


def _refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # What is not finite stays so in a sum, which takes a tenth of the time; a finite sum may overflow.
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum())) and not torch.isfinite(tensor).all():
            raise TensorFileError(f"{shown(name, 80)} must be finite, but holds NaN or infinity")


# ---------------------------------------------------------------- header


def _forms(header: bytes, num_bytes: int) -> dict[str, TensorForm]:
    try:
        entries = parse_json(header)
    except JsonTextError as error:
        raise TensorFileError(f"its header cannot be read: {shown(str(error), 120)}") from None
    if not isinstance(entries, dict):
        raise TensorFileError("its header must be an object of tensors by name, but is none")
    forms = {name: _form(name, entry) for name, entry in entries.items() if name != _METADATA}
    end = 0
    for name, form in sorted(forms.items(), key=lambda item: (item[1].start, item[1].end)):
        if form.start != end:
            raise TensorFileError(
                f"{shown(name, 80)} must begin where the one before it ends, at byte {end}, got {form.start}"
            )
        end = form.end
    if end != num_bytes:
        raise TensorFileError(f"its tensors must end with the file, after {num_bytes} bytes, but end after {end}")
    return forms


def _form(name: str, entry: Any) -> TensorForm:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(
            f"{shown(name, 80)} must have dtype, shape and data_offsets, got {shown(repr(entry), 80)}"
        )
    word, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(word, str) or word not in _DTYPES:
        raise TensorFileError(f"{shown(name, 80)} must be of type {', '.join(_DTYPES)}, got {shown(repr(word), 40)}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(
            f"{shown(name, 80)} must have a shape of at most {_MAX_DIMENSIONS} numbers, got {shown(repr(shape), 80)}"
        )
    dtype = _DTYPES[word]
    if not _are_counts(place) or len(place) != 2 or place[1] - place[0] != math.prod(shape) * dtype.itemsize:
        raise TensorFileError(
            f"{shown(name, 80)} must take {math.prod(shape) * dtype.itemsize} bytes as its shape and type say, got "
            f"data_offsets {shown(repr(place), 80)}"
        )
    return TensorForm(dtype, tuple(shape), *place)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _TOO_LARGE for value in values)
