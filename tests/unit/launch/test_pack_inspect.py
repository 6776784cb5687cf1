import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile as sf
from matplotlib import image
from tones import Tone, pack_items, tone, utterance

from launch.verbs.inspect import inspect
from launch.verbs.pack import describe
from shards.errors import ShardError
from shards.schema import Rejection, SourceUtterance

REPOSITORY = Path(__file__).parents[3]


def _pack(out, **options):
    twins = [SourceUtterance(utterance(f"twin{number}", intensity="[bold]"), Tone(440, 32_000)) for number in (1, 2)]
    items = [*(tone(number) for number in range(4)), *twins, Rejection("row 9", "has no audio", "no audio")]
    return pack_items(items, out, on_bad="skip", **options)


def test_json_has_the_keys_and_counts_that_scripts_rely_on(tmp_path, capsys):
    _pack(tmp_path)
    inspect([tmp_path], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["num_utterances"], found["num_shards"], found["verified"]) == (6, 2, False)
    assert found["duration_s"] == pytest.approx((4 * 800 + 6 * 160) / 16_000 + 4)
    assert found["speakers"] == {f"tones:s{number}": 1 for number in range(4)}
    assert found["labels"]["emotion"] == {"anger": 2, "neutral": 2}
    assert found["labels"]["split"] == {"dev": 1, "test": 1, "train": 2}
    assert found["duplicates"] == [["tones/twin1", "tones/twin2"]]


def test_tables_show_counts_splits_durations_and_gaps(tmp_path, capsys):
    _pack(tmp_path)
    inspect([tmp_path], verify=True)
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    speakers = "4 speakers (2 female, 1 male) and those of 2 utterances unknown"
    assert lines[0] == f"6 utterances, 0.00 h, 2 shards, {speakers}, 0.05 to 2.00 s each"
    assert "emotion train dev test none" in lines
    assert "anger 1 0 1 0" in lines
    assert "gender female: 2, male: 1" in lines
    assert "intensity [bold]: 2" in lines
    assert f"2 to 3 2 {'#' * 20}" in lines
    assert "text 6" in lines
    assert "identical audio: tones/twin1 = tones/twin2" in lines
    assert "left out when packing: no audio: 1" in lines
    assert lines[-1] == "verified: all 6 utterances are those of the tars, the index and the manifest"


def test_verify_stops_with_the_first_problem_and_their_number(tmp_path):
    _pack(tmp_path)
    path = tmp_path / "tones-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"anger", b"angel"))
    inspect([tmp_path])
    with pytest.raises(ShardError, match=r"utterance 'tones/u000' .* differs from the index \(problem 1 of 1\)"):
        inspect([tmp_path], verify=True)


def test_pack_sums_up_in_one_paragraph(tmp_path):
    summary = describe(_pack(tmp_path))
    assert summary.startswith(f"{tmp_path} now holds 6 utterances (0.1 min) of tones in 2 shards. Left out, listed in ")
    assert "rejected.jsonl: no audio: 1. Warning: 1 groups of utterances have identical audio" in summary
    assert "Nothing was left to do." in describe(_pack(tmp_path))


def test_the_command_packs_a_table_and_reports_on_the_right_streams(tmp_path):
    for name in ("a", "b"):
        sf.write(tmp_path / f"{name}.wav", Tone(300 + ord(name)).load()[0], 16_000)
    (tmp_path / "table.csv").write_text("file,emotion\na.wav,anger\nb.wav,neutral\n")
    packed = _metaser("pack", "csv", tmp_path / "table.csv", tmp_path / "out")
    assert "now holds 2 utterances" in packed.stdout
    assert packed.stderr == "packed 2 of 2 utterances\n"


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    failed = _metaser("pack", "demo", "nowhere", tmp_path / "out")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "nowhere does not exist" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def _metaser(*arguments):
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_inspect_draws_what_it_counts(tmp_path, capsys):
    pack_items([tone(number) for number in range(12)], tmp_path / "shards")
    inspect([str(tmp_path / "shards")], png=tmp_path / "figures")
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["durations.png", "labels.png", "speakers.png"]
    for name in drawn:
        pixels = image.imread(tmp_path / "figures" / name)
        assert pixels[..., :3].std() > 0.05, f"{name} is empty"
    assert capsys.readouterr().err.count("drew ") == 3
