"""python -m altgrad.cli.worker: a process with torch loaded that is forked for every run of a sweep.

It reads orders from standard input, one JSON object a line with "arguments", "environment", "folder" and "log", forks,
and answers with the child's pid. The child leads its own session and is from then on `altgrad <arguments>` like any
other. When the input ends the process leaves; children go on. It computes nothing itself, so no thread pool exists at
the fork.
"""

import json
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any

from altgrad.cli.main import app
from altgrad.training.prepare import load_all

REAP_SECONDS = 0.2


def main() -> None:
    """Answer orders until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the driver's terminal is the driver's business
    load_all()
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], REAP_SECONDS)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                os.write(1, f"{_fork(json.loads(line))}\n".encode())
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, descriptor)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        code = _run(order["arguments"])
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
