import os
import subprocess
import sys
import time

from metaser.train.timing import CpuWait, cpu_seconds

LOOP = "while True: pass"


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_computing_counts_as_computing_and_sleeping_as_neither():
    before = cpu_seconds()
    spin(0.2)
    time.sleep(0.3)
    computed, waited = (now - start for now, start in zip(cpu_seconds(), before, strict=True))
    assert computed > 0
    assert computed + waited < 0.4


def test_a_process_that_has_to_share_one_processor_says_so_once():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        others = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(3)]
        try:
            wait = CpuWait()
            said = []
            for _ in range(2 * CpuWait.STEPS):
                spin(0.05)
                said.append(wait.after_step())
        finally:
            for other in others:
                other.kill()
                other.wait()
    finally:
        os.sched_setaffinity(0, allowed)
    (sentence,) = [words for words in said if words is not None]
    assert said[CpuWait.STEPS - 1] == sentence
    assert sentence.startswith("other work shares the processors: in the first 10 steps this process waited for one ")
