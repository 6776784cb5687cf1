import functools
import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from metaser.errors import RunError
from metaser.rundir import step_folder
from metaser.train.checkpoint import newest_checkpoint, prune_checkpoints, read_checkpoint, save_checkpoint
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
    file = path / data.draw(st.sampled_from(["model.safetensors", "optimizer.safetensors", "checkpoint.json"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    words = "is not a complete checkpoint" if file.suffix == ".json" else rf"{file.name} must have .*sha256"
    with pytest.raises(RunError, match=words):
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


def with_marker(path, change, *, is_signed):
    """Change what the marker says, as its author could (`is_signed`), or an earlier version's, which signed nothing."""
    marker = json.loads((path / "checkpoint.json").read_text())
    del marker["sha256"]
    change(marker)
    text = json.dumps(marker, indent=1)
    if is_signed:
        text = json.dumps({**marker, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1)
    (path / "checkpoint.json").write_text(text)


BAD_MARKERS = {
    "mood": lambda marker: marker["state"].update(mood="good"),
    "stage: .*got 0": lambda marker: marker["state"].update(stage=0),
    "step: .*got -1": lambda marker: marker["state"].update(step=-1),
    "step: .*got True": lambda marker: marker["state"].update(step=True),
    "step: .*got '5'": lambda marker: marker["state"].update(step="5"),
    "step: .*got 5.0": lambda marker: marker["state"].update(step=5.0),
    "it is that of step 4, in a folder of another's name": lambda marker: marker["state"].update(step=4),
    "best_step 6 is more": lambda marker: marker["state"].update(best_step=6),
    "evaluated_step 6 is more": lambda marker: marker["state"].update(evaluated_step=6),
    "num_skipped 6 is more": lambda marker: marker["state"].update(num_skipped=6),
    "num_overflows 1 is more": lambda marker: marker["state"].update(num_overflows=1),
    "best_value: ": lambda marker: marker["state"].update(best_value="high"),
    "loss_scale: .*got 0": lambda marker: marker["state"].update(loss_scale=0),
    "it holds NaN": lambda marker: marker["state"].update(loss_scale=float("nan")),
    "it holds Infinity": lambda marker: marker["state"].update(best_value=float("inf")),
    "step: .*got 1000000": lambda marker: marker["state"].update(step=10**60),
    "bad_keys.0: ": lambda marker: marker["state"].update(bad_keys=[3]),
    "bad_keys must differ": lambda marker: marker["state"].update(bad_keys=["a", "a"]),
    "state: .*got 3": lambda marker: marker.update(state=3),
    "files: ": lambda marker: marker.update(files=[]),
    "'model.safetensors' is not in it": lambda marker: marker["files"].pop("model.safetensors"),
    r"files\.\.\./\.\./etc/passwd": lambda marker: marker["files"].update({"../../etc/passwd": {}}),
    "mark: ": lambda marker: marker.update(mark=1),
    "deeper than 64": lambda marker: marker.update(
        state={"a": functools.reduce(lambda value, _: [value], range(80), [])}
    ),
}


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "earlier"])
@pytest.mark.parametrize("words", BAD_MARKERS)
def test_a_marker_that_no_training_writes(tmp_path, words, is_signed):
    path = save(tmp_path, 5)
    with_marker(path, BAD_MARKERS[words], is_signed=is_signed)
    with pytest.raises(RunError, match=f"is not a complete checkpoint: .*{words}") as refused:
        read_checkpoint(path)
    assert len(str(refused.value)) < 500
    assert newest_checkpoint(tmp_path) is None


def test_a_marker_of_an_earlier_version_is_read_and_said(tmp_path, caplog):
    path = save(tmp_path, 5, best_step=5)
    with_marker(path, lambda marker: None, is_signed=False)
    assert read_checkpoint(path).state.best_step == 5
    assert "has no sha256 of its own" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_something_else_in_place_of_a_file_is_passed_over_at_once(tmp_path, name, kind):
    file = save(tmp_path, 5) / name
    file.unlink()
    (file.mkdir if kind == "folder" else lambda: os.mkfifo(file))()
    assert newest_checkpoint(tmp_path) is None


def test_a_file_that_the_marker_does_not_name_is_not_believed(tmp_path):
    path = save(tmp_path, 5)
    shutil.copy(path / "model.safetensors", path / "average.safetensors")
    assert read_checkpoint(path).average_tensors() == {}


def test_what_changes_after_it_was_checked_is_not_believed(tmp_path):
    path = save(tmp_path, 5)
    found = read_checkpoint(path)
    save_file({name: tensor + 1 for name, tensor in MODEL.items()}, path / "model.safetensors")
    with pytest.raises(RunError, match="has changed; start again"):
        found.model_tensors()


@pytest.mark.parametrize("data", [b"", b"text", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 64])
def test_tensors_that_are_none_with_right_checksums(tmp_path, data):
    path = save(tmp_path, 5)
    (path / "model.safetensors").write_bytes(data)
    new = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with_marker(path, lambda marker: marker["files"].update({"model.safetensors": new}), is_signed=True)
    with pytest.raises(RunError, match="must hold tensors of a checkpoint, but does not"):
        read_checkpoint(path).model_tensors()


def test_what_no_training_wrote_stands_in_nobodys_way(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "step-000007").write_text("a file")
    (tmp_path / ".step-000009.tmp").write_text("a file")
    (tmp_path / "step-000008").symlink_to(tmp_path / "step-000005")
    assert newest_checkpoint(tmp_path).state.step == 5
    prune_checkpoints(tmp_path, keep_last=1)
    assert (tmp_path / "step-000007").exists()
    assert newest_checkpoint(tmp_path).state.step == 5


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
