"""Bytes of shard folders, wherever they lie: a local folder, or a URL through fsspec.

Local files are read by `os.pread`. Remote ones are read by byte ranges with a deadline per request, retried when the
failure may pass, checked for position and length, and kept in a node-local cache where one is configured. What a byte
*means* is checked by whoever knows it: whole files by their sha256 here, audio by the hash of its samples in the
reader, which asks again (`fresh=True`) before it calls a record damaged.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from shards.cache import RangeCache
from shards.config import RemoteConfig
from shards.errors import RangeError, ShardError
from shards.httpranges import Failure, ReplyError, client_options, read_range, read_size, status_failure
from shards.inputfile import open_regular, read_regular
from shards.shown import shown

NUM_READS = 3
"""How often a remote range is read before its content counts as damaged; a local disk is asked once."""
NUM_CONCURRENT = 16
"""Requests that one process has under way at once."""
PIECE_BYTES = 1 << 20
"""Whole files come in ranges of this size, so that the deadline does not depend on the file's length."""

MAX_UNVERIFIED_BYTES = 64 << 20
"""Of a file that is read whole and whose hash nothing states: a manifest; one of 100,000 shards has 20 MB."""
MAX_VERIFIED_BYTES = 4 << 30
"""Of one whose hash is known: an index, or a list of what was rejected; an index has about 150 bytes a clip."""

_MAX_OPEN_SHARDS = 256
_LONG_BYTES = 64 << 20
"""A range of more is held against the file's length first: memory is not taken for what an index claims."""
_MAX_WAIT_S = 30.0
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_HTTP = ("http", "https")
_S3 = ("s3", "s3a")
_LASTING_ERRNOS = (errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, errno.EREMCHG)
# What file systems raise beside HTTP statuses, by module, tried in this order.
_LASTING_FIRST = (
    ("builtins", "FileNotFoundError"),
    ("builtins", "PermissionError"),
    ("builtins", "IsADirectoryError"),
    ("builtins", "NotADirectoryError"),
    ("aiohttp", "InvalidURL"),
    ("aiohttp", "NonHttpUrlClientError"),
    ("aiohttp", "TooManyRedirects"),
    ("aiohttp", "ClientConnectorCertificateError"),
)
_PASSING = (
    ("builtins", "OSError"),
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.exceptions", "ChecksumError"),
    ("botocore.parsers", "ResponseParserError"),
    ("gcsfs.retry", "HttpError"),
)
_LASTING = (
    ("builtins", "ImportError"),
    ("builtins", "NotImplementedError"),
    # An unknown option, or one of another type, which connecting is the first to use.
    ("builtins", "TypeError"),
    ("builtins", "AttributeError"),
    ("builtins", "ValueError"),
    ("botocore.exceptions", "BotoCoreError"),
)
_random = random.SystemRandom()
"""Apart from the generator that training seeds."""


def is_url(text: str) -> bool:
    """Tell whether `text` names something behind fsspec rather than a local path."""
    return _URL.match(text) is not None


def join(folder: str, name: str) -> str:
    """Return the place of file `name` in `folder`, a local path or a URL; an http(s) query (a token) is kept."""
    if not is_url(folder):
        return str(Path(folder) / name)
    if _protocol(folder) in _HTTP:
        parts = urlsplit(folder)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
    return f"{folder.rstrip('/')}/{name}"


def file_size(place: str, remote: RemoteConfig | None = None) -> int:
    """Return the length of a file in bytes.

    Raises:
        ShardError: if it cannot be had.
    """
    if is_url(place):
        return RangeReader(remote).remote_size(place)
    try:
        with open_regular(place) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(place, error) from error


def read_file(
    place: str, remote: RemoteConfig | None = None, *, num_bytes: int | None = None, sha256: str | None = None
) -> bytes:
    """Return a whole file, verified as far as `num_bytes` and `sha256` tell.

    A remote file comes through the cache only when its sha256 is given: nothing else says that a kept copy is current.

    Raises:
        ShardError: if it cannot be read, is longer than any such file, or is not what was promised.
    """
    max_bytes = MAX_UNVERIFIED_BYTES if sha256 is None else MAX_VERIFIED_BYTES
    if num_bytes is not None:
        _check_bound(place, num_bytes, max_bytes)
    if not is_url(place):
        try:
            data = read_regular(place, max_bytes=max_bytes)
        except OSError as error:
            raise _unreadable(place, error) from error
        _check_size(place, len(data), num_bytes)
        _check_hash(place, data, sha256)
        return data
    reader = RangeReader(remote)
    size = num_bytes
    if size is None or sha256 is None:
        size = reader.remote_size(place)
        _check_size(place, size, num_bytes)
        _check_bound(place, size, max_bytes)
    pieces = [(place, start, min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES)]
    for number in range(NUM_READS):
        data = b"".join(map(_bytes_or_raise, reader.read_many(pieces, fresh=number > 0 or sha256 is None)))
        if sha256 is None or hashlib.sha256(data).hexdigest() == sha256:
            break
    _check_hash(place, data, sha256)
    return data


def _check_size(place: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise ShardError(f"{_shown(place)} must have {expected} bytes, got {found}; fetch or pack the folder again")


def _check_bound(place: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ShardError(
            f"{_shown(place)} must have at most {max_bytes} bytes, but {num_bytes} are stated; fetch or pack the "
            "folder again"
        )


def _check_hash(place: str, data: bytes, expected: str | None) -> None:
    if expected is not None and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ShardError(
            f"{_shown(place)} must have sha256 {expected}, but was changed (it has {found}); fetch or pack the folder "
            "again"
        )


class RangeReader:
    """Reads byte ranges of local and remote files; made for reader processes, into which it may be pickled.

    It holds no connection: fsspec keeps one file system per process and options, and makes a new one after a fork.
    """

    def __init__(self, remote: RemoteConfig | None = None) -> None:
        self._remote = remote or RemoteConfig()
        cache_dir = self._remote.cache_dir
        self._cache = RangeCache(cache_dir, self._remote.cache_max_gb) if cache_dir is not None else None
        self._descriptors: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[RangeReader], tuple[RemoteConfig]]:
        return RangeReader, (self._remote,)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def num_reads(self, place: str) -> int:
        """Return how often a range of `place` should be read before its content counts as damaged."""
        return NUM_READS if is_url(place) else 1

    def read(self, place: str, offset: int, num_bytes: int, *, fresh: bool = False) -> bytes:
        """Return exactly `num_bytes` bytes of `place` from `offset`.

        Args:
            place: A local path or a URL.
            offset: First byte, from 0.
            num_bytes: Length of the range.
            fresh: Read around the cache and replace what it holds, because that turned out to be corrupt.

        Raises:
            RangeError: if the file ends before the range does.
            ShardError: if the bytes cannot be had.
        """
        if place in self._descriptors or not is_url(place):
            return _bytes_or_raise(self._read_local(place, offset, num_bytes))
        return _bytes_or_raise(self.read_many([(place, offset, num_bytes)], fresh=fresh)[0])

    def read_many(self, ranges: Sequence[tuple[str, int, int]], *, fresh: bool = False) -> list[bytes | RangeError]:
        """Return the bytes of several ranges (place, offset, length); remote ones are requested concurrently.

        Where a file ends before its range does, the error stands in the range's place: the others are good.

        Raises:
            ShardError: if the bytes of a range cannot be had for another reason.
        """
        found: dict[int, bytes | RangeError] = {}
        missing: list[int] = []
        for number, (place, offset, num_bytes) in enumerate(ranges):
            if not is_url(place):
                found[number] = self._read_local(place, offset, num_bytes)
            elif num_bytes == 0:
                found[number] = b""
            elif self._cache and not fresh and (kept := self._cache.get(place, offset, num_bytes)) is not None:
                found[number] = kept
            else:
                missing.append(number)
        requests = [self._range_request(*ranges[number]) for number in missing]
        for number, data in zip(missing, self._ask(requests), strict=True):
            place, offset, _ = ranges[number]
            if self._cache and isinstance(data, bytes):
                self._cache.put(place, offset, data)
            found[number] = data
        return [found[number] for number in range(len(ranges))]

    def remote_size(self, place: str) -> int:
        """Return the length in bytes of the file behind a URL.

        Raises:
            ShardError: if it cannot be had.
        """

        def check(info: Mapping[str, Any]) -> Failure | None:
            if info["type"] != "file":
                return Failure(f"it is a {info['type']}, not a file", is_final=True)
            return None if isinstance(info["size"], int) else Failure("the server tells no size", is_final=True)

        filesystem, path = self._filesystem(place)
        if _protocol(place) in _HTTP:
            (size,) = self._ask([_Request(place, 0, 0, partial(read_size, filesystem, path), lambda _: None)])
            return int(size)
        (info,) = self._ask([_Request(place, 0, 0, partial(_method(filesystem, "info"), path), check)])
        return int(info["size"])

    def _read_local(self, path: str, offset: int, num_bytes: int) -> bytes | RangeError:
        try:
            descriptor = self._descriptor(path)
            if num_bytes > _LONG_BYTES and offset + num_bytes > (size := os.fstat(descriptor).st_size):
                return _too_short(path, offset, num_bytes, f"got {max(0, size - offset)}")
            data = os.pread(descriptor, num_bytes, offset)
        except OSError as error:
            raise _unreadable(path, error) from error
        return data if len(data) == num_bytes else _too_short(path, offset, num_bytes, f"got {len(data)}")

    def _range_request(self, place: str, offset: int, num_bytes: int) -> _Request:
        filesystem, path = self._filesystem(place)
        call: Callable[[], Awaitable[bytes]]
        if _protocol(place) in _HTTP:
            call = partial(read_range, filesystem, path, offset, num_bytes)
        elif _protocol(place) in _S3:
            call = partial(_read_s3_range, filesystem, path, offset, num_bytes)
        else:
            call = partial(_method(filesystem, "cat_file"), path, start=offset, end=offset + num_bytes)
        return _Request(place, offset, num_bytes, call, partial(_wrong_length, num_bytes))

    def _descriptor(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            if len(self._descriptors) >= _MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            with open_regular(path) as file:
                descriptor = self._descriptors[path] = os.dup(file.fileno())
        return descriptor

    def _filesystem(self, place: str) -> tuple[Any, str]:
        """Return fsspec's file system for `place`, and its name there."""
        # Late, because most training is local: importing fsspec and aiohttp takes 0.2 s.
        from fsspec.core import url_to_fs

        protocol = _protocol(place)
        options = dict(self._remote.options.get(protocol, {}))
        try:
            if protocol in _HTTP:
                options["client_kwargs"] = client_options(options.get("client_kwargs", {}))
            elif protocol in _S3:
                # Retrying is done here, once, and not in three layers that multiply.
                options["config_kwargs"] = {"retries": {"total_max_attempts": 1}} | options.get("config_kwargs", {})
            filesystem, path = url_to_fs(place, **options)
        except ImportError as error:
            raise ShardError(f"{_shown(place)} needs a package that is missing: {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ShardError(
                f"{_shown(place)} cannot be opened with remote.options of {protocol}: {_reason(error)}"
            ) from error
        if protocol in _S3:
            filesystem.retries = 1
        return filesystem, path

    def _ask(self, requests: Sequence[_Request]) -> list[Any]:
        """Return the reply to each request, asking again for those that failed and may not fail the next time.

        A file that is too short is a reply, too: the `RangeError` that says so.

        Raises:
            ShardError: if a request fails for good.
        """
        if not requests:
            return []
        from fsspec.asyn import get_loop, sync

        replies: dict[int, Any] = {}
        pending = list(range(len(requests)))
        for number in range(1, self._remote.num_tries + 1):
            asked = [requests[position] for position in pending]
            failures: dict[int, Failure] = {}
            results = sync(get_loop(), _gather, [request.call for request in asked], self._remote.timeout_s)
            for position, request, result in zip(pending, asked, results, strict=True):
                failure = self._failure(result) if isinstance(result, BaseException) else request.check(result)
                if failure is None:
                    replies[position] = result
                elif failure.is_final or number == self._remote.num_tries:
                    replies[position] = _error_or_raise(request, failure, number)
                else:
                    failures[position] = failure
            pending = list(failures)
            if not pending:
                break
            time.sleep(self._wait_s(number, failures.values()))
        return [replies[position] for position in range(len(requests))]

    def _wait_s(self, number: int, failures: Iterable[Failure]) -> float:
        own_s = min(_MAX_WAIT_S, self._remote.first_wait_s * 2.0 ** (number - 1)) * _random.uniform(0.5, 1.5)
        return max(own_s, *(min(_MAX_WAIT_S, failure.retry_after_s) for failure in failures))

    def _failure(self, error: BaseException) -> Failure:
        """Say what went wrong and whether it may pass.

        Raises:
            BaseException: `error` itself, if it is not of the kinds that file systems report.
        """
        chain = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        for link in chain:
            if isinstance(link, ReplyError):
                return link.failure
        for link in chain:
            # botocore's errors carry the reply as a dictionary.
            if isinstance(response := getattr(link, "response", None), dict) and "ResponseMetadata" in response:
                return _s3_failure(response)
        if (words := _malformed(error)) is not None:
            return Failure(words, is_final=isinstance(error, _loaded(*_LASTING_FIRST)))
        if isinstance(error, TimeoutError):
            return Failure(f"no whole reply within {self._remote.timeout_s:g} s")
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        if isinstance(error, _loaded(*_LASTING_FIRST)) or getattr(error, "errno", None) in _LASTING_ERRNOS:
            return Failure(reason, is_final=True)
        if isinstance(error, _loaded(*_PASSING)):
            return Failure(reason)
        if isinstance(error, _loaded(*_LASTING)):
            return Failure(reason, is_final=True)
        raise error


@dataclass(frozen=True)
class _Request:
    """Something to ask a file system; for a file's size, `num_bytes` is 0."""

    place: str
    offset: int
    num_bytes: int
    call: Callable[[], Awaitable[Any]]
    check: Callable[[Any], Failure | None]


async def _gather(calls: Sequence[Callable[[], Awaitable[Any]]], timeout_s: float) -> list[Any]:
    """Return the result or the error of each call, a few at a time, each within `timeout_s`."""
    gate = asyncio.Semaphore(NUM_CONCURRENT)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await asyncio.wait_for(call(), timeout_s)

    return await asyncio.gather(*map(one, calls), return_exceptions=True)


def _method(filesystem: Any, name: str) -> Callable[..., Awaitable[Any]]:
    """Return a method of an fsspec file system as one to be awaited; by convention its name then has an underscore."""
    if filesystem.async_impl:
        method: Callable[..., Awaitable[Any]] = getattr(filesystem, f"_{name}")
        return method
    return partial(asyncio.to_thread, getattr(filesystem, name))


async def _read_s3_range(filesystem: Any, path: str, offset: int, num_bytes: int) -> bytes:
    """Return what a store that speaks S3 has of a range, by fsspec's `filesystem`; it may be less.

    Raises:
        ReplyError: if the reply goes on behind the range.
    """
    bucket, key, version = filesystem.split_path(path)
    reply = await filesystem._call_s3(
        "get_object",
        Bucket=bucket,
        Key=key,
        Range=f"bytes={offset}-{offset + num_bytes - 1}",
        **({} if version is None else {"VersionId": version}),
        **filesystem.req_kw,
    )
    parts: list[bytes] = []
    num_missing = num_bytes
    try:
        while num_missing >= 0 and reply.get("ContentLength", 0) <= num_bytes:
            part = await reply["Body"].read(num_missing + 1)
            if not part:
                return b"".join(parts)
            parts.append(part)
            num_missing -= len(part)
    finally:
        reply["Body"].close()
    found = reply.get("ContentLength", f"more than {num_bytes}")
    raise ReplyError(Failure(f"the server ignores byte ranges (it answered with {found} bytes)", is_final=True))


def _malformed(error: BaseException) -> str | None:
    """Return what to say of a reply that is no HTTP, or leads nowhere; None if `error` says something else."""
    if isinstance(error, _loaded(("aiohttp", "TooManyRedirects"))):
        return "the server redirects again and again"
    if isinstance(error, _loaded(("aiohttp", "RedirectClientError"))):
        return "the server redirects to what is no HTTP"
    if isinstance(error, _loaded(("aiohttp", "ClientResponseError"))):
        # Its own words hold the URL, with any token in it.
        return f"the reply is not HTTP ({shown(' '.join(str(getattr(error, 'message', '')).split()), 100)})"
    return None


def _s3_failure(response: Mapping[str, Any]) -> Failure:
    error, meta = response.get("Error", {}), response["ResponseMetadata"]
    code = str(error.get("Code", ""))
    retry_after = str(meta.get("HTTPHeaders", {}).get("retry-after", ""))
    if code == "RequestTimeout":  # comes with status 400
        return Failure("status 400 RequestTimeout")
    # A HEAD has no body, so its code is the status once more.
    words = error.get("Message", "") if code.isdecimal() else code
    return status_failure(int(meta.get("HTTPStatusCode", 500)), words, retry_after)


def _wrong_length(num_bytes: int, data: bytes) -> Failure | None:
    if len(data) > num_bytes:
        return Failure(f"the server ignores byte ranges (it answered with {len(data)} bytes)", is_final=True)
    return None if len(data) == num_bytes else Failure(f"got {len(data)} bytes", is_short=True)


def _error_or_raise(request: _Request, failure: Failure, number: int) -> RangeError:
    place, num_bytes, offset = _shown(request.place), request.num_bytes, request.offset
    if failure.is_short and num_bytes:
        return _too_short(place, offset, num_bytes, f"{failure.reason} (try {number})")
    if failure.is_final:
        raise ShardError(f"{place} must be readable, but: {failure.reason}")
    what = f"{num_bytes} bytes at {offset}" if num_bytes else "its size"
    raise ShardError(
        f"{place} must deliver {what}, but {number} tries failed, the last one with: {failure.reason}; check the "
        "network and the server, or raise remote.num_tries or remote.timeout_s"
    )


def _bytes_or_raise(found: bytes | RangeError) -> bytes:
    if isinstance(found, RangeError):
        raise found
    return found


def _too_short(place: str, offset: int, num_bytes: int, found: str) -> RangeError:
    return RangeError(f"{place} must have {num_bytes} bytes at {offset}, {found}")


def _unreadable(place: str, error: OSError) -> ShardError:
    return ShardError(f"shard {place} must be readable: {error.strerror or error}")


def _reason(error: BaseException) -> str:
    return shown(" ".join(str(error).split()), 300) or type(error).__name__


def _loaded(*names: tuple[str, str]) -> tuple[type[BaseException], ...]:
    """Return the classes (module, name) of those modules that are imported: only these can have raised anything."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def _protocol(place: str) -> str:
    return place.partition("://")[0]


def _shown(place: str) -> str:
    """Return `place` without the password and the token that a URL may carry."""
    if _protocol(place) not in _HTTP:
        return place
    parts = urlsplit(place)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
