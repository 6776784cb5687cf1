"""`metaser ablate`, `metaser compare` and the baselines, on real folds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score
from tinyruns import REPOSITORY, TinyCorpus, clip, error_line, metaser, read_json, write_experiment
from tones import pack_items

from metaser.config.load import load_experiment, load_section
from metaser.errors import ConfigError, RunError
from metaser.eval.ablation import AblationConfig, plan_ablation, write_ablation
from metaser.eval.compare import compare_systems, pooled_system, read_system
from metaser.eval.functionals import NAMES, functionals
from shards.labels import FOUR_EMOTIONS

SHORT = ("stages.0.num_steps=2", "stages.1.num_steps=2", "data.splits=[{policy: leave_one_out}]")
SET = {
    "seeds": [0, 1],
    "folds": [0, 2, 3],
    "baselines": ["functionals"],
    "arms": {"full": {}, "last layer": {"model.ari.form": "none", "stages.1.num_steps": 3}},
    "contrasts": [["full", "last layer"], ["full", "functionals"]],
}


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """The tiny corpus with all labels and no split of its own: six folds."""
    folder = tmp_path_factory.mktemp("speakers")
    labelled = [clip(number, split=None, emotion=FOUR_EMOTIONS[number // 6 % 4]) for number in range(36)]
    pack_items(labelled, folder / "shards")
    return TinyCorpus(folder / "shards", write_experiment(folder / "tiny.yaml", folder / "shards"))


def write_set(path, **changes):
    path.write_text(yaml.safe_dump({"output_dir": str(path.with_suffix("")), **SET, **changes}))
    return path


@pytest.fixture(scope="module")
def done(speakers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    path = write_set(folder / "set.yaml")
    result = metaser("ablate", speakers.yaml, path, *SHORT, "--parallel", "2", folder=folder)
    assert result.returncode == 0, result.stderr
    return path, result


def test_every_arm_seed_and_fold_is_trained_once_and_told_in_one_table(speakers, done, tmp_path):
    path, result = done
    root = path.with_suffix("")
    for arm, seed in (("full", 0), ("full", 1), ("last layer", 0), ("last layer", 1)):
        folds = sorted(fold.name for fold in (root / arm / f"seed{seed}").glob("fold*"))
        assert folds == ["fold0", "fold2", "fold3"]
        for fold in folds:
            assert len(read_json(root / arm / f"seed{seed}" / fold / "environment.json")["starts"]) == 1
            assert not list((root / arm / f"seed{seed}" / fold).rglob("*.safetensors"))
    report = read_json(root / "report/report.json")
    assert list(report["arms"]) == ["functionals", "full", "last layer"]
    assert [report["arms"][arm]["num_models"] for arm in report["arms"]] == [1, 2, 2]
    assert [(found["of"], found["to"]) for found in report["contrasts"]] == [
        ("full", "last layer"),
        ("full", "functionals"),
    ]
    assert "full over last layer" in (root / "report/report.md").read_text()
    assert "last layer" in result.stdout
    again = metaser("ablate", speakers.yaml, path, *SHORT, folder=tmp_path)
    assert "5 models of 15 folds, 0 to train" in again.stderr
    assert again.stdout == result.stdout


def test_an_arms_numbers_are_those_of_its_pooled_folds(done):
    root = done[0].with_suffix("")
    report = read_json(root / "report/report.json")
    for arm in ("full", "last layer"):
        uas = []
        for seed in (0, 1):
            true, said = [], []
            for fold in (0, 2, 3):
                rows = (root / arm / f"seed{seed}/fold{fold}/report/predictions.csv").read_text().splitlines()
                header = rows[0].split(",")
                columns = [header.index(f"emotion.{side}") for side in ("reference", "prediction")]
                cells = [[row.split(",")[column] for column in columns] for row in rows[1:]]
                true += [cell[0] for cell in cells if cell[0]]
                said += [cell[1] for cell in cells if cell[0]]
            uas.append(balanced_accuracy_score(true, said))
        assert report["arms"][arm]["ua_of_seeds"] == pytest.approx(uas)
        assert report["arms"][arm]["ua"] == pytest.approx(np.mean(uas))
    gain = report["arms"]["full"]["ua"] - report["arms"]["last layer"]["ua"]
    assert report["contrasts"][0]["difference"] == pytest.approx(gain)


def test_what_is_missing_is_trained_and_an_arm_that_is_not_finished_is_said(speakers, done, tmp_path):
    path = write_set(tmp_path / "set.yaml", arms={**SET["arms"], "slow": {"stages.1.num_steps": 4}}, seeds=[0])
    ablation = plan_ablation(speakers.yaml, path, SHORT)
    assert ablation.num_missing == 12
    with pytest.raises(RunError, match="must have a finished arm to be reported, but has none yet"):
        write_ablation(ablation)
    first = plan_ablation(speakers.yaml, done[0], SHORT)
    # Of the finished ablation, with an arm more.
    more = write_set(tmp_path / "more.yaml", output_dir=str(first.root), arms={**SET["arms"], "slow": {}})
    report = write_ablation(plan_ablation(speakers.yaml, more, SHORT))
    assert list(report["arms"]) == ["functionals", "full", "last layer"]
    assert "not finished: slow" in report["notes"]
    write_ablation(first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {}}, "arms"),
        ({"arms": {"a/b": {}}}, "must be a name that a folder can have, got 'a/b'"),
        ({"arms": {"probe": {}}, "baselines": ["probe"], "contrasts": []}, "other names than baselines"),
        ({"contrasts": [["full", "fulll"]]}, "contrasts must be of arms and baselines"),
        ({"seeds": [0, 0]}, "must be named once each"),
        ({"folds": [0, 6]}, r"folds must be among the 6 of the experiment, got \[6\]"),
        ({"arms": {"full": {"model.ari.form": "tusk"}}, "contrasts": []}, "arm 'full': .*model.ari.form"),
        ({"arms": {"full": {"stages.7.num_steps": 1}}, "contrasts": []}, "arm 'full': override .*stages.7"),
        ({"baselines": ["svm"]}, "baselines"),
    ],
)
def test_a_set_that_cannot_be_is_refused_with_its_value(speakers, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        plan_ablation(speakers.yaml, write_set(tmp_path / "set.yaml", **changes), SHORT)


def test_an_arm_that_fails_ends_no_other_and_is_told(speakers, tmp_path):
    path = write_set(
        tmp_path / "set.yaml", arms={"bad": {}, "good": {}}, contrasts=[], seeds=[0], folds=[1], baselines=[]
    )
    (tmp_path / "set/bad/seed0/fold1/train.log").mkdir(parents=True)
    result = metaser("ablate", speakers.yaml, path, *SHORT, folder=tmp_path)
    assert result.returncode == 2
    assert "error: bad, seed 0, fold 1: " in result.stderr
    assert "every fold must finish, but 1 of 2 did not" in result.stderr
    assert list(read_json(tmp_path / "set/report/report.json")["arms"]) == ["good"]
    assert "good" in result.stdout


def test_what_was_trained_otherwise_is_not_told_as_this(speakers, done, tmp_path):
    root = done[0].with_suffix("")
    arms = {**SET["arms"], "full": {"seed": 0, "model.head_dropout": 0.5}}
    for changes, more in (({"arms": arms}, ()), ({}, ("model.head_dropout=0.5",))):
        path = write_set(tmp_path / "set.yaml", output_dir=str(root), **changes)
        refused = metaser("ablate", speakers.yaml, path, *SHORT, *more, folder=tmp_path)
        assert refused.returncode == 2
        assert "choose another output_dir" in error_line(refused)


def test_compare_tells_differences_warnings_and_json(done, tmp_path):
    root = done[0].with_suffix("")
    one, other = root / "full/seed0/fold0", root / "last layer/seed0/fold0"
    result = metaser("compare", one, other, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "full/seed0/fold0" in result.stdout
    assert "it needs at least 4 speakers, there are 1" in result.stdout
    told = json.loads(metaser("compare", one, other, "--json", folder=tmp_path).stdout)
    assert told["num_utterances"] == 6
    assert set(told["metrics"]) == {"full/seed0/fold0", "last layer/seed0/fold0"}
    apart = metaser("compare", one, root / "full/seed0/fold2", folder=tmp_path)
    assert apart.returncode == 2
    assert "must have judged the same utterances to be compared" in error_line(apart)
    alone = metaser("compare", one, folder=tmp_path)
    assert (alone.returncode, "compare needs two runs or more" in error_line(alone)) == (2, True)
    same = metaser("compare", one, one, folder=tmp_path)
    assert (same.returncode, "compare needs runs that differ" in error_line(same)) == (2, True)
    text = metaser("compare", one, other, "--task", "asr", folder=tmp_path)
    assert (text.returncode, "'asr' is of kind ctc" in error_line(text)) == (2, True)


def test_systems_that_judged_partly_other_utterances_are_compared_on_what_is_common(done):
    root = done[0].with_suffix("")
    both = pooled_system("both", [[root / "full/seed0/fold0", root / "full/seed0/fold2"]])
    one = read_system("one", [root / "last layer/seed0/fold0"])
    comparison = compare_systems([one, both])
    assert comparison.num_utterances == 6
    assert any("both judged 6 utterances more than the 6 that all did" in warning for warning in comparison.warnings)
    with pytest.raises(RunError, match="folds must judge each utterance once"):
        pooled_system("twice", [[root / "full/seed0/fold0"] * 2])


def test_functionals_are_finite_ignore_the_level_and_follow_the_pitch():
    time_s = np.arange(16_000) / 16_000
    generator = np.random.default_rng(0)
    pitch = NAMES.index("pitch_semitones_mean")
    for hz in (100.0, 200.0, 300.0):
        voice = sum(np.sin(2 * np.pi * hz * harmonic * time_s) / harmonic for harmonic in range(1, 8))
        wave = (0.1 * voice + 0.001 * generator.standard_normal(len(time_s))).astype(np.float32)
        found = functionals(wave)
        assert found[pitch] == pytest.approx(12 * np.log2(hz / 55), abs=0.3)
        assert found[NAMES.index("voiced_share")] > 0.9
        np.testing.assert_allclose(functionals(wave * 7), found, rtol=1e-3, atol=1e-3)
    for wave in (np.zeros(16_000), np.zeros(1), np.ones(200), generator.standard_normal(1601)):
        found = functionals(wave.astype(np.float32))
        assert found.shape == (len(NAMES),)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/ablation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_set_that_is_shipped_fits_its_experiment(path):
    config = load_section(AblationConfig, path, name="SET", whole="the ablation")
    experiment = REPOSITORY / "configs/experiment" / path.name
    plain = load_experiment(experiment)
    arms = {
        name: load_experiment(experiment, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
        for name, changes in config.arms.items()
    }
    assert len({arm.model_dump_json() for arm in arms.values()}) == len(arms)
    for arm in arms.values():
        assert arm.data == plain.data
        assert arm.stages[-1].filter == plain.stages[-1].filter
