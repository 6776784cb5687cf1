import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaser.config.load import dump_experiment, load_experiment
from metaser.errors import ConfigError

EXPERIMENTS = sorted((Path(__file__).parents[3] / "configs" / "experiment").glob("*.yaml"))

MINIMAL = {
    "output_dir": "runs/x",
    "data": {"shards": "data/x"},
    "model": {"coattention": {"form": "none"}},
    "tasks": [{"name": "emotion", "kind": "classification"}],
    "stages": [{"name": "s", "train": ["encoder", "heads"], "weights": {"emotion": 1}, "num_steps": 3}],
}


HUGGING_FACE = {"kind": "huggingface", "name": "x"}


def augmented(*, encoder=None, **parts):
    """Return the change of `MINIMAL` that augments its stage."""
    model = {**MINIMAL["model"], **({} if encoder is None else {"encoder": encoder})}
    return {"model": model, "stages": [{**MINIMAL["stages"][0], "augment": parts}]}


def write(folder, tree):
    path = folder / "experiment.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_its_dump_reads_back_equal(path, tmp_path):
    experiment = load_experiment(path)
    assert load_experiment(write(tmp_path, dump_experiment(experiment))) == experiment


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_opens_with_what_it_is_and_how_to_run_it(path):
    head = path.read_text().split("\noutput_dir")[0]
    assert head.startswith("# ")
    assert f"configs/experiment/{path.name}" in head


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(
            (part, f"{end}_{name}", value)
            for part, name in (("gain", "db"), ("noise", "snr_db"))
            for end in ("min", "max")
            for value in (-1e5, 1e300)
        ),
        *(("reverberation", f"{end}_drr_db", value) for end in ("min", "max") for value in (-201.0, 1e300)),
        *(("reverberation", f"{end}_rt60_s", value) for end in ("min", "max") for value in (1e9, 61.0, 0.0)),
    ],
)
def test_no_augmentation_is_beyond_what_can_be_computed(tmp_path, part, name, value):
    with pytest.raises(ConfigError, match=rf"stages\.0\.augment\.{part}\.{name}: Input should be .+, got "):
        load_experiment(write(tmp_path, MINIMAL | augmented(**{part: {"probability": 1.0, name: value}})))


def test_stages_may_share_one_augmentation_by_a_yaml_anchor(tmp_path):
    stage = {**MINIMAL["stages"][0], "augment": {"gain": {"probability": 0.5}}}
    other = {**stage, "name": "t"}
    text = yaml.dump({**MINIMAL, "stages": [stage, other]})
    assert "augment: &id" in text and "augment: *id" in text
    first, second = load_experiment(write(tmp_path, text)).stages
    assert first.augment == second.augment
    assert first.augment.gain.probability == 0.5
    assert first.augment.noise.probability == 0


@pytest.mark.parametrize(
    "override",
    [
        *("seed=true", "data.batch_utterances=true", "stages.0.num_steps=true", "stages.0.weights.emotion=true"),
        *("stages.0.betas=[false, 0.9]", "stages.0.augment={gain: {probability: true}}", "data.window_s=true"),
        *(
            "tasks.0.class_weights=[1, true, 1, 1]",
            "model.encoder={kind: logmel, width: true, num_heads: 1}",
            "stages.0.ema_decay=1e-400",
        ),
    ],
)
def test_neither_a_switch_nor_nearly_nothing_is_a_number(tmp_path, override):
    with pytest.raises(ConfigError, match=r"must be a number, got (true|false)$|nearer to 0 than"):
        load_experiment(write(tmp_path, MINIMAL), [override])


def test_overrides_reach_sections_and_list_items(tmp_path):
    path = write(tmp_path, MINIMAL)
    experiment = load_experiment(
        path,
        [
            "seed=7",
            "stages.0.num_steps=9",
            "stages.0.learning_rate.encoder=1e-3",
            "data.shards=[a, b]",
            "model.ari.form=gated",
        ],
    )
    assert experiment.seed == 7
    assert experiment.stages[0].num_steps == 9
    assert experiment.stages[0].learning_rate.encoder == 1e-3
    assert experiment.data.shard_folders == ("a", "b")
    assert experiment.model.ari.form == "gated"


def test_all_problems_are_reported_at_once_with_path_and_value(tmp_path):
    tree = {**MINIMAL, "seed": "many", "epochs": 3, "data": {"shards": "x", "batch_utterances": 0}}
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, tree))
    words = str(caught.value)
    assert "3 problem(s)" in words
    assert "seed: Input should be a valid integer" in words and "'many'" in words
    assert "epochs: unknown key (value 3)" in words
    assert "data.batch_utterances" in words and "got 0" in words


def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(tmp_path):
    tree = {**MINIMAL, "data": {**MINIMAL["data"], "max_slot_s": 40}}
    with pytest.raises(ConfigError, match=r"data\.max_slot_s is called data\.max_micro_batch_s now \(value 40\)"):
        load_experiment(write(tmp_path, tree))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"main_task": "mood"}, "must be one of the tasks ['emotion'], got 'mood'"),
        ({"model": {}}, "needs a second task or view beside 'emotion'"),
        ({"tasks": MINIMAL["tasks"] * 2}, "task names must differ"),
        ({"stages": [{**MINIMAL["stages"][0], "weights": {"asr": 1}}]}, "weighs unknown tasks ['asr']"),
        ({"stages": [{**MINIMAL["stages"][0], "weights": {"emotion": 0}}]}, "must give some task a positive weight"),
        ({"stages": [{**MINIMAL["stages"][0], "train": ["decoder"]}]}, "unknown parameter groups ['decoder']"),
        ({"tasks": [{"name": "emotion", "kind": "classification", "labels": ["a", "a"]}]}, "two different words"),
        ({"tasks": [{**MINIMAL["tasks"][0], "merge": {"excitement": "joy"}}]}, "'sadness'], but leads to ['joy']"),
        ({"tasks": [{**MINIMAL["tasks"][0], "merge": {"anger": "sadness"}}]}, "no labels, but ['anger'] are"),
        (
            {"tasks": [*MINIMAL["tasks"], {"name": "x", "kind": "classification", "merge": {"a": "b", "b": "c"}}]},
            "no labels, but ['b'] are",
        ),
        (
            augmented(vtlp={"probability": 0.5}, encoder=HUGGING_FACE),
            "mel filters, but model.encoder.kind is 'huggingface'",
        ),
        (augmented(noise={"min_snr_db": 9, "max_snr_db": 5}), "min_snr_db must be at most max_snr_db, got 9 and 5"),
        (augmented(speed={"factors": [0.9, 1.005]}), "be multiples of 0.01, got 1.005"),
        (augmented(speed={"factors": [0.3]}), "between 0.5 and 2 and be multiples of 0.01, got 0.3"),
    ],
)
def test_relations_between_values_are_checked(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, {**MINIMAL, **change}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "must look like a.b=value, got 'seed'"),
        ("stages.4.num_steps=1", "one of the items 0 to 0, got '4'"),
        ("seed.x=1", "seed: Input should be a valid integer"),
        ("output_dir.x.y=1", "does not fit"),
        ("seed=[", "must be YAML"),
        ("seed=2020-13-45", "seed: Input should be a valid integer, unable to parse string as an integer"),
        ("seed=1:30", "got '1:30'"),
        ("seed=0b_", "got '0b_'"),
        ("seed={a: 1, a: 2}", "must be YAML: line 1: a stands there twice"),
        pytest.param("a." * 100 + "b=1", "must have at most 64 names", id="long path"),
        pytest.param("seed=" + "9" * 5000, "a number of 5000 digits is too long", id="digits"),
        pytest.param("stages." + "9" * 5000 + ".num_steps=1", "one of the items 0 to 0", id="place"),
        pytest.param("seed=" + "[" * 3000, "must be YAML", id="deep"),
        ("stages.0.weights.emotion=.inf", "stages.0.weights.emotion: Input should be a finite number, got inf"),
        ("stages.0.learning_rate.heads=1e999", "Input should be a finite number, got inf"),
        (f"seed={2**63}", "seed must be less than 2^63, got a number of 64 bits"),
        ("stages.0.betas=[2, 0.9]", "stages.0.betas.0: Input should be less than 1, got 2"),
        ("stages.0.train=[]", "stages.0.train: Tuple should have at least 1 item"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(tmp_path, override, words):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, MINIMAL), [override])
    assert words in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"missing.yaml' is not: No such file"):
        load_experiment(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="must hold a mapping of sections"):
        load_experiment(write(tmp_path, "- 1"))
    with pytest.raises(ConfigError, match="must be YAML"):
        load_experiment(write(tmp_path, "a: !!python/object/apply:os.system [ls]"))


def test_floats_without_a_dot_are_numbers(tmp_path):
    tree = yaml.safe_dump(MINIMAL).replace("num_steps: 3", "num_steps: 3\n  weight_decay: 1e-2")
    assert load_experiment(write(tmp_path, tree)).stages[0].weight_decay == 0.01


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('""', "output_dir: must be a path without blanks around it, got ''"),
        ("''", "output_dir: must be a path without blanks around it, got ''"),
        ('" "', "without blanks around it, got ' '"),
        ('"runs/x "', "without blanks around it, got 'runs/x '"),
        ("", "output_dir: Input should be a valid string, got None"),
        ('"a\\nb"', r"must be a path without control characters and line ends, got 'a\\nb'"),
        ('"a\\e[2J"', "must be a path without control characters"),
        ('"a\\0"', "must be a path without control characters"),
        ('"a\\u202eb"', "must be a path without control characters"),
        ("~nobody-is-called-so/x", "must begin with a user whose home is known, got '~nobody-is-called-so/x'"),
    ],
)
def test_a_path_that_means_nothing_is_refused(tmp_path, text, words):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, [f"output_dir={text}"])
    assert words in str(caught.value)
    if text:
        for key in ("data.shards", "data.remote.cache_dir", "init_from", "stages.0.augment.noise.folder"):
            with pytest.raises(ConfigError, match=f"{key}: must be"):
                load_experiment(path, [f"{key}={text}"])
        with pytest.raises(ConfigError, match=r"data\.shards: must be"):
            load_experiment(path, [f"data.shards=[a, {text}]"])


def test_a_home_is_found_and_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["output_dir=~/r", "data.shards=[~/a, https://host/~me/b]", "init_from=~"]
    overrides += ["model.encoder={kind: huggingface, name: ~/w}", "stages.0.augment.noise.folder=~root/n"]
    experiment = load_experiment(write(tmp_path, MINIMAL), overrides)
    assert experiment.output_dir == f"{tmp_path}/r"
    assert experiment.data.shard_folders == (f"{tmp_path}/a", "https://host/~me/b")
    assert experiment.init_from is None
    assert experiment.model.encoder.name == "~/w"
    assert experiment.stages[0].augment.noise.folder == str(Path("~root/n").expanduser())
    assert f"output_dir: {tmp_path}/r\n" in dump_experiment(experiment)


def test_what_is_no_file_of_text_is_refused_with_its_true_reason(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"seed: \xff")
    (tmp_path / "large").write_bytes(b"#" * ((4 << 20) + 1))
    for name, words in (
        ("folder", "it is a folder, not a file"),
        ("loop", "Too many levels of symbolic links"),
        ("pipe", "it is a named pipe"),
        ("bytes", "byte 6 is not UTF-8"),
        ("large", "at most 4194304 are read"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_experiment(tmp_path / name)


def test_many_problems_and_long_values_are_cut(tmp_path):
    path = write(tmp_path, {**MINIMAL, **{f"key{i}": "x" * 1000 for i in range(1000)}})
    with pytest.raises(ConfigError, match=r"has 1000 problem.*and 990 more$") as caught:
        load_experiment(path)
    assert len(str(caught.value)) < 5000


SIGNS = "ab01.:~-_e \n\t[]{}&*!'\"#,<=|\\\u00e9\u202e\x1b\x85\U0001f600\udc80"
KEYS = ("seed", "output_dir", "data", "stages.0", "stages.0.num_steps", "tasks.0.labels", "stages.0.weights.emotion")
ODD = ("9" * 500, "-1", "1e400", ".nan", "[[1]]", "{a: {b: 1}}", "&a [*a]", "!!python/none", "0x" + "f" * 90, "~root")
VALUES = st.text(SIGNS, max_size=12) | st.sampled_from([*ODD, "null", f"'{'9' * 99}'"])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(SIGNS, max_size=6), VALUES), min_size=1, max_size=3))
def test_any_override_is_taken_or_refused_in_one_sentence(tmp_path, changes):
    path = tmp_path / "experiment.yaml"
    if not path.exists():
        write(tmp_path, MINIMAL)
    try:
        experiment = load_experiment(path, [f"{key}={value}" for key, value in changes])
    except ConfigError as error:
        assert len(str(error)) < 10_000
        return
    assert load_experiment(write(tmp_path, dump_experiment(experiment))) == experiment
    write(tmp_path, MINIMAL)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_a_file_is_taken_or_refused_in_one_sentence(tmp_path, data):
    text = yaml.safe_dump(MINIMAL)
    start = data.draw(st.integers(0, len(text)))
    damaged = text[:start] + data.draw(VALUES) + text[start + data.draw(st.integers(0, 9)) :]
    path = tmp_path / "damaged.yaml"
    path.write_bytes(damaged.encode(errors="surrogateescape"))
    try:
        load_experiment(path)
    except ConfigError as error:
        assert len(str(error)) < 10_000


@pytest.mark.parametrize("name", ["''", "' '", "'a '", '"a\\nb"'])
def test_an_encoder_has_a_name(tmp_path, name):
    with pytest.raises(ConfigError, match=r"model.encoder.*name: String should match pattern"):
        load_experiment(write(tmp_path, MINIMAL), [f"model.encoder={{kind: huggingface, name: {name}}}"])


def test_a_message_is_of_bounded_length_and_keeps_its_ends(tmp_path):
    named = {"tasks": [{**MINIMAL["tasks"][0], "name": "x" * 70_000}]}
    with pytest.raises(ConfigError, match=r"must be one of the tasks .*xxx \.\.\. .*, got 'emotion'") as caught:
        load_experiment(write(tmp_path, {**MINIMAL, **named, "main_task": "emotion"}))
    assert len(str(caught.value)) < 1500
