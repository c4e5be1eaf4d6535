"""What the verbs print: text that any terminal can show and none obeys."""

import sys

from mechreg.outside import for_terminal


def say(text: object = "", *, end: str = "\n") -> None:
    r"""Print text, its control characters and what the terminal's encoding lacks as escapes.

    Examples
    --------
    >>> say("gpt2\x1b[31m")
    gpt2\x1b[31m
    """
    print(for_terminal(text, encoding=sys.stdout.encoding), end=end)
