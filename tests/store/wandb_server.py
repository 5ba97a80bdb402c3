"""A W&B server for tests, on the loopback: the GraphQL and file-stream calls that the real client makes, and no more.

What came in by the file stream is given out again to the client's `Api`: runs by pages, config, summary, and history,
of which the server, as W&B's does, gives no more rows than were asked for, and its oldest as a Parquet file.

W&B's traffic leaves from a Go process, so nothing patched in Python would see it. `answer` decides what becomes of each
request: `well`, `error` (500 throughout), or `hang`. `createRunFiles` is answered so that files come here, too: without
an answer the client's core dies.
"""

import gzip
import io
import json
import math
import re
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
    """Serves until closed; `runs` by id.

    page: most runs in an answer. pages: spans of history that were asked for. exported: a run's rows in Parquet.
    broken: a query that is answered with 500.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Kept] = {}
        self.answer = "well"
        self.authorized: set[str] = set()
        self.requests = 0
        self.page, self.exported, self.broken = 50, 0, ""
        self.pages: list[tuple[int, int]] = []
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
                failed = ours.answer == "error" or (ours.broken and f"query {ours.broken} ".encode() in body)
                status, found = (500, {}) if failed else (200, ours.reply(self.path, body))
                text = found if isinstance(found, bytes) else json.dumps(found).encode()
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

    def reply(self, path: str, body: bytes) -> dict[str, Any] | bytes:
        with self.lock:
            if path == "/graphql":
                asked = json.loads(body)
                return {"data": self._query(asked.get("query", ""), asked.get("variables") or {})}
            parts = path.strip("/").split("/")
            if parts[-1] == "file_stream":
                return self._stream(parts[-2], json.loads(body))
            if parts[0] == "parquet":
                return _parquet(self.runs[parts[1]].history[: self.exported])
            if parts[0] == "put":
                self.runs[parts[1]].files["/".join(parts[2:])] = body
            return {}

    def _query(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        name = found[1] if (found := re.search(r"query (\w+)", query)) else ""
        if name == "RunResumeStatus":
            return {"model": {"id": "m", "name": given["project"], "entity": ENTITY, "bucket": self._bucket(given)}}
        if name in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "v", "entity": "tester", "username": "tester", "flags": "{}", **ENTITY}}
        if name in ("Runs", "Run", "RunHistoryKeys", "RunParquetHistory", "HistoryPage"):
            return {"project": self._project(name, given)}
        return {}

    def _project(self, asked: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """Answers to the client's `Api`; None for a project that nobody has."""
        inside = {name: run for name, run in self.runs.items() if run.project == given["project"]}
        if not inside or given["entity"] != ENTITY["name"]:
            return None
        if asked == "Runs":
            start = int(given.get("cursor") or 0)
            shown = list(inside)[start : start + min(given["perPage"], self.page)]
            edges = [{"node": _node(name, inside[name]), "cursor": str(start + n + 1)} for n, name in enumerate(shown)]
            end = {"endCursor": edges[-1]["cursor"], "hasNextPage": start + len(shown) < len(inside)}
            return {
                "internalId": "1",
                "runCount": len(inside),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": end},
            }
        name = given.get("name") or given.get("runName") or given["run"]
        run = inside.get(name)
        if run is None:
            return {"run": None}
        if asked == "Run":
            return {"run": _node(name, run)}
        rows = {
            row["_step"]: line for row, line in zip(run.history, run.lines.get("wandb-history.jsonl", []), strict=True)
        }
        if asked == "RunHistoryKeys":
            return {
                "run": {"historyKeys": {"lastStep": max(rows, default=-1), "sets": [], "keys": {}} if rows else None}
            }
        if asked == "RunParquetHistory":
            urls = [f"{self.url}/parquet/{name}"] if self.exported else []
            live = [{"_step": step} for step in list(rows)[self.exported :]]
            return {"run": {"parquetHistory": {"parquetUrls": urls, "liveData": live}}}
        self.pages.append((given["minStep"], given["maxStep"]))
        live = list(rows.items())[self.exported :]
        lines = [line for step, line in live if given["minStep"] <= step < given["maxStep"]]
        return {"run": {"history": lines[:: -(-len(lines) // given["pageSize"])] if lines else []}}

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


def _node(name: str, run: Kept) -> dict[str, Any]:
    """A run as `Api` knows it."""
    state = "running" if run.exit_code is None else "failed" if run.exit_code else "finished"
    config = {key: {"value": value} for key, value in run.config.items()}
    return {
        "id": f"id-{name}", "projectId": "1", "name": name, "displayName": name, "state": state, "sweepName": None,
        "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z", "config": json.dumps(config),
        "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}", "tags": run.tags, "group": run.group,
        "jobType": None, "commit": None, "readOnly": False, "description": "", "notes": "", "historyKeys": None,
        "historyLineCount": len(run.history), "user": {"name": "tester", "username": "tester"},
    }  # fmt: skip


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a table; W&B writes NaN into JSON as text."""
    import pyarrow as pa
    from pyarrow import parquet

    numbers = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [numbers.get(v, v) if isinstance(v := row.get(key), str) else v for row in rows] for key in keys}
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()
