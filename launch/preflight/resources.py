"""What a job asks for, looked at by itself."""

from __future__ import annotations

from collections.abc import Iterator

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.render import slurm_time
from launch.spec import JobSpec


def resource_findings(spec: JobSpec) -> Iterator[Finding]:
    """Yields what of a stage's resources does not go together, whatever the site."""
    cluster, resources = spec.cluster, spec.resources
    if cluster.executor == "local" and resources.nodes > 1:
        yield rules.LOCAL_NODES(
            f"resources.nodes={resources.nodes}: {cluster.name!r} is this machine alone", "--set resources.nodes=1"
        )
    if resources.signal_seconds >= resources.time * 60:
        yield rules.SIGNAL_TIME(
            f"resources.signal_seconds={resources.signal_seconds}, and resources.time={slurm_time(resources.time)}",
            f"--set resources.signal_seconds={resources.time * 60 // 2}, or a longer resources.time",
        )
