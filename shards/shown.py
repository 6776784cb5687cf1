"""Words of others made fit to be shown: one line, nothing that a terminal obeys."""

from __future__ import annotations

import unicodedata

_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Controls, marks of direction and other unseen ones, lone surrogates, ends of lines and paragraphs."""
_KEPT = ("\u200c", "\u200d")
"""Joiners, without which words of Persian and of Indian languages are misspelled."""


def shown(text: str, max_chars: int | None = None) -> str:
    r"""Return `text` with what a terminal would obey written out (`\x1b`, `\n`, `\u202e`), cut after `max_chars`."""
    if not text.isprintable():
        text = "".join(_written_out(sign) if _is_obeyed(sign) else sign for sign in text)
    return text if max_chars is None or len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def _is_obeyed(sign: str) -> bool:
    return unicodedata.category(sign) in _OBEYED and sign not in _KEPT


def _written_out(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")
