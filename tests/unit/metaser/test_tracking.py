import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaser.errors import RunError
from metaser.lines import Chain
from metaser.rundir import RunDir
from metaser.tracking import KeyLog, Tracker, _SealedFile, cut_back_keys, read_metrics


def line(stage, step, loss=1.5, **more):
    return {"stage": stage, "step": step, "loss": loss, "losses": {"asr": loss}, **more}


def write(folder, lines, *, stage=1, step=0):
    tracker = Tracker(RunDir(folder), stage=stage, step=step)
    for item in lines:
        tracker.log(item)
    tracker.close()


def scalars(folder, tag):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_lines_come_back_as_they_were_written(tmp_path):
    lines = [line(1, 1), line(1, 2, dev={"tasks": {"asr": {"wer": 0.5}}}), line(2, 1, 0.1)]
    write(tmp_path, lines)
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == lines
    assert scalars(tmp_path, "stage1/losses/asr") == [(1, 1.5), (2, 1.5)]
    assert scalars(tmp_path, "stage1/dev/tasks/asr/wer") == [(2, 0.5)]


def test_stages_follow_one_another_in_tensorboard(tmp_path):
    write(tmp_path, [line(1, 1), line(1, 2), line(2, 1), line(2, 2), line(3, 1)])
    assert [step for step, _ in scalars(tmp_path, "stage2/loss")] == [3, 4]
    assert [step for step, _ in scalars(tmp_path, "stage3/loss")] == [5]


def test_what_lies_beyond_the_checkpoint_is_dropped_from_both(tmp_path):
    write(tmp_path, [line(1, step, float(step)) for step in (1, 2, 3)] + [line(2, step, 9.0) for step in (1, 2)])
    write(tmp_path, [line(2, 2, 7.0)], stage=2, step=1)
    kept = [(item["stage"], item["step"], item["loss"]) for item in read_metrics(tmp_path / "metrics.jsonl")]
    assert kept == [(1, 1, 1.0), (1, 2, 2.0), (1, 3, 3.0), (2, 1, 9.0), (2, 2, 7.0)]
    assert scalars(tmp_path, "stage1/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(tmp_path, "stage2/loss") == [(4, 9.0), (5, 7.0)]


def test_no_line_before_the_last_is_lost_unnoticed_and_a_run_that_goes_on_refuses_it(tmp_path):
    write(tmp_path, [line(1, step) for step in (1, 2, 3)])
    write(tmp_path, [line(1, 3, 2.0)], step=2)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in ([lines[0], lines[2]], [lines[0], *lines], [lines[1], lines[0], lines[2]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(RunError, match=r"^line . of .*metrics\.jsonl is damaged: .* restore it or move it away$"):
            Tracker(RunDir(tmp_path), stage=1, step=3)
        assert path.read_bytes() == b"".join(changed)


def test_lines_that_a_run_of_an_earlier_version_wrote_are_covered_when_it_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line(1, step)) + "\n" for step in (1, 2, 3)))
    write(tmp_path, [line(1, 3, 2.0)], step=2)
    assert [item["loss"] for item in read_metrics(path)] == [1.5, 1.5, 2.0]
    path.write_text(path.read_text().replace("1.5", "1.6", 1))
    with pytest.raises(RunError, match=r"^line 3 of .*metrics\.jsonl is damaged: it is not what its seal is of"):
        list(read_metrics(path))


def test_numbers_that_are_lost_before_the_checkpoint_are_said(tmp_path, caplog):
    write(tmp_path, [line(1, 1), line(1, 2)])
    write(tmp_path, [line(1, 3)], step=2)
    assert not caplog.records
    write(tmp_path, [], step=4)
    assert "must reach step 4 of stage 1" in caplog.text


def test_a_torn_last_line_is_left_out_and_written_anew(tmp_path):
    write(tmp_path, [line(1, 1), line(1, 2)])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [item["step"] for item in read_metrics(path)] == [1]
    write(tmp_path, [line(1, 2, 4.0)], step=1)
    assert [json.loads(text)["loss"] for text in path.read_text().splitlines()] == [1.5, 4.0]


def test_a_damaged_line_elsewhere_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(line(1, 1)).encode()
    for bad in (b'{"sta', b"", b"\0" * 512, b"\xff\xfe", b"[1]", b'{"loss": 1.0}', b'{"stage": "x", "step": 1}'):
        # As the last line, too: only one without its end was torn.
        for lines in ([good, bad, good], [good, bad]):
            path.write_bytes(b"".join(item + b"\n" for item in lines))
            with pytest.raises(RunError, match=r"^line 2 of .*metrics\.jsonl is damaged: .+, got .+; restore it"):
                list(read_metrics(path))


def test_zeros_that_a_power_cut_left_are_a_torn_line(tmp_path):
    write(tmp_path, [line(1, 1)])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 512)
    assert [item["step"] for item in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_folder_in_the_place_of_the_file_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"must be readable, but is not: it is a folder, not a file"):
        list(read_metrics(tmp_path))


def test_no_file_means_no_lines(tmp_path):
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    tracker = Tracker(RunDir(tmp_path), stage=1, step=0)
    tracker.log(line(1, 1))
    tracker._file.close()
    tracker._file = _SealedFile(Path("/dev/full"), Chain())
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be written: .*No space left on device; earlier check"):
        tracker.log(line(1, 2))
    tracker.close()


def test_key_logs_of_all_processes_are_cut_back_together(tmp_path):
    run = RunDir(tmp_path)
    for rank in (0, 1):
        log = KeyLog(run, rank)
        for step in (1, 2, 3):
            log.write(1, step, [f"a/{rank}{step}"])
        log.close()
    cut_back_keys(run, stage=1, step=2)
    again = KeyLog(run, 1)
    again.write(1, 3, ["a/13"])
    again.close()
    cut_back_keys(run, stage=1, step=2)
    for rank in (0, 1):
        found = list(read_metrics(run.keys / f"rank-{rank}.jsonl"))
        assert [item["keys"] for item in found] == [[f"a/{rank}1"], [f"a/{rank}2"]]
