"""The signals that ask a training to save and stop; loads no torch."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""As schedulers send them; Ctrl-C, which reaches every process of a terminal, is apart."""
