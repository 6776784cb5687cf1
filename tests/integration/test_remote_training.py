"""Training from a web server that misbehaves gives what training from the disk gives."""

import itertools

import pytest
from faultyserver import PASSING_FAULTS, FaultyServer
from tinyruns import ALONE, error_line, losses, metaser, read_json

from metaser.train.run import train
from shards.errors import ShardError
from shards.survey import verify

FAST = ("data.remote.first_wait_s=0.001", "data.remote.timeout_s=2")


@pytest.fixture
def server(corpus):
    files = {f"/tiny/{path.name}": path.read_bytes() for path in corpus.shards.iterdir() if path.is_file()}
    with FaultyServer(files) as running:
        yield running


@pytest.mark.parametrize("num_workers", [0, 1])
def test_faults_that_pass_leave_no_trace(corpus, finished, server, tmp_path, num_workers):
    # Every third request goes wrong, in turn in each way; a flipped bit is found by its digest and read again.
    ways = itertools.cycle((*PASSING_FAULTS, "flip"))
    server.restart(next(ways) if number % 3 == 2 else "" for number in range(600))
    options = (*FAST, f"data.shards={server.url}/tiny", f"data.remote.cache_dir={tmp_path / 'cache'}")
    assert train(corpus.experiment(tmp_path / "run", *options, f"data.num_workers={num_workers}"), ALONE)
    assert losses(tmp_path / "run") == losses(finished)
    tasks = read_json(tmp_path / "run/report/report.json")["tasks"]
    assert tasks == read_json(finished / "report/report.json")["tasks"]
    assert len(server.script) < 560, "hardly anything was asked"


def test_a_server_that_is_down_or_wrong_stops_with_one_sentence(corpus, server, tmp_path):
    manifest = server.files.pop("/tiny/manifest.json")
    with pytest.raises(ShardError, match=r"127\.0\.0\.1:\d+/tiny/manifest\.json must be readable, but: status 404"):
        train(corpus.experiment(tmp_path / "a", *FAST, f"data.shards={server.url}/tiny"), ALONE)
    server.files["/tiny/manifest.json"] = manifest
    server.files["/tiny/index.parquet"] = server.files["/tiny/index.parquet"][:-1] + b"?"
    with pytest.raises(ShardError, match=r"index\.parquet must have sha256 .* but was changed"):
        train(corpus.experiment(tmp_path / "b", *FAST, f"data.shards={server.url}/tiny"), ALONE)


def test_inspect_verifies_a_folder_behind_a_url(corpus, server, tmp_path):
    assert verify([f"{server.url}/tiny"]) == []
    tar = min(name for name in server.files if name.endswith(".tar"))
    damaged = bytearray(server.files[tar])
    damaged[700] ^= 1
    server.files[tar] = bytes(damaged)
    done = metaser("inspect", f"{server.url}/tiny", "--verify", folder=tmp_path)
    assert "utterance 'tiny/u000' in http://127.0.0.1:" in error_line(done)
