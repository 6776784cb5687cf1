"""What a user may set about data: which shards, which split, how batches are cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from shards.shown import shown

if TYPE_CHECKING:
    from shards.windows import Windowing
from shards.record import Section

MIN_WINDOW_S = 0.1
MIN_HOP_S = 0.02


def usable_path(text: str) -> str:
    """Return a path as the system takes it: `~` and `~user` at its beginning are that user's home.

    Raises:
        ValueError: if it is empty, has blanks around it or signs that cannot be seen, or there is no such user.
    """
    told = repr(shown(text, 200))
    if not text or text != text.strip():
        raise ValueError(f"must be a path without blanks around it, got {told}; the current folder is '.'")
    if shown(text) != text:
        raise ValueError(f"must be a path without control characters and line ends, got {told}")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(
            f"must begin with a user whose home is known, got {told}; './~' begins what is really called so"
        ) from None


PathText = Annotated[str, AfterValidator(usable_path)]
"""A file, a folder, or the URL or public name of something like it, in a configuration."""


MAX_SECONDS = 1e9
"""Thirty years, for ever; what waits takes at most 292."""
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Count = Annotated[int, Field(gt=0, lt=2**31)]


class StoredSplit(Section):
    """The corpus's own split; where it has no dev part, whole training speakers are held out for it."""

    policy: Literal["stored"] = "stored"
    corpus: str | None = None
    """Applies to this corpus only; None applies to all that no other rule names."""
    num_dev_speakers: int = Field(default=0, ge=0, lt=2**31)
    """Training speakers moved to dev when the corpus has no dev part."""


class LeaveOneOut(Section):
    """One group (a speaker, a session) is the test set; the next `num_dev_groups` in order are dev."""

    policy: Literal["leave_one_out"]
    corpus: str | None = None
    field: Literal["speaker", "session"] = "speaker"
    fold: int = Field(default=0, ge=0, lt=2**31)
    """Index of the test group among the sorted groups."""
    num_dev_groups: Count = 1
    partners: Literal["dev", "train"] = "dev"
    """With `field: speaker`, where they go who share a session or dialogue with the test speaker: into dev, before (and
    if need be beyond) `num_dev_groups` others, or nowhere in particular (`train`), which every result then says."""


class RandomSpeakers(Section):
    """Speakers drawn by seed into test and dev, gender-balanced as far as possible."""

    policy: Literal["random_speakers"]
    corpus: str | None = None
    num_test_speakers: Count = 2
    num_dev_speakers: Count = 1
    seed: int = 0


SplitRule = Annotated[StoredSplit | LeaveOneOut | RandomSpeakers, Field(discriminator="policy")]


class SamplingConfig(Section):
    """How often utterances are drawn; an epoch has as many draws as utterances. Nothing set: each exactly once."""

    corpora: dict[str, Annotated[float, Field(gt=0, le=1e12)]] = Field(default_factory=dict)
    """Share of the draws per corpus, e.g. {emodb: 1, an4: 3}; all of the stage's corpora or none."""
    balance: str | None = None
    """Metadata field whose values are drawn equally often, e.g. `emotion`; utterances without it stay as they were."""
    balance_power: float = Field(default=1.0, ge=0, le=1)
    """1 balances fully, 0 not at all."""
    weight: str | None = None
    """Metadata field with each utterance's weight, e.g. `extra.weight`."""


class RemoteConfig(Section):
    """How shards behind URLs are read."""

    cache_dir: PathText | None = None
    """Folder on a disk of this node that keeps what was read; None reads everything anew."""
    cache_max_gb: float = Field(default=50.0, gt=0, le=1e9)
    """Size (10^9 bytes) above which the oldest entries of `cache_dir` are deleted."""
    num_tries: int = Field(default=6, gt=0, le=1000)
    """Requests for one byte range before its failure stops the run."""
    timeout_s: Seconds = 20.0
    """Deadline of one request, from connecting to the last byte."""
    first_wait_s: Seconds = 0.5
    """Pause before the second try; each further one is twice as long (at most 30 s), all times a random 0.5 to 1.5."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keyword arguments of fsspec's file systems by protocol: `{s3: {endpoint_url: http://minio:9000}}`."""

    @field_validator("options")
    @classmethod
    def _known_protocols(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if options:
            from fsspec import available_protocols

            if unknown := sorted(options.keys() - set(available_protocols())):
                raise ValueError(f"must be keyed by fsspec protocols such as s3 or https, got {unknown}")
        return options


class DataConfig(Section):
    """Shards, split and schedule."""

    shards: str | tuple[str, ...]
    """A shard folder, or several that are read as one corpus."""
    splits: tuple[SplitRule, ...] = (StoredSplit(),)
    allow_speaker_overlap: bool = False
    """Accept speakers that stand in more than one split; every result then carries the word."""
    allow_recording_overlap: bool = False
    """Accept one recording, or segments of one file, in more than one split; every result then says so."""
    batch_utterances: Count = 16
    """Utterances of one optimizer step, over all processes and accumulation micro-batches."""
    max_micro_batch_s: Seconds = 160.0
    """Padded seconds one process forwards at once; more are cut into accumulation micro-batches."""
    window_s: float | None = Field(default=None, ge=MIN_WINDOW_S, le=MAX_SECONDS)
    """Longer clips are heard in windows of so many seconds: a random one each time in training, all of them in
    evaluation. None: clips are heard whole."""
    window_overlap_s: float | None = Field(default=None, ge=0, le=MAX_SECONDS)
    """Seconds that neighbouring windows share in evaluation; None: a quarter of `window_s`."""
    pool_utterances: Count = 1600
    """Utterances sorted by duration together before they are cut into steps."""
    num_workers: int = Field(default=1, ge=0, le=1000)
    """Reader processes of each training process; 0 reads in the training process itself."""
    worker_timeout_s: Seconds = 300.0
    """A reader that delivers nothing for so long is an error."""
    remote: RemoteConfig = RemoteConfig()
    """Only for shards behind URLs."""
    max_bad_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of a stage's utterances that may turn out corrupt at reading before the run stops."""

    @property
    def shard_folders(self) -> tuple[str, ...]:
        """The shard folders as a tuple."""
        return (self.shards,) if isinstance(self.shards, str) else self.shards

    @field_validator("shards")
    @classmethod
    def _usable(cls, shards: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return usable_path(shards) if isinstance(shards, str) else tuple(map(usable_path, shards))

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not self.shard_folders:
            raise ValueError("must name at least one shard folder, got an empty list")
        self._check_windows()
        named = [rule.corpus for rule in self.splits]
        if len(set(named)) != len(named):
            raise ValueError(f"splits must have one rule per corpus, got rules for {named}")
        return self

    def _check_windows(self) -> None:
        if self.window_s is None:
            if self.window_overlap_s is not None:
                raise ValueError(f"window_overlap_s needs a window_s, got {self.window_overlap_s:g} without one")
            return
        if self.window_s > self.max_micro_batch_s:
            raise ValueError(f"window_s must fit max_micro_batch_s {self.max_micro_batch_s:g}, got {self.window_s:g}")
        if self.window_overlap_s is not None and self.window_overlap_s > self.window_s - MIN_HOP_S:
            raise ValueError(
                f"window_overlap_s must be at least {MIN_HOP_S:g} less than window_s {self.window_s:g}, got "
                f"{self.window_overlap_s:g}"
            )

    @property
    def windowing(self) -> Windowing | None:
        """The windows that longer clips are heard in; None: clips are heard whole."""
        from shards.windows import Windowing  # loads numpy, which `metaser --help` must not

        return None if self.window_s is None else Windowing.of_seconds(self.window_s, self.window_overlap_s)
