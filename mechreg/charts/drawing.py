"""Charts are drawn in a process of their own: if it dies, that is an error here, and Vega's complaints are read."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mechreg.schema import InputError


class _Drawer:
    """One drawing process, started when it is first needed and kept: most of the time of one chart is its start."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = 0
        self.process: subprocess.Popen[str] | None = None

    def running(self) -> subprocess.Popen[str]:
        """Return the process; a forked process of ours starts its own."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            script = Path(__file__).with_name("drawer.py")
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                env=os.environ | {"PYTHONUTF8": "1"},
            )
            self.owner = os.getpid()
            self.send(self.process, sys.path)
        return self.process

    @staticmethod
    def send(process: subprocess.Popen[str], request: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request; an InputError if the process did not start, or ended before it."""
        with self.lock:
            try:
                process = self.running()
                self.send(process, request)
                assert process.stdout is not None
                line = process.stdout.readline()
                reason = ""
            except OSError as error:
                line, reason = "", str(error.strerror)
            if line.endswith("\n"):
                return dict(json.loads(line))
            code = self.stop()
        raise InputError(
            f"The process that draws charts ended early ({reason or f'exit code {code}'}); it needs memory and "
            "a place for temporary files. Make room, then draw again."
        )

    def stop(self) -> int | None:
        """End the process and return its exit code."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return None
        process.kill()  # it may be at work on what nobody waits for any more
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet sent to a process that is gone
                    pipe.close()
        return process.wait()


_DRAWER = _Drawer()
atexit.register(_DRAWER.stop)


def drawn(what: str, **request: Any) -> str:
    """Return what the drawing process makes: "bundle", "svg", or "png" and "pdf" in base64."""
    answer = _DRAWER.ask({"what": what, **request})
    if "error" in answer:
        raise ValueError(answer["error"])
    return str(answer["value"])
