"""How often the interval of UA holds the true UA, on made-up speakers; run it for the table in docs/results.md.

Each class has a recall; each speaker is better or worse at everything, and at each class (normal on the logit scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaser.tasks.interval import interval_over_speakers


@dataclass(frozen=True)
class World:
    """What speakers are drawn from."""

    recalls: tuple[float, ...]
    """Of the median speaker, per class."""
    spread: float
    """Standard deviation over speakers on the logit scale; 0: utterances are independent."""
    num_per_class: int = 10
    unevenness: float = 0.0
    """Standard deviation of the logarithm of the speakers' numbers of utterances; 0: all have `num_per_class`."""
    absent: float = 0.0
    """Share of speakers that lack a class."""

    def recalls_of(self, num_speakers: int, generator: np.random.Generator) -> np.ndarray:
        """Return speakers' recalls per class."""
        logits = np.log(np.asarray(self.recalls) / (1 - np.asarray(self.recalls)))
        general = generator.normal(0, self.spread * 0.7**0.5, (num_speakers, 1))
        special = generator.normal(0, self.spread * 0.3**0.5, (num_speakers, len(self.recalls)))
        recalls: np.ndarray = 1 / (1 + np.exp(-(logits + general + special)))
        return recalls

    def counts_of(self, num_speakers: int, generator: np.random.Generator) -> np.ndarray:
        """Return speakers' numbers of utterances per class."""
        means = self.num_per_class * np.exp(generator.normal(0, self.unevenness, (num_speakers, 1)))
        counts = generator.poisson(np.broadcast_to(means, (num_speakers, len(self.recalls))))
        if not self.unevenness:
            counts = np.full_like(counts, self.num_per_class)
        return np.where(generator.random(counts.shape) < self.absent, 0, counts)

    def ua(self) -> float:
        """Return the UA over all speakers there could be."""
        return float(self.recalls_of(400_000, np.random.default_rng(0)).mean())


WORLDS = {
    "speakers differ": World((0.7,) * 4, 1.0),
    "speakers do not differ": World((0.7,) * 4, 0.0),
    "uneven, classes absent": World((0.9, 0.8, 0.6, 0.5), 0.5, unevenness=0.6, absent=0.2),
    "near 1": World((0.95,) * 4, 1.0),
    "nearer 1": World((0.98,) * 4, 0.5),
}


def coverage(world: World, num_speakers: int, num_draws: int, seed: int = 0) -> float:
    """Return how often the interval holds the true UA, over draws in which two speakers have each class."""
    generator = np.random.default_rng((seed, num_speakers))
    truth = world.ua()
    hits = []
    for _ in range(num_draws):
        counts = world.counts_of(num_speakers, generator)
        correct = generator.binomial(counts, world.recalls_of(num_speakers, generator))
        if (np.count_nonzero(counts, axis=0) > 1).all():
            lower, upper = interval_over_speakers(counts, correct)
            hits.append(lower <= truth <= upper)
    return sum(hits) / len(hits)


if __name__ == "__main__":
    sizes = (5, 6, 10, 20)
    print("speakers", *sizes, sep="\t")
    for name, world in WORLDS.items():
        print(name, *(f"{coverage(world, size, 4000):.3f}" for size in sizes), sep="\t", flush=True)
