import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tones import Tone, pack_items, tone, utterance

from shards.audio import decode_stored
from shards.errors import ShardError
from shards.indexload import load_index
from shards.plan import MicroBatch
from shards.ranges import micro_batch_request
from shards.read import read_batches
from shards.schema import SourceUtterance

MICRO_BATCHES = [
    MicroBatch(np.array([3, 0])),
    MicroBatch(np.array([5])),
    MicroBatch(np.array([1]), is_dummy=True),
    MicroBatch(np.array([2, 4, 6, 7])),
]


@pytest.fixture
def index(tmp_path):
    pack_items((tone(number) for number in range(8)), tmp_path / "shards")
    return load_index([str(tmp_path / "shards")])


def shard_of(index, row):
    return Path(index.shard_places[index.numbers("shard")[row]])


def flip_byte(index, row, *, at=-9):
    """Change one byte of the audio of `row` as it lies on disk."""
    path = shard_of(index, row)
    data = bytearray(path.read_bytes())
    start, length = (int(index.numbers(name)[row]) for name in ("audio_offset", "audio_bytes"))
    data[start + at % length] ^= 0x40
    path.write_bytes(data)


def same(batch, other):
    names = ("items_B", "wave_BT", "num_samples_B", "valid_B")
    return batch.problems == other.problems and all(
        torch.equal(getattr(batch, name), getattr(other, name)) for name in names
    )


def reading(index, micro_batches, *, timeout_s):
    """Return the batches after the first, and the process that reads them."""
    before = set(multiprocessing.active_children())
    batches = read_batches(index, micro_batches, num_workers=1, timeout_s=timeout_s)
    next(batches)
    (reader,) = set(multiprocessing.active_children()) - before
    return batches, reader


def test_batches_hold_the_clips_of_their_micro_batches_in_order_padded_with_silence(index):
    batches = list(read_batches(index, MICRO_BATCHES, num_workers=0, timeout_s=1))
    assert [batch.items_B.tolist() for batch in batches] == [[3, 0], [5], [1], [2, 4, 6, 7]]
    assert [batch.valid_B.tolist() for batch in batches] == [[True, True], [True], [False], [True] * 4]
    assert batches[0].num_samples_B.tolist() == [800 + 3 * 160, 800]
    assert batches[0].wave_BT.shape == (2, 1280)
    assert not batches[0].wave_BT[1, 800:].any()
    wave, _ = tone(3).audio.load()
    assert batches[0].wave_BT[0].numpy() == pytest.approx(wave, abs=1e-4)
    assert all(batch.problems == () for batch in batches)


def test_a_request_holds_byte_ranges_and_nothing_of_the_index(index):
    request = micro_batch_request(index, MICRO_BATCHES[0])
    assert [clip.key for clip in request.clips] == ["tones/u003", "tones/u000"]
    for clip in request.clips:
        data = Path(clip.place).read_bytes()[clip.offset : clip.offset + clip.num_bytes]
        decode_stored(data, np.empty(clip.num_samples, np.float32))


@pytest.mark.parametrize("at", [-9, -40, 0])
def test_a_changed_byte_makes_a_problem_with_the_key_and_silences_that_clip_only(index, at):
    expected = next(read_batches(index, MICRO_BATCHES[3:], num_workers=0, timeout_s=1))
    flip_byte(index, 4, at=at)
    batch = next(read_batches(index, MICRO_BATCHES[3:], num_workers=0, timeout_s=1))
    assert batch.valid_B.tolist() == [True, False, True, True]
    (problem,) = batch.problems
    assert "'tones/u004'" in problem
    assert str(shard_of(index, 4)) in problem
    assert not batch.wave_BT[1].any()
    others = [0, 2, 3]
    assert torch.equal(batch.wave_BT[others], expected.wave_BT[others])


def test_a_shard_that_was_cut_makes_a_problem_with_the_key(index):
    path = shard_of(index, 7)
    os.truncate(path, int(index.numbers("audio_offset")[7]) + 20)
    batch = next(read_batches(index, [MicroBatch(np.array([7]))], num_workers=0, timeout_s=1))
    assert "'tones/u007'" in batch.problems[0]
    assert "got 20" in batch.problems[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_gone_is_one_sentence(index, num_workers):
    path = shard_of(index, 0)
    path.unlink()
    with pytest.raises(ShardError) as gone:
        list(read_batches(index, MICRO_BATCHES, num_workers=num_workers, timeout_s=60))
    assert str(gone.value) == f"shard {path} must be readable: No such file or directory"


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_reader_processes_deliver_the_same_batches_in_the_same_order(index, num_workers):
    flip_byte(index, 4)
    micro_batches = MICRO_BATCHES * 3
    expected = list(read_batches(index, micro_batches, num_workers=0, timeout_s=1))
    batches = list(read_batches(index, micro_batches, num_workers=num_workers, timeout_s=60))
    assert len(batches) == len(expected) == 12
    assert all(same(batch, other) for batch, other in zip(batches, expected, strict=True))


def test_a_killed_reader_is_an_error_and_no_hang(index):
    list(read_batches(index, MICRO_BATCHES, num_workers=1, timeout_s=60))  # The server of readers runs from here on.
    batches, reader = reading(index, MICRO_BATCHES * 1000, timeout_s=4)
    os.kill(reader.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(
        ShardError,
        match=r"must deliver a batch within 4 s, but: .*; it was to read utterance 'tones/u00\d'.* in .*\.tar",
    ):
        list(batches)
    assert time.monotonic() - started < 20


def test_a_stuck_reader_is_an_error_within_the_stated_time_and_names_the_clip(index):
    list(read_batches(index, MICRO_BATCHES, num_workers=1, timeout_s=60))
    batches, reader = reading(index, MICRO_BATCHES * 1000, timeout_s=4)
    os.kill(reader.pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(ShardError, match=r"within 4 s, but: .*; it was to read utterance 'tones/u00\d'.*\.tar"):
            list(batches)
    finally:
        os.kill(reader.pid, signal.SIGKILL)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_and_open_files_stay_flat_over_an_epoch(index, num_workers):
    def used():
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE"), sum(
            len(list(Path(f"/proc/{p}/fd").iterdir())) for p in processes
        )

    batches = read_batches(index, MICRO_BATCHES * 300, num_workers=num_workers, timeout_s=60)
    for _ in islice(batches, 200):
        pass
    early_bytes, early_files = used()
    for _ in islice(batches, 1_000):
        pass
    late_bytes, late_files = used()
    batches.close()
    # 1,000 batches of 4 to 20 kB: leaking one array each would be 12 MB.
    assert late_bytes - early_bytes < 6e6
    assert late_files - early_files < 10


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_readers_are_deaf_to_the_signals_that_stop_a_training(index, name):
    batches, reader = reading(index, MICRO_BATCHES * 5, timeout_s=60)
    os.kill(reader.pid, signal.Signals[name])
    assert len(list(batches)) == 19


def test_starting_readers_leaves_this_process_s_handlers_alone(index):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    list(read_batches(index, MICRO_BATCHES[:1], num_workers=1, timeout_s=60))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


KILLED = """
import os, sys
import numpy as np
from shards.indexload import load_index
from shards.plan import MicroBatch
from shards.read import read_batches
if __name__ == "__main__":
    batches = read_batches(load_index([sys.argv[1]]), [MicroBatch(np.arange(4))] * 1000, num_workers=2, timeout_s=60)
    next(batches)
    print("reading", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_readers_end_with_a_process_that_is_killed(index, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), str(tmp_path / "shards")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=60)
        assert out == b"reading\n"
        deadline = time.monotonic() + 10
        while group_lives(process.pid):
            assert time.monotonic() < deadline, "readers or their server outlive the process that they read for"
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_windows_are_cut_from_the_decoded_clips(index):
    (whole,) = read_batches(index, [MicroBatch(np.array([7, 2]))], num_workers=0, timeout_s=1)
    micro_batch = MicroBatch(np.array([7, 7, 2, 7]), windows=((0, 500), (400, 900), (0, 1_120), (1_400, 1_920)))
    (batch,) = read_batches(index, [micro_batch], num_workers=0, timeout_s=1)
    assert batch.num_samples_B.tolist() == [500, 500, 1_120, 520]
    assert batch.wave_BT.shape == (4, 1_120)
    for row, (item, (start, end)) in enumerate(zip([0, 0, 1, 0], micro_batch.windows, strict=True)):
        assert torch.equal(batch.wave_BT[row, : end - start], whole.wave_BT[item, start:end])
        assert not batch.wave_BT[row, end - start :].any()
    flip_byte(index, 7)
    (damaged,) = read_batches(index, [micro_batch], num_workers=0, timeout_s=1)
    assert damaged.valid_B.tolist() == [False, False, True, False]
    assert len(damaged.problems) == 3


READ_ALL = """
import sys
from shards.errors import ShardError
from shards.indexload import load_index
from shards.plan import MicroBatch
from shards.read import read_batches
import numpy as np
if __name__ == "__main__":
    try:
        list(read_batches(load_index([sys.argv[1]]), [MicroBatch(np.array([0, 1]))] * 9, num_workers=1, timeout_s=60))
    except ShardError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("surroundings", "words"),
    [
        ("mount -t tmpfs -o size=64k tmpfs /dev/shm", "No space left on device"),
        ("mount -t tmpfs -o size=1m,ro tmpfs /dev/shm", "Read-only file system"),
        ("ulimit -n 16", "Too many open files for 1 readers, at most 16"),
    ],
)
def test_what_keeps_readers_from_sharing_is_told_at_once(tmp_path, surroundings, words):
    mounting = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    pack_items([SourceUtterance(utterance(name), Tone(440, 32_000)) for name in "ab"], tmp_path / "shards")
    program = tmp_path / "program.py"
    program.write_text(READ_ALL)
    script = f'{surroundings} && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", script, "-", sys.executable, str(program), str(tmp_path / "shards")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert "must share memory and files with the training, but: " in done.stdout, done
    assert words in done.stdout and "data.num_workers to 0" in done.stdout
    assert "Traceback" not in done.stderr
