"""A rank that meets the other one, tells it something, and prints what it was told."""

from __future__ import annotations

from gilbreth_phase0.ranks import Ranks, meet

ranks = Ranks.from_environment()
store = meet(ranks)
store.set(f"from {ranks.rank}", f"hello from {ranks.rank}")
print(store.get(f"from {1 - ranks.rank}").decode())
# Rank 0 serves the store: it must not leave before the other one has read it.
store.set(f"read {ranks.rank}", "")
store.wait([f"read {1 - ranks.rank}"])
