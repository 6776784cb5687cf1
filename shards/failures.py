"""Why remote reading fails, and for how long: a transient failure may not happen again, a permanent one will.

What fsspec's file systems raise is told apart here: HTTP statuses, botocore's and gcsfs's errors, those of the system.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.shown import shown

_TRANSIENT_4XX = (408, 425, 429)
_PERMANENT_5XX = (501, 505)
_MAX_DIGITS = 18
"""Of a length in bytes; longer ones are none of this world."""
_MAX_SHOWN = 100
_PERMANENT_ERRNOS = (errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, errno.EREMCHG)
# What file systems raise beside HTTP statuses, by module, tried in this order.
_PERMANENT_FIRST = (
    ("builtins", "FileNotFoundError"),
    ("builtins", "PermissionError"),
    ("builtins", "IsADirectoryError"),
    ("builtins", "NotADirectoryError"),
    ("aiohttp", "InvalidURL"),
    ("aiohttp", "NonHttpUrlClientError"),
    ("aiohttp", "TooManyRedirects"),
    ("aiohttp", "ClientConnectorCertificateError"),
)
_TRANSIENT = (
    ("builtins", "OSError"),
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.exceptions", "ChecksumError"),
    ("botocore.parsers", "ResponseParserError"),
    ("gcsfs.retry", "HttpError"),
)
_PERMANENT = (
    ("builtins", "ImportError"),
    ("builtins", "NotImplementedError"),
    # An unknown option, or one of another type, which connecting is the first to use.
    ("builtins", "TypeError"),
    ("builtins", "AttributeError"),
    ("builtins", "ValueError"),
    ("botocore.exceptions", "BotoCoreError"),
)


@dataclass(frozen=True)
class Failure:
    """Why a request did not give what was asked for."""

    reason: str
    is_permanent: bool = False
    """Asking again will not help."""
    is_short: bool = False
    """The file, as far as is known, ends before the range does."""
    retry_after_s: float = 0.0


class ReplyError(Exception):
    """An HTTP reply that is not what was asked for."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def stated_number(digits: str) -> int | None:
    """Return the whole number that a header states, None if it states none or one of too many digits."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS else None


def status_failure(status: int, reason: str, retry_after: str) -> Failure:
    """Return what a status of 400 or more says."""
    is_transient = status in _TRANSIENT_4XX or (status >= 500 and status not in _PERMANENT_5XX)
    return Failure(
        f"status {status} {shown(reason, _MAX_SHOWN)}".rstrip(),
        is_permanent=not is_transient,
        is_short=status == 416,
        retry_after_s=float(stated_number(retry_after) or 0),
    )


def failure_of(error: BaseException, timeout_s: float) -> Failure:
    """Return what went wrong with a request, and whether it is transient.

    Args:
        error: What the request raised.
        timeout_s: The deadline that the request had.

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
        return Failure(words, is_permanent=isinstance(error, _loaded(*_PERMANENT_FIRST)))
    if isinstance(error, TimeoutError):
        return Failure(f"no whole reply within {timeout_s:g} s")
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
    if isinstance(error, _loaded(*_PERMANENT_FIRST)) or getattr(error, "errno", None) in _PERMANENT_ERRNOS:
        return Failure(reason, is_permanent=True)
    if isinstance(error, _loaded(*_TRANSIENT)):
        return Failure(reason)
    if isinstance(error, _loaded(*_PERMANENT)):
        return Failure(reason, is_permanent=True)
    raise error


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


def reason_of(error: BaseException) -> str:
    """Return what an error says, on one line; its type where it says nothing."""
    return shown(" ".join(str(error).split()), 300) or type(error).__name__


def _loaded(*names: tuple[str, str]) -> tuple[type[BaseException], ...]:
    """Return the classes (module, name) of those modules that are imported: only these can have raised anything."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
