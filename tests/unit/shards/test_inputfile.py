import os
import socket

import pytest

from shards.inputfile import open_regular, read_regular


def test_a_regular_file_is_read_to_its_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, max_bytes=5) == read_regular(tmp_path / "link", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes or more, but at most 4 are read"):
        read_regular(path, max_bytes=4)


def test_a_file_that_says_it_is_empty_is_bounded_too():
    with pytest.raises(OSError, match="at most 10 are read"):
        read_regular("/proc/self/status", max_bytes=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open the kernel's messages")
def test_a_file_that_waits_for_a_writer_is_told_as_what_it_is():
    with pytest.raises(OSError, match=r"it has nothing to read yet|Operation not permitted"):
        for _ in range(1000):
            read_regular("/proc/kmsg", max_bytes=1 << 24)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, words in [
            ("pipe", "it is a named pipe"),
            ("zero", "it is a device"),
            (".", "it is a folder"),
            ("loop", "Too many levels of symbolic links"),
            ("socket", "No such device or address|it is a socket"),
            ("absent", "No such file"),
        ]:
            with pytest.raises(OSError, match=words):
                open_regular(tmp_path / name)
