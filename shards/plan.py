"""Who reads what when: a pure function of the utterances' lengths, the seed and the position.

Every process computes the same global sequence of batches and takes its own part of it, so nothing is communicated,
nothing is drained, and a resumed run seeks to its step instead of replaying. Global batches depend on neither the
number of processes nor that of reader workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
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
class Slot:
    """What one process forwards at once."""

    items: np.ndarray
    """Positions in the schedule's list of utterances; never empty."""
    is_dummy: bool = False
    """True where a step has fewer clips than slots: forwarded with weight zero, so that no process waits."""
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


def cut_slots(num_samples: np.ndarray, num_processes: int, max_slot_samples: int) -> list[list[np.ndarray]]:
    """Cut one step's clips into slots: `result[accumulation][rank]` holds positions in `num_samples`.

    `num_samples` must be ascending. Slots are contiguous and minimise the largest padded length; the number of
    accumulation rounds is the smallest for which every slot fits `max_slot_samples`. Slots beyond the clips are empty.

    Raises:
        PlanError: if a single clip is longer than `max_slot_samples`.
    """
    longest = int(num_samples[-1])
    if longest > max_slot_samples:
        raise PlanError(
            f"data.max_slot_s must hold the longest clip, but {longest} samples exceed {max_slot_samples}; raise it "
            "or filter by duration_s"
        )
    num_rounds = math.ceil(_num_slots(num_samples, max_slot_samples) / num_processes)
    num_slots = num_rounds * num_processes
    low, high = longest, max_slot_samples
    while low < high:
        bound = (low + high) // 2
        if _num_slots(num_samples, bound) <= num_slots:
            high = bound
        else:
            low = bound + 1
    slots = _fill(num_samples, low)
    slots = _split_largest(slots, num_samples, num_slots)
    empty = np.empty(0, dtype=np.int64)
    slots += [empty] * (num_slots - len(slots))
    return [slots[start : start + num_processes] for start in range(0, num_slots, num_processes)]


def _fill(num_samples: np.ndarray, bound: int) -> list[np.ndarray]:
    """Return contiguous slots, longest clips first, each as full as `bound` padded samples allow, or of one clip."""
    slots = []
    end = len(num_samples)
    while end > 0:
        start = max(0, end - max(1, bound // max(1, int(num_samples[end - 1]))))
        slots.append(np.arange(start, end))
        end = start
    return slots


def _num_slots(num_samples: np.ndarray, bound: int) -> int:
    return len(_fill(num_samples, bound))


def _split_largest(slots: list[np.ndarray], num_samples: np.ndarray, num_slots: int) -> list[np.ndarray]:
    """Halve the costliest slots until there are `num_slots`, so that no process idles while another has two clips."""
    slots = list(slots)
    while len(slots) < num_slots:
        costs = [len(slot) * int(num_samples[slot[-1]]) if len(slot) > 1 else 0 for slot in slots]
        at = int(np.argmax(costs))
        if costs[at] == 0:
            break
        slot = slots[at]
        middle = len(slot) // 2
        slots[at : at + 1] = [slot[middle:], slot[:middle]]
    return slots


def step_slots(schedule: Schedule, step: int, *, rank: int, num_processes: int, max_slot_samples: int) -> list[Slot]:
    """Return the slots that `rank` forwards in the 0-based global `step`, one for each accumulation round."""
    items = schedule.items(step)
    rounds = cut_slots(schedule.num_samples[items], num_processes, max_slot_samples)
    return [Slot(items[slots[rank]]) if len(slots[rank]) else Slot(items[:1], is_dummy=True) for slots in rounds]


def random_windows(
    slot: Slot, num_samples: np.ndarray, keys: Sequence[str], windowing: Windowing, *, seed: int, epoch: int
) -> Slot:
    """Return `slot` with a window of each clip that is longer than one: its place is drawn from (seed, epoch, key).

    `num_samples` and `keys` are those of all utterances and of the slot's.
    """
    windows = []
    for key, length in zip(keys, num_samples[slot.items].tolist(), strict=True):
        heard = min(length, windowing.length)
        start = stable_seed("window", seed, epoch, key) % (length - heard + 1)
        windows.append((start, start + heard))
    return replace(slot, windows=tuple(windows))


def evaluation_slots(
    num_samples: np.ndarray,
    *,
    rank: int,
    num_processes: int,
    max_slot_samples: int,
    windowing: Windowing | None = None,
) -> Iterator[Slot]:
    """Yield this rank's slots of one pass in which every utterance stands exactly once.

    Every rank gets the same number of slots, the last of them perhaps dummies. A slot holds clips of one exact padded
    cost bound, a longer clip stands alone; the cut does not depend on the number of processes, so that results are the
    same on any number. A clip that is longer than a window comes in windows, alone in its slots, which follow one
    another on one rank.
    """
    order = np.argsort(num_samples, kind="stable")
    cut: list[list[Slot]] = []
    if windowing is not None:
        is_short = num_samples <= windowing.length
        order = order[is_short[order]]
        at_once = max_slot_samples // windowing.length
        for item in np.flatnonzero(~is_short).tolist():
            cut.append(_window_slots(item, windowing.cut(int(num_samples[item])), at_once))
    whole = [[Slot(order[slot])] for slot in _fill(num_samples[order], max_slot_samples)]
    mine: list[list[Slot]] = [[] for _ in range(num_processes)]
    for slots in sorted(cut, key=len, reverse=True) + whole:
        min(mine, key=len).extend(slots)
    yield from mine[rank]
    for _ in range(len(max(mine, key=len)) - len(mine[rank])):
        spare = (whole + cut)[-1][0]
        yield Slot(spare.items[:1], is_dummy=True, windows=spare.windows and spare.windows[:1])


def _window_slots(item: int, windows: Sequence[Window], most: int) -> list[Slot]:
    parts = [windows[start : start + most] for start in range(0, len(windows), most)]
    return [Slot(np.full(len(part), item), windows=tuple((w.start, w.end) for w in part)) for part in parts]


def check_longest(num_samples: Sequence[int] | np.ndarray, windowing: Windowing | None, *, max_slot_s: float) -> None:
    """Check once that every clip that is heard whole fits a slot.

    Raises:
        PlanError: if one does not.
    """
    longest_s = float(np.max(num_samples, initial=0)) / RATE_HZ
    if windowing is None and longest_s > max_slot_s:
        raise PlanError(
            f"data.max_slot_s must hold the longest clip ({longest_s:.2f} s), got {max_slot_s:g}; set data.window_s to "
            "hear longer clips in windows, raise data.max_slot_s or filter by duration_s"
        )


def check_sizes(
    num_samples: Sequence[int] | np.ndarray,
    *,
    num_processes: int,
    max_slot_s: float,
    windowing: Windowing | None = None,
) -> None:
    """Check once, before the first step, that every process will have work and every clip fits.

    Raises:
        PlanError: if there are fewer utterances than processes, or a clip longer than a slot.
    """
    if len(num_samples) < num_processes:
        raise PlanError(
            f"each of the {num_processes} processes needs an utterance, but only {len(num_samples)} are selected; "
            f"start at most {max(1, len(num_samples))} processes"
        )
    check_longest(num_samples, windowing, max_slot_s=max_slot_s)
