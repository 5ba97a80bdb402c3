"""The process of a mirror: reads a run's rows and events from its standard input and shows them at a service.

When its input ends without a word of farewell the run's process has died: the service is told so, for a minute at most.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from altgrad.store.mirror import MirrorSpec
from altgrad.store.runs import Run

ORPHAN_SECONDS = 60.0
SECRETS = ("WANDB_API_KEY", "HF_TOKEN")
LONGEST = 240

Answer = Callable[[dict[str, Any]], None]


def serve(lines: Iterable[str | bytes], answer: Answer) -> bool:
    """Do what the lines say (`altgrad.store.link`) and answer; whether all went well."""
    told = iter(lines)
    try:
        opened = json.loads(next(told))["open"]
        spec, run = MirrorSpec.of(opened["spec"]), Run(Path(opened["run"]))
        service = spec.open(run, opened["resumed_at"])
        answer({"ready": service.where})
        for line in told:
            item = json.loads(line)
            if "close" in item:
                service.close(item["close"])
                answer({"closed": True})
                return True
            if "values" in item:
                service.metrics(item["row"], item["step"], item["values"])
            else:
                service.event(item["step"], item["event"], item["message"])
        watchdog = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        service.close("dead")
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a client are its failures, too
        answer({"failed": said(error)})
        return False
    return True


def said(error: BaseException) -> str:
    """An error in one line, with no secret in it."""
    text = " ".join(str(error).partition("\n")[0].split()) or "no reason was given"
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return f"{type(error).__name__}: {text}"[:LONGEST].rstrip(". ")


def main() -> None:
    """Serve standard input. What clients print goes nowhere."""
    out = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if hasattr(os, "nice"):
        os.nice(10)  # the run goes first

    def answer(words: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(words) + "\n")
            out.flush()
        except OSError:
            return  # nobody listens any more

    good = serve(sys.stdin.buffer, answer)
    # Hooks that clients leave for Python's end may wait for ever.
    os._exit(0 if good else 1)


if __name__ == "__main__":
    main()
