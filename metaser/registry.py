"""Registries name classes by where they are, so that nothing is imported that is not used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def imported(place: str) -> Any:
    """Return the class that stands at `MODULE:CLASS`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
