"""What the verbs print: text that any terminal can show and none obeys."""

import os
import sys

from mechreg.outside import for_terminal


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


def say(text: object = "", *, end: str = "\n") -> None:
    r"""Print text, its control characters and what the terminal's encoding lacks as escapes.

    Examples
    --------
    >>> say("gpt2\x1b[31m")
    gpt2\x1b[31m
    """
    print(for_terminal(text, encoding=sys.stdout.encoding), end=end)
