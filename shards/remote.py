"""Byte ranges of files behind URLs, through fsspec.

Each request has a deadline, is made again after a transient failure, and its reply is checked for position and length.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shards.config import RemoteConfig
from shards.errors import RangeError, ShardError
from shards.failures import Failure, ReplyError, failure_of, reason_of
from shards.httpranges import client_options, read_range, read_size
from shards.urls import HTTP, S3, protocol_of, shown_url

NUM_CONCURRENT = 16
"""Requests that one process has under way at once."""
_MAX_WAIT_S = 30.0
_random = random.SystemRandom()
"""Apart from the generator that training seeds."""


class RemoteFiles:
    """Reads files behind URLs; holds no connection, as fsspec keeps one file system per process and options."""

    def __init__(self, config: RemoteConfig | None = None) -> None:
        self._config = config or RemoteConfig()

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | RangeError]:
        """Return the bytes of several ranges (URL, offset, length), requested concurrently.

        Where a file ends before its range does, the error stands in the range's place: the others are good.

        Raises:
            ShardError: if the bytes of a range cannot be had for another reason.
        """
        return self._ask([self._range_request(*wanted) for wanted in ranges])

    def size(self, place: str) -> int:
        """Return the length in bytes of the file behind a URL.

        Raises:
            ShardError: if it cannot be had.
        """

        def check(info: Mapping[str, Any]) -> Failure | None:
            if info["type"] != "file":
                return Failure(f"it is a {info['type']}, not a file", is_permanent=True)
            return None if isinstance(info["size"], int) else Failure("the server tells no size", is_permanent=True)

        filesystem, path = self._filesystem(place)
        if protocol_of(place) in HTTP:
            (size,) = self._ask([_Request(place, 0, 0, partial(read_size, filesystem, path), lambda _: None)])
            return int(size)
        (info,) = self._ask([_Request(place, 0, 0, partial(_method(filesystem, "info"), path), check)])
        return int(info["size"])

    def _range_request(self, place: str, offset: int, num_bytes: int) -> _Request:
        filesystem, path = self._filesystem(place)
        call: Callable[[], Awaitable[bytes]]
        if protocol_of(place) in HTTP:
            call = partial(read_range, filesystem, path, offset, num_bytes)
        elif protocol_of(place) in S3:
            call = partial(_read_s3_range, filesystem, path, offset, num_bytes)
        else:
            call = partial(_method(filesystem, "cat_file"), path, start=offset, end=offset + num_bytes)
        return _Request(place, offset, num_bytes, call, partial(_wrong_length, num_bytes))

    def _filesystem(self, place: str) -> tuple[Any, str]:
        """Return fsspec's file system for `place`, and its name there."""
        # Late, because most training is local: importing fsspec and aiohttp takes 0.2 s.
        from fsspec.core import url_to_fs

        protocol = protocol_of(place)
        options = dict(self._config.options.get(protocol, {}))
        try:
            if protocol in HTTP:
                options["client_kwargs"] = client_options(options.get("client_kwargs", {}))
            elif protocol in S3:
                # Retrying is done here, once, and not in three layers that multiply.
                options["config_kwargs"] = {"retries": {"total_max_attempts": 1}} | options.get("config_kwargs", {})
            filesystem, path = url_to_fs(place, **options)
        except ImportError as error:
            raise ShardError(f"{shown_url(place)} needs a package that is missing: {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ShardError(
                f"{shown_url(place)} cannot be opened with remote.options of {protocol}: {reason_of(error)}"
            ) from error
        if protocol in S3:
            filesystem.retries = 1
        return filesystem, path

    def _ask(self, requests: Sequence[_Request]) -> list[Any]:
        """Return the reply to each request, asking again for those whose failure is transient.

        A file that is too short is a reply, too: the `RangeError` that says so.

        Raises:
            ShardError: if a request fails permanently, or `num_tries` times.
        """
        if not requests:
            return []
        from fsspec.asyn import get_loop, sync

        replies: dict[int, Any] = {}
        pending = list(range(len(requests)))
        for number in range(1, self._config.num_tries + 1):
            asked = [requests[position] for position in pending]
            failures: dict[int, Failure] = {}
            results = sync(get_loop(), _gather, [request.call for request in asked], self._config.timeout_s)
            for position, request, result in zip(pending, asked, results, strict=True):
                is_raised = isinstance(result, BaseException)
                failure = failure_of(result, self._config.timeout_s) if is_raised else request.check(result)
                if failure is None:
                    replies[position] = result
                elif failure.is_permanent or number == self._config.num_tries:
                    replies[position] = _error_or_raise(request, failure, number)
                else:
                    failures[position] = failure
            pending = list(failures)
            if not pending:
                break
            time.sleep(self._wait_s(number, failures.values()))
        return [replies[position] for position in range(len(requests))]

    def _wait_s(self, number: int, failures: Iterable[Failure]) -> float:
        own_s = min(_MAX_WAIT_S, self._config.first_wait_s * 2.0 ** (number - 1)) * _random.uniform(0.5, 1.5)
        return max(own_s, *(min(_MAX_WAIT_S, failure.retry_after_s) for failure in failures))


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
    raise ReplyError(Failure(f"the server ignores byte ranges (it answered with {found} bytes)", is_permanent=True))


def _wrong_length(num_bytes: int, data: bytes) -> Failure | None:
    if len(data) > num_bytes:
        return Failure(f"the server ignores byte ranges (it answered with {len(data)} bytes)", is_permanent=True)
    return None if len(data) == num_bytes else Failure(f"got {len(data)} bytes", is_short=True)


def _error_or_raise(request: _Request, failure: Failure, number: int) -> RangeError:
    place, num_bytes, offset = shown_url(request.place), request.num_bytes, request.offset
    if failure.is_short and num_bytes:
        return too_short(place, offset, num_bytes, f"{failure.reason} (try {number})")
    if failure.is_permanent:
        raise ShardError(f"{place} must be readable, but: {failure.reason}")
    what = f"{num_bytes} bytes at {offset}" if num_bytes else "its size"
    raise ShardError(
        f"{place} must deliver {what}, but {number} tries failed, the last one with: {failure.reason}; check the "
        "network and the server, or raise remote.num_tries or remote.timeout_s"
    )


def too_short(place: str, offset: int, num_bytes: int, found: str) -> RangeError:
    """Return the error of a file that ends before a range does; `found` says what came instead."""
    return RangeError(f"{place} must have {num_bytes} bytes at {offset}, {found}")
