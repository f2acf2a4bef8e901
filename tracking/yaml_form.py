"""The tracker's settings as RL configurations have them.

```yaml
use_wandb: true
wandb: {project: vla-lego, entity: lab, name: ppo-1, tags: [ppo], notes: "", group: rl, job_type: train, mode: online}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown

# `model_management` is for `tracking.gate`, which reads the same file.
_SECTIONS = ("use_wandb", "wandb", "model_management")
_TEXTS = ("project", "entity", "name", "notes", "group", "job_type", "mode")


def read_form(source: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings.

    Args:
        source: A YAML file, or what it would hold.

    Returns:
        Arguments of `ExperimentTracker`.

    Raises:
        UserError: The file is missing or not of this form; an unknown key is answered with the nearest valid one.
    """
    place = "the settings" if isinstance(source, Mapping) else str(source)
    form = source if isinstance(source, Mapping) else load_yaml(Path(source))
    if not isinstance(form, Mapping):
        raise UserError(f"{place} must hold the keys use_wandb and wandb, not {form!r}")
    for key in form:
        if key not in _SECTIONS:
            raise unknown(f"key in {place}", str(key), _SECTIONS)
    enabled = form.get("use_wandb", True)
    if not isinstance(enabled, bool):
        raise UserError(f"use_wandb in {place} is true or false, not {enabled!r}")
    section = form.get("wandb") or {}
    if not isinstance(section, Mapping):
        raise UserError(f"wandb in {place} is a mapping, not {section!r}")
    arguments: dict[str, Any] = {"enabled": enabled}
    for key, value in section.items():
        if key not in (*_TEXTS, "tags"):
            raise unknown(f"key under wandb in {place}", str(key), (*_TEXTS, "tags"))
        if value is None or value == "":
            continue
        arguments[key] = _tags(value, place) if key == "tags" else _text(key, value, place)
    return arguments


def load_yaml(path: Path) -> Any:
    """Reads a YAML file of the user's.

    Raises:
        UserError: It cannot be read, or is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error


def _text(key: str, value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"wandb.{key} in {place} is text, not {value!r}")
    return value


def _tags(value: Any, place: str) -> Any:
    if isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(tag, str) for tag in value)):
        return value
    raise UserError(f"wandb.tags in {place} is a list of texts or a mapping, not {value!r}")
