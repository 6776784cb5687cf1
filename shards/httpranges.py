"""Byte ranges over HTTP: each reply's head is checked before its body, which is read up to what was asked for.

fsspec itself would take whatever body comes: a whole shard from a server that does not know ranges, another range than
the one that was asked for, or one that never ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shards.failures import Failure, ReplyError, stated_number, status_failure
from shards.shown import shown

_MAX_SHOWN = 100


def client_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an aiohttp session that checks every reply's head before its body is read."""
    import aiohttp

    headers = {"Accept-Encoding": "identity"} | dict(given.get("headers", {}))
    no_second_deadline = aiohttp.ClientTimeout()
    return {
        "timeout": no_second_deadline,
        # A few bytes may decompress to gigabytes; what comes compressed is refused by its head.
        "auto_decompress": False,
        **given,
        "headers": headers,
        "raise_for_status": _check_head,
    }


async def read_range(filesystem: Any, url: str, offset: int, num_bytes: int) -> bytes:
    """Return what an HTTP server has of a range, by a session of fsspec's `filesystem`; it may be less.

    Raises:
        ReplyError: if the reply is not that range, or goes on behind it.
    """
    options = dict(filesystem.kwargs)
    headers = {**options.pop("headers", {}), "Range": f"bytes={offset}-{offset + num_bytes - 1}"}
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), headers=headers, **options) as reply:
        parts: list[bytes] = []
        num_missing = num_bytes
        # A reply that states more need not be waited for.
        if (stated_number(reply.headers.get("Content-Length", "")) or 0) > num_bytes:
            num_missing = -1
        while num_missing >= 0:
            part = await reply.content.readany()
            if not part:
                return b"".join(parts)
            parts.append(part)
            num_missing -= len(part)
        reply.close()
    raise ReplyError(
        Failure(f"the server ignores byte ranges (it answered with more than {num_bytes} bytes)", is_permanent=True)
    )


async def read_size(filesystem: Any, url: str) -> int:
    """Return the length in bytes that an HTTP server states of a file.

    Raises:
        ReplyError: if it states none.
    """
    try:
        return await _stated_size(filesystem, url, "HEAD")
    except ReplyError as error:
        if not error.failure.is_permanent:
            raise
    # Servers may know GET alone; the body is not read.
    return await _stated_size(filesystem, url, "GET")


async def _stated_size(filesystem: Any, url: str, method: str) -> int:
    options = {"allow_redirects": True, **filesystem.kwargs}
    session = await filesystem.set_session()
    async with session.request(method, filesystem.encode_url(url), **options) as reply:
        reply.close()
        size = stated_number(reply.headers.get("Content-Length", ""))
    if size is None:
        raise ReplyError(Failure("the server tells no size", is_permanent=True))
    return size


async def _check_head(response: Any) -> None:
    """Raise `ReplyError` unless an HTTP reply carries what its request asked for."""
    failure = _head_failure(response.status, response.reason, response.headers, response.request_info.headers)
    if failure is not None:
        response.close()
        raise ReplyError(failure)


def _head_failure(
    status: int, reason: str | None, headers: Mapping[str, str], asked: Mapping[str, str]
) -> Failure | None:
    if status >= 400:
        return status_failure(status, reason or "", headers.get("Retry-After", ""))
    encoding = headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        return Failure(
            f"the server compresses what it sends (Content-Encoding {shown(encoding, _MAX_SHOWN)}); switch that off",
            is_permanent=True,
        )
    if "Range" not in asked:
        return None
    if status != 206:
        size = shown(headers.get("Content-Length", "an unknown number of"), _MAX_SHOWN)
        return Failure(
            f"the server ignores byte ranges (it answered status {status} with all {size} bytes); use a server that "
            "knows them, or copy the folder to a local disk",
            is_permanent=True,
        )
    start, end = asked["Range"].removeprefix("bytes=").split("-")
    found = headers.get("Content-Range", "none")
    if not re.fullmatch(rf"bytes {start}-{end}/(\d+|\*)", found):
        return Failure(
            f"the reply has Content-Range '{shown(found, _MAX_SHOWN)}'", is_short=found.startswith(f"bytes {start}-")
        )
    return None
