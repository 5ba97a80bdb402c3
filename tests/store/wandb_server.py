"""A W&B server for tests, on the loopback: the GraphQL and file-stream calls that the real client makes, and no more.

W&B's traffic leaves from a Go process, so nothing patched in Python would see it. `answer` decides what becomes of each
request: `well`, `error` (500 throughout), or `hang`. `createRunFiles` is answered so that files come here, too: without
an answer the client's core dies.
"""

import gzip
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Kept:
    """What the server knows of one run."""

    project: str
    config: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json", [])
        return json.loads(lines[-1]) if lines else {}


class WandbServer:
    """Serves until closed; `runs` by id."""

    def __init__(self) -> None:
        self.runs: dict[str, Kept] = {}
        self.answer = "well"
        self.authorized: set[str] = set()
        self.requests = 0
        self.lock = threading.Lock()
        ours = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *given: Any) -> None:
                return

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                ours.requests += 1
                ours.authorized.add(self.headers.get("Authorization") or "")
                if ours.answer == "hang":
                    time.sleep(60)
                status, found = (500, {}) if ours.answer == "error" else (200, ours.reply(self.path, body))
                text = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = handle_one

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *given: Any) -> None:
                return  # a client that was killed in the middle of a request

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to come here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, body: bytes) -> dict[str, Any]:
        with self.lock:
            if path == "/graphql":
                asked = json.loads(body)
                return {"data": self._query(asked.get("query", ""), asked.get("variables") or {})}
            parts = path.strip("/").split("/")
            if parts[-1] == "file_stream":
                return self._stream(parts[-2], json.loads(body))
            if parts[0] == "put":
                self.runs[parts[1]].files["/".join(parts[2:])] = body
            return {}

    def _query(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if "query RunResumeStatus" in query:
            return {"model": {"id": "m", "name": given["project"], "entity": ENTITY, "bucket": self._bucket(given)}}
        if "query Viewer" in query:
            return {"viewer": {"id": "v", "entity": "tester", "username": "tester", "flags": "{}", **ENTITY}}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"] or "run"
        run = self.runs.setdefault(name, Kept(given["project"]))
        new = run.starts == 0
        run.starts += 1
        run.config |= {key: entry.get("value") for key, entry in json.loads(given["config"] or "{}").items()}
        run.group, run.tags = given.get("groupName") or run.group, given.get("tags") or run.tags
        project = {"id": "p", "name": given["project"], "entity": ENTITY}
        bucket = {
            "id": "b", "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None,
            "project": project, "historyLineCount": len(run.history),
        }  # fmt: skip
        return {"bucket": bucket, "inserted": new}

    def _bucket(self, given: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(given["name"])
        if run is None:
            return None
        history = run.lines.get("wandb-history.jsonl", [])
        return {
            "id": "b", "name": given["name"], "displayName": given["name"], "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": 0,
            "historyTail": json.dumps(history[-1:]), "eventsTail": "[]", "config": "{}", "notes": "", "tags": run.tags,
            "group": run.group, "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        for file, part in (sent.get("files") or {}).items():
            run.lines[file] = run.lines.get(file, [])[: part["offset"]] + part["content"]
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        return {"exitcode": None, "limits": {}}


ENTITY = {"id": "e", "name": "tester"}
