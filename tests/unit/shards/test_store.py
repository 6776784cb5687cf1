import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from faultyserver import PASSING_FAULTS, FaultyServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tones import pack_items, tone

from shards.config import RemoteConfig
from shards.errors import RangeError, ShardError
from shards.indexload import load_index
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.store import NUM_READS, RangeReader, file_size, read_file
from shards.urls import is_url, join

BYTES = random.Random(0).randbytes(3 * 2**20 + 12_345)
BLOB = BYTES[:5_000]
QUICK = {"timeout_s": 0.5, "first_wait_s": 0.001}


@pytest.fixture(scope="module")
def server():
    with FaultyServer({"/corpus/a.tar": BLOB, "/corpus/big.parquet": BYTES, "/corpus/empty.jsonl": b""}) as running:
        yield running


@pytest.fixture
def blob(server):
    """The URL of BLOB on a server without faults."""
    server.restart()
    return f"{server.url}/corpus/a.tar"


def quick(**settings_) -> RemoteConfig:
    return RemoteConfig(**{**QUICK, **settings_})


def num_open_files(folder: Path) -> int:
    """Return how many descriptors of this process are open below `folder`."""
    number = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            number += link.readlink().is_relative_to(folder)
    return number


def in_processes(method: str, function: Callable[..., bytes], arguments: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Return what two other processes return for each item of `arguments`."""
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(function, arguments)
        # A pool ends its processes by SIGTERM, to which those of the readers' fork server are deaf, unless told first.
        pool.close()
        pool.join()
    return found


# ---------------------------------------------------------------- places


def test_urls_are_told_from_paths():
    urls = ["https://host/a.tar", "s3://bucket/a", "gs://bucket", "memory://a", "abfss://c@host/a"]
    assert all(map(is_url, urls))
    paths = ["/data/a.tar", "data/a.tar", "a.tar", "C:/a.tar", "s3:/a", "://a", "a b://c"]
    assert not any(map(is_url, paths))


def test_a_file_s_place_is_its_folder_s_and_its_name():
    assert join("data/emodb", "a.tar") == "data/emodb/a.tar"
    assert join("data/emodb/", "a.tar") == "data/emodb/a.tar"
    assert join("s3://bucket/emo?#db/", "a.tar") == "s3://bucket/emo?#db/a.tar"
    assert join("https://host:8000", "a.tar") == "https://host:8000/a.tar"
    assert join("https://host/emodb/?token=a/b", "a.tar") == "https://host/emodb/a.tar?token=a/b"


# ---------------------------------------------------------------- local


@given(offset=st.integers(0, 6_000), num_bytes=st.integers(0, 6_000))
def test_a_local_range_is_exactly_those_bytes_or_an_error_with_both_lengths(tmp_path_factory, offset, num_bytes):
    path = tmp_path_factory.getbasetemp() / "local.tar"
    path.write_bytes(BLOB)
    expected = BLOB[offset : offset + num_bytes]
    if len(expected) == num_bytes:
        assert RangeReader().read(str(path), offset, num_bytes) == expected
        return
    with pytest.raises(RangeError) as short:
        RangeReader().read(str(path), offset, num_bytes)
    assert str(short.value) == f"{path} must have {num_bytes} bytes at {offset}, got {len(expected)}"


def test_a_local_shard_that_is_gone_is_one_sentence(tmp_path):
    for ask in (lambda place: RangeReader().read(place, 0, 1), file_size, read_file):
        with pytest.raises(ShardError) as gone:
            ask(str(tmp_path / "a.tar"))
        assert str(gone.value) == f"shard {tmp_path}/a.tar must be readable: No such file or directory"


def test_few_descriptors_stay_open_however_many_shards_there_are(tmp_path):
    for number in range(600):
        (tmp_path / f"{number}.tar").write_bytes(number.to_bytes(4, "big"))
    reader = RangeReader()
    for _ in range(2):
        for number in range(600):
            assert reader.read(str(tmp_path / f"{number}.tar"), 0, 4) == number.to_bytes(4, "big")
    assert 0 < num_open_files(tmp_path) <= 256
    del reader
    assert num_open_files(tmp_path) == 0


def test_local_files_are_read_whole_and_verified(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(BLOB)
    sha256 = hashlib.sha256(BLOB).hexdigest()
    assert file_size(str(path)) == len(BLOB)
    assert read_file(str(path)) == read_file(str(path), num_bytes=len(BLOB), sha256=sha256) == BLOB
    with pytest.raises(ShardError, match=r"manifest.json must have 4 bytes, got 5000; fetch or pack the folder again"):
        read_file(str(path), num_bytes=4)
    with pytest.raises(ShardError, match=rf"must have sha256 00, but was changed \(it has {sha256}\)"):
        read_file(str(path), sha256="00")


# ---------------------------------------------------------------- http


@given(
    start=st.integers(0, len(BLOB) - 1),
    num_bytes=st.integers(0, len(BLOB)),
    faults=st.lists(st.sampled_from(PASSING_FAULTS), max_size=6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_any_range_under_any_transient_faults_is_exactly_those_bytes_or_an_error(server, start, num_bytes, faults):
    num_bytes = min(num_bytes, len(BLOB) - start)
    server.restart(faults)
    try:
        found = RangeReader(quick(num_tries=4)).read(f"{server.url}/corpus/a.tar", start, num_bytes)
    except ShardError as error:
        assert len(faults) >= 4
        assert f"must deliver {num_bytes} bytes at {start}, but 4 tries failed" in str(error) or "(try 4)" in str(error)
    else:
        assert found == BLOB[start : start + num_bytes]


@given(
    ranges=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 1_000)), max_size=40),
    faults=st.lists(st.sampled_from(PASSING_FAULTS), max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_ranges_read_together_come_back_in_order_and_only_the_failed_are_asked_again(server, ranges, faults):
    server.restart(faults)
    place = f"{server.url}/corpus/a.tar"
    found = RangeReader(quick(num_tries=6)).read_many([(place, *span) for span in ranges])
    assert found == [BLOB[offset : offset + num_bytes] for offset, num_bytes in ranges]
    assert len(server.requests) <= sum(num_bytes > 0 for _, num_bytes in ranges) + len(faults)


def test_requests_of_one_call_run_side_by_side(server, blob):
    server.restart(["hang"] * 12)
    started = time.monotonic()
    found = RangeReader(quick(timeout_s=0.4)).read_many([(blob, offset, 8) for offset in range(12)])
    assert time.monotonic() - started < 2
    assert found == [BLOB[offset : offset + 8] for offset in range(12)]


def test_a_server_that_hangs_is_asked_again_and_then_given_up(server, blob):
    server.restart(["hang"])
    assert RangeReader(quick(timeout_s=0.2)).read(blob, 10, 20) == BLOB[10:30]
    server.restart(["hang"] * 2)
    with pytest.raises(ShardError) as slow:
        RangeReader(quick(num_tries=2, timeout_s=0.2)).read(blob, 10, 20)
    assert str(slow.value) == (
        f"{blob} must deliver 20 bytes at 10, but 2 tries failed, the last one with: no whole reply within 0.2 s; "
        "check the network and the server, or raise remote.num_tries or remote.timeout_s"
    )


def test_retry_after_is_waited_for(server, blob):
    server.restart(["503 after 1"])
    started = time.monotonic()
    assert RangeReader(quick()).read(blob, 0, 5) == BLOB[:5]
    assert time.monotonic() - started >= 1


def test_pauses_grow_and_are_random(server, blob):
    config = quick(first_wait_s=0.02, num_tries=5)
    lengths = []
    for _ in range(2):
        server.restart(["503"] * 4)
        started = time.monotonic()
        assert RangeReader(config).read(blob, 0, 5) == BLOB[:5]
        lengths.append(time.monotonic() - started)
    assert min(lengths) >= 0.5 * 0.02 * 15
    assert lengths[0] != lengths[1]


def test_training_s_random_numbers_do_not_depend_on_the_network(server, blob):
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    server.restart(["503"] * 3)
    RangeReader(quick()).read(blob, 0, 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("status", "words"), [("404", "404 Not Found"), ("403", "403 Forbidden"), ("401", "401 Unauthorized")]
)
def test_what_will_not_pass_is_asked_once(server, blob, status, words):
    for ask in (lambda: RangeReader(quick()).read(blob, 0, 5), lambda: file_size(blob, quick())):
        server.restart([status] * 9)
        with pytest.raises(ShardError) as refused:
            ask()
        assert str(refused.value) == f"{blob} must be readable, but: status {words}"
    server.restart([status] * 9)
    with pytest.raises(ShardError):
        RangeReader(quick()).read(blob, 0, 5)
    assert len(server.requests) == 1


def test_a_server_that_ignores_ranges_is_an_error_before_the_file_comes(server):
    server.restart(["whole"] * 9)
    server.files["/corpus/huge.tar"] = bytes(64 * 2**20)  # more than sockets buffer
    huge = f"{server.url}/corpus/huge.tar"
    with pytest.raises(ShardError) as whole:
        RangeReader(quick()).read(huge, 10, 20)
    assert str(whole.value) == (
        f"{huge} must be readable, but: the server ignores byte ranges (it answered status 200 with all 67108864 "
        "bytes); use a server that knows them, or copy the folder to a local disk"
    )
    assert server.num_bodies_cut.acquire(timeout=5), "the client hangs up before the body has come"
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["endless", "claims"])
def test_a_reply_is_read_up_to_what_was_asked_for(server, blob, fault):
    server.restart([fault])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError) as endless:
        RangeReader(quick(timeout_s=30)).read(blob, 10, 20)
    assert str(endless.value) == (
        f"{blob} must be readable, but: the server ignores byte ranges (it answered with more than 20 bytes)"
    )
    assert server.num_bodies_cut.acquire(timeout=5), "the client hangs up"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert len(server.requests) == 1


def test_a_server_that_trickles_is_cut_by_the_deadline(server, blob):
    server.restart(["trickle"])
    started = time.monotonic()
    assert RangeReader(quick(timeout_s=0.3)).read(blob, 10, 200) == BLOB[10:210]
    assert time.monotonic() - started < 5


def test_what_is_no_http_is_called_so_and_asked_for_again(server, blob):
    for ask in (lambda: RangeReader(quick(num_tries=3)).read(blob, 0, 5), lambda: file_size(blob, quick(num_tries=3))):
        server.restart(["garbage"] * 2)
        assert ask() in (BLOB[:5], len(BLOB))
        server.restart(["garbage"] * 9)
        with pytest.raises(ShardError) as garbage:
            ask()
        assert ", but 3 tries failed, the last one with: the reply is not HTTP (Bad status line" in str(garbage.value)
        assert "\x1b" not in str(garbage.value)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gzip", "the server compresses what it sends (Content-Encoding gzip); switch that off"),
        ("circle", "the server redirects again and again"),
        ("elsewhere", "the server redirects to what is no HTTP"),
    ],
)
def test_replies_that_asking_again_does_not_mend_are_final(server, blob, fault, words):
    for ask in (lambda: RangeReader(quick()).read(blob, 0, 5), lambda: file_size(blob, quick())):
        server.restart([fault, fault])
        with pytest.raises(ShardError) as refused:
            ask()
        assert str(refused.value) == f"{blob} must be readable, but: {words}"


def test_a_file_without_a_hash_is_bounded_before_it_is_read(server, blob):
    server.restart(["claims"])
    with pytest.raises(ShardError, match=r"must have at most 67108864 bytes, but 1000000000000 are stated"):
        read_file(blob, quick())
    assert len(server.requests) == 1


def test_an_index_s_claim_of_a_clip_s_length_takes_no_memory(tmp_path):
    (tmp_path / "a.tar").write_bytes(BLOB)
    with pytest.raises(RangeError, match=r"must have 1000000000000 bytes at 10, got 4990"):
        RangeReader().read(str(tmp_path / "a.tar"), 10, 10**12)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name, what in (("pipe", "it is a named pipe"), ("endless", "it is a device"), ("", "it is a folder")):
        for ask in (lambda place: RangeReader().read(place, 0, 1), file_size, read_file):
            with pytest.raises(ShardError, match=f"must be readable: {what}, not a"):
                ask(str(tmp_path / name))


@pytest.mark.parametrize("status", [400, 401, 404, 410, 416, 418, 429, 451, 499, 500, 501, 503, 511, 599])
def test_no_status_is_taken_for_a_size(server, blob, status):
    server.restart([str(status)] * 6)
    with pytest.raises(ShardError, match=rf"status {status}|there is no such file|must not be") as caught:
        file_size(blob, quick(num_tries=2))
    assert not isinstance(caught.value, RangeError)


@pytest.mark.parametrize(("offset", "why"), [(len(BLOB), "status 416"), (len(BLOB) - 5, "the reply has Content-Range")])
def test_a_remote_file_that_ends_before_the_range_is_an_error_of_its_own(blob, offset, why):
    with pytest.raises(RangeError) as short:
        RangeReader(quick(num_tries=2)).read(blob, offset, 20)
    assert f"{blob} must have 20 bytes at {offset}, {why}" in str(short.value)


def test_a_range_that_is_too_long_does_not_spoil_those_read_with_it(server, blob, tmp_path):
    (tmp_path / "a.tar").write_bytes(BLOB)
    config = quick(num_tries=2, cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        server.restart()
        for place in (blob, str(tmp_path / "a.tar")):
            ranges = [(place, 0, 10), (place, 4_990, 11), (place, 9_000, 5), (place, 10, 10)]
            first, *short, last = RangeReader(config).read_many(ranges)
            assert (first, last) == (BLOB[:10], BLOB[10:20])
            assert [str(error).partition(",")[0] for error in short] == [
                f"{place} must have 11 bytes at 4990",
                f"{place} must have 5 bytes at 9000",
            ]


def test_a_host_that_is_not_there_is_one_sentence_after_all_tries():
    with FaultyServer({}) as gone:
        url = gone.url
    with pytest.raises(ShardError, match=r"/a\.tar must deliver 5 bytes at 0, but 2 tries failed.*Cannot connect"):
        RangeReader(quick(num_tries=2)).read(f"{url}/a.tar", 0, 5)


def test_a_token_in_a_url_is_sent_but_not_shown(server, blob):
    assert RangeReader(quick()).read(f"{blob}?token=secret", 1, 4) == BLOB[1:5]
    server.restart(["403"])
    with pytest.raises(ShardError) as refused:
        RangeReader(quick()).read(f"{blob}?token=secret".replace("://", "://me:word@"), 1, 4)
    assert str(refused.value) == f"{blob} must be readable, but: status 403 Forbidden"


@pytest.mark.parametrize("faults", [[], ["503", "reset"], ["cut", "less", "shifted"], ["405"]])
def test_whole_files_are_read_in_verified_pieces(server, faults):
    big, sha256 = f"{server.url}/corpus/big.parquet", hashlib.sha256(BYTES).hexdigest()
    server.restart(faults)
    assert file_size(big, quick()) == len(BYTES)
    server.restart([] if faults == ["405"] else faults)
    assert read_file(big, quick(), num_bytes=len(BYTES), sha256=sha256) == BYTES
    server.restart(faults)
    assert read_file(big, quick()) == BYTES
    server.restart()
    assert read_file(f"{server.url}/corpus/empty.jsonl", quick()) == b""


def test_a_remote_file_of_another_length_or_content_is_refused(server, blob):
    with pytest.raises(ShardError, match=r"a.tar must have 4999 bytes, got 5000"):
        read_file(blob, quick(), num_bytes=4_999)
    with pytest.raises(RangeError, match=r"a.tar must have 5001 bytes at 0"):
        read_file(blob, quick(), num_bytes=5_001, sha256="00")
    server.restart()
    with pytest.raises(ShardError, match=r"a.tar must have sha256 00, but was changed"):
        read_file(blob, quick(), num_bytes=5_000, sha256="00")
    assert len(server.requests) == NUM_READS


@given(faults=st.lists(st.sampled_from([*PASSING_FAULTS, "flip", ""]), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_a_hash_is_right_or_an_error_whatever_is_corrupted_on_the_way(server, tmp_path, faults):
    cache_dir = tmp_path / str(time.monotonic_ns())
    config = quick(num_tries=3, cache_dir=str(cache_dir))
    server.restart(faults)
    for _ in range(2):
        try:
            data = read_file(
                f"{server.url}/corpus/a.tar", config, num_bytes=len(BLOB), sha256=hashlib.sha256(BLOB).hexdigest()
            )
            assert data == BLOB
        except ShardError:
            assert faults.count("flip") >= NUM_READS or len([fault for fault in faults if fault]) >= 3


# ---------------------------------------------------------------- cache


def test_a_range_that_is_kept_is_not_asked_for_again_by_any_reader(server, blob, tmp_path):
    config = quick(cache_dir=str(tmp_path / "cache"))
    assert RangeReader(config).read(blob, 5, 50) == BLOB[5:55]
    server.restart(["404"] * 9)
    assert RangeReader(config).read(blob, 5, 50) == BLOB[5:55]
    assert RangeReader(config).read_many([(blob, 5, 50)] * 3) == [BLOB[5:55]] * 3
    assert server.requests == []


def test_a_corrupt_transfer_heals_by_reading_around_the_cache(server, blob, tmp_path):
    reader = RangeReader(quick(cache_dir=str(tmp_path)))
    server.restart(["flip"])
    assert reader.read(blob, 5, 50) != BLOB[5:55]
    assert reader.read(blob, 5, 50) != BLOB[5:55], "only the caller can know"
    assert reader.read(blob, 5, 50, fresh=True) == BLOB[5:55]
    assert reader.read(blob, 5, 50) == BLOB[5:55]
    assert len(server.requests) == 2


def test_a_manifest_is_never_taken_from_the_cache_but_an_index_is(server, tmp_path):
    url, config = f"{server.url}/corpus/new.json", quick(cache_dir=str(tmp_path))
    server.files["/corpus/new.json"] = b"first"
    sha256 = hashlib.sha256(b"first").hexdigest()
    assert read_file(url, config) == read_file(url, config, num_bytes=5, sha256=sha256) == b"first"
    server.files["/corpus/new.json"] = b"other"
    assert read_file(url, config) == b"other"
    # Another manifest names another hash; what was kept under the same address is then read anew.
    assert read_file(url, config, num_bytes=5, sha256=hashlib.sha256(b"other").hexdigest()) == b"other"
    server.restart(["404"])
    assert read_file(url, config, num_bytes=5, sha256=hashlib.sha256(b"other").hexdigest()) == b"other"


def test_a_cache_that_cannot_be_written_stops_nothing(server, blob, tmp_path, caplog):
    (tmp_path / "cache").write_bytes(b"")
    reader = RangeReader(quick(cache_dir=str(tmp_path / "cache")))
    with caplog.at_level(logging.WARNING):
        assert [reader.read(blob, 5, 50) for _ in range(3)] == [BLOB[5:55]] * 3
    assert len(caplog.records) == 1
    assert len(server.requests) == 3


# ---------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed folder of eight tones in two shards."""
    out = tmp_path_factory.mktemp("packed") / "tones"
    pack_items((tone(number) for number in range(8)), out)
    return out


@pytest.fixture
def remote_index(server, folder):
    """The folder's index read from a server without faults."""
    server.restart()
    server.files.update({f"/tones/{path.name}": path.read_bytes() for path in folder.iterdir()})
    return load_index([f"{server.url}/tones"], quick())


def batch_of_all(index, cache_dir):
    (batch,) = read_batches(
        index, [MicroBatch(np.arange(len(index)))], num_workers=0, timeout_s=1, remote=quick(cache_dir=str(cache_dir))
    )
    return batch


@given(faults=st.lists(st.sampled_from([*PASSING_FAULTS, "flip", ""]), max_size=24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clips_are_as_packed_or_named_whatever_happens_on_the_way(server, remote_index, folder, tmp_path, faults):
    expected = batch_of_all(load_index([folder]), tmp_path / "none").wave_BT
    server.restart(faults)
    try:
        batch = batch_of_all(remote_index, tmp_path / str(time.monotonic_ns()))
    except ShardError:
        assert len(faults) >= 6
        return
    named = {int(re.search(r"'tones/u(\d+)'", problem)[1]) for problem in batch.problems}
    for number, is_valid in enumerate(batch.valid_B.tolist()):
        assert is_valid != (number in named)
        assert not is_valid or torch.equal(batch.wave_BT[number], expected[number])
    assert not named or faults.count("flip") >= NUM_READS


def test_a_record_that_is_corrupt_on_the_server_is_named_after_some_reads(server, remote_index, tmp_path):
    part = remote_index.take([5])
    path = part.shard_places[part.numbers("shard")[0]].removeprefix(server.url)
    tar = bytearray(server.files[path])
    tar[int(part.numbers("audio_offset")[0] + part.numbers("audio_bytes")[0] // 2)] ^= 1
    server.files[path] = bytes(tar)
    server.restart()
    (problem,) = batch_of_all(part, tmp_path).problems
    assert problem.startswith("utterance 'tones/u005' in http")
    assert len(server.requests) == NUM_READS


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_reader_processes_read_though_this_one_has_connections_and_an_event_loop(server, blob, method):
    reader = RangeReader(quick(timeout_s=10))
    assert reader.read(blob, 0, 10) == BLOB[:10]
    ranges = [(blob, offset, 64) for offset in range(0, 3_200, 64)]
    server.restart(["503", "reset", "cut"])
    assert b"".join(in_processes(method, reader.read, ranges)) == BLOB[:3_200]
    assert reader.read(blob, 7, 10) == BLOB[7:17]


def test_a_pickled_reader_keeps_its_settings_and_no_descriptor(tmp_path):
    (tmp_path / "a.tar").write_bytes(BLOB)
    reader = RangeReader(quick(cache_dir=str(tmp_path / "cache")))
    reader.read(str(tmp_path / "a.tar"), 0, 5)
    assert num_open_files(tmp_path) == 1
    copy = pickle.loads(pickle.dumps(reader))
    assert num_open_files(tmp_path) == 1
    assert copy.read(str(tmp_path / "a.tar"), 3, 5) == BLOB[3:8]


def test_reading_local_files_imports_no_network_client(tmp_path):
    (tmp_path / "a.tar").write_bytes(BLOB)
    program = (
        "import sys; from shards.store import RangeReader; "
        f"RangeReader().read({str(tmp_path / 'a.tar')!r}, 0, 5); print('fsspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---------------------------------------------------------------- other protocols


def test_any_file_system_of_fsspec_will_do():
    fsspec.filesystem("memory").pipe_file("/store-test/a.tar", BLOB)
    place = join("memory://store-test", "a.tar")
    assert file_size(place) == len(BLOB)
    assert RangeReader().read(place, 100, 50) == BLOB[100:150]
    assert read_file(place) == BLOB
    with pytest.raises(RangeError, match="must have 50 bytes at 4990, got 10 bytes"):
        RangeReader(quick(num_tries=2)).read(place, 4_990, 50)
    with pytest.raises(ShardError, match=r"memory://store-test/b.tar must be readable, but: there is no such file"):
        RangeReader(quick()).read("memory://store-test/b.tar", 0, 1)


def test_an_unknown_protocol_a_missing_package_and_a_wrong_option_are_one_sentence_each():
    with pytest.raises(ShardError, match=r"nowhere://a/b.tar cannot be opened .*Protocol not known: nowhere"):
        RangeReader().read("nowhere://a/b.tar", 0, 1)
    missing = next(name for name in ("gdrive", "box", "oci", "dbfs") if not _has_package(name))
    with pytest.raises(ShardError, match=rf"{missing}://a/b.tar needs a package that is missing: .*install"):
        RangeReader().read(f"{missing}://a/b.tar", 0, 1)
    with pytest.raises(ShardError, match=r"https://a/b.tar must be readable, but: .*unexpected.*'endpoint'"):
        RangeReader(quick(options={"https": {"endpoint": "b"}})).read("https://a/b.tar", 0, 1)
    with pytest.raises(ShardError, match=r"https://a/b.tar cannot be opened with remote.options of https: dict"):
        RangeReader(quick(options={"https": {"client_kwargs": {"headers": "x"}}})).read("https://a/b.tar", 0, 1)
    with pytest.raises(ValidationError, match=r"must be keyed by fsspec protocols such as s3 or https, got \['S3'\]"):
        RemoteConfig(options={"S3": {}})


WRONG_OPTIONS = [
    *({"client_kwargs": 5}, {"client_kwargs": None}, {"client_kwargs": [1]}, {"client_kwargs": "x"}, {"headers": 5}),
    *({"client_kwargs": {"connector": "x"}}, {"client_kwargs": {"headers": None}}, {"client_kwargs": {"timeout": "x"}}),
    *({"client_kwargs": {"cookies": 5}}, {"client_kwargs": {"trust_env": []}}, {"client_kwargs": {"auth": "x"}}),
    *({"get_client": 5}, {"encoded": {}}, {"loop": "x"}, {"block_size": "x"}, {"proxy": 5}, {"ssl": "x"}),
    *({"client_kwargs": {"json_serialize": 5}}, {"client_kwargs": {"version": "x"}}, {"allow_redirects": "x", "a": 1}),
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=str)
def test_options_of_any_type_are_taken_or_refused_in_one_sentence(options):
    with pytest.raises(ShardError, match=r"^http://127\.0\.0\.1:9/b\.tar (must|cannot)[^\n]*$"):
        RangeReader(quick(num_tries=1, options={"http": options})).read("http://127.0.0.1:9/b.tar", 0, 1)


def _has_package(protocol: str) -> bool:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        return False
    return True


# ---------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def bucket():
    """Options for a real S3 API with BLOB in s3://bucket/corpus/a.tar."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra remote)")
    moto = pytest.importorskip("moto.server", reason="moto is not installed (extra dev)")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "someone", "secret": "something"}
    filesystem = fsspec.filesystem("s3", **options)
    filesystem.mkdir("bucket")
    filesystem.pipe_file("bucket/corpus/a.tar", BLOB)
    filesystem.pipe_file("bucket/corpus/big.parquet", BYTES)
    yield options
    running.stop()


@pytest.fixture(scope="module")
def s3(bucket):
    return RemoteConfig(timeout_s=10, first_wait_s=0.001, options={"s3": bucket})


def test_s3_ranges_sizes_and_whole_files(s3):
    place = join("s3://bucket/corpus/", "a.tar")
    assert file_size(place, s3) == len(BLOB)
    ranges = [(place, offset, 100) for offset in range(0, 4_900, 700)]
    assert RangeReader(s3).read_many(ranges) == [BLOB[offset : offset + 100] for _, offset, _ in ranges]
    big = join("s3://bucket/corpus", "big.parquet")
    assert read_file(big, s3) == BYTES
    assert read_file(big, s3, num_bytes=len(BYTES), sha256=hashlib.sha256(BYTES).hexdigest()) == BYTES


def test_s3_reader_processes(s3):
    reader = RangeReader(s3)
    reader.read("s3://bucket/corpus/a.tar", 0, 10)
    assert in_processes("forkserver", reader.read, [("s3://bucket/corpus/a.tar", 10, 20)]) == [BLOB[10:30]]


def test_s3_errors_that_will_not_pass(s3, bucket):
    with pytest.raises(ShardError, match=r"s3://nobucket/a.tar must be readable, but: status 404 NoSuchBucket"):
        RangeReader(s3).read("s3://nobucket/a.tar", 0, 5)
    with pytest.raises(ShardError, match=r"s3://bucket/b.tar must be readable, but: status 404 NoSuchKey"):
        RangeReader(s3).read("s3://bucket/b.tar", 0, 5)
    with pytest.raises(ShardError, match=r"s3://bucket/b.tar must be readable, but: "):
        file_size("s3://bucket/b.tar", s3)
    with pytest.raises(ShardError, match=r"s3://bucket/corpus must be readable, but: it is a directory, not a file"):
        file_size("s3://bucket/corpus", s3)
    with pytest.raises(
        RangeError, match=r"s3://bucket/corpus/a.tar must have 5 bytes at 9999, status 416 InvalidRange"
    ):
        RangeReader(s3).read("s3://bucket/corpus/a.tar", 9_999, 5)
    with pytest.raises(RangeError, match=r"s3://bucket/corpus/a.tar must have 5 bytes at 4998, got 2 bytes \(try 2\)"):
        RangeReader(s3.model_copy(update={"num_tries": 2})).read("s3://bucket/corpus/a.tar", 4_998, 5)


@given(
    start=st.integers(0, len(BLOB) - 1),
    num_bytes=st.integers(0, 2_000),
    faults=st.lists(st.sampled_from(["reset", "cut", "less", "503", "500", "429"]), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_s3_ranges_under_any_transient_faults_are_exactly_those_bytes_or_an_error(server, start, num_bytes, faults):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra remote)")
    num_bytes = min(num_bytes, len(BLOB) - start)
    server.restart(faults)
    config = quick(num_tries=3, timeout_s=5, options={"s3": {"endpoint_url": server.url, "anon": True}})
    try:
        found = RangeReader(config).read("s3://corpus/a.tar", start, num_bytes)
    except ShardError as error:
        assert len(faults) >= 3
        assert "3 tries failed" in str(error) or "(try 3)" in str(error)
        assert len(server.requests) == 3, "one layer retries"
    else:
        assert found == BLOB[start : start + num_bytes]


def test_s3_statuses_hangs_and_servers_without_ranges(server):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra remote)")
    config = quick(num_tries=2, options={"s3": {"endpoint_url": server.url, "anon": True}})
    expected = {
        "403": "must be readable, but: status 403 Forbidden",
        "whole": "must be readable, but: the server ignores byte ranges (it answered with 5000 bytes)",
        "hang": "but 2 tries failed, the last one with: no whole reply within 0.5 s; check the network",
        "503": "but 2 tries failed, the last one with: status 503",
    }
    for fault, words in expected.items():
        server.restart([fault] * 5)
        with pytest.raises(ShardError) as failed:
            RangeReader(config).read("s3://corpus/a.tar", 0, 5)
        assert words in str(failed.value)


def test_s3_without_credentials_says_so(server, monkeypatch, tmp_path):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra remote)")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    config = quick(timeout_s=5, options={"s3": {"endpoint_url": server.url}})
    with pytest.raises(ShardError, match=r"s3://corpus/a.tar must be readable, but: Unable to locate credentials"):
        RangeReader(config).read("s3://corpus/a.tar", 0, 5)


def test_a_server_that_is_not_there_is_not_called_a_missing_file():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x/manifest.json"
        remote = RemoteConfig(num_tries=2, first_wait_s=0.001)
        with pytest.raises(ShardError, match=r"its size, but 2 tries failed, .* (Cannot connect|Connect call failed)"):
            read_file(url, remote)
