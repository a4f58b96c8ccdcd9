"""The task of the mgmt-request runtime: the http endpoint that says how the page server is."""

import json
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import quiesce
from quiesce.client import Client
from quiesce.errors import QuiesceError
from quiesce.examples.pageserver.layers import write_atomic
from quiesce.examples.pageserver.tenant_paths import Work


class _StatusHandler(BaseHTTPRequestHandler):
    """Answers GET /v1/status with one JSON object."""

    def __init__(self, place: Work, client: Client, *args: Any) -> None:
        self._place = place
        self._client = client
        super().__init__(*args)

    def do_GET(self) -> None:
        if self.path != "/v1/status":
            self.send_error(404, "there is only /v1/status")
            return
        try:
            body = json.dumps(self._status()).encode()
        except QuiesceError as error:
            self.send_error(503, type(error).__name__)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _status(self) -> dict[str, Any]:
        try:
            metrics = json.loads(self._place.metrics_file.read_bytes())
        except FileNotFoundError:
            metrics = None
        return {
            "attached": self._place.attached(),
            "tasks": Counter(str(task.kind) for task in self._client.tasks()),
            "workers": Counter(worker.runtime for worker in self._client.workers()),
            "metrics": metrics,
        }

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Say nothing: the demo's screen is not for requests."""


class _Server(ThreadingHTTPServer):
    # Its threads belong to the task that started them: the task has ended when they have, not
    # before.
    daemon_threads = False


def serve_http(work: str) -> None:
    """http-endpoint-listener: serve status on 127.0.0.1, on the port that the port file names."""
    place = Work(Path(work))
    handler = partial(_StatusHandler, place, quiesce.current_client())
    with _Server(("127.0.0.1", 0), handler) as server:
        server.timeout = 5.0
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        serving.start()
        try:
            write_atomic(place.http_port_file, str(server.server_port).encode())
            quiesce.wait_for_shutdown()
        finally:
            place.http_port_file.unlink(missing_ok=True)
            server.shutdown()
            serving.join()
