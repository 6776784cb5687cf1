"""A training that lacks memory ends with a sentence that says what to change, and keeps what it saved."""

from tinyruns import LimitMemory, error_line, metaser

from metaser.train.checkpoint import newest_checkpoint


def test_a_micro_batch_that_does_not_fit_ends_in_a_sentence_and_checkpoints_stay_whole(corpus, tmp_path):
    """Weights of 17 MB, and about 1.6 GB of activations for the second stage's 24 clips."""
    wide = ("model.encoder.feed_forward=65536", "model.encoder.num_layers=2")
    first = ("stages.0.num_steps=1", "stages.0.filter=duration_s < 0.4")
    batches = ("data.batch_utterances=24", "data.max_micro_batch_s=30")
    command = ("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", *wide, *first, *batches)
    said = error_line(metaser(*command, folder=tmp_path, before=LimitMemory(700 << 20)))
    assert "a micro-batch must fit the memory, but one of 24 clips, the longest of 0." in said
    assert "in step 1 of stage 'emotion' needs more than there is" in said
    assert "lower data.max_micro_batch_s, now 30 (a micro-batch is never shorter than its longest clip" in said
    assert "parallel.activation_checkpointing=true, with which a started run can go on" in said
    assert "`metaser tune`" in said
    assert newest_checkpoint(tmp_path / "run/stage1/checkpoints").state.step == 1


def test_a_model_that_does_not_fit_ends_in_a_sentence(corpus, tmp_path):
    large = ("model.encoder.width=1024", "model.encoder.feed_forward=8192", "model.encoder.num_layers=8")
    recomputed = "parallel.activation_checkpointing=true"
    command = ("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", *large, recomputed)
    said = error_line(metaser(*command, folder=tmp_path, before=LimitMemory(150 << 20)))
    assert "error: model, optimizer and what is read and evaluated must fit the memory" in said
    assert "lower data.max_micro_batch_s, now 4 " in said
    assert "parallel.activation_checkpointing is true already" in said
