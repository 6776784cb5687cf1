from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import MAX_SENTENCE, CorpusError, InputError
from shards.schema import make_key


@given(st.integers(0, 3 * MAX_SENTENCE))
def test_a_message_of_any_length_is_a_sentence_with_its_way_out(length):
    told = str(InputError(f"a name must be short, got {'x' * length}; give a shorter one"))
    assert len(told) <= MAX_SENTENCE
    assert told.startswith("a name must be short, got ") and told.endswith("; give a shorter one")


def test_a_part_of_a_key_of_any_length_is_told_in_short():
    with pytest.raises(CorpusError, match="encodes to 140000; rename it") as refused:
        make_key("c" * 140_000, "a")
    assert len(str(refused.value)) < 500


def test_a_value_on_the_command_line_of_any_length_is_told_in_short(tmp_path):
    command = [sys.executable, "-m", "launch.cli", "inspect", "x" * 100_000]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert said.returncode == 2 and len(said.stderr) <= MAX_SENTENCE + 10
