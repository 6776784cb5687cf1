import logging
import multiprocessing
import os
import resource
import signal
import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.cache import NUM_FOLDERS, RangeCache

PLACE = "https://example.org/corpus-000000.tar"


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def content(number: int) -> bytes:
    return bytes([number % 251]) * 5_000


def fill(folder: Path, seed: int) -> None:
    """Put and get the same few ranges for ever."""
    cache = RangeCache(folder, 1.0)
    for number in range(seed, 1_000_000):
        offset = number % 7
        cache.put(PLACE, offset, content(offset))
        assert cache.get(PLACE, offset, 5_000) in (None, content(offset))


def test_what_was_put_comes_back_under_its_own_address_only(tmp_path):
    cache = RangeCache(tmp_path, 1.0)
    assert cache.get(PLACE, 100, 4) is None
    cache.put(PLACE, 100, b"FLAC")
    cache.put(PLACE, 104, b"OGGS")
    assert cache.get(PLACE, 100, 4) == b"FLAC"
    assert RangeCache(tmp_path, 1.0).get(PLACE, 104, 4) == b"OGGS"
    assert cache.get(PLACE, 100, 3) is None
    assert cache.get(f"{PLACE}x", 100, 4) is None
    cache.put(PLACE, 100, b"flac")
    assert cache.get(PLACE, 100, 4) == b"flac"


@given(data=st.binary(min_size=1, max_size=60), at=st.integers(0, 200), bit=st.integers(0, 7), cut=st.booleans())
def test_an_entry_that_was_torn_or_changed_is_a_miss_and_heals(tmp_path_factory, data, at, bit, cut):
    folder = tmp_path_factory.mktemp("cache")
    cache = RangeCache(folder, 1.0)
    cache.put(PLACE, 7, data)
    (path,) = entries(folder)
    entry = bytearray(path.read_bytes())
    at %= len(entry)
    entry[at] ^= 1 << bit
    path.write_bytes(entry[:at] if cut else entry)
    assert cache.get(PLACE, 7, len(data)) is None
    cache.put(PLACE, 7, data)
    assert cache.get(PLACE, 7, len(data)) == data


@pytest.mark.parametrize("other", [(PLACE, 4, b"bbbb"), (PLACE, 0, b"bbbbb"), (f"{PLACE}x", 0, b"bbbb")])
def test_an_entry_under_another_s_name_is_a_miss(tmp_path, other):
    cache = RangeCache(tmp_path, 1.0)
    cache.put(PLACE, 0, b"aaaa")
    (first,) = entries(tmp_path)
    cache.put(*other)
    (second,) = set(entries(tmp_path)) - {first}
    second.replace(first)
    assert cache.get(PLACE, 0, 4) is None


def test_the_oldest_entries_go_when_there_are_too_many(tmp_path):
    max_bytes = NUM_FOLDERS * 4_000
    cache = RangeCache(tmp_path, max_bytes / 1e9)
    num_entries = 2_000  # of 1,032 bytes, twice what may stay
    for number in range(num_entries):
        cache.put(PLACE, number, number.to_bytes(4, "big") * 250)
    total = sum(path.stat().st_size for path in entries(tmp_path))
    assert max_bytes / 2 < total <= max_bytes
    kept = [number for number in range(num_entries) if cache.get(PLACE, number, 1000) is not None]
    assert statistics.median(kept) > 0.7 * num_entries
    assert num_entries - 1 in kept


def test_a_range_that_is_too_large_for_the_bound_is_not_kept(tmp_path):
    cache = RangeCache(tmp_path, NUM_FOLDERS * 1_000 / 1e9)
    cache.put(PLACE, 0, bytes(2_000))
    assert entries(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_cleared_when_it_is_old(tmp_path):
    cache = RangeCache(tmp_path, NUM_FOLDERS * 1_000 / 1e9)
    cache.put(PLACE, 0, bytes(500))
    (entry,) = entries(tmp_path)
    old, young = entry.with_name("left.1.tmp"), entry.with_name("busy.2.tmp")
    old.write_bytes(bytes(900))
    young.write_bytes(bytes(900))
    os.utime(old, (time.time() - 7_200,) * 2)
    cache.put(PLACE, 0, bytes(500))
    assert sorted(entries(tmp_path)) == sorted([entry, young])


def test_processes_that_write_at_once_and_are_killed_leave_only_whole_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(tmp_path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    time.sleep(0.5)
    for writer in writers:
        assert writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    cache = RangeCache(tmp_path, 1.0)
    assert [cache.get(PLACE, offset, 5_000) for offset in range(7)] == [content(offset) for offset in range(7)]


def test_a_full_disk_is_one_warning_and_what_was_kept_stays_readable(tmp_path, caplog):
    cache = RangeCache(tmp_path, 1.0)
    cache.put(PLACE, 0, b"kept")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            cache.put(PLACE, 1, bytes(1_000))
            cache.put(PLACE, 2, bytes(1_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (record,) = caplog.records
    assert record.getMessage() == f"cache {tmp_path}: File too large; reading goes on without it"
    assert cache.get(PLACE, 0, 4) == b"kept"
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_one_warning(tmp_path, caplog, name):
    (tmp_path / "file").write_bytes(b"")
    cache = RangeCache(tmp_path / name, 1.0)
    with caplog.at_level(logging.WARNING):
        assert cache.get(PLACE, 0, 4) is None
        cache.put(PLACE, 0, b"FLAC")
        assert cache.get(PLACE, 0, 4) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"cache {tmp_path / name}: Not a directory; reading goes on without it"
    ]


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_an_entry_that_is_no_file_is_a_miss_at_once_and_heals(tmp_path, kind):
    cache = RangeCache(tmp_path, 1.0)
    cache.put(PLACE, 0, b"aaaa")
    (path,) = entries(tmp_path)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert cache.get(PLACE, 0, 4) is None
    cache.put(PLACE, 0, b"aaaa")
    assert cache.get(PLACE, 0, 4) == b"aaaa"


def test_a_length_that_no_entry_has_takes_no_memory(tmp_path):
    assert RangeCache(tmp_path, 1.0).get(PLACE, 0, 10**12) is None
