"""What a user may say about data of their own when it is packed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from shards.record import Section

Quotes = Literal["auto", "double", "none"]


class ReadOptions(Section):
    """How tables and folders that have no published form are read; the defaults leave it to what is found there."""

    encoding: str | None = None
    """Of text files; None: a byte order mark, else UTF-8, else what can be told apart surely."""
    quotes: Quotes = "auto"
    """Whether `"` in a table encloses a cell or is a character like any other; `auto` finds out."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """What a column is, by its name; None leaves it out."""
    labels: dict[str, str | None] = Field(default_factory=dict)
    """What an emotion's word means; None: no emotion."""
    channel: PositiveInt | None = None
    """The channel to take of every file, counted from 1; None mixes them."""
    audio: Path | None = None
    """Where the audio lies, if not beside the table."""
    name: str | None = None
    """Of the corpus; None: the table's or the folder's."""
    licence: str | None = None

    @property
    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(NO_OPTIONS, name)]


NO_OPTIONS = ReadOptions()


def flag(option: str) -> str:
    """Return what the command line calls an option."""
    return f"--{option.replace('columns', 'map')}"
