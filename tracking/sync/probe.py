"""Asking W&B's server, once and quickly, whether it takes this run."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tracking.sync.bounded import bounded
from tracking.sync.views.engine import SyncMode

_QUERY = {"query": "query Viewer { viewer { id entity } }"}


@dataclass(frozen=True)
class Verdict:
    """What the probe found.

    Attributes:
        mode: `online` when the server answered and took the key.
        reason: Why not, in one sentence; empty when online.
        base_url: The server that was asked.
        refused: Whether the fault is the API key.
    """

    mode: SyncMode
    reason: str
    base_url: str
    refused: bool = False


def probe(seconds: float) -> Verdict:
    """Sends one authenticated question to the server that wandb's settings name, through the proxies that they name.

    Args:
        seconds: How long name lookup, connection and answer may take together.
    """
    import wandb

    try:
        settings = wandb.setup().settings
    except Exception as error:  # noqa: BLE001 - a service of the client's that has died is as bad as no network
        return Verdict("offline", f"W&B's client does not start: {error}", "")
    url = settings.base_url
    key = _key(settings)
    if key is None and not settings.identity_token_file:
        reason = f"there is no API key for {url} (WANDB_API_KEY, or `wandb login`)"
        return Verdict("offline", reason, url, refused=True)
    try:
        # A name server that does not answer holds a lookup for longer than any timeout of a request.
        reason, refused = bounded(lambda: _ask(settings, key, seconds), seconds)
    except TimeoutError:
        reason, refused = f"{url} did not answer within {seconds:g} s", False
    return Verdict("offline" if reason else "online", reason, url, refused)


def _ask(settings: Any, key: str | None, seconds: float) -> tuple[str, bool]:
    """Returns why the server cannot be used, or nothing, and whether that is the key."""
    import requests

    url = settings.base_url
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    try:
        answer = requests.post(
            f"{url.rstrip('/')}/graphql",
            json=_QUERY,
            auth=("api", key) if key else None,
            proxies={scheme: proxy for scheme, proxy in proxies.items() if proxy},
            timeout=seconds,
            verify=not settings.insecure_disable_ssl,
        )
        if answer.status_code in (401, 403):
            return f"{url} refused the API key ({answer.status_code})", True
        if answer.status_code != 200:
            return f"{url} answers with status {answer.status_code}", False
        viewer = (answer.json().get("data") or {}).get("viewer")
    except requests.Timeout:
        return f"{url} did not answer within {seconds:g} s", False
    except requests.exceptions.JSONDecodeError:
        return f"what answers at {url} is not W&B", False
    except requests.RequestException as error:
        return f"{url} cannot be reached: {_cause(error)}", False
    return (f"{url} does not know the API key", True) if viewer is None and key else ("", False)


def _key(settings: Any) -> str | None:
    if settings.api_key:
        return str(settings.api_key)
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        # W&B enters a server with its port, which other readers of the file leave out.
        found = netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def _cause(error: BaseException) -> str:
    """The operating system's words where an error has them, else its kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
