"""What was read as something else than it says, counted, so that it can be told."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shards.corpora.identities import shown
from shards.emotionwords import KNOWN_WORDS
from shards.schema import Note

_MAX_HINTS = 100

Event = Literal[
    "missing",
    "kept text",
    "kept name",
    "read as",
    "own word",
    "number as name",
    "shortened number",
    "number as label",
    "no code",
    "column",
    "extra",
    "unread",
]


@dataclass
class Tally:
    """Counts of events; adds up over the parts of a corpus."""

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """By event, field, word and what it was read as."""

    def add(self, event: Event, name: str, word: str, meaning: str = "") -> None:
        """Count one event of the field `name`."""
        self.counts[event, name, word, meaning] += 1

    def as_rows(self) -> tuple[tuple[str, str, str, str, int], ...]:
        """Return the counts in a form that JSON holds."""
        return tuple((*what, count) for what, count in sorted(self.counts.items()))

    def add_rows(self, rows: Iterable[tuple[str, str, str, str, int]]) -> None:
        """Add what another tally's `as_rows` returned."""
        for event, name, word, meaning, count in rows:
            self.counts[event, name, word, meaning] += count

    def notes(self, labels: Mapping[str, str | None]) -> Iterator[Note]:
        """Yield what there is to say, `labels` being what the user said that words mean."""
        for event, opening, is_warning, ending in _SENTENCES:
            by_name = self._words(event)
            if by_name:
                found = "; ".join(f"{name} {words}" for name, words in by_name.items())
                yield Note(f"{opening}: {found}{ending}", is_warning)
        yield from self._own_words()
        used = {word for (_, name, word, _), _ in self.counts.items() if name == "emotion"}
        unused = [word for word in labels if word not in used]
        if unused:
            yield Note(f"--labels names what occurs in no emotion: {', '.join(unused)}", is_warning=True)

    def _words(self, event: str) -> dict[str, str]:
        """Return by field its words with their counts, the most frequent first."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for (what, name, word, meaning), count in sorted(self.counts.items()):
            if what == event:
                found[name].append((f"{word} as {meaning}" if meaning else word, count))
        return {name: shown(sorted(words, key=lambda item: -item[1])) for name, words in found.items()}

    def _own_words(self) -> Iterator[Note]:
        counts = {word: count for (event, _, word, _), count in sorted(self.counts.items()) if event == "own word"}
        if not counts:
            return
        # Each takes a millisecond, and a column that holds something else has as many words as rows.
        most_used = sorted(counts, key=lambda word: -counts[word])[:_MAX_HINTS]
        near = {word: difflib.get_close_matches(word, KNOWN_WORDS, n=1, cutoff=0.8) for word in most_used}
        hints = [f"{word} is nearly {found[0]}" for word, found in near.items() if found]
        yield Note(
            f"emotions that are kept in their own words: {shown(counts.items())}"
            f"{f' ({chr(44).join(hints)})' if hints else ''}; --labels {next(iter(counts))}=happiness, for one, reads "
            "them as others",
            is_warning=bool(hints),
        )


_SENTENCES = (
    ("column", "fields are read by their usual names", False, ""),
    ("extra", "what is no field is kept as extra, with the field that may be meant", False, ""),
    ("unread", "members of tars that mean nothing here are left alone", False, ""),
    ("missing", "words for a missing value count as absent", False, ""),
    ("read as", "words are read as", False, ""),
    ("number as name", "names that are numbers lose their zero decimals", False, ""),
    (
        "no code",
        "languages that are no codes such as de or pt-BR stay as they are",
        True,
        "; model cards name codes only",
    ),
    (
        "kept name",
        "what may be a name or a word for a missing value is kept as a name",
        True,
        "; blank these cells if nobody is called so",
    ),
    (
        "shortened number",
        "names are numbers of which a spreadsheet kept the first digits",
        True,
        "; several may have become one, so write them as text",
    ),
    (
        "kept text",
        "texts that may be a word for a missing value are kept",
        True,
        "; blank these cells if nobody says so",
    ),
    (
        "number as label",
        "emotions that are numbers are kept as words",
        True,
        "; say what they mean with --labels 0=anger,1=...",
    ),
)
