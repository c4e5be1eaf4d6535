"""Standard streams and printing: output is escaped so that a terminal shows it and never executes it."""

import logging
import os
import sys

from mechreg.outside import for_terminal
from mechreg.schema import MechregError


class TerminalFormatter(logging.Formatter):
    """Log records without control characters."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        return for_terminal(super().format(record))


def begin_again_in_utf8() -> None:
    """Begin the command again in Python's UTF-8 mode where names of files are read as ASCII.

    Arrow and Vega read names as UTF-8 whatever the locale says. What is printed stays in the terminal's encoding.
    """
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8"):
        return
    shown = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{shown}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


class ReaderGone(Exception):
    """The reader of the output, such as head, has closed the pipe; further output is discarded."""


def say(text: object = "", *, end: str = "\n", flush: bool = False) -> None:
    """Print text, its control characters and what the terminal's encoding lacks as escapes."""
    try:
        print(for_terminal(text, encoding=sys.stdout.encoding), end=end, flush=flush)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from error


def error_sentence(error: Exception) -> str:
    """Return what an error says, on one line and in characters that a terminal can show."""
    text = str(error)
    if isinstance(error, MemoryError):
        text = "out of memory; give smaller documents or --batch-tokens. What was written is kept."
    elif isinstance(error, ConnectionError):
        text = f"a connection broke off ({error.strerror or error}); the same command continues from what was written."
    elif isinstance(error, OSError):  # anything not handled earlier: a full disk, a drive that was unplugged
        place = "" if error.filename is None else f"{str(error.filename)!r}: "
        text = f"{place}{error.strerror or error}; check the path and the disk. What was written is kept."
    elif not isinstance(error, MechregError):
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"unexpected error ({what}); the same command with --debug shows where."
    return for_terminal(text, lines=False)


def open_standard_files() -> bool:
    """Reopen closed standard streams, so that no file gets their descriptors; return whether stdout was open."""
    was_open = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return was_open
