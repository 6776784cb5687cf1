"""Paths and URLs told apart, joined, and shown without their secrets."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
HTTP = ("http", "https")
S3 = ("s3", "s3a")


def is_url(text: str) -> bool:
    """Tell whether `text` names something behind fsspec rather than a local path."""
    return _URL.match(text) is not None


def join(folder: str, name: str) -> str:
    """Return the place of file `name` in `folder`, a local path or a URL; an http(s) query (a token) is kept."""
    if not is_url(folder):
        return str(Path(folder) / name)
    if protocol_of(folder) in HTTP:
        parts = urlsplit(folder)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
    return f"{folder.rstrip('/')}/{name}"


def protocol_of(place: str) -> str:
    """Return what stands before a URL's `://`."""
    return place.partition("://")[0]


def shown_url(place: str) -> str:
    """Return `place` without the password and the token that a URL may carry."""
    if protocol_of(place) not in HTTP:
        return place
    parts = urlsplit(place)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
