"""Fields of the schema about runs: resume, history, files and lineage."""

from __future__ import annotations

import json
import math
import mimetypes
import re
from typing import Any
from urllib.parse import quote

from wandb_server.blobs import Blob
from wandb_server.queries import RESOLVERS, Context, Resolver, connection, resolver
from wandb_server.runs import EVENTS, OUTPUT, Run, timestamp
from wandb_server.store import RefusedError

Arguments = dict[str, Any]


@resolver("Mutation", "upsertBucket")
def upsert_bucket(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    run, inserted = context.store.upsert_run(arguments["input"])
    return {"bucket": run, "inserted": inserted, "serverSettings": {"serverMessages": []}}


@resolver("Mutation", "deleteRun")
def delete_run(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    context.store.delete_run(given["id"], bool(given.get("deleteArtifacts")))
    return {}


@resolver("Mutation", "stopRun")
def stop_run(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    context.store.run_by_id(arguments["input"]["id"]).stopped = True
    return {"success": True}


@resolver("Mutation", "notifyScriptableRunAlert")
def alert(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    existing_run(context, given).alerts.append({key: given.get(key) for key in ("title", "text", "severity")})
    return {"success": True}


def existing_run(context: Context, given: Arguments) -> Run:
    """The run that an input names; RefusedError when there is none."""
    run = context.store.run(given["entityName"], given["projectName"], given["runName"])
    if not run:
        raise RefusedError(f"run {given['entityName']}/{given['projectName']}/{given['runName']} not found")
    return run


# What upsertBucket set


def _value(key: str) -> Resolver:
    return lambda run, _, __: run.values.get(key)


RESOLVERS.update(
    {
        ("Run", field): _value(key)
        for field, key in {
            "displayName": "displayName",
            "description": "description",
            "notes": "notes",
            "group": "groupName",
            "jobType": "jobType",
            "commit": "commit",
            "host": "host",
            "sweepName": "sweep",
        }.items()
    }
)


@resolver("Run", "projectId")
def project_number(run: Run, _: Context, __: Arguments) -> int:
    return run.project.number


@resolver("Run", "readOnly")
def read_only(*_: Any) -> bool:
    return False


@resolver("Run", "user")
def user(*_: Any) -> dict[str, Any]:
    return {"id": "user-1", "name": "Loopback User", "username": "loopback"}


@resolver("Run", "createdAt")
def created_at(run: Run, _: Context, __: Arguments) -> str:
    return timestamp(run.created)


@resolver("Run", "heartbeatAt")
def heartbeat_at(run: Run, _: Context, __: Arguments) -> str:
    return timestamp(run.heartbeat)


@resolver("Run", "config")
def config(run: Run, _: Context, __: Arguments) -> str:
    return json.dumps(run.raw_config)


@resolver("Run", "wandbConfig")
def wandb_config(run: Run, _: Context, arguments: Arguments) -> str:
    own = run.raw_config.get("_wandb", {}).get("value", {})
    keys = arguments.get("keys")
    return json.dumps({key: own[key] for key in keys if key in own} if keys else own)


@resolver("Run", "summaryMetrics")
def summary_metrics(run: Run, _: Context, __: Arguments) -> str:
    return json.dumps(run.summary)


@resolver("Run", "systemMetrics")
def system_metrics(run: Run, _: Context, __: Arguments) -> str:
    events = run.lines_of(EVENTS).rows()
    return json.dumps(events[-1] if events else {})


# History


@resolver("Run", "logLineCount")
def log_line_count(run: Run, _: Context, __: Arguments) -> int:
    return len(run.lines_of(OUTPUT).lines)


@resolver("Run", "historyLineCount")
def history_line_count(run: Run, _: Context, __: Arguments) -> int:
    return len(run.history_file.lines)


@resolver("Run", "eventsLineCount")
def events_line_count(run: Run, _: Context, __: Arguments) -> int:
    return len(run.lines_of(EVENTS).lines)


@resolver("Run", "historyTail")
def history_tail(run: Run, _: Context, __: Arguments) -> str:
    return run.history_file.tail()


@resolver("Run", "eventsTail")
def events_tail(run: Run, _: Context, __: Arguments) -> str:
    return run.lines_of(EVENTS).tail()


@resolver("Run", "historyKeys")
def history_keys(run: Run, _: Context, __: Arguments) -> dict[str, Any]:
    rows = run.history
    keys: dict[str, int] = {}
    for row in rows:
        for key in row:
            keys[key] = keys.get(key, 0) + 1
    described = {key: {"typeCounts": [{"type": "number", "count": count}]} for key, count in keys.items()}
    return {"sets": [], "keys": described, "lastStep": max((row.get("_step", 0) for row in rows), default=-1)}


def _sampled(rows: list[Any], samples: int | None) -> list[Any]:
    """At most `samples` rows, evenly spaced, as W&B thins a history out."""
    if not samples or len(rows) <= samples:
        return rows
    return [rows[number * len(rows) // samples] for number in range(samples)]


def _between(run: Run, arguments: Arguments) -> list[tuple[str, dict[str, Any]]]:
    """Lines and rows with `minStep` ≤ `_step` < `maxStep`, in the order of the lines."""
    low = arguments["minStep"] if arguments.get("minStep") is not None else float("-inf")
    high = arguments["maxStep"] if arguments.get("maxStep") is not None else float("inf")
    pairs = zip(run.history_file.present(), run.history, strict=True)
    return [(line, row) for line, row in pairs if low <= row.get("_step", 0) < high]


@resolver("Run", "history")
def history(run: Run, _: Context, arguments: Arguments) -> list[str]:
    return _sampled([line for line, _ in _between(run, arguments)], arguments.get("samples"))


@resolver("Run", "events")
def events(run: Run, _: Context, arguments: Arguments) -> list[str]:
    return _sampled(run.lines_of(EVENTS).present(), arguments.get("samples"))


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as strings: where W&B gives objects they must be valid JSON."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@resolver("Run", "sampledHistory")
def sampled_history(run: Run, _: Context, arguments: Arguments) -> list[list[dict[str, Any]]]:
    results = []
    for spec in map(json.loads, arguments["specs"]):
        rows = [row for _, row in _between(run, spec) if all(key in row for key in spec["keys"])]
        chosen = [{key: row[key] for key in spec["keys"]} for row in _sampled(rows, spec.get("samples"))]
        results.append(_finite(chosen))
    return results


@resolver("Run", "parquetHistory")
def parquet_history(run: Run, _: Context, __: Arguments) -> dict[str, Any]:
    return {"parquetUrls": [], "liveData": _finite(run.history)}


# Files


@resolver("Mutation", "createRunFiles")
def create_run_files(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    run = existing_run(context, given)
    files = [{"name": name, "uploadUrl": storage_url(context, f"run/{run.id}/{name}")} for name in given["files"]]
    return {"runID": run.id, "uploadHeaders": [], "files": files}


@resolver("Mutation", "deleteFiles")
def delete_files(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    for key in arguments["input"]["files"]:
        context.store.blobs.remove(key)
    return {"success": True}


def storage_url(context: Context, key: str) -> str:
    """Where the client uploads and downloads the content under the key."""
    return f"{context.url}/storage/{quote(key)}"


def run_files(run: Run, context: Context) -> dict[str, Blob]:
    """The uploaded files of a run by name."""
    prefix = f"run/{run.id}/"
    blobs = context.store.blobs
    found = {key.removeprefix(prefix): blobs.get(key) for key in blobs.keys(prefix)}
    return {name: blob for name, blob in found.items() if blob}


def file_node(context: Context, key: str, name: str, blob: Blob | None) -> dict[str, Any]:
    """A File of the schema; without a blob one of length zero that was announced and never uploaded."""
    url = storage_url(context, key)
    return {
        "id": key,
        "name": name,
        "displayName": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": blob.size if blob else 0,
        "storagePath": key,
        "mimetype": mimetypes.guess_type(name)[0],
        "updatedAt": timestamp(blob.time) if blob else None,
        "digest": blob.md5 if blob else None,
        "md5": blob.md5 if blob else None,
    }


@resolver("Run", "fileCount")
def file_count(run: Run, context: Context, _: Arguments) -> int:
    return len(run_files(run, context))


@resolver("Run", "files")
def files(run: Run, context: Context, arguments: Arguments) -> dict[str, Any]:
    found = run_files(run, context)
    if names := arguments.get("names"):
        # A name that was asked for and is not there comes back without `updatedAt`, as W&B does.
        chosen = {name: found.get(name) for name in names}
    else:
        like = re.escape(arguments.get("pattern") or "%").replace("%", ".*").replace("_", ".")
        chosen = {name: blob for name, blob in found.items() if re.fullmatch(like, name)}
    nodes = [file_node(context, f"run/{run.id}/{name}", name, blob) for name, blob in chosen.items()]
    return connection(nodes, arguments)


# Lineage


@resolver("Run", "outputArtifacts")
def output_artifacts(run: Run, _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection([artifact for artifact in run.logged if artifact.state == "COMMITTED"], arguments)


@resolver("Run", "inputArtifacts")
def input_artifacts(run: Run, _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection([artifact for artifact in run.used if artifact.state == "COMMITTED"], arguments)
