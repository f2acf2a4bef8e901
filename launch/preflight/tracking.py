"""Whether a run that is meant for W&B will find its key."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from launch.config import Config
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.spec import JobSpec
from tracking.mode import decide_mode
from tracking.server import chosen_server


def tracking_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields whether there is no key where rows are to be pushed while the job runs."""
    environ = {**os.environ, **spec.environment}
    # Nodes without internet push nothing: who pushes from the login node asks for the key there.
    if "wandb_project" not in config.arguments or spec.cluster.internet is False:
        return
    if decide_mode(config.tracking.mode, environ) != "online" or environ.get("WANDB_API_KEY") or _key_in_file(environ):
        return
    yield rules.WANDB_KEY(
        "W&B is to be online, and there is no key: neither WANDB_API_KEY nor an entry in ~/.netrc",
        "wandb login, or export WANDB_API_KEY here; offline on purpose: --set tracking.mode=offline",
    )


def _key_in_file(environ: dict[str, str]) -> bool:
    path = Path(environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = chosen_server(environ)
    # Without either, the server is the default of the wandb that is installed, which takes a second to ask.
    return urlsplit(server).netloc in hosts if server else any("wandb" in host for host in hosts)
