"""Who reads what when: a pure function of the utterances' lengths, the seed and the position.

Every process computes the same global sequence of batches and takes its own part of it, so nothing is communicated,
nothing is drained, and a resumed run seeks to its step instead of replaying. Global batches depend on neither the
number of processes nor that of reader workers.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shards.errors import PlanError
from shards.sampling import draw_epoch
from shards.schema import RATE_HZ
from shards.windows import Window, Windowing


def stable_seed(*parts: object) -> int:
    """Return a 63-bit seed that is the same for equal `parts` on any machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class MicroBatch:
    """What one process forwards at once."""

    items: np.ndarray
    """Positions in the schedule's list of utterances; never empty."""
    is_dummy: bool = False
    """True where a step has fewer clips than micro-batches: forwarded with weight zero, so that no process waits."""
    windows: tuple[tuple[int, int], ...] | None = None
    """First sample of each clip that is heard, and the one behind the last; None: all are heard whole."""


class Schedule:
    """The global sequence of batches over any number of epochs.

    Clips are drawn in a per-epoch random order; pools are sorted by duration, alternately up and down, concatenated
    and cut into steps, and the steps are shuffled. The last incomplete batch of an epoch is kept.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        *,
        batch_utterances: int,
        pool_utterances: int,
        seed: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Set up the sequence; nothing is drawn yet.

        Args:
            num_samples: Length of each utterance, shape (num_utterances,).
            batch_utterances: Utterances of one step.
            pool_utterances: Utterances sorted by length together.
            seed: Another seed is another sequence.
            weights: How often each utterance is drawn per epoch (`sampling.sampling_weights`); None is once.

        Raises:
            PlanError: if there is no utterance.
        """
        if len(num_samples) == 0:
            raise PlanError("a schedule needs at least one utterance, got none; check the split and the filter")
        self.num_samples = np.asarray(num_samples, dtype=np.int64)
        self.batch_utterances = batch_utterances
        self.pool_utterances = max(pool_utterances, batch_utterances)
        self.seed = seed
        self.weights = weights
        self.steps_per_epoch = math.ceil(len(num_samples) / batch_utterances)
        self._cached_epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._step_order = np.empty(0, dtype=np.int64)

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) that holds the 0-based global `step`."""
        return step // self.steps_per_epoch

    def items(self, step: int) -> np.ndarray:
        """Return the utterances of the 0-based global `step`, shortest first."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._cached_epoch:
            self._order, self._step_order = self._draw(epoch)
            self._cached_epoch = epoch
        start = int(self._step_order[within]) * self.batch_utterances
        items = self._order[start : start + self.batch_utterances]
        return items[np.lexsort((items, self.num_samples[items]))]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.Generator(np.random.PCG64(stable_seed("schedule", self.seed, epoch)))
        if self.weights is None:
            order = generator.permutation(len(self.num_samples))
        else:
            order = draw_epoch(self.weights, generator)
        for number, start in enumerate(range(0, len(order), self.pool_utterances)):
            pool = order[start : start + self.pool_utterances]
            by_length = pool[np.argsort(self.num_samples[pool], kind="stable")]
            order[start : start + len(pool)] = by_length if number % 2 == 0 else by_length[::-1]
        return order, generator.permutation(self.steps_per_epoch)


def cut_micro_batches(
    num_samples: np.ndarray, num_processes: int, max_micro_batch_samples: int
) -> list[list[np.ndarray]]:
    """Cut one step's clips into micro-batches: `result[accumulation][rank]` holds positions in `num_samples`.

    `num_samples` must be ascending. Micro-batches are contiguous and minimise the largest padded length; the number of
    accumulation rounds is the smallest for which each fits `max_micro_batch_samples`. Those beyond the clips are empty.

    Raises:
        PlanError: if a single clip is longer than `max_micro_batch_samples`.
    """
    longest = int(num_samples[-1])
    if longest > max_micro_batch_samples:
        raise PlanError(
            f"data.max_micro_batch_s must hold the longest clip, but {longest} samples exceed "
            f"{max_micro_batch_samples}; raise it or filter by duration_s"
        )
    lengths = num_samples.tolist()
    num_rounds = math.ceil(_num_micro_batches(lengths, max_micro_batch_samples) / num_processes)
    num_micro_batches = num_rounds * num_processes
    low, high = longest, max_micro_batch_samples
    while low < high:
        bound = (low + high) // 2
        if _num_micro_batches(lengths, bound) <= num_micro_batches:
            high = bound
        else:
            low = bound + 1
    parts = _split_largest(_parts(lengths, low), lengths, num_micro_batches)
    micro_batches = [np.arange(start, end) for start, end in parts]
    empty = np.empty(0, dtype=np.int64)
    micro_batches += [empty] * (num_micro_batches - len(micro_batches))
    return [micro_batches[start : start + num_processes] for start in range(0, num_micro_batches, num_processes)]


def _fill(num_samples: np.ndarray, bound: int) -> list[np.ndarray]:
    """Return contiguous micro-batches, longest clips first, each filled to `bound` padded samples, or of one clip."""
    return [np.arange(start, end) for start, end in _parts(num_samples.tolist(), bound)]


def _parts(lengths: Sequence[int], bound: int) -> Iterator[tuple[int, int]]:
    """Yield where the micro-batches of `_fill` start, and end."""
    end = len(lengths)
    while end > 0:
        start = max(0, end - max(1, bound // max(1, lengths[end - 1])))
        yield start, end
        end = start


def _num_micro_batches(lengths: Sequence[int], bound: int) -> int:
    return sum(1 for _ in _parts(lengths, bound))


def _split_largest(
    parts: Iterable[tuple[int, int]], lengths: Sequence[int], num_micro_batches: int
) -> list[tuple[int, int]]:
    """Halve the costliest until there are `num_micro_batches`: no process idles while another has two clips.

    Of several that cost the same, the one of the longest clips is halved; the order stays.
    """

    def costing(start: int, end: int) -> tuple[int, int, int]:
        return (-(end - start) * lengths[end - 1] if end - start > 1 else 0, -start, end)

    costliest = [costing(*part) for part in parts]
    heapq.heapify(costliest)
    while len(costliest) < num_micro_batches and costliest[0][0] < 0:
        _, negative_start, end = heapq.heappop(costliest)
        start = -negative_start
        middle = start + (end - start) // 2
        heapq.heappush(costliest, costing(middle, end))
        heapq.heappush(costliest, costing(start, middle))
    return sorted(((-negative_start, end) for _, negative_start, end in costliest), reverse=True)


def step_micro_batches(
    schedule: Schedule, step: int, *, rank: int, num_processes: int, max_micro_batch_samples: int
) -> list[MicroBatch]:
    """Return the micro-batches that `rank` forwards in the 0-based global `step`, one for each accumulation round."""
    items = schedule.items(step)
    rounds = cut_micro_batches(schedule.num_samples[items], num_processes, max_micro_batch_samples)
    return [
        MicroBatch(items[micro_batches[rank]]) if len(micro_batches[rank]) else MicroBatch(items[:1], is_dummy=True)
        for micro_batches in rounds
    ]


def random_windows(
    micro_batch: MicroBatch,
    num_samples: np.ndarray,
    keys: Sequence[str],
    windowing: Windowing,
    *,
    seed: int,
    epoch: int,
) -> MicroBatch:
    """Return `micro_batch` with a window of each clip that is longer than one, drawn from (seed, epoch, key).

    `num_samples` and `keys` are those of all utterances and of the micro-batch's.
    """
    windows = []
    for key, length in zip(keys, num_samples[micro_batch.items].tolist(), strict=True):
        heard = min(length, windowing.length)
        start = stable_seed("window", seed, epoch, key) % (length - heard + 1)
        windows.append((start, start + heard))
    return replace(micro_batch, windows=tuple(windows))


def evaluation_micro_batches(
    num_samples: np.ndarray,
    *,
    rank: int,
    num_processes: int,
    max_micro_batch_samples: int,
    windowing: Windowing | None = None,
) -> Iterator[MicroBatch]:
    """Yield this rank's micro-batches of one pass in which every utterance stands exactly once.

    Every rank gets the same number of micro-batches, the last of them perhaps dummies. A micro-batch holds clips that
    take at most `max_micro_batch_samples` padded samples, or a longer clip alone; the cut does not depend on the number
    of processes, so that results are the same on any number. A clip that is longer than a window comes in windows,
    alone in its micro-batches, which follow one another on one rank.
    """
    order = np.argsort(num_samples, kind="stable")
    cut: list[list[MicroBatch]] = []
    if windowing is not None:
        is_short = num_samples <= windowing.length
        order = order[is_short[order]]
        at_once = max_micro_batch_samples // windowing.length
        for item in np.flatnonzero(~is_short).tolist():
            cut.append(_window_micro_batches(item, windowing.cut(int(num_samples[item])), at_once))
    whole = [[MicroBatch(order[micro_batch])] for micro_batch in _fill(num_samples[order], max_micro_batch_samples)]
    mine: list[list[MicroBatch]] = [[] for _ in range(num_processes)]
    for micro_batches in sorted(cut, key=len, reverse=True) + whole:
        min(mine, key=len).extend(micro_batches)
    yield from mine[rank]
    for _ in range(len(max(mine, key=len)) - len(mine[rank])):
        spare = (whole + cut)[-1][0]
        yield MicroBatch(spare.items[:1], is_dummy=True, windows=spare.windows and spare.windows[:1])


def _window_micro_batches(item: int, windows: Sequence[Window], most: int) -> list[MicroBatch]:
    parts = [windows[start : start + most] for start in range(0, len(windows), most)]
    return [MicroBatch(np.full(len(part), item), windows=tuple((w.start, w.end) for w in part)) for part in parts]


def check_longest(
    num_samples: Sequence[int] | np.ndarray, windowing: Windowing | None, *, max_micro_batch_s: float
) -> None:
    """Check once that every clip that is heard whole fits a micro-batch.

    Raises:
        PlanError: if one does not.
    """
    longest_s = float(np.max(num_samples, initial=0)) / RATE_HZ
    if windowing is None and longest_s > max_micro_batch_s:
        raise PlanError(
            f"data.max_micro_batch_s must hold the longest clip ({longest_s:.2f} s), got {max_micro_batch_s:g}; set "
            "data.window_s to hear longer clips in windows, raise data.max_micro_batch_s or filter by duration_s"
        )


def check_sizes(
    num_samples: Sequence[int] | np.ndarray,
    *,
    num_processes: int,
    max_micro_batch_s: float,
    windowing: Windowing | None = None,
) -> None:
    """Check once, before the first step, that every process will have work and every clip fits.

    Raises:
        PlanError: if there are fewer utterances than processes, or a clip longer than a micro-batch.
    """
    if len(num_samples) < num_processes:
        raise PlanError(
            f"each of the {num_processes} processes needs an utterance, but only {len(num_samples)} are selected; "
            f"start at most {max(1, len(num_samples))} processes"
        )
    check_longest(num_samples, windowing, max_micro_batch_s=max_micro_batch_s)
