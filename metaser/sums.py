"""Checksums of what is read back: `SHA256SUMS` beside files that lie together, a seal inside a JSON or YAML file.

`SHA256SUMS` is what `sha256sum` writes and `sha256sum -c` checks. Whoever reads the files back compares what it has
read: every byte of every file counts, and every byte of the checksums.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.files import file_sha256
from shards.inputfile import read_regular
from shards.shown import shown

SUMS = "SHA256SUMS"
SEAL = "sha256"
"""The name that a sealed JSON object ends with."""
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)\n", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 1 << 16


class SumsError(ValueError):
    """Files are not those that the checksums beside them are of; the message names the file and says what is wrong."""


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of the files `names` in `folder` beside them.

    Raises:
        OSError: if the disk refuses.
    """
    (folder / SUMS).write_text(sums_text({name: file_sha256(folder / name) for name in names}), encoding="utf-8")


def sums_text(digests: Mapping[str, str]) -> str:
    """Return what `SHA256SUMS` holds for files with these checksums."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def read_sums(folder: Path, names: Iterable[str]) -> dict[str, str] | None:
    """Return the checksums in `folder`, which must be of exactly the files `names`; None if it holds no checksums.

    Raises:
        SumsError: if they are damaged.
    """
    path = folder / SUMS
    try:
        text = read_regular(path, max_bytes=_MAX_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SumsError(f"{path} must be readable, but is not: {error.strerror}") from error
    found = {name: digest for digest, name in _LINE.findall(text)}
    expected = sorted(names)
    if sorted(found) != expected or sums_text(found) != text:
        raise SumsError(
            f"{path} must hold a line `SHA256  NAME` for each of {', '.join(expected)}, in this order and nothing "
            f"else, but holds {shown(text[:60])!r}"
        )
    return found


def check_sum(path: Path, digest: str, sums: Mapping[str, str]) -> None:
    """Compare the sha256 of what was read from `path` with its line in `sums`.

    Raises:
        SumsError: if it is another.
    """
    expected = sums[path.name]
    if digest != expected:
        raise SumsError(
            f"{path} must have the sha256 {expected[:12]}... that {SUMS} beside it says, but has {digest[:12]}...: it "
            "is damaged, or was changed or swapped"
        )


def sealed_json(values: Mapping[str, Any]) -> str:
    """Return a JSON object whose last entry is the sha256 of the rest, which is not empty and has none of that name."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    return text.removesuffix(_END) + _seal(text.encode())


def is_as_sealed(data: bytes) -> bool:
    """Return whether `data` is byte by byte what `sealed_json` wrote."""
    rest, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    return seal == _seal(rest + _END.encode()).encode()


def is_sealed(values: object) -> bool:
    """Return whether JSON ends with a seal, be it under a damaged name; what earlier versions wrote does not."""
    if not isinstance(values, dict):
        return False
    last = list(values.values())[-1] if values else None
    return SEAL in values or (isinstance(last, str) and _DIGEST.fullmatch(last) is not None)


_END = "\n}"


def _seal(rest: bytes) -> str:
    return f',\n "{SEAL}": "{hashlib.sha256(rest).hexdigest()}"{_END}'


_SEAL_BYTES = len(_seal(b""))


_HEAD = "# sha256 of all below: "
_HEAD_LINE = re.compile(rb".{%d}[0-9a-f]{64}" % len(_HEAD), re.DOTALL)


def sealed_yaml(text: str) -> str:
    """Return YAML under a comment that is the sha256 of it: what is cut off at its end is missed, too."""
    return f"{_head(text.encode())}{text}"


def is_sound_yaml(data: bytes) -> bool:
    """Return whether YAML is what the comment above it is the sha256 of, or has neither that nor a damaged one."""
    if not data.startswith(_HEAD.encode()) and not _HEAD_LINE.match(data):
        return True
    length = len(_head(b""))
    return data[:length] == _head(data[length:]).encode()


def _head(rest: bytes) -> str:
    return f"{_HEAD}{hashlib.sha256(rest).hexdigest()}\n"
