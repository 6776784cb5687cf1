import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaser.errors import RunError
from metaser.train.checkpoint import newest_checkpoint, prune_checkpoints, read_checkpoint, save_checkpoint, step_folder
from metaser.train.state import TrainState

MODEL = {"layer.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
OPTIMIZER = {"layer.weight.exp_avg": torch.ones(2, 3), "layer.weight.step": torch.tensor(4.0)}


def save(folder, step, **state):
    return save_checkpoint(folder, MODEL, OPTIMIZER, TrainState(stage=1, step=step, **state))


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = TrainState(2, 7, 6, 7, 0.25, num_skipped=2, num_skipped_in_a_row=1, bad_keys=["a/b"])
    path = save_checkpoint(tmp_path, MODEL, OPTIMIZER, state)
    found = newest_checkpoint(tmp_path)
    assert (found.path, found.state) == (path, state)
    for tensors, expected in ((found.model_tensors(), MODEL), (found.optimizer_tensors(), OPTIMIZER)):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@given(st.data())
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("checkpoints")
    path = save(folder, 5)
    file = path / data.draw(st.sampled_from(["model.safetensors", "optimizer.safetensors"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(RunError, match=rf"{file.name} must have .*sha256"):
        read_checkpoint(path)
    assert newest_checkpoint(folder) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("fault", ["missing", "cut", "empty"])
def test_the_newest_complete_one_is_taken_saying_what_was_passed_over(tmp_path, caplog, name, fault):
    save(tmp_path, 5)
    file = save(tmp_path, 10) / name
    if fault == "missing":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 3 if fault == "cut" else 0)
    assert newest_checkpoint(tmp_path).state.step == 5
    assert "passing over an incomplete checkpoint" in caplog.text
    assert "step-000010" in caplog.text


def test_one_without_its_selected_weights_is_passed_over(tmp_path):
    for step, best_step in ((2, 2), (3, 3), (4, 4), (5, 4)):
        save(tmp_path, step, best_step=best_step)
    (step_folder(tmp_path, 4) / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(tmp_path).state.step == 3


def test_a_marker_of_another_shape_is_no_checkpoint(tmp_path):
    path = save(tmp_path, 5)
    marker = json.loads((path / "checkpoint.json").read_text())
    marker["state"]["mood"] = "good"
    (path / "checkpoint.json").write_text(json.dumps(marker))
    with pytest.raises(RunError, match=r"is not a complete checkpoint: .*mood"):
        read_checkpoint(path)


def test_newest_is_by_number_and_only_by_finished_names(tmp_path):
    for step in (999_999, 1_000_000, 5):
        save(tmp_path, step)
    shutil.copytree(step_folder(tmp_path, 5), tmp_path / ".step-2000000.tmp")
    shutil.copytree(step_folder(tmp_path, 5), tmp_path / "step-9-backup")
    assert newest_checkpoint(tmp_path).state.step == 1_000_000
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".step-000005.tmp").mkdir()
    save(tmp_path, 5, best_step=5)
    assert newest_checkpoint(tmp_path).state.best_step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_disk_that_refuses_is_one_sentence_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        RunError, match=r"step-000010 cannot be written: .*No space left on device; earlier checkpoints are"
    ):
        save(tmp_path, 10)
    assert steps(tmp_path) == [5]
    assert newest_checkpoint(tmp_path).state.step == 5


def test_pruning_keeps_the_newest_and_the_selected_ones_they_name(tmp_path):
    for step, best_step in ((2, 2), (4, 4), (6, 4), (8, 4), (10, 10)):
        save(tmp_path, step, best_step=best_step)
    (tmp_path / ".step-000012.tmp").mkdir()
    prune_checkpoints(tmp_path, keep_last=2)
    # 4 is what a fall-back from a damaged 10 to 8 would need.
    assert steps(tmp_path) == [4, 8, 10]
    prune_checkpoints(tmp_path, keep_last=1)
    assert steps(tmp_path) == [10]


def test_pruning_survives_a_damaged_marker(tmp_path):
    save(tmp_path, 2)
    (save(tmp_path, 4) / "checkpoint.json").write_text("{")
    prune_checkpoints(tmp_path, keep_last=1)
    assert steps(tmp_path) == [4]
