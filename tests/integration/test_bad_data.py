"""What happens when the shards are not what was packed."""

import shutil
from pathlib import Path

import pytest
from tinyruns import ALONE, TinyCorpus, losses, write_experiment

from metaser.errors import TrainingError
from metaser.train.checkpoint import newest_checkpoint
from metaser.train.run import train
from shards.errors import ShardError
from shards.indexload import load_index


def corrupted(corpus, folder, row):
    """Return the corpus with one bit of the audio of `row` changed, and the key of that utterance."""
    shutil.copytree(corpus.shards, folder / "shards")
    index = load_index([str(folder / "shards")])
    path = Path(index.shard_places[index.numbers("shard")[row]])
    data = bytearray(path.read_bytes())
    data[int(index.numbers("audio_offset")[row] + index.numbers("audio_bytes")[row]) - 20] ^= 1
    path.write_bytes(data)
    return TinyCorpus(folder / "shards", write_experiment(folder / "tiny.yaml", folder / "shards")), index.values(
        "key"
    )[row]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_clip_stops_the_training_with_its_key(corpus, tmp_path, num_workers):
    bad, key = corrupted(corpus, tmp_path, 6)
    words = rf"at most 0 utterances may be unreadable \(data.max_bad_fraction = 0 of 24\), but 1 are: utterance '{key}'"
    with pytest.raises(TrainingError, match=words):
        train(bad.experiment(tmp_path / "run", f"data.num_workers={num_workers}"), ALONE)


def test_a_corrupt_clip_is_counted_once_where_some_are_allowed(corpus, finished, tmp_path):
    bad, key = corrupted(corpus, tmp_path, 6)
    run = bad.train(tmp_path / "run", "data.max_bad_fraction=0.05")
    # Six steps of eight see each of the 24 training clips twice.
    state = newest_checkpoint(run / "stage1/checkpoints").state
    assert len(state.bad_keys) == 1
    assert key in state.bad_keys[0]
    assert [line[:2] for line in losses(run)] == [line[:2] for line in losses(finished)]
    assert losses(run) != losses(finished)


def test_no_score_is_computed_over_fewer_utterances(corpus, tmp_path):
    bad, key = corrupted(corpus, tmp_path, 4)
    with pytest.raises(ShardError, match=rf"evaluation needs every utterance, but utterance '{key}'"):
        train(bad.experiment(tmp_path / "run", "data.max_bad_fraction=0.5"), ALONE)
