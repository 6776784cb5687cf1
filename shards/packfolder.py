"""The folder that is packed into: whose files may lie in it, and one packer at a time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import ShardError
from shards.files import atomic_file, canonical_json
from shards.inputfile import ABSENT, fault_of, read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.manifest import INDEX_NAME, MANIFEST_NAME, REJECTED_NAME
from shards.notes import MAX_NOTE_BYTES

STATE_FOLDER = ".packing"
"""Inside OUT while packing: what each finished shard holds."""
_LOCK, _OWNER, _PUBLISHING = "lock", "owner", "publishing"
_STATE_NAME = re.compile(rf"{_LOCK}|\.?(?:{_OWNER}|{_PUBLISHING}|.+\.tar\.json)(?:\.tmp)?", re.DOTALL)
_PUBLISHED = (INDEX_NAME, REJECTED_NAME, MANIFEST_NAME)
_MAX_TRIES = 100


def check_folder(out: Path, corpus: str, *, is_source: bool = False) -> None:
    """Refuse to write among files that are not ours, or over them.

    Args:
        out: The shard folder; may be absent, or complete, which is left to others.
        corpus: Whose unfinished packing it may hold.
        is_source: Whether it is the folder that is adopted, too: then only the names that are written must be free.

    Raises:
        ShardError: if something in it is not this corpus's.
    """
    if is_absent(out):
        return
    try:
        foreign = _foreign_names(out, corpus, is_source=is_source)
    except OSError as error:
        raise ShardError(f"OUT must be a folder that can be read, but {out} cannot: {error.strerror}") from error
    if foreign and is_source:
        raise ShardError(f"OUT must hold no {foreign[0]} of others, but {out} does; choose another folder or move it")
    if foreign:
        raise ShardError(
            f"OUT must be empty or hold an unfinished packing of {corpus!r}, but {out} has {foreign[0]!r} "
            f"({len(foreign)} such files); choose another folder"
        )


def _foreign_names(out: Path, corpus: str, *, is_source: bool) -> list[str]:
    """Return what lies in a folder that is not complete and is not this corpus's."""
    if (out / MANIFEST_NAME).is_file():
        return []
    state = out / STATE_FOLDER
    is_begun = _is_regular(state / _OWNER) and _owner(state) == corpus
    is_published = is_begun and _is_regular(state / _PUBLISHING)
    foreign = []
    for name in sorted(path.name for path in out.iterdir()):
        plain = name[1 : -len(".tmp")] if name.startswith(".") and name.endswith(".tmp") else name
        if name == STATE_FOLDER:
            is_ours = _is_state(state, is_begun)
        elif plain in _PUBLISHED:
            is_ours = is_published and _is_regular(out / name)
        elif is_source:
            is_ours = True
        else:
            is_ours = is_begun and is_shard_name(plain, corpus) and _is_regular(out / name)
        if not is_ours:
            foreign.append(name)
    return foreign


def is_shard_name(name: str, corpus: str) -> bool:
    """Return whether packing would call a tar of this corpus so."""
    return re.fullmatch(rf"{re.escape(corpus)}-\d{{6,}}\.tar", name) is not None


def _is_state(state: Path, is_begun: bool) -> bool:
    if state.is_symlink() or not state.is_dir():
        return False
    names = [path.name for path in state.iterdir()]
    # A kill may come before the owner is written.
    allowed = names if is_begun else [_LOCK, f".{_OWNER}.tmp"]
    return all(name in allowed and _STATE_NAME.fullmatch(name) and _is_regular(state / name) for name in names)


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _owner(state: Path) -> str | None:
    try:
        content = parse_json(read_regular(state / _OWNER, max_bytes=MAX_NOTE_BYTES))
    except (OSError, JsonTextError):
        return None
    corpus = content.get("corpus") if isinstance(content, dict) else None
    return corpus if isinstance(corpus, str) else None


@contextmanager
def locked(out: Path, corpus: str, *, is_source: bool = False) -> Iterator[Path]:
    """Make the folders and keep other packers out of them; the lock ends with the process, however that ends.

    Another process may have published before the lock was there, so that whoever has it must look for a manifest.

    Raises:
        ShardError: as `check_folder` does, or if the folder cannot be written or another packer is at work.
    """
    check_folder(out, corpus, is_source=is_source)
    state = out / STATE_FOLDER
    with _lock(out, state):
        # Again: another may have begun here.
        check_folder(out, corpus, is_source=is_source)
        if not (out / MANIFEST_NAME).is_file():
            with atomic_file(state / _OWNER) as file:
                file.write(canonical_json({"corpus": corpus}))
        try:
            yield state
        finally:
            if (out / MANIFEST_NAME).is_file():
                _remove_state(state)


@contextmanager
def _lock(out: Path, state: Path) -> Iterator[None]:
    for _ in range(_MAX_TRIES):
        try:
            state.mkdir(parents=True, exist_ok=True)
            # Neither through a link nor into a pipe, and nothing is cut.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(state / _LOCK, flags, 0o666)
        except FileNotFoundError as error:
            # Whoever published has just removed the state folder.
            problem = error
            continue
        except OSError as error:
            raise ShardError(f"OUT must be a folder that can be written, but {out} cannot: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ShardError(
                    f"one process at a time may pack into {out}, but another is at work; wait for it"
                ) from None
            except OSError:
                # Some network file systems have no locks; packing works there, unguarded.
                pass
            if not _is_still(state / _LOCK, descriptor):
                continue
            yield
            return
    raise ShardError(f"OUT must be a folder that can be written, but {out} cannot: {problem.strerror}")


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether a file is still the one that was opened: a lock on a removed one keeps nobody out."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_state(state: Path) -> None:
    """Remove what packing wrote into the state folder, and the folder if nothing else is in it."""
    # A folder that became read-only, or where others put something: it does no harm where it is.
    with suppress(OSError):
        names = [path.name for path in state.iterdir() if _STATE_NAME.fullmatch(path.name)]
        for name in sorted(names, key=(_OWNER, _LOCK).__contains__):
            (state / name).unlink(missing_ok=True)
        state.rmdir()


def remove_ended_state(out: Path) -> None:
    """Remove the state folder that a kill between the manifest and the end of packing left in a complete folder."""
    state = out / STATE_FOLDER
    if _is_state(state, is_begun=_is_regular(state / _OWNER)):
        _remove_state(state)


def begin_publishing(out: Path, state: Path) -> None:
    """Note that index and list of rejections are ours from now on; refuse to write over those of others."""
    if _is_regular(state / _PUBLISHING):
        return
    foreign = [name for name in _PUBLISHED if os.path.lexists(out / name)]
    if foreign:
        raise ShardError(f"OUT must hold no {foreign[0]} of others, but {out} does; choose another folder or move it")
    with atomic_file(state / _PUBLISHING) as file:
        file.write(b"")


def remove_leftovers(out: Path, corpus: str, wanted: Collection[str]) -> None:
    """Remove unfinished files, and shards of the corpus that are not wanted; `check_folder` found all to be ours."""
    for path in out.iterdir():
        is_unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
        is_ours = is_unfinished or path.name in (INDEX_NAME, REJECTED_NAME) or is_shard_name(path.name, corpus)
        if is_ours and path.name not in wanted:
            path.unlink()


def is_absent(out: Path) -> bool:
    """Return whether OUT is still to be made.

    Raises:
        ShardError: if something else than a folder is there, or it cannot be reached.
    """
    fault = fault_of(out, "folder")
    if fault not in (None, ABSENT):
        raise ShardError(f"OUT must be a folder, but {out} {fault}; choose another")
    return fault is not None
