"""What would make a job fail in its first second is refused before it waits in a queue."""

from __future__ import annotations

import os
from collections.abc import Iterator

from launch.config import Config
from launch.models import model_faults, store_faults
from launch.render import check_log_folder, slurm_time
from launch.spec import JobSpec, expand
from tracking.errors import UserError


def refuse_what_cannot_run(config: Config, spec: JobSpec) -> None:
    """Checks a job against its profile and the disk; writes nothing.

    Raises:
        UserError: With everything that was found, and the fix of each.
    """
    found = list(findings(config, spec))
    if found:
        raise UserError("\n  ".join(found))


def findings(config: Config, spec: JobSpec) -> Iterator[str]:
    """Yields what would make a job fail, one line each."""
    try:
        check_log_folder(spec.log_dir)
    except UserError as error:
        yield str(error)
    yield from _limits(spec)
    yield from _folders(spec)
    yield from _inputs(config, spec)
    yield from store_faults(config, spec)
    yield from model_faults(config, spec)


def _limits(spec: JobSpec) -> Iterator[str]:
    cluster, resources = spec.cluster, spec.resources
    if cluster.executor == "local" and resources.nodes > 1:
        yield f"resources.nodes={resources.nodes}: {cluster.name!r} is this machine alone; set resources.nodes=1"
    if cluster.gpus_per_node is not None and resources.gpus_per_node > cluster.gpus_per_node:
        yield (
            f"resources.gpus_per_node={resources.gpus_per_node}: a node of {cluster.name!r} has "
            f"{cluster.gpus_per_node}; take more nodes: --set resources.nodes=N"
        )
    if resources.signal_seconds >= resources.time * 60:
        yield (
            f"resources.signal_seconds={resources.signal_seconds}: with resources.time={slurm_time(resources.time)} "
            "the job would be told to stop as it starts; set a smaller one"
        )
    longest = cluster.qos_limits.get(cluster.qos or "")
    if longest is not None and resources.time > longest:
        yield (
            f"resources.time={slurm_time(resources.time)}: QOS {cluster.qos!r} of {cluster.name!r} allows "
            f"{slurm_time(longest)}; the run goes on by itself after each end: --set resources.time={longest}"
        )


def _folders(spec: JobSpec) -> Iterator[str]:
    for key, folder in (("cluster.run_root", spec.run_dir.parent), ("the log folder", spec.log_dir.parent)):
        for local in spec.cluster.node_local:
            if folder.is_relative_to(local):
                yield f"{key} {str(folder)!r} is below {local}, which other nodes do not see; choose a shared disk"
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            yield f"{key} {str(folder)!r} cannot be written ({existing}); choose another or mend its permissions"
    for folder in (spec.run_dir, spec.log_dir):
        if folder.exists():
            yield f"{str(folder)!r} is there already, from another run; choose another --set name=NAME"


def _inputs(config: Config, spec: JobSpec) -> Iterator[str]:
    inputs, arguments = config.stage.inputs, config.arguments
    if inputs.datasets is not None:
        root = expand(arguments["root"] or spec.cluster.data_root, spec.root, "root")
        given = arguments[inputs.datasets]
        for name in given if isinstance(given, list) else str(given).split(","):
            if not (root / name / "meta" / "info.json").is_file():
                yield (
                    f"dataset {name!r} is not in {root} (no {name}/meta/info.json); record it: "
                    f"python -m launch.submit --stage collect --cluster {spec.cluster.name} "
                    f"--set collect.repo_id={name}, or name another: --set {spec.stage}.{inputs.datasets}=NAME"
                )
