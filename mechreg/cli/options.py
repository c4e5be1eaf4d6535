"""How a verb is declared, and the options that several verbs have."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from mechreg.schema import InputError, did_you_mean, require_number


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, like all others, without the usage message."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        hint = ""
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            hint = did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        message = re.sub("^argument ([^ ]+): must be", r"\1 must be", message)
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


def add_number(
    made: argparse.ArgumentParser,
    option: str,
    text: str,
    *,
    default: int | float | None = None,
    **bounds: Any,
) -> None:
    """Add an option of a number, whose help has the least that it may be; ``bounds`` are those of `require_number`."""

    def number(value: str) -> Any:
        given: Any = value
        with contextlib.suppress(ValueError):
            given = int(value) if bounds.get("whole") else float(value)
        try:
            require_number(given, name="", **bounds)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error).strip(" .")) from error
        return given

    least = f"above {bounds['least']}" if bounds.get("strict") else f"{bounds['least']} or more"
    ends = least if default is None else f"{least}; default: {default:g}"
    made.add_argument(option, type=number, default=default, help=f"{text} ({ends})")


def add_device(made: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_backend(made: argparse.ArgumentParser) -> None:
    """Add ``--backend``."""
    made.add_argument("--backend", default="auto", help="auto, hooked or bridge")


def add_model(made: argparse.ArgumentParser) -> None:
    """Add the options that say which model `load` loads."""
    made.add_argument("model", help="a hub name, a folder, a .gguf file, or a miniature such as mini-s")
    add_backend(made)
    made.add_argument("--revision", help="branch, tag or commit on the hub; or in the name, as in gpt2@main")
    made.add_argument("--allow-pickle", action="store_true", help="read weights that exist only as pickle")


def load(args: argparse.Namespace) -> Any:
    """Return the model that the options of `add_model` name."""
    require_places([args.model], revision=args.revision)
    from mechreg.models import load_model

    return load_model(
        args.model, backend=args.backend, revision=args.revision, allow_pickle=args.allow_pickle
    )


def require_places(models: Iterable[str], *, revision: str | None = None) -> None:
    """Refuse a path without a model, before torch is imported."""
    from mechreg.models.naming import find_place

    for model in models:
        find_place(model, revision)


def add_corpus(made: argparse.ArgumentParser) -> None:
    """Add the options that say which texts `documents_of` reads."""
    made.add_argument("--corpus", default="demo", help="a file, a glob, datasets:NAME (default: demo)")
    add_number(made, "--documents", "use only so many of the first documents", least=1, whole=True)


def files_of_corpus(corpus: str) -> list[Path]:
    """Return the local files of a corpus; a path that is not there is refused."""
    if corpus == "demo" or corpus.startswith("datasets:"):
        return []
    from mechreg.corpus.reading import files_of

    remedy = "give a file, a glob in quotes such as 'texts/*.txt', datasets:NAME, or demo"
    return [Path(path) for path, _ in files_of(corpus, remedy=remedy)]


def documents_of(args: argparse.Namespace, corpus: str | None = None) -> Any:
    """Return the documents that a verb reads, of its corpus or another."""
    corpus = args.corpus if corpus is None else corpus
    files_of_corpus(corpus)
    from mechreg.corpus import read_corpus

    return read_corpus(corpus).iloc[: args.documents]


def listed(text: str) -> list[str]:
    """Return names that are separated by commas; none of an empty text."""
    return [name.strip() for name in text.split(",")] if text.strip() else []
