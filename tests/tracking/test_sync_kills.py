"""Kill -9 of the daemon and of jobs' children at random moments: nothing lost, nothing twice, every state right."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync_campaign import play_campaign

KILLS = 10


@pytest.mark.wandb
def test_ten_kills_lose_no_row_and_show_none_twice(tmp_path: Path) -> None:
    """GIVEN jobs that write, end, die and are requeued WHEN whoever pushes is killed THEN every run is there whole."""
    campaign = play_campaign(tmp_path / "site", KILLS, places=4)
    assert campaign.problems == []
    assert campaign.is_good, campaign.tallies
    assert len(campaign.kills) == KILLS
    # Not each phase comes about in so short a time on a busy machine; most do.
    assert len(campaign.count()) >= 4
    assert sum(tally.expected for tally in campaign.tallies.values()) > 100
