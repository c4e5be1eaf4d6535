"""A headless Chromium for the tests: a page's own document after its scripts ran, and what its console said."""

import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

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
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
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
