"""The run's `train.log`: what the packages say while it trains."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaser.rundir import RunDir
from metaser.runfiles import writing
from shards.shown import ShownRecords


class _RunLog(logging.FileHandler):
    """Ends the training, as any other file would, when the disk refuses; logging itself would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with writing(Path(self.baseFilename)):
            raise error


@contextmanager
def logging_to(run: RunDir, *, is_main: bool) -> Iterator[None]:
    """Send the package's messages to the run's log while training; other processes only warn."""
    if not is_main:
        yield
        return
    with writing(run.log):
        handler = _RunLog(run.log, encoding="utf-8")
    handler.addFilter(ShownRecords())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    packages = [logging.getLogger(name) for name in ("metaser", "shards")]
    levels = [package.level for package in packages]
    # Whoever calls us as a library may have set no level, which would leave the log empty.
    for package in packages:
        package.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        for package, level in zip(packages, levels, strict=True):
            package.setLevel(level)
