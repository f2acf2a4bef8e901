"""Which W&B server this user's runs go to, told without importing wandb, which takes a second."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

PUBLIC = "https://api.wandb.ai"
"""The server of those who have set none."""


def chosen_server(environ: Mapping[str, str]) -> str | None:
    """The server that the environment names, else the one that `wandb login --host` has saved; None without either."""
    if named := environ.get("WANDB_BASE_URL"):
        return named
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(folder / "settings")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return None
    return parser.get("default", "base_url", fallback=None)
