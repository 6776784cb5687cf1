from hypothesis import given
from hypothesis import strategies as st

from metaser.config.schema import ExperimentConfig
from metaser.eval.claims import FoldClaims, pooled_claims

EXPERIMENT = ExperimentConfig.model_validate(
    {
        "output_dir": "runs/x",
        "data": {"shards": "shards", "batch_utterances": 2, "max_micro_batch_s": 10},
        "model": {"views": {"words": {"kind": "text", "name": "bert"}}},
        "tasks": [{"name": "emotion", "kind": "classification"}],
        "stages": [{"name": "s", "train": ["heads"], "weights": {"emotion": 1}, "num_steps": 1}],
    }
)


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6))
def test_folds_together_claim_no_more_than_the_least_of_them(states):
    pooled = pooled_claims([FoldClaims(state) for state in states], EXPERIMENT)["speaker_overlap"]
    assert (pooled is False) == all(state is False for state in states)
    assert (pooled is True) == (True in states)


def test_partners_and_texts_are_told_for_all_folds():
    folds = [FoldClaims(False, 10, 10, 1), FoldClaims(False, 10, 5)]
    notes = " ".join(pooled_claims(folds, EXPERIMENT)["notes"])
    assert "15 of 20 utterances with a text (75%) say what training utterances say" in notes
    assert "the view 'words' read the field 'text'" in notes
    assert "dialogue partners of the test speakers may have trained the models of 1 folds" in notes
