"""Runs GraphQL documents against the store."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from wandb_server.store import Store

SCHEMA_FOLDER = Path(__file__).parent / "schema"
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")

Resolver = Callable[[Any, "Context", dict[str, Any]], Any]
RESOLVERS: dict[tuple[str, str], Resolver] = {}


@dataclass(frozen=True)
class Context:
    """What resolvers need beside their object.

    Attributes:
        url: Where the client reaches this server, without a slash at the end.
        features: Names of the server features that are switched on.
    """

    store: Store
    url: str
    features: tuple[str, ...]


def resolver(type_name: str, *fields: str) -> Callable[[Resolver], Resolver]:
    """Makes the function answer these fields; it is given the object, the context and the arguments."""

    def register(function: Resolver) -> Resolver:
        for field in fields:
            RESOLVERS[type_name, field] = function
        return function

    return register


def operation_name(query: str) -> str:
    """The name of the query or mutation; `wandb.Api` does not send it apart from the text."""
    found = OPERATION.search(query)
    return found[1] if found else "anonymous"


def run_query(query: str, variables: dict[str, Any], context: Context) -> dict[str, Any]:
    """Answers a document as W&B does: `data`, and `errors` where there are any."""
    try:
        document = _checked(query)
    except GraphQLError as error:
        return {"errors": [error.formatted]}
    with context.store.lock:
        result = execute_sync(
            schema(),
            document,
            context_value=context,
            variable_values=variables,
            field_resolver=_resolve,
            type_resolver=_type_of,
        )
    return dict(result.formatted)


@functools.cache
def schema() -> GraphQLSchema:
    """The schema that clients see."""
    texts = [(SCHEMA_FOLDER / name).read_text(encoding="utf-8") for name in ("runs.graphql", "artifacts.graphql")]
    return build_schema("\n".join(texts))


@functools.lru_cache(maxsize=512)
def _checked(query: str) -> DocumentNode:
    document = parse(query)
    errors = validate(schema(), document)
    if errors:
        raise errors[0]
    return document


def _resolve(source: Any, info: GraphQLResolveInfo[Context], **arguments: Any) -> Any:
    given = RESOLVERS.get((info.parent_type.name, info.field_name))
    if given:
        return given(source, info.context, arguments)
    if isinstance(source, dict):
        return source.get(info.field_name)
    return getattr(source, _snake_case(info.field_name))


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _type_of(value: Any, *_: Any) -> str:
    return value.kind if hasattr(value, "kind") else type(value).__name__


def connection(
    nodes: list[Any], arguments: dict[str, Any], edge: Callable[[Any], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A page of the nodes, as `first` and `after` ask; `edge` adds fields beside each node."""
    begin = int(arguments["after"]) if arguments.get("after") else 0
    end = begin + arguments["first"] if arguments.get("first") else len(nodes)
    edges = [
        {"node": node, "cursor": str(number), **(edge(node) if edge else {})}
        for number, node in enumerate(nodes[begin:end], begin + 1)
    ]
    page = {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": end < len(nodes)}
    return {"totalCount": len(nodes), "edges": edges, "pageInfo": page}
