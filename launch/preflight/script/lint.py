"""All rules on one script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launch.preflight.dependencies import ask_for, dependency_findings
from launch.preflight.finding import Finding, errors_of, warnings_of
from launch.preflight.limits import limit_findings, limits_of_profile
from launch.preflight.live import beside_profile, live_findings
from launch.preflight.script.environment import environment_findings
from launch.preflight.script.launching import launch_findings
from launch.preflight.script.options import option_findings
from launch.preflight.script.read import Script
from launch.preflight.script.signals import signal_findings
from launch.profile import Cluster


def lint(text: str, submit_dir: Path, cluster: Cluster | None = None, *, live: bool = False) -> list[Finding]:
    """Looks for what would make a batch script fail, or do other than it says.

    Args:
        text: The script.
        submit_dir: Where it would be submitted from.
        cluster: The profile whose limits hold; None for no limits.
        live: Whether the Slurm that this process talks to is asked as well.

    Returns:
        What was found, by line; what has none is first.
    """
    found = list(_all(Script(text, submit_dir), cluster, live=live))
    return sorted(dict.fromkeys(found), key=lambda finding: finding.line or 0)


def _all(script: Script, cluster: Cluster | None, *, live: bool) -> Iterator[Finding]:
    yield from option_findings(script)
    yield from launch_findings(script, *([cluster.node_local] if cluster is not None else []))
    yield from signal_findings(script)
    yield from environment_findings(script)
    offline = list(limit_findings(script.request, limits_of_profile(cluster))) if cluster is not None else []
    yield from errors_of(offline)
    if not live:
        yield from warnings_of(offline)
    else:
        yield from beside_profile(offline, live_findings(script.request))
        if (one := script.last("dependency")) is not None:
            yield from dependency_findings(one.value, ask_for(one.value), one.line)
