"""Words of others made fit to be shown: one line, nothing that a terminal obeys."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Controls, marks of direction and other unseen ones, lone surrogates, ends of lines and paragraphs."""
_KEPT = ("\u200c", "\u200d")
"""Joiners, without which words of Persian and of Indian languages are misspelled."""


def shown(text: str, max_chars: int | None = None) -> str:
    r"""Return `text` with what a terminal would obey written out (`\x1b`, `\n`, `\u202e`), cut after `max_chars`."""
    if not text.isprintable():
        text = "".join(_written_out(sign) if _is_obeyed(sign) else sign for sign in text)
    return text if max_chars is None or len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def shown_text(text: str) -> Text:
    """Return `shown(text)` for a table or a line of rich's, which reads no markup and no emoji in it."""
    from rich.text import Text

    return Text(shown(text))


def shown_table(titles: Iterable[str], rows: Iterable[Iterable[str]], **options: Any) -> Table:
    """Return a table of rich's, made with `options`, of titles and cells that are shown as `shown_text`."""
    from rich.table import Table

    table = Table(**options)
    for title in titles:
        table.add_column(shown_text(title))
    for row in rows:
        table.add_row(*map(shown_text, row))
    return table


class ShownRecords(logging.Filter):
    """Makes messages fit to be shown; one that is logged with `extra={"has_lines": True}` may have several lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Write out the message and let it through."""
        message = record.getMessage()
        lines = message.split("\n") if getattr(record, "has_lines", False) else [message]
        record.msg, record.args = "\n".join(map(shown, lines)), None
        return True


def _is_obeyed(sign: str) -> bool:
    return unicodedata.category(sign) in _OBEYED and sign not in _KEPT


def _written_out(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")
