"""How often a rule for `best` is wrong, and how often it finds what is better.

    python benchmarks/best_rule.py

Counts trials with policies whose true success rates are known: for each pair, how often the new one is taken for
better, by comparing means, by the same seeds alone, and with a confirmation on as many fresh seeds. Then whole runs of
twenty equally good checkpoints: how often `best` moves, and by how much what was measured of the last best exceeds the
truth.
"""

from __future__ import annotations

import argparse

import numpy as np

from tracking.gate import judge

PAIRS = ((0.5, 0.5), (0.7, 0.7), (0.9, 0.9), (0.7, 0.6), (0.7, 0.8), (0.7, 0.9), (0.6, 0.95))
EPISODES = (20, 50, 100)
CHECKPOINTS = 20


def tried(random: np.random.Generator, rate: float, episodes: int, first: int = 0) -> dict[int, float]:
    """A policy's outcomes, 1 or 0, on as many seeds."""
    return dict(enumerate((random.random(episodes) < rate).astype(float).tolist(), start=first))


def compare(random: np.random.Generator, rates: tuple[float, float], episodes: int, trials: int) -> list[float]:
    """Shares of the trials in which the second policy is taken for better: naive, same seeds, with a confirmation."""
    counts = [0, 0, 0]
    for _ in range(trials):
        best, new = (tried(random, rate, episodes) for rate in rates)
        fresh_best, fresh_new = (tried(random, rate, episodes, first=episodes) for rate in rates)
        counts[0] += judge(new, best, rule="naive").better
        counts[1] += judge(new, best).better
        counts[2] += judge(new, best, fresh=(fresh_new, fresh_best)).better
    return [count / trials for count in counts]


def whole_run(random: np.random.Generator, rate: float, episodes: int, *, naive: bool) -> tuple[int, float]:
    """Moves of `best` over equally good checkpoints, and what was measured of the last best, less the truth."""
    best, moves, fresh = tried(random, rate, episodes), 0, episodes
    for _ in range(CHECKPOINTS - 1):
        new = tried(random, rate, episodes)
        both = (tried(random, rate, episodes, first=fresh), tried(random, rate, episodes, first=fresh))
        if judge(new, best, rule="naive" if naive else "paired", fresh=both).better:
            best, moves = new, moves + 1
    return moves, sum(best.values()) / episodes - rate


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    random = np.random.default_rng(0)
    print("| best | new | episodes | naive | same seeds | with a confirmation |\n|---|---|---|---|---|---|")
    for rates in PAIRS:
        for episodes in EPISODES:
            naive, same, confirmed = compare(random, rates, episodes, trials)
            print(f"| {rates[0]} | {rates[1]} | {episodes} | {naive:.1%} | {same:.1%} | {confirmed:.1%} |")
    print("\n| rule | episodes | moves of `best` | measured less true |\n|---|---|---|---|")
    for episodes in EPISODES:
        for naive in (True, False):
            runs = [whole_run(random, 0.7, episodes, naive=naive) for _ in range(max(1, trials // 20))]
            moves, excess = (sum(values) / len(runs) for values in zip(*runs, strict=True))
            print(f"| {'naive' if naive else 'paired'} | {episodes} | {moves:.2f} | {excess:+.3f} |")


if __name__ == "__main__":
    main()
