"""A page in headless Chromium without network, through its DevTools pipe: what was drawn, and what it complained of."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
STATE = """JSON.stringify({
    done: document.documentElement.dataset.done || "",
    loaded: document.readyState === "complete",
    figures: document.querySelectorAll("figure").length,
    drawn: [...document.querySelectorAll("figure")].filter(e => e.querySelector(".main-svg .xaxislayer-above")
        || [...e.querySelectorAll("svg")].some(s => s.getBoundingClientRect().width > 250
            && s.querySelectorAll("path, use, image").length > 4 && s.querySelector("text"))).length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: [...document.querySelectorAll("h1, h2, h3, p, figcaption, summary")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent),
    outside: [...document.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().width).flatMap(
        s => [...s.querySelectorAll("text")].filter(t => t.getBoundingClientRect().right > innerWidth
            || t.getBoundingClientRect().left < 0).map(t => t.textContent)),
    marked_up: [...document.querySelectorAll("figure svg text")].map(t => t.textContent).filter(t => t.includes("$")),
    background: getComputedStyle(document.body).backgroundColor,
    ink: [...document.querySelectorAll("figure svg text")].slice(0, 1).map(t => getComputedStyle(t).fill).join(),
    alerted: window.alerted === true})"""


class Chromium:
    """One browser with one page."""

    def __init__(self, program: str, folder: Path) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        os.set_inheritable(commands, True)
        os.set_inheritable(answers, True)
        # Descriptors 3 and 4 are what --remote-debugging-pipe speaks on; a shell puts them there.
        flags = f"--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={folder}"
        shell = f"exec {program} {flags} --no-first-run --proxy-server=127.0.0.1:9 3<&{commands} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._number, self._buffer = 0, b""
        self.complaints: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command's result; complaints that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._read, 1 << 16)
                assert part, "the browser went away"
                self._buffer += part
            text, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("method") in COMPLAINTS:
                self.complaints.append(answer["params"])
            if answer.get("id") == self._number:
                return dict(answer.get("result", {}))

    def open(self, page: Path, *, width: int = 1200, dark: bool = False, script: bool = False) -> dict[str, Any]:
        """The page's state once all is drawn. script: by the page's own script, which says when."""
        self.complaints.clear()
        self._look(width, dark)
        self.call("Page.navigate", url=page.resolve().as_uri())
        for _ in range(1200):
            time.sleep(0.05)
            state = self.state()
            if state.get("done") if script else state.get("loaded"):
                return state
        raise AssertionError(f"the page was not drawn within a minute: {state}")

    def again(self, *, width: int = 1200, dark: bool = False) -> dict[str, Any]:
        """The state of the page that is open, in a window of another width or theme; for pages without a script."""
        self._look(width, dark)
        return self.state()

    def state(self) -> dict[str, Any]:
        """What is on the page now; empty while there is none."""
        found = self.call("Runtime.evaluate", expression=STATE, returnByValue=True)["result"].get("value")
        return dict(json.loads(found)) if found else {}

    def _look(self, width: int, dark: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def close(self) -> None:
        """End the browser."""
        self.call("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)
