"""What is odd about a corpus: counted for each shard's audio, and said in the manifest's warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field

from shards.audio import MIN_FLAT_SAMPLES, QUIET_PEAK, Sound, is_clipped
from shards.corpora.identities import nearly_equal
from shards.index import Index, duplicate_rows
from shards.record import Section
from shards.schema import RATE_HZ

_MIN_CLIPS_TO_WARN = 20
_NUM_SHOWN_DUPLICATES = 5
_NAMED_FIELDS = ("speaker", "session", "dialogue", "emotion", "gender", "intensity")


class AudioCounts(Section):
    """What is odd about a shard's audio."""

    num_mixed_down: int = 0
    first_mixed_down: str | None = None
    num_with_silent_channel: int = 0
    first_with_silent_channel: str | None = None
    """Its name, and which of its channels."""
    num_clipped: int = 0
    num_quiet: int = 0
    num_endless: int = 0
    """OGG files whose last page is not marked as such."""
    first_endless: str | None = None
    num_other_duration: int = 0
    """Whole files that do not last as long as the corpus states."""
    first_other_duration: str | None = None
    """Its name and both durations."""
    rates_hz: dict[int, int] = Field(default_factory=dict)
    """Number of utterances per original rate."""

    def plus(self, name: str, sound: Sound, pcm: np.ndarray) -> AudioCounts:
        """Return the counts with one more clip: what its channels held, and its 16-bit samples."""
        is_mixed, silent, rate_hz = sound.num_channels > 1, sound.silent_channels, sound.rate_hz
        described = f"channel {', '.join(map(str, silent))} of {name}"
        highest, lowest = int(pcm.max()), int(pcm.min())
        return AudioCounts(
            num_mixed_down=self.num_mixed_down + is_mixed,
            first_mixed_down=self.first_mixed_down or (name if is_mixed else None),
            num_with_silent_channel=self.num_with_silent_channel + bool(silent),
            first_with_silent_channel=self.first_with_silent_channel or (described if silent else None),
            num_clipped=self.num_clipped + is_clipped(pcm),
            num_quiet=self.num_quiet + (max(highest, -lowest) < QUIET_PEAK),
            num_endless=self.num_endless,
            first_endless=self.first_endless,
            num_other_duration=self.num_other_duration,
            first_other_duration=self.first_other_duration,
            rates_hz={**self.rates_hz, rate_hz: self.rates_hz.get(rate_hz, 0) + 1},
        )

    def plus_other_duration(self, name: str, stated_s: float, found_s: float) -> AudioCounts:
        """Return the counts with one more file that lasts `found_s` instead of `stated_s`."""
        described = f"{name} ({stated_s:g} s stated, {found_s:.3f} s found)"
        return self.model_copy(
            update={
                "num_other_duration": self.num_other_duration + 1,
                "first_other_duration": self.first_other_duration or described,
            }
        )

    def plus_endless(self, name: str) -> AudioCounts:
        """Return the counts with one more OGG file that may have been cut between two pages."""
        return self.model_copy(
            update={"num_endless": self.num_endless + 1, "first_endless": self.first_endless or name}
        )


def corpus_warnings(index: Index, counts: Sequence[AudioCounts]) -> Iterator[str]:
    """Yield a sentence for everything odd about a whole corpus; `counts` are those of its shards."""
    total = len(index)
    num_clipped, num_quiet = (sum(getattr(count, name) for count in counts) for name in ("num_clipped", "num_quiet"))
    yield from _channel_warnings(total, counts)
    rates_hz: Counter[int] = Counter()
    for count in counts:
        rates_hz.update(count.rates_hz)
    if len(rates_hz) > 1:
        found = ", ".join(f"{rates_hz[rate]} at {rate} Hz" for rate in sorted(rates_hz))
        yield f"the sources have several sample rates ({found}); all are brought to {RATE_HZ} Hz"
    if num_clipped:
        yield f"{num_clipped} of {total} utterances are clipped ({MIN_FLAT_SAMPLES} or more samples at full scale)"
    num_endless = sum(count.num_endless for count in counts)
    if num_endless:
        first = next(count.first_endless for count in counts if count.first_endless is not None)
        yield (
            f"{num_endless} of {total} utterances are of OGG files without a mark at their end, the first {first}; "
            "some recorders never set it, but a copy that was cut between two pages lacks it as well"
        )
    num_other_duration = sum(count.num_other_duration for count in counts)
    if num_other_duration:
        first = next(count.first_other_duration for count in counts if count.first_other_duration is not None)
        yield (
            f"{num_other_duration} of {total} utterances last longer or shorter than the column of durations says, the "
            f"first {first}; they are whole files, because only beside a column start is a duration that of a part"
        )
    if num_quiet:
        yield f"{num_quiet} of {total} utterances are all but silent (peak below -60 dB of full scale)"
    yield from _near_names(index)
    yield from _duplicate_warning(index)
    lengths, times = np.unique(index.num_samples, return_counts=True)
    if total >= _MIN_CLIPS_TO_WARN and times.max() > total / 2:
        yield (
            f"{times.max()} of {total} utterances last exactly {lengths[times.argmax()] / RATE_HZ:.3f} s; was this "
            "copy of the corpus cut or padded?"
        )
    emotions = index.codes("emotion").counts()
    if len(emotions) == 1 and sum(emotions.values()) >= _MIN_CLIPS_TO_WARN:
        yield f"all {sum(emotions.values())} emotion labels are {next(iter(emotions))!r}, which teaches nothing"


def _near_names(index: Index) -> Iterator[str]:
    """Yield a sentence for every field in which one thing may have two names."""
    for name in _NAMED_FIELDS:
        counts = index.codes(name).counts()
        groups = nearly_equal(counts)
        if groups:
            shown = "; ".join(" and ".join(f"{word!r} ({counts[word]})" for word in group) for group in groups[:5])
            more = f"; and {len(groups) - 5} more" if len(groups) > 5 else ""
            yield (
                f"{name} has values that differ only in case, blanks, punctuation or how a number is written: "
                f"{shown}{more}; if they are one, spell them alike"
            )


def _channel_warnings(total: int, counts: Sequence[AudioCounts]) -> Iterator[str]:
    num_mixed_down = sum(count.num_mixed_down for count in counts)
    num_half_silent = sum(count.num_with_silent_channel for count in counts)
    if num_mixed_down:
        first = next(count.first_mixed_down for count in counts if count.first_mixed_down)
        yield (
            f"{num_mixed_down} of {total} utterances had several channels and were mixed down to one, the first "
            f"{first}; where each channel is another person, take one with --channel or a column channel"
        )
    if num_half_silent:
        first = next(count.first_with_silent_channel for count in counts if count.first_with_silent_channel)
        yield f"{num_half_silent} of {total} utterances had a channel without sound, the first {first}"


def _duplicate_warning(index: Index) -> Iterator[str]:
    groups = duplicate_rows(index)
    if not groups:
        return
    shown = "; ".join(" = ".join(index.take(group).values("key")) for group in groups[:_NUM_SHOWN_DUPLICATES])
    more = f"; and {len(groups) - _NUM_SHOWN_DUPLICATES} more" if len(groups) > _NUM_SHOWN_DUPLICATES else ""
    num_across = sum(len(set(index.take(group).values("split"))) > 1 for group in groups)
    across = f", {num_across} of them across splits" if num_across else ""
    yield f"{len(groups)} groups of utterances have identical audio{across}: {shown}{more}"
