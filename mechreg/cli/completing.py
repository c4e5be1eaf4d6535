"""Shell completion: the script that shtab makes of the parser."""

import argparse
from pathlib import Path
from typing import get_args

import shtab

from mechreg import miniatures
from mechreg.schema import Backend, Hook

# What can be chosen is given to the script only: while parsing, the verbs refuse in better words.
CHOICES = {"model": miniatures.NAMES, "backend": get_args(Backend), "hook": get_args(Hook)}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a parser whose commands are subparsers, for bash, zsh or tcsh.

    It is static: a completion starts no Python. The parser is altered, so make one for this.

    Examples
    --------
    >>> parser = argparse.ArgumentParser(prog="mechreg")
    >>> _ = parser.add_subparsers().add_parser("check", help="Check.").add_argument("model")
    >>> "mini-s" in script(parser, "bash")
    True
    """
    for made in _commands(parser):
        for action in made._actions:
            action.choices = CHOICES.get(action.dest, action.choices)
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [made for group in groups for made in group.choices.values()]
