"""A stand-in for W&B's server: enough of its API for runs, resuming, files and artifacts, all remembered."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """`runs[id]`: config, tags, group, history lines in the order they stand in, summary, exit code."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.used: list[dict[str, Any]] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.deaf = threading.Event()  # once set, requests are taken and never answered
        self.refuses = False  # every request is answered: you may not
        self.stop = threading.Event()
        self.http = _Quiet(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.stop.set()
        self.deaf.clear()
        self.http.shutdown()
        self.http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run]["history"]]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        if operation == "RunResumeStatus":
            return {"model": {**_project(given), "bucket": self._resume(given["name"])}}
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upsert(given), "inserted": True}}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            self.artifacts.append(given)
            number = len(self.artifacts)
            sequence = {"id": "s", "latestArtifact": {"id": f"a{number}", "versionIndex": 0}}
            made = {"id": f"a{number}", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": made}}
        if operation == "UseArtifact":
            self.used.append(given)
            return {"useArtifact": {"artifact": {"id": "a0", "digest": "d"}}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "UpsertView2":
            self.views[given["name"]] = given
            return {"upsertView": {"view": {"id": f"id-{given['name']}", "name": given["name"]}, "inserted": True}}
        if operation == "View":
            view = self.views[given["viewName"]]
            node = {"id": f"id-{view['name']}", "displayName": view["displayName"], "spec": view["spec"]}
            return {"project": {"allViews": {"edges": [{"node": node}]}}}
        return {}

    def _resume(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": f"id-{name}",
            "name": name,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(run["history"][-1:]),
            "eventsTail": "[]",
            "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(run["summary"]),
            "tags": run["tags"],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        run = self.runs.setdefault(
            name, {"history": [], "summary": {}, "config": {}, "tags": [], "exit": None, "complete": False}
        )
        for field, key in (("config", "config"), ("summaryMetrics", "summary")):
            if given.get(field):
                run[key] = json.loads(given[field])
        run["tags"] = given.get("tags") or run["tags"]
        run["group"] = given.get("groupName") or run.get("group")
        run["name"] = given.get("displayName") or run.get("name")
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": run["name"] or name,
            "description": "",
            "config": "{}",
            "sweepName": None,
            "project": _project(given),
            "historyLineCount": len(run["history"]),
        }

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, part in (sent.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                run["history"][part["offset"] :] = part["content"]
            elif file == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])
        if sent.get("complete"):
            run["complete"], run["exit"] = True, sent.get("exitcode")


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _project(given: dict[str, Any]) -> dict[str, Any]:
    return {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "me"}}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            """Quiet."""

        def _reply(self, content: Any, code: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def do_GET(self) -> None:
            self._take(self._body())

        do_PUT = do_POST = do_GET

        def _take(self, body: bytes) -> None:
            while server.deaf.is_set() and not server.stop.wait(0.1):
                pass
            if server.stop.is_set():
                return
            if server.refuses:
                self._reply({"errors": [{"message": "storage quota exceeded"}]}, 403)
            elif self.path.startswith("/graphql"):
                asked = json.loads(body)
                words = asked["query"].replace("(", " ").replace("{", " ").split()
                operation = asked.get("operationName") or words[1]
                self._reply({"data": server.answer(operation, asked.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
                self._reply({"limits": {}})
            else:
                self._reply({})

    return Handler
