"""What the stage `dagger` would refuse of arguments that must go together."""

from __future__ import annotations

from collections.abc import Iterator

from launch.config import Config
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.spec import JobSpec

_PERSONS = ("keyboard", "spacemouse")
# What an expert or a gate is nothing without: argument, value, what it needs, an example.
_NEEDS = (
    ("expert", "policy", "expert_policy", "act-lift:best"),
    ("expert", "recorded", "corrections", "NAME"),
    ("gate", "ensemble", "ensemble", "act-lift:v0,act-lift:v1"),
)


def dagger_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields which arguments do not go together."""
    arguments, key = config.arguments, spec.stage
    if arguments["policy_artifact"] is not None and arguments["from_checkpoint"] is not None:
        yield rules.ARGUMENTS(
            f"{key}.policy_artifact={arguments['policy_artifact']!r} and"
            f" {key}.from_checkpoint={str(arguments['from_checkpoint'])!r}: one policy is corrected, not two",
            f"--set {key}.policy_artifact=null, or --set {key}.from_checkpoint=null",
        )
    for name, value, needed, example in _NEEDS:
        if arguments[name] == value and arguments[needed] is None:
            yield rules.ARGUMENTS(
                f"{key}.{name}={value} needs {key}.{needed}, which is not set", f"--set {key}.{needed}={example}"
            )
    if arguments["expert"] == "recorded" and arguments["rounds"] != 1:
        yield rules.ARGUMENTS(
            f"{key}.rounds={arguments['rounds']}: corrections that are recorded already are one round",
            f"--set {key}.rounds=1",
        )
    if arguments["expert"] in _PERSONS and spec.cluster.executor == "slurm":
        yield rules.ARGUMENTS(
            f"{key}.expert={arguments['expert']}: a job in a queue has no display, and nobody sits before it",
            f"--cluster local at a machine with a display, or another expert: --set {key}.expert=scripted",
        )
