"""How a verb is declared, and the options that several verbs have."""

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from mechreg.schema import InputError, did_you_mean, require_whole_number


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, like all others, without the usage message."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        hint = ""
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            hint = did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        raise InputError(f"{message}; see {self.prog} --help.{hint}")


class Verbs:
    """The verbs that a parser has so far."""

    def __init__(self, group: "argparse._SubParsersAction[Any]") -> None:
        self._group = group

    def add(self, verb: Callable[[argparse.Namespace], int], *, example: str) -> argparse.ArgumentParser:
        """Return the parser of a new verb: the function's name and the first line of its docstring."""
        text = str(verb.__doc__).partition("\n")[0]
        made: argparse.ArgumentParser = self._group.add_parser(
            verb.__name__,
            help=text,
            description=text,
            epilog=f"Example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_debug(made, default=argparse.SUPPRESS)  # keeps a --debug given before the verb
        made.set_defaults(verb=verb)
        return made


def add_debug(made: argparse.ArgumentParser, *, default: Any = False) -> None:
    """Add ``--debug``."""
    made.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_device(made: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_backend(made: argparse.ArgumentParser) -> None:
    """Add ``--backend``."""
    made.add_argument("--backend", default="auto", help="auto, hooked or bridge")


def add_model(made: argparse.ArgumentParser) -> None:
    """Add the options that say which model `load` loads."""
    made.add_argument("model", help="a hub name, a folder, or a miniature such as mini-s")
    add_backend(made)
    made.add_argument("--revision", help="branch, tag or commit on the hub")
    made.add_argument("--allow-pickle", action="store_true", help="read weights that exist only as pickle")


def load(args: argparse.Namespace) -> Any:
    """Return the model that the options of `add_model` name."""
    from mechreg.models import load_model

    return load_model(
        args.model, backend=args.backend, revision=args.revision, allow_pickle=args.allow_pickle
    )


def add_corpus(made: argparse.ArgumentParser) -> None:
    """Add the options that say which texts `documents_of` reads."""
    made.add_argument("--corpus", default="demo", help="a file, a glob, datasets:NAME (default: demo)")
    made.add_argument("--documents", type=int, help="use only the first N documents of the corpus")


def documents_of(args: argparse.Namespace) -> Any:
    """Return the texts that a verb reads: the corpus as it is named, or its first documents."""
    from mechreg.corpus import read_corpus

    if args.documents is None:
        return args.corpus
    require_whole_number(args.documents, name="--documents")
    return read_corpus(args.corpus).head(args.documents)
