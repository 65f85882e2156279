"""A W&B server on this machine, as far as following and uploading one run needs it: GraphQL, file streams, files.

A line of a file stream is kept at its offset, as the real server does: what is sent twice to the same place is there
once, what is sent to two places is there twice.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STREAMS = {"history": "wandb-history.jsonl", "events": "wandb-events.jsonl", "log": "output.log"}


class Server(ThreadingHTTPServer):
    """What it has been sent: lines by run, file and offset, and the bodies of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, dict[int, str]]] = {}
        self.summaries: dict[str, Any] = {}
        self.upserts: list[dict[str, Any]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What leads W&B here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "canary" + 34 * "0"}

    def history(self, run: str) -> list[dict[str, Any]]:
        lines = self.runs[run].get("wandb-history.jsonl", {})
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation; empty for those that do not matter here."""
        match re.search(r"(query|mutation)\s+(\w+)", query)[2]:  # type: ignore[index]
            case "Viewer":
                return {"viewer": {"id": "1", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus":
                project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}}
                return {"model": project | {"bucket": self._bucket(variables["name"])}}
            case "UpsertBucket":
                self.upserts.append(variables)
                name = variables["name"]
                inserted = name not in self.runs
                self.runs.setdefault(name, {})
                project = {"name": "p", "entity": {"name": "e"}}
                bucket = {"id": name, "name": name, "displayName": name, "project": project, "config": "{}"}
                return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
            case "CreateRunFiles":
                url = f"http://127.0.0.1:{self.server_port}/upload"
                files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
            case "ArtifactType":  # which type one of this name has so far: there is none
                return {"project": {"artifact": None}}
            case "CreateArtifact":  # of a table; as if the server had this one already
                artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
                return {"createArtifact": {"artifact": artifact}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.runs:
            return None
        lines = {kind: self.runs[run].get(name, {}) for kind, name in STREAMS.items()}
        tails = {f"{kind}Tail": json.dumps([lines[kind][max(lines[kind])]] if lines[kind] else []) for kind in lines}
        counts = {f"{kind}LineCount": max(lines[kind], default=-1) + 1 for kind in lines}
        names = {"id": run, "name": run, "displayName": run, "config": "{}", "tags": [], "notes": ""}
        return names | tails | counts | {"summaryMetrics": "{}", "wandbConfig": json.dumps({"t": {}})}

    def store(self, run: str, files: dict[str, Any]) -> None:
        for name, part in files.items():
            lines = self.runs.setdefault(run, {}).setdefault(name, {})
            lines |= dict(enumerate(part["content"], part["offset"]))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            request = json.loads(body)
            self._send({"data": self.server.answer(request["query"], request.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            self.server.store(self.path.split("/")[-2], json.loads(body).get("files") or {})
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def do_GET(self) -> None:
        self._send({})

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
