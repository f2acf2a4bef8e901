"""A request against what a site allows, as a profile has it or as Slurm says it now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.preflight.request import Request
from launch.profile import Cluster, PartitionLimits, QosRules
from launch.render import slurm_time
from launch.site import Site

_SHOWN = 8
_REFUSING = {"DRAIN", "INACTIVE"}


@dataclass(frozen=True)
class Limits:
    """What a site allows; what is empty or None is not known.

    Attributes:
        source: Who says so, for the messages.
        partitions: Limits by partition.
        are_all_partitions: Whether there are surely no others.
        qos_times: Longest time in minutes by QOS.
        qos_rules: What else a QOS limits.
        qos: All QOS that there are.
        accounts: Accounts that the user may name.
        account_qos: The QOS of each of them.
        states: Slurm's state of each partition.
        gpus_per_node: GPUs of a node where the partitions are not known.
    """

    source: str
    partitions: Mapping[str, PartitionLimits] = field(default_factory=dict)
    are_all_partitions: bool = True
    qos_times: Mapping[str, int] = field(default_factory=dict)
    qos_rules: Mapping[str, QosRules] = field(default_factory=dict)
    qos: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    account_qos: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    gpus_per_node: int | None = None

    def partition_of(self, request: Request) -> tuple[str | None, PartitionLimits]:
        """The partition that a request goes to, with its limits; without any where they are not known."""
        name = request.partition
        if name is None:
            name = next((one for one, limits in self.partitions.items() if limits.default), None)
        return name, self.partitions.get(name or "", PartitionLimits())


def limits_of_profile(cluster: Cluster) -> Limits:
    """What a profile says."""
    return Limits(
        source=repr(cluster.name),
        partitions=cluster.partitions,
        # Notes name the partitions that their writer uses; whoever has let a job look at the cluster knows it.
        are_all_partitions=cluster.checked is not None,
        qos_times=cluster.qos_limits,
        qos_rules=cluster.qos_rules,
        accounts=cluster.accounts,
        account_qos=cluster.account_qos,
        gpus_per_node=cluster.gpus_per_node,
    )


def limits_of_site(site: Site) -> Limits:
    """What Slurm says now."""
    states = {name: one.state for name, one in (site.states or {}).items()}
    states |= {name: "without a node that is up" for name, one in (site.states or {}).items() if one.nodes_up == 0}
    return Limits(
        source=f"Slurm's {site.cluster!r}" if site.cluster else "Slurm",
        partitions=site.partitions or {},
        qos_times=site.qos_limits or {},
        qos_rules=site.qos_rules or {},
        qos=tuple(site.qos_rules) if site.qos_rules is not None else None,
        accounts=site.accounts,
        account_qos=site.account_qos or {},
        states=states,
    )


def limit_findings(request: Request, limits: Limits) -> Iterator[Finding]:
    """Yields what of a request a site does not allow."""
    names = (request.partition or "").split(",")
    if len(names) > 1:
        yield from _of_several([list(limit_findings(replace(request, partition=name), limits)) for name in names])
        return
    yield from _access(request, limits)
    yield from _size(request, limits)
    yield from _time(request, limits)


def _of_several(each: Sequence[Sequence[Finding]]) -> Iterable[Finding]:
    """What is said of a job that may start in one of several partitions: an error where none of them takes it.

    Whether all of them must is up to the site (`EnforcePartLimits`); a name that is unknown is refused everywhere.
    """
    of_all = set.intersection(*({one.rule for one in found} for found in each)) | {rules.PARTITION_UNKNOWN.name}
    said: dict[tuple[str, str], Finding] = {}
    for one in chain.from_iterable(each):
        said.setdefault((one.rule, one.what), one if one.rule in of_all else one.milder())
    return said.values()


def _access(request: Request, limits: Limits) -> Iterator[Finding]:
    name, partition = limits.partition_of(request)
    line = request.lines.get
    if request.partition and limits.partitions and request.partition not in limits.partitions:
        unknown = rules.PARTITION_UNKNOWN(
            f"{request.shown('partition')}: {limits.source} has no such partition, but {_list(limits.partitions)}",
            request.set_to("partition", _nearest(request.partition, limits.partitions)),
            line("partition"),
        )
        yield unknown if limits.are_all_partitions else unknown.milder()
    if name is not None and (state := limits.states.get(name, "UP")) != "UP":
        down = rules.PARTITION_DOWN(
            f"partition {name!r} is {state} on {limits.source}",
            f"another one ({_list(one for one in limits.partitions if one != name)}), or wait until it is back",
            line("partition"),
        )
        # These refuse jobs; one that is down queues them and starts them later.
        yield down if state in _REFUSING else down.milder()
    yield from _account(request, limits, name, partition)
    yield from _qos(request, limits, name, partition)


def _account(request: Request, limits: Limits, name: str | None, partition: PartitionLimits) -> Iterator[Finding]:
    account, line = request.account, request.lines.get("account")
    if account is None:
        return
    if limits.accounts is not None and account not in limits.accounts:
        yield rules.ACCOUNT_UNKNOWN(
            f"{request.shown('account')}: not one of your accounts on {limits.source} ({_list(limits.accounts)})",
            request.set_to("account", _nearest(account, limits.accounts)),
            line,
        )
    elif (partition.accounts is not None and account not in partition.accounts) or account in partition.denied_accounts:
        only = f", which is for {_list(partition.accounts)}" if partition.accounts is not None else ""
        yield rules.ACCOUNT_PARTITION(
            f"{request.shown('account')} may not use partition {name!r} of {limits.source}{only}",
            f"{request.set_to('partition', 'NAME')}, or another account: {request.set_to('account', 'NAME')}",
            line,
        )


def _qos(request: Request, limits: Limits, name: str | None, partition: PartitionLimits) -> Iterator[Finding]:
    qos, line = request.qos, request.lines.get("qos")
    if qos is None:
        return
    own = limits.account_qos.get(request.account or "")
    if limits.qos is not None and qos not in limits.qos:
        yield rules.QOS_UNKNOWN(
            f"{request.shown('qos')}: {limits.source} has no such QOS; there are {_list(limits.qos)}",
            request.set_to("qos", _nearest(qos, limits.qos)),
            line,
        )
    elif own is not None and qos not in own:
        yield rules.QOS_ACCOUNT(
            f"{request.shown('qos')}: account {request.account!r} has only {_list(own)} on {limits.source}",
            request.set_to("qos", _nearest(qos, own)),
            line,
        )
    elif (partition.qos is not None and qos not in partition.qos) or qos in partition.denied_qos:
        only = f", which takes {_list(partition.qos)}" if partition.qos is not None else ""
        yield rules.QOS_PARTITION(
            f"{request.shown('qos')} cannot be used in partition {name!r} of {limits.source}{only}",
            f"{request.set_to('qos', partition.qos[0] if partition.qos else 'NAME')}, or another partition",
            line,
        )


def _size(request: Request, limits: Limits) -> Iterator[Finding]:
    name, partition = limits.partition_of(request)
    place = f"partition {name!r} of {limits.source}" if name else limits.source
    gpus = partition.gpus_per_node
    if gpus is None and (name is None or not limits.partitions or name in limits.partitions):
        gpus = limits.gpus_per_node
    if gpus is not None and request.gpus_per_node > gpus:
        yield rules.GPUS_NODE(
            f"{request.shown('gpus_per_node')}: a node of {limits.source} has {gpus}",
            f"{request.set_to('gpus_per_node', gpus)} and take more nodes: {request.set_to('nodes', 'N')}"
            if gpus
            else "a partition with GPUs: " + request.set_to("partition", "NAME"),
            request.lines.get("gpus_per_node"),
        )
    cpus = (request.cpus_per_task or 1) * (request.tasks_per_node or 1)
    if partition.cpus_per_node is not None and cpus > partition.cpus_per_node:
        tasks = request.tasks_per_node or 1
        yield rules.CPUS_NODE(
            f"{request.shown('cpus_per_task')} x {tasks} tasks = {cpus} cores: a node of {place} has "
            f"{partition.cpus_per_node}",
            request.set_to("cpus_per_task", max(1, partition.cpus_per_node // tasks)),
            request.lines.get("cpus_per_task"),
        )
    if partition.memory_gb is not None and (request.memory_mb or 0) > partition.memory_gb * 1024:
        yield rules.MEMORY_NODE(
            f"{request.shown('memory_mb')}: a node of {place} has {partition.memory_gb:g} GiB for jobs",
            # --mem counts in MiB.
            request.set_to("memory_mb", f"{int(partition.memory_gb)}{'G' if request.lines else ''}"),
            request.lines.get("memory_mb"),
        )
    most = min((one for one in (partition.nodes, partition.max_nodes) if one is not None), default=None)
    if most is not None and request.nodes > most:
        yield rules.NODES_PARTITION(
            f"{request.shown('nodes')}: a job in {place} may have {most}",
            request.set_to("nodes", most),
            request.lines.get("nodes"),
        )
    yield from _qos_size(request, limits, partition)


def _qos_size(request: Request, limits: Limits, partition: PartitionLimits) -> Iterator[Finding]:
    asked = request.nodes * request.gpus_per_node
    for qos in (request.qos, partition.own_qos):
        of_qos = limits.qos_rules.get(qos or "", QosRules())
        for most, whose in ((of_qos.gpus_per_job, "a job"), (of_qos.gpus_per_user, "a user")):
            if most is not None and asked > most:
                yield rules.GPUS_QOS(
                    f"{request.shown('nodes')} x {request.shown('gpus_per_node')} = {asked} GPUs: QOS {qos!r} of "
                    f"{limits.source} gives {whose} {most}",
                    f"ask for {most} GPUs or fewer, or another QOS: {request.set_to('qos', 'NAME')}",
                    request.lines.get("gpus_per_node"),
                )
                return


def _time(request: Request, limits: Limits) -> Iterator[Finding]:
    if request.minutes is None:
        return
    name, partition = limits.partition_of(request)
    line = request.lines.get("minutes")
    for qos in (request.qos, partition.own_qos):
        longest = limits.qos_times.get(qos or "")
        if longest is not None and request.minutes > longest:
            yield rules.TIME_QOS(
                f"{request.shown('minutes')}: QOS {qos!r} of {limits.source} allows {slurm_time(longest)}",
                f"{request.set_to('minutes', slurm_time(longest))}; a run that resumes goes on after each end",
                line,
            )
            break
    longest = partition.max_time
    overrides = "PartitionTimeLimit" in limits.qos_rules.get(request.qos or "", QosRules()).flags
    if longest is not None and request.minutes > longest and not overrides:
        yield rules.TIME_PARTITION(
            f"{request.shown('minutes')}: partition {name!r} of {limits.source} allows {slurm_time(longest)}",
            f"{request.set_to('minutes', slurm_time(longest))}; a run that resumes goes on after each end",
            line,
        )


def _list(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return (", ".join(ordered[:_SHOWN]) or "none") + more


def _nearest(given: str, valid: Iterable[str]) -> str:
    """What was probably meant; `NAME` where nothing is near."""
    names = sorted(valid)
    found = get_close_matches(given, names, n=1)
    return found[0] if found else names[0] if len(names) == 1 else "NAME"
