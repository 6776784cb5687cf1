"""Why a run stops: the same reason in every process, and the strongest where there are several."""

import os
import signal
import time

from hypothesis import given
from hypothesis import strategies as st

from metaser.train.stop import REASONS, STOP_FILE, StopRequest, reason_flags, strongest_reason


@given(st.lists(st.sampled_from([None, *REASONS]), min_size=1, max_size=9))
def test_the_strongest_reason_of_all_processes(reasons):
    total = [sum(flags) for flags in zip(*map(reason_flags, reasons), strict=True)]
    assert strongest_reason(total) == max(reasons, key=(None, *REASONS).index)


@given(st.lists(st.sampled_from(REASONS)))
def test_a_weaker_reason_replaces_none(reasons):
    request = StopRequest()
    for reason in reasons:
        request.agree(reason)
    assert request.reason == max([None, *reasons], key=(None, *REASONS).index)
    assert request.is_by_person == (STOP_FILE in reasons)


def test_the_file_after_a_signal_is_by_a_person(tmp_path):
    file = tmp_path / ".stop"
    with StopRequest(file) as request:
        assert request.look() is None
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request.look() == "SIGUSR2"
        assert not request.is_by_person
        file.touch()
        # The kernel stamps files with a clock that is some milliseconds late.
        os.utime(file, (time.time() + 1, time.time() + 1))
        assert request.is_by_person


def test_another_process_saw_the_file_which_is_not_here_yet(tmp_path):
    request = StopRequest(tmp_path / ".stop")
    request.agree(STOP_FILE)
    assert request.is_by_person
