"""Files that others wrote, opened only if they are regular files, and read only up to a stated length.

What is wrong is an `OSError` whose `strerror` says it, so that whoever tells of unreadable files tells of these.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Literal

MAX_TEXT_BYTES = 1 << 30
"""Tables and lists that are read whole; the labels of MSP-Podcast, with every rater's, have 0.1 GB."""
MAX_SETTINGS_BYTES = 16 << 20
"""YAML, and JSON that describes one thing; the largest seen, an index of weights, has 0.1 MB."""
_BLOCK_BYTES = 1 << 20

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder, not a file"),
    (stat.S_ISFIFO, errno.ESPIPE, "it is a named pipe, not a regular file"),
    (stat.S_ISSOCK, errno.ENXIO, "it is a socket, not a regular file"),
    (stat.S_ISCHR, errno.ENODEV, "it is a device, not a regular file"),
    (stat.S_ISBLK, errno.ENODEV, "it is a device, not a regular file"),
)

NOT_REGULAR = frozenset(number for _, number, _ in _KINDS)
"""The errors' numbers that say so."""
ABSENT = "does not exist"


def open_regular(path: str | Path) -> BufferedReader:
    """Return the regular file at `path` (links are followed), opened for reading; never waits for a pipe's writer.

    Raises:
        OSError: if it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        for is_kind, number, what in _KINDS:
            if is_kind(mode):
                raise OSError(number, what, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_there(path: Path) -> bool:
    """Return whether something lies at `path`, be it a link that leads nowhere: whoever reads it says what is wrong.

    Raises:
        OSError: if that cannot be told.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_regular(path: str | Path, *, max_bytes: int) -> bytes:
    """Return the bytes of the regular file at `path`.

    Raises:
        OSError: as in `open_regular`, or if it holds more than `max_bytes` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Memory is taken for what the file has, not for what it may have.
        data = _read(file, size + 1) if size <= max_bytes else b""
        while size < len(data) <= max_bytes and (more := _read(file, _BLOCK_BYTES)):
            data += more  # a file may grow, and /proc says that its files are empty
    if max(size, len(data)) > max_bytes:
        raise OSError(errno.EFBIG, f"it has {max(size, len(data))} bytes or more, but at most {max_bytes} are read")
    return data


def fault_of(path: str | Path, kind: Literal["file", "folder"] | None = None) -> str | None:
    """Return what is wrong with a path that must lead to something (links are followed), or None.

    Args:
        path: As somebody gave it.
        kind: What it must lead to; None: anything.

    Returns:
        A clause that goes on behind the path: `ABSENT`, or one like `cannot be reached: Permission denied`.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return "is a link to what does not exist" if Path(path).is_symlink() else ABSENT
    except OSError as error:
        return f"cannot be reached: {error.strerror}"
    except ValueError as error:
        return f"is no path: {error}"
    if kind == "folder" and not stat.S_ISDIR(mode):
        return "is a file, not a folder" if stat.S_ISREG(mode) else "is no folder"
    what = next((what for is_kind, _, what in _KINDS if is_kind(mode)), None)
    return None if kind != "file" or what is None else what.removeprefix("it ")


def _read(file: BufferedReader, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if data is None:
        # Some files of /proc wait for somebody to write, as pipes do.
        raise OSError(errno.EAGAIN, "it has nothing to read yet, so it is no plain file")
    return data
