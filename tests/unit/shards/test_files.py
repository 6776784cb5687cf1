"""Files appear under their names whole, or not at all."""

import os

import pytest

from shards.errors import ShardError
from shards.files import atomic_file, file_sha256, whole_file


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_was_there_stays_until_the_block_ends(tmp_path, is_durable):
    path = tmp_path / "list.json"
    path.write_bytes(b"old")
    with whole_file(path, is_durable=is_durable) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    path = tmp_path / "list.json"
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_draft_of_ones_own_is_another_process_s_business(tmp_path):
    path, draft = tmp_path / "entry", tmp_path / "entry.7.tmp"
    with whole_file(path, draft=draft, is_durable=False) as file:
        file.write(b"one")
        with whole_file(path, draft=tmp_path / "entry.8.tmp", is_durable=False) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_what_cannot_be_written_is_an_error_with_the_system_s_reason(tmp_path):
    path = tmp_path / "list.json"
    (tmp_path / ".list.json.tmp").mkdir()
    with pytest.raises(IsADirectoryError), whole_file(path):
        pass
    assert (tmp_path / ".list.json.tmp").is_dir()
    reason = r"list\.json could not be written: Is a directory; whatever is finished"
    with pytest.raises(ShardError, match=reason), atomic_file(path):
        pass


def test_a_pipe_has_no_hash(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        file_sha256(tmp_path / "pipe")
