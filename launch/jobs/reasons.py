"""Slurm's reasons in plain words, and what may be done about each (squeue's manual, JOB REASON CODES)."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why a job waits.

    Attributes:
        words: Why, after "waits: ".
        advice: What may be done about it; empty where waiting is right.
        is_stuck: Whether it will not start by itself.
    """

    words: str
    advice: str = ""
    is_stuck: bool = False


_SHOW_LIMITS = "sacctmgr show assoc user=$USER format=account,qos,grptres,maxtres shows the limits"
_OWN_LIMIT = "it starts when another job of yours ends; or cancel one"
_ASK_LESS = "cancel it and ask for less: --set resources.…=, or another QOS: --set cluster.qos=NAME"

_REASONS = {
    "Resources": Reason("it is first in line, and what it asks for is not free yet"),
    "Priority": Reason("jobs of higher priority are before it", "a shorter time limit may fit it in earlier"),
    "None": Reason("Slurm has not looked at it yet"),
    "BeginTime": Reason("its start time is not reached yet; after a requeue Slurm waits some minutes"),
    "Dependency": Reason("a job that it comes after is not over"),
    "DependencyNeverSatisfied": Reason(
        "a job that it comes after ended otherwise than it needs",
        "it will never start: cancel it, mend the earlier run, and submit again",
        is_stuck=True,
    ),
    "JobHeldUser": Reason("you have held it", "scontrol release {job}", is_stuck=True),
    "JobHeldAdmin": Reason(
        "Slurm or an administrator has held it",
        "a job that failed to start is held after its requeue: scontrol release {job}, or ask the site",
        is_stuck=True,
    ),
    "JobHoldMaxRequeue": Reason(
        "it was requeued too often and is held", "see why it ends: explain; then scontrol release {job}", is_stuck=True
    ),
    "launch failed requeued held": Reason(
        "its node could not start it, and it is held",
        "scontrol release {job}; tell the site where it comes again",
        True,
    ),
    "ReqNodeNotAvail": Reason(
        "nodes that it needs are down, drained or reserved for maintenance",
        "a time limit that ends before the maintenance lets it start: scontrol show reservation",
    ),
    "NodeDown": Reason("a node that it needs is down", "sinfo -R says why"),
    "Reservation": Reason("its reservation has not begun", "scontrol show reservation"),
    "ReservationDeleted": Reason("its reservation was deleted", "cancel it and submit without it", is_stuck=True),
    "PartitionDown": Reason("its partition takes jobs and starts none", "sinfo -s; the site may say until when"),
    "PartitionInactive": Reason("its partition is switched off", "sinfo -s; the site may say until when"),
    "PartitionTimeLimit": Reason(
        "it asks for more time than its partition allows", "--set resources.time=…; sinfo shows the limits", True
    ),
    "PartitionNodeLimit": Reason("it asks for more nodes than its partition allows", _ASK_LESS, is_stuck=True),
    "QOSNotAllowed": Reason("its QOS may not be used there", "--set cluster.qos=NAME; sacctmgr show assoc", True),
    "InvalidAccount": Reason("its account does not exist any more", "--set cluster.account=NAME", is_stuck=True),
    "InvalidQOS": Reason("its QOS does not exist any more", "--set cluster.qos=NAME", is_stuck=True),
    "BadConstraints": Reason("no node has what it asks for", _ASK_LESS, is_stuck=True),
    "AccountNotAllowed": Reason("its account may not use the partition", "--set cluster.account=NAME", is_stuck=True),
    "AccountingPolicy": Reason("a limit of the account holds it back", _SHOW_LIMITS),
    "JobArrayTaskLimit": Reason("so many elements of its array run already as may at once"),
    "Prolog": Reason("its nodes are being prepared"),
    "Cleaning": Reason("its last attempt is being cleaned up"),
    "Licenses": Reason("a licence that it needs is not free"),
    "SystemFailure": Reason("Slurm itself failed", "ask the site"),
    "NodesUnavailable": Reason("nodes that it needs are down, drained or held for others", "sinfo -R says why"),
    "MaxMemPerLimit": Reason("it asks for more memory a core than is allowed", _ASK_LESS, is_stuck=True),
    "InactiveLimit": Reason("it was not used for too long"),
    "FedJobLock": Reason("the clusters of the federation settle who runs it"),
    "DeadLine": Reason("it cannot end before its deadline", "submit again with a later one", is_stuck=True),
}

_WHO = {"QOS": "its QOS", "Assoc": "its account"}
# What is limited, by the middle of the word, in lower case and without a plural's s.
_WHAT = {
    "gre": "GPUs",
    "cpu": "cores",
    "memory": "memory",
    "mem": "memory",
    "node": "nodes",
    "job": "running jobs",
    "submitjob": "jobs in the queue",
    "wallduration": "time",
    "wall": "time",
    "cpuminute": "core hours",
    "cpurunminute": "core hours of what runs",
    "greminute": "GPU hours",
    "grerunminute": "GPU hours of what runs",
    "billing": "billing units",
    "billingminute": "billing units",
    "license": "licences",
}
_LIMIT = re.compile(
    r"(?P<who>QOS|Assoc)(?P<scope>Max|Grp|Min)(?P<what>[A-Za-z]+?)(?P<per>Per(?:User|Account|Job|Node))?"
)
_NODES = re.compile(r"^Nodes required for job are DOWN")


def explain_reason(reason: str | None) -> Reason:
    """Explains why Slurm lets a job wait.

    Args:
        reason: Slurm's word, which may have details behind a comma; None where it gave none.

    Returns:
        Plain words; those of Slurm where nobody has put them into plain ones.
    """
    if not reason or reason == "None":
        return _REASONS["None"]
    word, _, detail = reason.partition(",")
    if _NODES.match(reason):
        return _REASONS["NodesUnavailable"]
    known = _REASONS.get(word.strip("()")) or _REASONS.get(reason.strip("()"))
    if known is not None:
        nodes = detail.partition(":")[2].strip(" )")
        return Reason(f"{known.words} ({nodes})", known.advice, known.is_stuck) if nodes else known
    if match := _LIMIT.fullmatch(word.strip("()").removesuffix("Limit")):
        return _limit(match)
    return Reason(f"Slurm says {reason}", "man squeue, JOB REASON CODES")


def _limit(match: re.Match[str]) -> Reason:
    who, per, what = _WHO[match["who"]], match["per"] or "", match["what"]
    plain = re.sub(r"min(ute)?s?$", "minute", what.lower().replace("gres", "gre")).removesuffix("s")
    limited = _WHAT.get(plain, what)
    if match["scope"] == "Min":
        return Reason(f"it asks for less than {who} demands ({limited})", _ASK_LESS, is_stuck=True)
    if match["scope"] == "Grp":
        return Reason(f"all jobs of {who} together have reached its limit ({limited})", _SHOW_LIMITS)
    if per in ("PerJob", "PerNode") or (not per and limited == "time"):
        each = "node" if per == "PerNode" else "job"
        return Reason(f"it asks for more than {who} allows a {each} ({limited})", _ASK_LESS, is_stuck=True)
    if per == "PerAccount":
        return Reason(f"its account has reached what {who} allows each account ({limited})", _SHOW_LIMITS)
    return Reason(f"you have reached what {who} allows each user ({limited})", _OWN_LIMIT)
