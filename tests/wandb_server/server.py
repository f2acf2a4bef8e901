"""The loopback W&B: a server on 127.0.0.1 that the real client talks to."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import HTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import wandb_server.artifact_fields
import wandb_server.project_queries  # noqa: F401  (fills the table of resolvers)
from wandb_server.artifacts import Artifact, Collection
from wandb_server.faults import Faults
from wandb_server.handler import Handler
from wandb_server.queries import Context
from wandb_server.run_queries import run_files
from wandb_server.runs import Run
from wandb_server.store import Store

API_KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "lab"
ORGANIZATION = "lab-org"
FEATURES = (
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
)


@dataclass(frozen=True)
class Request:
    """One request that arrived.

    Attributes:
        operation: Name of the GraphQL operation, `file_stream`, `upload`, `download` or the path of what is unknown.
        status: What was answered; 0 where nothing was.
        fault: Kind of the fault that it ran into, empty without one.
        errors: Messages of the errors in the answer.
        time: When it arrived, in seconds since 1970.
    """

    operation: str
    status: int
    fault: str
    errors: tuple[str, ...]
    time: float


class Listener(HTTPServer):
    """A listening socket whose connections are served by threads of their own and can be cut."""

    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], server: WandbServer) -> None:
        self.wandb = server
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        super().__init__(address, Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serves the connection in a thread."""
        thread = threading.Thread(target=self._serve, args=(request, client_address), daemon=True)
        with self._guard:
            self._connections[request] = thread
        thread.start()

    def _serve(self, request: socket.socket, client_address: object) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            # The client is gone, or the connection was cut: there is nobody left to tell.
            pass
        finally:
            self.shutdown_request(request)
            with self._guard:
                self._connections.pop(request, None)

    def cut(self, deadline: float) -> None:
        """Closes all connections and waits for their threads, until the deadline (time.monotonic)."""
        with self._guard:
            connections = dict(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))


class WandbServer:
    """A W&B server of one's own, with a view into what it holds and faults that can be put in force.

    Args:
        port: TCP port on 127.0.0.1; 0 takes a free one.
        api_key: The one key that is let in; every other is answered with 401.
        features: Server features that the client may use; an old self-hosted server has none.
        crash_after: Seconds without a sign of life after which a running run counts as crashed (W&B: 5 minutes).
    """

    def __init__(
        self,
        port: int = 0,
        *,
        api_key: str = API_KEY,
        entity: str = ENTITY,
        features: tuple[str, ...] = FEATURES,
        crash_after: float = 300.0,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="wandb-server-"))
        self.store = Store(self._folder, entity, ORGANIZATION, crash_after)
        self.faults = Faults()
        self.requests: list[Request] = []
        self.api_key = api_key
        self.entity = entity
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self.port = port
        self.resume_listening()
        self.context = Context(self.store, self.url, features)

    @property
    def url(self) -> str:
        """What clients take as WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.port}"

    # Life

    def resume_listening(self) -> None:
        """Opens the port, the same one as before."""
        if self._listener:
            return
        self._listener = Listener(("127.0.0.1", self.port), self)
        self.port = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop_listening(self) -> None:
        """Closes the port and all connections: clients are refused until `resume_listening`."""
        if not (self._listener and self._thread):
            return
        deadline = time.monotonic() + 1.5
        self._listener.shutdown()
        self._listener.server_close()
        self._listener.cut(deadline)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._listener = self._thread = None

    def close(self) -> None:
        """Ends everything within two seconds and deletes what was uploaded."""
        self.stop_listening()
        self.faults.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # What it holds

    def run(self, entity: str, project: str, name: str) -> Run:
        """The run with the id that the client gave it; KeyError when there is none."""
        with self.store.lock:
            return self.store.projects[entity, project].runs[name]

    def rows(self, entity: str, project: str, name: str) -> list[dict[str, Any]]:
        """The history of a run in the order of its lines; none when there is no such run, for those who wait."""
        with self.store.lock:
            found = self.store.run(entity, project, name)
        return found.history if found else []

    def runs(self, entity: str, project: str) -> list[Run]:
        """The project's runs in the order in which they were made; none when there is no such project."""
        with self.store.lock:
            found = self.store.project(entity, project)
            return list(found.runs.values()) if found else []

    def files(self, run: Run) -> dict[str, bytes]:
        """The uploaded files of a run by name."""
        return {name: blob.path.read_bytes() for name, blob in run_files(run, self.context).items()}

    def collection(self, entity: str, project: str, name: str) -> Collection:
        """The artifact collection; KeyError when there is none."""
        with self.store.lock:
            return self.store.projects[entity, project].collections[name]

    def artifact(self, entity: str, project: str, name: str) -> Artifact:
        """The committed artifact that a name such as `act-lift:v3` or `act-lift:best` means; KeyError when none."""
        collection, _, version = name.partition(":")
        member = self.collection(entity, project, collection).find(version or "latest")
        if not member:
            raise KeyError(name)
        return member.artifact

    def record(self, operation: str, status: int, fault: str, answer: bytes | Path, arrived: float) -> None:
        """Notes a request that was dealt with."""
        errors: tuple[str, ...] = ()
        if isinstance(answer, bytes) and b'"errors"' in answer:
            errors = tuple(error["message"] for error in json.loads(answer).get("errors") or ())
        self.requests.append(Request(operation, status, fault, errors, arrived))

    def count(self, operation: str) -> int:
        """How many requests for this operation arrived, those that ran into a fault included."""
        return sum(request.operation == operation for request in self.requests)

    def errors(self) -> list[str]:
        """Messages of all errors that were answered without a fault: questions that this server does not understand."""
        return [message for request in self.requests if not request.fault for message in request.errors]
