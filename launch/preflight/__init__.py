"""What would make a job fail is said before it waits in a queue for hours.

A stage is looked at by `findings`, from its profile and the disk and, where asked for, against the live cluster;
anybody's sbatch script by `python -m launch.preflight FILE.sh`, with the same rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launch.preflight.finding import Finding, counted, errors_of, warnings_of
from tracking.errors import UserError

if TYPE_CHECKING:
    from launch.config import Config
    from launch.questions import Questions
    from launch.spec import JobSpec

__all__ = ["Finding", "check", "facts", "findings", "report_findings"]


def findings(config: Config, spec: JobSpec, *, live: bool = False, asked: Questions | None = None) -> Iterator[Finding]:
    """Looks for what would make a stage's job fail; writes nothing.

    Args:
        config: The resolved configuration.
        spec: The job.
        live: Whether the Slurm that this process talks to is asked as well.
        asked: What it was asked, where that is on its way already.

    Yields:
        What was found, the profile's part first.
    """
    from launch.preflight.arguments import argument_findings
    from launch.preflight.dagger import dagger_findings
    from launch.preflight.disk import disk_findings
    from launch.preflight.folders import folder_findings
    from launch.preflight.inputs import input_findings
    from launch.preflight.limits import limit_findings, limits_of_profile
    from launch.preflight.request import request_of
    from launch.preflight.resources import resource_findings
    from launch.preflight.tracking import tracking_findings

    yield from resource_findings(spec)
    offline = list(limit_findings(request_of(spec), limits_of_profile(spec.cluster)))
    yield from errors_of(offline)
    yield from folder_findings(config, spec)
    yield from input_findings(config, spec)
    yield from argument_findings(config, spec)
    if spec.stage == "dagger":
        yield from dagger_findings(config, spec)
    yield from disk_findings(config, spec)
    yield from tracking_findings(config, spec)
    if live and spec.cluster.executor == "slurm":
        from launch.preflight.live import beside_profile, live_findings

        yield from beside_profile(offline, live_findings(request_of(spec), asked))
    else:
        yield from warnings_of(offline)


def facts(config: Config, spec: JobSpec) -> Iterator[str]:
    """Yields what was worked out on the way, for a preview."""
    from launch.preflight.arguments import batch_shares
    from launch.preflight.disk import estimate

    if (shares := batch_shares(config, spec)) is not None and not shares[0] % (shares[1] * shares[2]):
        batch, ranks, accumulation = shares
        micro = batch // (ranks * accumulation)
        yield f"batch {batch} = micro-batch {micro} x {ranks} ranks x {accumulation} accumulated"
    if (found := estimate(config, spec)) is not None:
        yield str(found)


def report_findings(config: Config, spec: JobSpec, *, live: bool, asked: Questions | None = None) -> list[Finding]:
    """Prints on stderr what preflight finds, and what it worked out on the way.

    Args:
        config: The resolved configuration.
        spec: The job.
        live: Whether Slurm is asked as well.
        asked: What it was asked, where that is on its way already.
    """
    found = list(findings(config, spec, live=live, asked=asked))
    _show(found)
    for fact in facts(config, spec):
        print(f"preflight: {fact}", file=sys.stderr)
    refused = "; a submission would be refused" if errors_of(found) else ""
    print(f"preflight: {counted(found)}{refused}", file=sys.stderr)
    return found


def check(
    config: Config, spec: JobSpec, *, live: bool, force: bool = False, asked: Questions | None = None
) -> list[Finding]:
    """Prints what preflight finds on stderr, and refuses a job with errors.

    Args:
        config: The resolved configuration.
        spec: The job.
        live: Whether Slurm is asked as well.
        force: Go on in spite of errors, and say which.
        asked: What Slurm was asked, where that is on its way already.

    Returns:
        What was found.

    Raises:
        UserError: There are errors, and no `force`.
    """
    found = list(findings(config, spec, live=live, asked=asked))
    _show(found)
    errors = errors_of(found)
    if errors and not force:
        raise UserError(f"preflight: {counted(found)}; nothing was queued\n  go on in spite of errors: --force")
    if errors:
        rules = ", ".join(dict.fromkeys(finding.rule for finding in errors))
        print(f"preflight: --force goes on in spite of {rules}", file=sys.stderr)
    return found


def _show(found: list[Finding]) -> None:
    if found:
        from rich.console import Console

        from launch.preflight.finding import show

        show(found, Console(stderr=True))
