"""``mechreg completion``: the script that shtab makes of the parser."""

import argparse
from pathlib import Path
from typing import get_args

from mechreg import miniatures
from mechreg.cli.options import Verbs
from mechreg.cli.terminal import say
from mechreg.schema import Backend, Hook

# Choices go into the completion script only: the verbs give better error messages than argparse.
CHOICES = {"model": miniatures.NAMES, "backend": get_args(Backend), "hook": get_args(Hook)}


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(
        completion, example="mechreg completion bash > ~/.local/share/bash-completion/completions/mechreg"
    )
    made.add_argument("shell", choices=("bash", "zsh", "fish"))


def completion(args: argparse.Namespace) -> int:
    """Print the script that completes mechreg's commands and options in your shell."""
    import shtab

    from mechreg.cli import parser

    made = parser()
    for group in made._actions:
        for verb in group.choices.values() if isinstance(group, argparse._SubParsersAction) else ():
            for action in verb._actions:
                action.choices = CHOICES.get(action.dest, action.choices)
                if action.type is Path:
                    action.complete = shtab.FILE
    say(shtab.complete(made, shell=args.shell), end="")
    return 0
