"""HTTP: reads requests, checks the key, runs into faults, and passes on to the store."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from wandb_server.blobs import CHUNK
from wandb_server.faults import Fault
from wandb_server.queries import operation_name, run_query

if TYPE_CHECKING:
    from wandb_server.server import Listener

FILE_STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")
STORAGE = "/storage/"

Answer = tuple[int, bytes | Path]
Work = Callable[[], Answer]


class DroppedError(OSError):
    """The connection ends here, without an answer."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        """GraphQL and the file stream."""
        path = unquote(urlsplit(self.path).path)
        body = self._text_body()
        if path == "/graphql":
            asked = json.loads(body)
            self._serve(("graphql", operation_name(asked["query"])), self._keyed(lambda: self._graphql(asked)))
        elif stream := FILE_STREAM.fullmatch(path):
            entity, project, run = stream.groups()
            names = (f"file_stream/{run}", "file_stream")
            self._serve(names, self._keyed(lambda: self._file_stream(entity, project, run, body)))
        else:
            self._serve((path,), self._nothing)

    def do_PUT(self) -> None:
        """Uploads, to the addresses that GraphQL gave out; like a bucket's signed ones they need no key."""
        self._serve(("upload",), self._upload)

    def do_GET(self) -> None:
        """Downloads, from the addresses that GraphQL gave out."""
        path = urlsplit(self.path).path
        if path.startswith(STORAGE):
            self._serve(("download",), self._download)
        else:
            self._serve((unquote(path),), self._nothing)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: `WandbServer.requests` is the log."""

    # One request

    def _serve(self, names: tuple[str, ...], work: Work) -> None:
        """Does the work, unless a fault stands before it, and sends what came of it."""
        wandb, arrived = self.server.wandb, time.time()
        fault = wandb.faults.hit(*names)
        status, answer = 0, cast("bytes | Path", b"")
        try:
            status, answer = self._under(fault, work) if fault else work()
        finally:
            lost = fault is not None and fault.kind == "lose"
            wandb.record(names[-1], 0 if lost else status, fault.kind if fault else "", answer, arrived)
        if lost:
            raise DroppedError
        self._send(status, answer)

    def _under(self, fault: Fault, work: Work) -> Answer:
        if fault.kind in ("hang", "slow"):
            self._wait(fault, fault.seconds if fault.kind == "slow" else math.inf)
        if fault.kind in ("hang", "drop"):
            raise DroppedError
        if fault.kind == "http":
            for _ in self._chunks():
                pass
            return fault.status, _failure(f"fault: {fault.status}")
        return work()

    def _wait(self, fault: Fault, seconds: float) -> None:
        """Waits until the time is over or the fault is lifted; gives up when the client does."""
        deadline = time.monotonic() + seconds
        while not fault.lifted.is_set() and (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.connection], [], [], min(left, 0.05))
            if readable:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise DroppedError
                # A body that nobody has read yet: what is readable tells nothing until the time is over.
                fault.lifted.wait(min(left, 0.05))

    def _keyed(self, work: Work) -> Work:
        """The work for who has the key, 401 for everybody else."""
        expected = base64.b64encode(f"api:{self.server.wandb.api_key}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {expected}":
            return work
        return lambda: (HTTPStatus.UNAUTHORIZED, _failure("user is not logged in"))

    def _nothing(self) -> Answer:
        return HTTPStatus.NOT_FOUND, _failure("not found")

    def _graphql(self, asked: dict[str, Any]) -> Answer:
        result = run_query(asked["query"], asked.get("variables") or {}, self.server.wandb.context)
        return HTTPStatus.OK, json.dumps(result).encode()

    def _file_stream(self, entity: str, project: str, name: str, body: bytes) -> Answer:
        store = self.server.wandb.store
        sent = json.loads(body)
        with store.lock:
            run = store.run(entity, project, name)
            if not run:
                return HTTPStatus.NOT_FOUND, _failure(f"run {entity}/{project}/{name} not found")
            run.stream(sent)
        return HTTPStatus.OK, b'{"exitcode": null, "limits": {}}'

    def _storage_key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(STORAGE)

    def _upload(self) -> Answer:
        self.server.wandb.store.blobs.put(self._storage_key(), self._chunks(), time.time())
        return HTTPStatus.OK, b"{}"

    def _download(self) -> Answer:
        blob = self.server.wandb.store.blobs.get(self._storage_key())
        return (HTTPStatus.OK, blob.path) if blob else self._nothing()

    # Bytes

    def _text_body(self) -> bytes:
        body = b"".join(self._chunks())
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunks(self) -> Iterator[bytes]:
        """The body of the request, once; a second call gives what is left, which is nothing."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            del self.headers["Transfer-Encoding"]
            yield from self._transfer_chunks()
            return
        left = int(self.headers.get("Content-Length") or 0)
        del self.headers["Content-Length"]
        while left:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise DroppedError
            left -= len(chunk)
            yield chunk

    def _transfer_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _send(self, status: int, answer: bytes | Path) -> None:
        size = answer.stat().st_size if isinstance(answer, Path) else len(answer)
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(answer, Path) else "application/json")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if isinstance(answer, Path):
            with answer.open("rb") as file:
                shutil.copyfileobj(file, self.wfile, CHUNK)
        else:
            self.wfile.write(answer)


def _failure(message: str) -> bytes:
    """An error as both halves of the client read it."""
    return json.dumps({"error": message, "errors": [{"message": message}]}).encode()
