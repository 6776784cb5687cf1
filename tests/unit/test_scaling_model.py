"""The model of a step on many GPUs: properties that hold whatever its inputs are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.plan import Schedule, step_micro_batches
from shards.schema import RATE_HZ

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import scaling

strategies = st.sampled_from(scaling.STRATEGIES)
counts = st.sampled_from((1, 2, 3, 8, 16, 64, 512))
sizes = st.floats(1.0, 1e11)
CLUSTER, GPU = scaling.Cluster(), scaling.Gpu()


@pytest.fixture(scope="module")
def work() -> scaling.Share:
    return scaling.share(scaling.lengths("IEMOCAP-like"), 8, 128, 240, num_steps=4)


def sent(strategy: str, num_processes: int, num_bytes: float, **more) -> float:
    return sum(part.sent_bytes(num_processes) for part in scaling.exchanges(strategy, num_bytes, **more))


@given(strategies, sizes)
def test_one_process_sends_nothing_and_waits_for_nobody(strategy, num_bytes) -> None:
    found = scaling.exchanges(strategy, num_bytes)
    assert sent(strategy, 1, num_bytes) == 0
    assert scaling.exposed_s(found, CLUSTER.link(1), 1, hiding_s={}, overlap=0.9) == 0


@given(counts, sizes)
def test_theory_is_the_rings(num_processes, num_bytes) -> None:
    part = (num_processes - 1) / num_processes * num_bytes
    ideal = {strategy: sent(strategy, num_processes, num_bytes, is_ideal=True) for strategy in scaling.STRATEGIES}
    assert ideal == pytest.approx({"ddp": 2 * part, "zero1": 2 * part, "zero2": 2 * part, "zero3": 3 * part})


@given(strategies, counts, sizes, st.floats(1.0, 10.0), st.floats(0.0, 1.0), st.floats(0.0, 0.1))
def test_more_bytes_are_never_faster(strategy, num_processes, num_bytes, more, overlap, pass_s) -> None:
    hiding = {"forward": pass_s, "backward": 2 * pass_s}
    less_s, more_s = (
        scaling.exposed_s(
            [replace(part, num_bytes=part.num_bytes * factor) for part in scaling.exchanges(strategy, num_bytes)],
            CLUSTER.link(num_processes),
            num_processes,
            hiding_s=hiding,
            overlap=overlap,
        )
        for factor in (1.0, more)
    )
    assert more_s >= less_s * (1 - 1e-9)


@given(strategies, counts, sizes, st.floats(1e-3, 1.0))
def test_a_slower_network_is_never_faster(strategy, num_processes, num_bytes, share) -> None:
    found = scaling.exchanges(strategy, num_bytes)
    slower = replace(CLUSTER, node_gb_per_s=CLUSTER.node_gb_per_s * share, node_hop_us=CLUSTER.node_hop_us / share)
    fast_s, slow_s = (
        scaling.exposed_s(found, cluster.link(num_processes), num_processes, hiding_s={}, overlap=0.0)
        for cluster in (CLUSTER, slower)
    )
    assert slow_s >= fast_s


@given(strategies, counts, sizes, st.floats(0.0, 1.0), st.floats(0.0, 10.0))
def test_what_is_hidden_is_at_most_everything_but_the_last_call(strategy, num_processes, num_bytes, overlap, pass_s):
    found = scaling.exchanges(strategy, num_bytes)
    link = CLUSTER.link(num_processes)
    whole = sum(link.seconds(part, num_processes) for part in found)
    hiding = {"forward": pass_s, "backward": 2 * pass_s}
    exposed = scaling.exposed_s(found, link, num_processes, hiding_s=hiding, overlap=overlap)
    assert 0 <= exposed <= whole * (1 + 1e-9)
    assert num_processes == 1 or exposed > 0


@pytest.mark.parametrize("num_processes", [2, 8, 512])
def test_each_stage_of_zero_needs_less_memory(num_processes) -> None:
    ddp, *zero = (scaling.memory_bytes(strategy, 316e6, num_processes) for strategy in scaling.STRATEGIES)
    assert ddp == pytest.approx(16 * 316e6)
    assert [ddp, *zero] == sorted([ddp, *zero], reverse=True) and len({ddp, *zero}) == 4


@given(counts, st.floats(1e6, 1e10))
def test_more_processes_never_need_more_memory_each(num_processes, parameters) -> None:
    for strategy in scaling.STRATEGIES:
        fewer, more = (
            scaling.memory_bytes(strategy, parameters, number) for number in (num_processes, 2 * num_processes)
        )
        assert more <= fewer


@pytest.mark.parametrize("num_processes", [1, 3, 8])
@pytest.mark.parametrize("max_micro_batch_s", [40, 400])
def test_the_shares_are_those_that_ranks_are_given(num_processes, max_micro_batch_s) -> None:
    num_samples = scaling.lengths("IEMOCAP-like")[:400]
    schedule = Schedule(num_samples, batch_utterances=48, pool_utterances=200, seed=3)
    found = scaling.samples_of_ranks(schedule, 2, num_processes, max_micro_batch_s)
    for rank in range(num_processes):
        given_to_rank = step_micro_batches(
            schedule, 2, rank=rank, num_processes=num_processes, max_micro_batch_samples=max_micro_batch_s * RATE_HZ
        )
        longest = [int(num_samples[part.items].max()) for part in given_to_rank]
        expected = [(len(part.items) * long, long) for part, long in zip(given_to_rank, longest, strict=True)]
        assert [row[rank] for row in found] == expected


def test_a_process_alone_is_no_straggler() -> None:
    alone = scaling.share(scaling.lengths("MSP-Podcast-like")[:2_000], 1, 16, 240)
    assert alone.straggler == pytest.approx(1) and alone.rounds == 1


def test_where_nothing_is_sent_a_step_is_its_computing(work) -> None:
    free = replace(CLUSTER, nvlink_gb_per_s=1e12, node_gb_per_s=1e12, hop_us=0.0, node_hop_us=0.0)
    found = scaling.predict("ddp", 8, work, GPU, free)
    assert found.exposed_s < 1e-6
    assert found.step_s == pytest.approx(found.compute_s + found.straggler_s + found.optimizer_s, rel=1e-3)
    faster = scaling.predict("ddp", 8, work, replace(GPU, mfu=2 * GPU.mfu), free)
    assert faster.compute_s == pytest.approx(found.compute_s / 2)


def test_the_choice_fits_and_is_the_plainest_of_the_fast_ones() -> None:
    case = {"corpus": "c", "gpus": 8, "clips": 4}
    rows = [
        {**case, "strategy": strategy, "fits": fits, "audio_s_per_s": speed}
        for strategy, fits, speed in (("ddp", False, 100.0), ("zero1", True, 94.0), ("zero2", True, 95.0))
    ]
    assert [row["strategy"] for row in scaling.best(rows)] == ["zero1"]
    assert scaling.best([{**row, "fits": False} for row in rows]) == []


def test_lengths_are_the_corpora_s() -> None:
    seconds = scaling.lengths("IEMOCAP-like") / RATE_HZ
    assert len(seconds) == 5_531 and seconds.mean() == pytest.approx(4.5, abs=0.1)
    seconds = scaling.lengths("MSP-Podcast-like") / RATE_HZ
    assert seconds.min() > 2.7 and seconds.max() <= 11 and seconds.mean() == pytest.approx(5.7, abs=0.2)
    assert np.issubdtype(scaling.lengths("IEMOCAP-like").dtype, np.integer)
