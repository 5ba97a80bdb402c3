"""The other end of a mirror: its process, what is written to it, and what it answers.

    to it     {"open": ...}, then rows and events, then {"close": status}, one line of JSON each
    from it   {"ready": where}, {"closed": true}, or at any time {"failed": why}

Its standard error goes nowhere, since a client that dies there may print what it likes. It has a session of its own,
so Ctrl-C reaches the run alone, which then stops in order.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

HERE = Path(__file__).resolve().parents[2]
MODULE = "altgrad.store.mirror_process"
GONE: dict[str, Any] = {"failed": "its process ended"}


class MirrorError(RuntimeError):
    """The service, or the process that talks to it, failed; the message says why in one line."""


class MirrorPipe:
    """A process that mirrors one run. Starting it does not wait for it.

    spec: the sink's, as plain data. folder: the run's. resumed_at: see SinkSpec.open.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path, resumed_at: int | None) -> None:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        # No report of a crash leaves for anyone unless the user says so.
        environment = {"WANDB_ERROR_REPORTING": "false", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="altgrad-link", daemon=True)
        self._reader.start()
        self._write({"open": {"spec": spec, "run": str(folder), "resumed_at": resumed_at}})

    def opened(self, until: float) -> str:
        """Wait until the service is ready; where it shows the run. until: a time of the monotonic clock."""
        return str(self._expect("ready", until, "it was not ready"))

    def send(self, item: Mapping[str, Any]) -> None:
        """Pass a row or an event on. Blocks while the process takes nothing."""
        self._write(item)
        with suppress(Empty):
            self._raise(self._answers.get_nowait())

    def finish(self, status: str, until: float) -> None:
        """Say how the run ended and wait until everything was taken."""
        self._write({"close": status})
        self._expect("closed", until, "it had not taken everything")

    def kill(self) -> None:
        """End the process, and whatever it started, now; harmless when repeated."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()
        self._reader.join(1.0)

    def _expect(self, key: str, until: float, late: str) -> Any:
        began = time.monotonic()
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                raise MirrorError(f"{late} after {until - began:.0f} s") from None
            if key in answer:
                return answer[key]
            self._raise(answer)

    def _raise(self, answer: Mapping[str, Any]) -> None:
        if "failed" in answer:
            raise MirrorError(str(answer["failed"]))

    def _write(self, item: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(item).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            with suppress(Empty):
                self._raise(self._answers.get(timeout=0.5))
            raise MirrorError(GONE["failed"]) from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
                    self._answers.put(json.loads(line))
        self._answers.put(GONE)
