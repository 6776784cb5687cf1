import os
import subprocess
import sys

import pytest

from launch.waiting import CHOICES


def seen_by_an_action(chosen):
    """Return what an action under `exit_code` sees of the variables, and whether torch had been loaded before."""
    code = (
        "import os, sys\n"
        "from launch.exits import exit_code\n"
        f"exit_code(lambda: print([os.environ.get(name) for name in {CHOICES!r}], 'torch' in sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | chosen, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_threads_wait_passively_before_torch_is_loaded():
    assert seen_by_an_action({}) == "['passive', '1000', None] False"


@pytest.mark.parametrize("name", CHOICES)
def test_whoever_has_chosen_keeps_it(name):
    expected = [("7" if choice == name else None) for choice in CHOICES]
    assert seen_by_an_action({name: "7"}) == f"{expected} False"
