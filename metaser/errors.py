"""Errors of the training side that are the caller's fault: one sentence, exit code 2."""

from shards.errors import InputError


class ConfigError(InputError):
    """The experiment's configuration is wrong; the message lists every problem with its path and value."""


class ModelError(InputError):
    """A model or encoder folder cannot be loaded as asked."""


class RunError(InputError):
    """A run folder is missing, in use, incomplete or belongs to another experiment."""


class TrainingError(InputError):
    """Training cannot go on: the data, the process count or the numbers do not allow it."""
