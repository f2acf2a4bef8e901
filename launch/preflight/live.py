"""A request against the cluster as it is now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from launch.preflight import rules
from launch.preflight.finding import Finding, errors_of, warnings_of
from launch.preflight.limits import limit_findings, limits_of_site
from launch.preflight.request import Request
from launch.questions import Questions
from launch.site import ask_site


def live_findings(request: Request, asked: Questions | None = None) -> Iterator[Finding]:
    """Yields what Slurm would not take now; what it does not tell is not checked.

    Args:
        request: What a job asks for.
        asked: What Slurm was asked, where that is on its way already.
    """
    site = ask_site(asked=asked)
    if site.partitions is None:
        said = "; ".join(dict.fromkeys(site.not_known.values()))
        yield rules.SLURM_SILENT(f"Slurm did not tell its partitions: {said}", "look with: scontrol ping")
    yield from limit_findings(replace(request, account=request.account or site.default_account), limits_of_site(site))


def beside_profile(offline: Sequence[Finding], live: Iterable[Finding]) -> Iterator[Finding]:
    """Yields what is left to say after a profile's errors: nothing twice, and Slurm's word before a profile's doubts.

    Args:
        offline: What the profile does not allow.
        live: What Slurm does not.
    """
    said, now = {one.rule for one in errors_of(offline)}, list(live)
    if any(one.rule == rules.SLURM_SILENT.name for one in now):
        yield from warnings_of(offline)
    yield from (one for one in now if one.rule not in said)
