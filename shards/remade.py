"""Rows of adopted shards compared with what adopting would make of their tars again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.adoptjob import AdoptJob, cells_of
from shards.corpora.cells import CellError, CellReader
from shards.corpora.columns import metadata_columns
from shards.errors import CorpusError
from shards.indexwrite import index_row
from shards.manifest import Manifest, Settings
from shards.samples import SHOWN_CHARS, Member, Sample
from shards.schema import make_key
from shards.shown import shown
from shards.tarmembers import Forward, TarMember


class Remade:
    """What adopting would make of a tar's samples again, decoding aside, compared with their rows.

    What emotions' words mean here (`--labels`) is not kept: one word must have one meaning in all rows.
    """

    def __init__(self, folder_name: str, settings: Settings) -> None:
        """Set up for the tars of a folder with the name that it had when they were adopted."""
        self._folder_name = folder_name
        self._settings = settings
        self._meanings: dict[str, str | None] = {}
        self._reader = CellReader()
        self.begin("", ())

    @classmethod
    def of(cls, manifest: Manifest) -> Remade | None:
        """Return what compares the rows of an adopted folder, None where its name is not known to the letter."""
        if manifest.settings.shard_utterances or manifest.source is None:
            return None
        is_known = manifest.source.isascii() and make_key(manifest.source) == manifest.corpus
        return cls(manifest.source, manifest.settings) if is_known else None

    def begin(self, place: str, rows: Sequence[dict[str, Any]]) -> None:
        """Begin with the tar at `place`, and its rows."""
        self._job = AdoptJob(Path(place), self._folder_name, self._settings)
        self._rows = {row["audio_offset"]: row for row in rows}
        self._sample: Sample | None = None

    def take(self, member: TarMember, file: Forward, is_ours: bool) -> tuple[dict[str, Any], str] | None:
        """Take the next member, where `file` stands at its data.

        Args:
            member: What is there.
            file: The tar, which is read forward.
            is_ours: Whether it is MetaSER's own JSON, with which a row is compared elsewhere.

        Returns:
            The row of the sample before, and what is wrong with it; None if nothing is, or the sample goes on.
        """
        if member.is_folder:
            return None
        found = None
        if self._sample is None or member.stem != self._sample.name:
            found = self.end()
            self._sample = Sample(member.stem)
        self._sample.take(member, file, self._job.path)
        beside = self._sample.meta.get(member.suffix.lower())
        if beside is not None and not is_ours and beside.offset == member.offset:
            # Now, because the tar is read forward only.
            len(beside.data)
        return found

    def end(self) -> tuple[dict[str, Any], str] | None:
        """Return what `take` does, of the last sample."""
        sample, self._sample = self._sample, None
        row = None if sample is None else next(filter(None, map(self._row_at, sample.audio.values())), None)
        if sample is None or row is None or row["meta_offset"] is not None:
            return None
        problem = self._problem(sample.end(), row)
        return None if problem is None else (row, problem)

    def _row_at(self, sound: Member) -> dict[str, Any] | None:
        return self._rows.get(sound.offset)

    def _problem(self, sample: Sample, row: dict[str, Any]) -> str | None:
        if sample.is_unusable:
            return f"adopting would reject it ({sample.rejections[0].reason})"
        try:
            utterance = self._job.utterance(sample, self._reader)
            cells = cells_of(sample, {} if sample.is_ours else metadata_columns(tuple(sample.description)))
        except (CellError, CorpusError) as error:
            return f"adopting would reject it ({shown(str(error), SHOWN_CHARS)})"
        expected = index_row(utterance)
        # With which the member's name is compared already.
        del expected["source"]
        if not sample.is_ours and "emotion" in cells:
            expected["emotion"] = self._meanings.setdefault(cells["emotion"], row["emotion"])
        if not sample.is_ours and "emotion_votes" in cells:
            expected["emotion_votes"] = row["emotion_votes"]
        name = next((name for name, value in expected.items() if row[name] != value), None)
        return None if name is None else f"its {name} is not what lies beside its audio"
