"""Errors that are the caller's or the data's fault: one sentence, exit code 2."""

MAX_SENTENCE = 4000
"""Characters of a message."""
_KEPT_AT_END = 1000
"""Where the way out stands."""


class InputError(Exception):
    """Something the caller gave cannot be used; the message says what must hold, what came and what to do.

    What came may be of any length: of a long message the middle is left out.
    """

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) <= MAX_SENTENCE:
            return message
        return f"{message[: MAX_SENTENCE - _KEPT_AT_END - 5]} ... {message[-_KEPT_AT_END:]}"


class CorpusError(InputError):
    """A corpus on disk is not what its module expects."""


class AudioError(InputError):
    """Audio cannot be decoded into finite, non-empty samples."""


class ShardError(InputError):
    """A shard folder is missing, incomplete or does not match its checksums."""


class RangeError(ShardError):
    """A shard ends before the bytes that its index names: the record is damaged, the place where it lies is not."""


class SplitError(InputError):
    """A train/dev/test split is impossible, empty or shares speakers."""


class PlanError(InputError):
    """A data schedule cannot be built from the given sizes."""


class FilterError(InputError):
    """A metadata filter is not a valid expression over known fields."""
