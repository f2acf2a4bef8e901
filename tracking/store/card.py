"""The model card: what a version is, for people who find it on W&B or on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracking.store.state import Version
from tracking.words import size, when

CARD = "README.md"


def model_card(name: str, version: Version) -> str:
    """Writes a version's card as Markdown; the same version always gives the same text but for the host's time zone."""
    parts = [f"# {name}:v{version.number}", version.description or "", _facts(version)]
    if version.metadata:
        parts.append("## Metadata\n\n" + _table(("key", "value"), {k: _text(v) for k, v in version.metadata.items()}))
    files = {file: f"{size(entry['size'])} | `{entry['sha256']}`" for file, entry in sorted(version.files.items())}
    parts.append("## Files\n\n" + _table(("file", "size", "SHA-256"), files))
    parts.append(f"## Use\n\n```\npython -m tracking.models show {name}:v{version.number}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(version: Version) -> str:
    facts = {"Published": f"{when(version.time)}, by {version.by}", "Contents": f"`{version.digest}`"}
    if version.run:
        facts["Run"] = f"{version.run['name']} ({version.run['id']}, project {version.run['project']})"
    if version.inputs:
        facts["Made from"] = ", ".join(version.inputs)
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _table(head: tuple[str, ...], rows: Mapping[str, str]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(f"{key} | {value}" for key, value in rows.items())]
    return "\n".join(f"| {line} |" for line in lines)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
