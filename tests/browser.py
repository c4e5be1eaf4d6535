"""A headless Chromium for the tests: a page's own document after its scripts ran, and what its console said.

`visit` looks at a page once; `opened` keeps it open, to click in it and to look again.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

# Host names do not resolve: a page that needs the network fails.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
)

# For tests that need one: pytest.mark.skipif with the reason.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no headless browser here: none of {', '.join(NAMES)} is on the PATH"
)


@dataclass(frozen=True)
class Visit:
    """What one visit to a page left behind."""

    dom: str
    console: list[str]


def visit(page: Path, *, width: int = 1280, height: int = 900, milliseconds: int = 10_000) -> Visit:
    """Return the document of a local page after its scripts ran, and the lines of its console.

    Host names do not resolve, so that a page that needs the network fails. ``milliseconds`` is virtual time:
    timers run at once, and the visit ends as soon as nothing is left to do.
    """
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            *QUIET,
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--virtual-time-budget={milliseconds}",
            *("--dump-dom", page.resolve().as_uri()),
        ]
        # A session of its own, so that a browser that hangs is ended with all of its children.
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as browser:
            try:
                dom, log = browser.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(browser.pid, signal.SIGKILL)
                raise
        assert browser.returncode == 0, log[-2_000:]
    return Visit(dom, [line for line in log.splitlines() if "CONSOLE" in line])


class Tab:
    """A page that stays open: scripts, clicks and keys go in, its console and pictures come out.

    It speaks the DevTools protocol with Chromium over a pipe (descriptors 3 and 4, messages end with a zero byte),
    so that it needs no driver, no socket and no port.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer, self._last, self._session = b"", 0, ""
        self.console: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **params: object) -> dict:
        """Return the answer to one command; events that come before it are noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def evaluate(self, expression: str) -> object:
        """Return the value of an expression in the page; a promise is waited for."""
        options = {"returnByValue": True, "awaitPromise": True}
        result = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = 30) -> object:
        """Return an expression's value as soon as it is true of it."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"never true: {expression}; console: {self.console}"
            time.sleep(0.05)
        return value

    def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """Press a key that has a name, such as ArrowRight (39)."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = True) -> Path:
        """Write the page, or what the window shows of it, as a png."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], 60)
            assert ready, "the browser says nothing"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser is gone"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        params = message.get("params", {})
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console.append(
                str([entry.get("value", entry.get("description")) for entry in params["args"]])
            )
        elif message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:80])
        return message


@contextlib.contextmanager
def opened(
    page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = ""
) -> Iterator[Tab]:
    """Give a local page in a window of this size, loaded with the network off, in the light or dark theme."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def connect() -> None:  # in the child: what it reads is 3, what it writes is 4
        high = [os.dup2(end, at) for end, at in ((to_browser[0], 203), (from_browser[1], 204))]
        for end, at in zip(high, (3, 4), strict=True):
            os.dup2(end, at)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,
            start_new_session=True,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        tab = Tab(to_browser[1], from_browser[0])
        try:
            target = next(
                info for info in tab.send("Target.getTargets")["targetInfos"] if info["type"] == "page"
            )
            tab._session = tab.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)[
                "sessionId"
            ]
            for domain in ("Runtime", "Log", "Network", "Page"):
                tab.send(f"{domain}.enable")
            tab.send(
                "Network.emulateNetworkConditions",
                offline=True,
                latency=0,
                downloadThroughput=-1,
                uploadThroughput=-1,
            )
            tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            tab.send("Emulation.setEmulatedMedia", media=media, features=[theme])
            tab.send("Page.navigate", url=page.resolve().as_uri())
            tab.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")
            yield tab
        finally:
            os.close(to_browser[1])
            os.close(from_browser[0])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
