"""Errors that are the caller's or the data's fault: one sentence, exit code 2."""


class InputError(Exception):
    """Something the caller gave cannot be used; the message says what must hold, what came and what to do."""


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
